"""Linear attention: three forms of one sum, a state that does not grow, and the families' own heads around it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoConfig

from smelt.checkpoint import open_checkpoint, save_checkpoint
from smelt.checkpoint.hf_config import from_hf, to_hf
from smelt.core.decoder import DecoderConfig, LinearConfig
from smelt.core.errors import CheckpointError, EngineError, UnsupportedError
from smelt.engine.torch_runner import TorchRunner
from smelt.model import delta_attention, hybrid_attention
from smelt.model.cache import KVCache
from smelt.model.decoder import Decoder
from smelt.native import NativeRunner
from tests.native.batches import BLOCK_SIZE, Chunk, make_batch
from tests.tiny import random_tensors, tiny_config

HYBRID = LinearConfig(kind="hybrid", window=5, feature_dim=6)
DELTA = LinearConfig(kind="gated delta", window=1, feature_dim=12)
LINEAR = {"hybrid": HYBRID, "gated delta": DELTA}


def linear_config(family: Any = "llama", linear: LinearConfig = HYBRID, **changes: Any) -> DecoderConfig:
    """A tiny decoder whose layers are linear wherever they see everything, but for the last of these."""
    config = tiny_config(family, **({"num_layers": 4} | changes))
    full = [i for i, layer in enumerate(config.layers) if layer.window is None]
    chosen = full[:-1] or full
    layers = tuple(
        dataclasses.replace(layer, linear=linear if i in chosen else None) for i, layer in enumerate(config.layers)
    )
    return dataclasses.replace(config, layers=layers)


MODELS = {
    "llama-hybrid": linear_config("llama"),
    "qwen2-delta": linear_config("qwen2", DELTA),
    "qwen3-hybrid": linear_config("qwen3", dataclasses.replace(HYBRID, window=1)),
    "gemma3-hybrid": linear_config("gemma3_text", dataclasses.replace(HYBRID, feature_dim=20)),
    "gemma3-delta": linear_config("gemma3_text", DELTA, tie_embeddings=False),
    "llama-delta-all-heads": linear_config("llama", dataclasses.replace(DELTA, feature_dim=24), num_kv_heads=4),
}


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hybrid_case(T: int, R: int, dtype: torch.dtype) -> list[Tensor]:  # noqa: N803
    """q, k, v, their features, S and z, weights: 2 rows, 2 key/value heads of 3 queries."""
    free = [drawn(2, 2, 3, T, 4, seed=1), 2 * drawn(2, 2, R + T, 4, seed=2), drawn(2, 2, R + T, 4, seed=3)]
    features = [drawn(2, 2, 3, T, 6, seed=4).softmax(-1), drawn(2, 2, R + T, 6, seed=5).softmax(-1)]
    sums = [drawn(2, 2, 6, 4, seed=6), drawn(2, 2, 6, seed=7).exp()]
    return [x.to(dtype).requires_grad_() for x in (*free, *features, *sums, drawn(2, 3, seed=8).sigmoid())]


def hybrid_forms(window: int, block: int) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    def form(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        def run(*case: Tensor) -> tuple[Tensor, ...]:
            tokens, sums = hybrid_attention.Tokens(*case[:5]), hybrid_attention.Sums(*case[5:7])
            after = sums.after(tokens, window)
            blend = hybrid_attention.Blend(window, 0.7, case[7])
            return function(tokens, sums, blend), after.values, after.features

        return run

    def in_blocks(*given: Any) -> Tensor:
        return hybrid_attention.chunked(*given, block=block)

    forms = {"recurrent": hybrid_attention.recurrent, "quadratic": hybrid_attention.quadratic, "chunked": in_blocks}
    return {name: form(function) for name, function in forms.items()}


def delta_case(T: int, dtype: torch.dtype) -> list[Tensor]:  # noqa: N803
    q, k = normalize(drawn(2, 2, 3, T, 5, seed=1), dim=-1), normalize(drawn(2, 2, T, 5, seed=2), dim=-1)
    gates = [-drawn(2, 2, T, seed=4).exp(), drawn(2, 2, T, seed=5).sigmoid()]
    return [x.to(dtype).requires_grad_() for x in (q, k, drawn(2, 2, T, 4, seed=3), *gates, drawn(2, 2, 5, 4, seed=6))]


def delta_forms(block: int) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    def form(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *case: function(delta_attention.Tokens(*case[:5]), case[5])

    def in_blocks(*given: Any) -> tuple[Tensor, Tensor]:
        return delta_attention.chunked(*given, block=block)

    forms = {"recurrent": delta_attention.recurrent, "quadratic": delta_attention.quadratic, "chunked": in_blocks}
    return {name: form(function) for name, function in forms.items()}


def agree(forms: dict[str, Callable[..., tuple[Tensor, ...]]], case: list[Tensor], tolerance: float) -> None:
    """Outputs, states and the gradients of all that enters."""
    found = {}
    for name, form in forms.items():
        made = form(*case)
        wanted = sum((part * drawn(*part.shape, seed=9 + i)).sum() for i, part in enumerate(made))
        found[name] = (*made, *torch.autograd.grad(wanted, case))
    for name in ("quadratic", "chunked"):
        for one, other in zip(found["recurrent"], found[name], strict=True):
            torch.testing.assert_close(other, one, atol=tolerance, rtol=tolerance)


@settings(max_examples=15, deadline=None)
@given(T=st.integers(1, 40), kept=st.integers(0, 9), window=st.integers(1, 10), block=st.integers(1, 8))
def test_the_forms_of_the_hybrid_are_equal(T: int, kept: int, window: int, block: int) -> None:  # noqa: N803
    agree(hybrid_forms(window, block), hybrid_case(T, min(kept, window - 1), torch.float64), 1e-9)


@settings(max_examples=10, deadline=None)
@given(T=st.integers(1, 30), block=st.integers(1, 12))
def test_the_forms_of_the_delta_rule_are_equal(T: int, block: int) -> None:  # noqa: N803
    agree(delta_forms(block), delta_case(T, torch.float64), 1e-9)


def test_in_float32_they_are_equal_to_four_places() -> None:
    agree(hybrid_forms(12, 16), hybrid_case(150, 11, torch.float32), 1e-4)
    agree(delta_forms(16), delta_case(150, torch.float32), 1e-4)


def test_the_hybrid_is_softmax_where_the_window_holds_all() -> None:
    q, k, v, fq, fk, *_ = hybrid_case(9, 0, torch.float64)
    tokens = hybrid_attention.Tokens(q, k, v, fq, fk)
    blend = hybrid_attention.Blend(9, 0.7, torch.full((2, 3), 0.1, dtype=torch.float64))
    found = hybrid_attention.chunked(tokens, hybrid_attention.Sums.nothing(tokens), blend)
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    sought = (0.7 * q @ k[:, :, None].mT).masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, :, None]
    torch.testing.assert_close(found, sought)


def test_the_delta_rule_writes_what_it_is_told() -> None:
    """Full write, no decay, orthogonal keys: each is answered by its value; written again, by the new one."""
    k = torch.eye(4)[[0, 1, 2, 0]][None, None]
    v = torch.arange(8.0).view(1, 1, 4, 2)
    tokens = delta_attention.Tokens(k[:, :, None], k, v, torch.zeros(1, 1, 4), torch.ones(1, 1, 4))
    out, state = delta_attention.chunked(tokens, tokens.nothing())
    torch.testing.assert_close(out[0, 0, 0], v[0, 0])
    torch.testing.assert_close(state[0, 0, :3], v[0, 0, [3, 1, 2]])


def some_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_decoding_in_any_pieces_is_the_full_forward(name: str) -> None:
    config = MODELS[name]
    decoder = Decoder.from_tensors(config, random_tensors(config, 3)).eval()
    ids = some_ids(2, 160)
    sought = decoder(ids)
    caches = [KVCache(config, batch=2) for _ in range(2)]
    for cache, pieces in zip(caches, ([100, 1, 1, 3, 40, 15], [1] * 9 + [151]), strict=True):
        found = [decoder(piece, cache=cache) for piece in ids.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(found, dim=1), sought, atol=1e-3, rtol=1e-3)
    prefilled = KVCache(config, batch=2)
    decoder(ids, cache=prefilled)
    linear = [i for i, layer in enumerate(config.layers) if layer.linear is not None]
    for cache in caches:
        for layer in linear:
            for one, other in zip(cache.state(layer) or (), prefilled.state(layer) or (), strict=True):
                torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", LINEAR)
@torch.no_grad()
def test_the_state_does_not_grow(kind: str) -> None:
    """All layers linear: after 40 tokens and after 65,576 the cache holds as many bytes, and as many as it says."""
    layers = tuple(dataclasses.replace(layer, linear=LINEAR[kind]) for layer in tiny_config(num_layers=2).layers)
    config = tiny_config(
        layers=layers, context_len=1 << 17, vocab_size=32, hidden_size=8, num_heads=2, num_kv_heads=1, head_dim=4
    )
    decoder = Decoder.from_tensors(config, random_tensors(config, 3)).eval()
    cache = KVCache(config, capacity=1 << 17)
    sizes = []
    for length in (40, 1 << 16, 1):
        decoder.hidden(torch.randint(2, 32, (1, length), generator=torch.Generator().manual_seed(1)), cache=cache)
        sizes.append(cache.state_bytes)
    assert sizes == [config.state_bytes] * 3 and cache.length == 65_577
    assert config.kv_bytes_per_token == 0 and cache._data.numel() == 0


@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_are_documents_alone(name: str) -> None:
    """Logits and gradients, in float64; the second document begins with an empty state."""
    config = MODELS[name]
    decoder = Decoder.from_tensors(config, random_tensors(config, 4)).double()
    parts = [some_ids(1, 23, 1), some_ids(1, 70, 2)]
    ids = torch.cat((*parts, torch.zeros(1, 3, dtype=torch.long)), dim=1)
    segments = torch.tensor([[0] * 23 + [1] * 70 + [-1] * 3])
    packed = decoder(ids, segment_ids_BT=segments)[:, :93]
    alone = torch.cat([decoder(part) for part in parts], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-10, rtol=1e-9)
    targets = some_ids(1, 93, 5).flatten()
    parameters = list(decoder.parameters())
    for one, other in zip(
        torch.autograd.grad(cross_entropy(packed[0], targets), parameters),
        torch.autograd.grad(cross_entropy(alone[0], targets), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", ["llama-hybrid", "gemma3-delta"])
def test_every_part_is_used_and_learns(name: str) -> None:
    config = MODELS[name]
    decoder = Decoder(config)
    decoder.init_weights(1)
    again = Decoder(config)
    again.init_weights(1)
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), again.parameters(), strict=True))
    ids = some_ids(2, 40)
    cross_entropy(decoder(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    parts = {name: p for name, p in decoder.named_parameters() if ".mixer." in name}
    linear = sum(layer.linear is not None for layer in config.layers)
    assert len(parts) == linear * (3 if "hybrid" in name else 7)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parts.values())


@pytest.mark.parametrize("name", ["qwen3-hybrid", "gemma3-delta"])
def test_the_torch_runner_finds_the_state_by_its_block(name: str) -> None:
    """In chunks that end anywhere, beside another sequence, and behind a prefix that the other one computed."""
    config = MODELS[name]
    tensors, ids = random_tensors(config, 3), some_ids(1, 60)[0].tolist()
    runner = TorchRunner(config, tensors, num_blocks=12)
    other = some_ids(1, 30, 8)[0].tolist()
    found = []
    for first, end in ((0, 7), (7, 8), (8, 50), (50, 51), (51, 60)):
        mine = Chunk(ids=ids[first:end], first=first, table=[5, 2, 8, 1], score=True, top_k=0, next_id=-1)
        theirs = Chunk(ids=other, table=[0, 3]) if first == 7 else None
        batch = make_batch([mine, *([theirs] if theirs else [])], runner.vocab_size)
        found.extend(runner.step(batch).scored_logprobs[: end - first])
    with torch.no_grad():
        logprobs = Decoder.from_tensors(config, tensors)(torch.tensor([ids])).log_softmax(-1)[0]
    places = [t for t in range(59) if t + 1 not in (7, 8, 50, 51)]  # a chunk's last token has no known successor
    np.testing.assert_allclose([found[t] for t in places], [logprobs[t, ids[t + 1]] for t in places], atol=2e-3)

    shared = (
        2 * BLOCK_SIZE
    )  # a prefix hit: the first two blocks are another sequence's, nothing before them is computed
    hit = Chunk(ids=ids[shared:], first=shared, table=[5, 2, 9, 10], score=True, top_k=0)
    scored = runner.step(make_batch([hit], runner.vocab_size)).scored_logprobs[:-1]
    np.testing.assert_allclose(scored, [logprobs[t, ids[t + 1]] for t in range(shared, 59)], atol=2e-3)
    with pytest.raises(EngineError, match="no state of linear layers behind position 15"):
        runner.step(make_batch([Chunk(ids=[3], first=16, table=[11, 7])], runner.vocab_size))


def test_the_native_core_refuses_by_name() -> None:
    config = MODELS["llama-hybrid"]
    with pytest.raises(UnsupportedError, match=r"layer 0 has linear attention \(hybrid\).*the torch runner does"):
        NativeRunner(config, random_tensors(config), num_blocks=4)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_it_back_and_other_readers_refuse_it(tmp_path: Path, name: str) -> None:
    config = MODELS[name]
    decoder = Decoder.from_tensors(config, random_tensors(config, 5))
    save_checkpoint(tmp_path / "m", config, decoder.tensors())
    opened = open_checkpoint(tmp_path / "m")
    assert opened.config == config and not config.plain
    again = Decoder.from_tensors(opened.config, opened.tensors)
    assert torch.equal(again(some_ids(1, 20)), decoder(some_ids(1, 20)))
    assert sum(p.numel() for p in again.parameters()) == config.num_parameters
    with pytest.raises(ValueError, match="smelt_"):
        AutoConfig.from_pretrained(tmp_path / "m")


def test_a_config_that_cannot_be_is_refused() -> None:
    document = json.loads(json.dumps(to_hf(MODELS["gemma3-hybrid"])))
    found = document["layer_linear"]
    assert found == [None, {"kind": "hybrid", "window": 5, "feature_dim": 20}, None, None]
    for wrong, message in (
        (found[:3], "must be a list of 4 null or objects"),
        ([found[1], None, None, None], "must be null for layer 0, which slides"),
        ([None, found[1] | {"window": 0}, None, None], r"layer_linear\[1\]\.window must be a whole number"),
        ([None, found[1] | {"kind": "mamba"}, None, None], "known are hybrid, gated delta"),
        ([None, found[1] | {"chunk": 3}, None, None], "chunk = 3 is not supported"),
    ):
        with pytest.raises(CheckpointError, match=message):
            from_hf(document | {"layer_linear": wrong})
    with pytest.raises(UnsupportedError, match="layer_linear"):
        from_hf(document | {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]})
    config = MODELS["gemma3-hybrid"]
    with pytest.raises(ValueError, match="layer 0 slides over 8 tokens and is linear"):
        dataclasses.replace(config, layers=tuple(dataclasses.replace(x, linear=HYBRID) for x in config.layers))


@torch.no_grad()
def test_layers_that_share_matrices_may_be_linear_each_with_its_own_maps(tmp_path: Path) -> None:
    base = linear_config("qwen2")
    layers = tuple(dataclasses.replace(x, weights=0 if i == 1 else None) for i, x in enumerate(base.layers))
    config = dataclasses.replace(base, layers=layers)
    decoder = Decoder.from_tensors(config, random_tensors(config, 6)).eval()
    first, second = (decoder.model.layers[i].self_attn for i in (0, 1))
    assert first.q_proj.weight is second.q_proj.weight and first.mixer.q_map is not second.mixer.q_map
    save_checkpoint(tmp_path / "m", config, decoder.tensors())
    opened = open_checkpoint(tmp_path / "m")
    assert opened.config == config
    again, ids, cache = Decoder.from_tensors(config, opened.tensors), some_ids(1, 30), KVCache(config)
    torch.testing.assert_close(
        torch.cat([again(piece, cache=cache) for piece in ids.split([20, 1, 9], dim=1)], dim=1),
        decoder(ids),
        atol=1e-4,
        rtol=1e-4,
    )


@torch.no_grad()
def test_parts_can_be_switched_off_to_see_what_they_are_worth() -> None:
    """Without the linear part only the window's tokens matter, without the window only those behind it."""
    config = linear_config("llama", num_layers=1)
    decoder = Decoder.from_tensors(config, random_tensors(config, 7)).eval()
    mixer = decoder.model.layers[0].self_attn.mixer
    ids, far, near = some_ids(1, 20), some_ids(1, 20), some_ids(1, 20)
    far[0, 3], near[0, 17] = (ids[0, 3] + 1) % 96, (ids[0, 17] + 1) % 96

    def moved(other: Tensor) -> bool:
        return bool((decoder(other) - decoder(ids))[0, -1].abs().max() > 1e-6)

    assert moved(far) and moved(near)
    mixer.without_linear = True
    assert not moved(far) and moved(near)
    mixer.without_linear, mixer.without_window = False, True
    assert moved(far) and not moved(near)
    mixer.without_linear = True
    assert torch.isfinite(decoder(ids)).all()
