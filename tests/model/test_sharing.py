"""Layers that share matrices: stored once, trained by the sum of their uses, decoded with a cache of their own each.

The slow twin of a sharing decoder is the plain one: every layer with its own copy of the matrix, residue added.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig

from smelt.checkpoint import open_checkpoint, save_checkpoint
from smelt.checkpoint.hf_config import from_hf, to_hf
from smelt.core.decoder import MATRICES, DecoderConfig
from smelt.core.errors import CheckpointError, UnsupportedError
from smelt.engine.torch_runner import TorchRunner
from smelt.model.cache import KVCache
from smelt.model.decoder import Decoder
from tests.native.batches import Chunk, make_batch
from tests.tiny import WINDOW, random_tensors, tiny_config

Arrays = dict[str, Any]


def sharing(family: Any, homes: tuple[int | None, ...], *, rank: int = 0, entries: bool = False) -> DecoderConfig:
    """A tiny decoder whose layer i uses the matrices of layer homes[i]."""
    config = tiny_config(family, num_layers=len(homes))
    layers = tuple(
        dataclasses.replace(layer, weights=home, residue_rank=rank, entry_bias=entries and home is not None)
        for layer, home in zip(config.layers, homes, strict=True)
    )
    return dataclasses.replace(config, layers=layers)


ADJACENT = (None, 0, None, 2)
LOOP = (None, None, None, 1, 2, None)
SHARING = {
    "llama-adjacent": sharing("llama", ADJACENT),
    "qwen2-adjacent-residue": sharing("qwen2", ADJACENT, rank=3),
    "qwen3-loop": sharing("qwen3", LOOP),
    "gemma3-loop-residue-entries": sharing("gemma3_text", LOOP, rank=4, entries=True),
}


def plain_twin(config: DecoderConfig, tensors: Arrays) -> tuple[DecoderConfig, Arrays]:
    """The same model with a matrix for every use."""
    layers = tuple(dataclasses.replace(layer, weights=None, residue_rank=0) for layer in config.layers)
    twin = dataclasses.replace(config, layers=layers)
    found = {}
    for name in twin.tensor_shapes():
        found[name] = tensors.get(name)
    for i in range(config.num_layers):
        for stem in MATRICES:
            weight = tensors[f"model.layers.{config.home(i)}.{stem}_proj.weight"].astype(np.float64)
            path = f"model.layers.{i}.{stem}"
            if config.layers[i].residue_rank:
                weight = weight + tensors[path + "_residue.expand"].astype(np.float64) @ tensors[
                    path + "_residue.reduce"
                ].astype(np.float64)
            found[path + "_proj.weight"] = weight.astype(np.float32)
    return twin, found


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(2, 96, shape, generator=torch.Generator().manual_seed(3))


def loss_of(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy(decoder(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("name", SHARING)
def test_a_shared_matrix_is_one_parameter(name: str) -> None:
    """By address: as many as the configuration counts, and none of them twice."""
    config = SHARING[name]
    decoder = Decoder(config)
    by_address = {p.data_ptr(): p.numel() for m in decoder.modules() for p in m.parameters(recurse=False)}
    assert sum(by_address.values()) == config.num_parameters
    assert len(by_address) == len(config.tensor_shapes())
    assert dict(decoder.named_parameters()).keys() == config.tensor_shapes().keys()
    own = dataclasses.replace(config, layers=tuple(dataclasses.replace(x, weights=None) for x in config.layers))
    matrices = sum(rows * cols for rows, cols in config.matrix_shapes().values())
    borrowers = sum(layer.weights is not None for layer in config.layers)
    assert own.num_parameters - config.num_parameters == borrowers * matrices > 0


@pytest.mark.parametrize("name", SHARING)
@torch.no_grad()
def test_logits_are_those_of_the_plain_twin(name: str) -> None:
    config = SHARING[name]
    tensors = random_tensors(config, 1)
    ids = some_ids(2, 3 * WINDOW)
    found = Decoder.from_tensors(config, tensors)(ids)
    sought = Decoder.from_tensors(*plain_twin(config, tensors))(ids)
    torch.testing.assert_close(found, sought, atol=2e-4, rtol=1e-4)
    for changed in ("_residue.expand", "entry.bias", "input_layernorm.weight"):  # each is the layer's own, and is used
        names = [n for n in tensors if n.endswith(changed)]
        other = tensors | ({names[-1]: tensors[names[-1]] + 0.5} if names else {})
        assert not names or (Decoder.from_tensors(config, other)(ids) - found).abs().max() > 0.01


@pytest.mark.parametrize("name", SHARING)
def test_the_gradient_of_a_shared_matrix_is_the_sum_over_its_uses(name: str) -> None:
    config = SHARING[name]
    tensors, ids = random_tensors(config, 2), some_ids(2, 20)
    shared = Decoder.from_tensors(config, tensors).double()
    twin_config, twin_tensors = plain_twin(config, tensors)
    twin = Decoder.from_tensors(twin_config, twin_tensors).double()
    with torch.no_grad():  # the residue's product in float64 as well, or its rounding is what would be compared
        for i, stem in ((i, stem) for i, layer in enumerate(config.layers) if layer.residue_rank for stem in MATRICES):
            residue = shared.get_submodule(f"model.layers.{i}.{stem}_residue")
            home = shared.get_submodule(f"model.layers.{config.home(i)}.{stem}_proj")
            twin.get_submodule(f"model.layers.{i}.{stem}_proj").weight.copy_(
                home.weight + residue.expand @ residue.reduce
            )
    for decoder in (shared, twin):
        loss_of(decoder, ids).backward()
    theirs = dict(twin.named_parameters())
    for i in range(config.num_layers):
        users = [j for j in range(config.num_layers) if config.home(j) == i]
        for stem in MATRICES:
            uses = [theirs[f"model.layers.{j}.{stem}_proj.weight"].grad for j in users]
            if uses:
                found = shared.get_parameter(f"model.layers.{i}.{stem}_proj.weight").grad
                torch.testing.assert_close(found, sum(uses), atol=1e-10, rtol=1e-8)
            if config.layers[i].residue_rank:
                own = theirs[f"model.layers.{i}.{stem}_proj.weight"].grad
                residue = shared.get_submodule(f"model.layers.{i}.{stem}_residue")
                torch.testing.assert_close(residue.expand.grad, own @ residue.reduce.T, atol=1e-10, rtol=1e-8)
                torch.testing.assert_close(residue.reduce.grad, residue.expand.T @ own, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", SHARING)
@torch.no_grad()
def test_cached_decode_is_the_full_forward(name: str) -> None:
    """Every layer that runs has keys and values of its own, those that share matrices too."""
    config = SHARING[name]
    decoder = Decoder.from_tensors(config, random_tensors(config, 3)).eval()
    ids = some_ids(2, 3 * WINDOW)
    cache = KVCache(config, batch=2)
    found = [decoder(piece, cache=cache) for piece in ids.split([10, 1, 1, 5, 7], dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), decoder(ids), atol=1e-4, rtol=1e-4)
    assert config.kv_bytes_per_token == 2 * 4 * len(config.layers) * config.num_kv_heads * config.head_dim
    keys = cache._data[:, 0, 0, :, 0].flatten(1)
    assert len(torch.unique(keys, dim=0)) == config.num_layers


@pytest.mark.parametrize("name", ["qwen2-adjacent-residue", "gemma3-loop-residue-entries"])
def test_the_torch_runner_pages_by_the_layers_that_run(name: str) -> None:
    config = SHARING[name]
    tensors, ids = random_tensors(config, 3), some_ids(1, 40)
    runner = TorchRunner(config, tensors, num_blocks=4)
    assert runner._pool.data.shape[0] == config.num_layers
    found = _scored(runner, ids[0].tolist())
    with torch.no_grad():
        logprobs = Decoder.from_tensors(config, tensors)(ids).log_softmax(-1)[0, :-1]
    sought = logprobs.gather(1, ids[0, 1:, None])[:, 0].numpy()
    np.testing.assert_allclose(found[: len(sought)], sought, atol=1e-3)


def _scored(runner: TorchRunner, ids: list[int]) -> Any:
    batch = make_batch([Chunk(ids=ids, score=True, top_k=0, next_id=0)], runner.vocab_size)
    return runner.step(batch).scored_logprobs


def test_a_loop_of_one_pass_is_the_plain_model() -> None:
    """R = 1: a home for every layer is no sharing, to the bit and to the last key of config.json."""
    plain = tiny_config("llama", num_layers=4)
    alone = sharing("llama", (None,) * 4)
    assert alone == plain and to_hf(alone) == to_hf(plain) and alone.plain
    fresh, once = Decoder(plain), Decoder(SHARING["llama-adjacent"])
    for decoder in (fresh, once):
        decoder.init_weights(1)
    first = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(fresh.get_parameter(first), once.get_parameter(first))


def test_fresh_residues_and_entries_change_nothing() -> None:
    config = SHARING["gemma3-loop-residue-entries"]
    bare = dataclasses.replace(
        config, layers=tuple(dataclasses.replace(x, residue_rank=0, entry_bias=False) for x in config.layers)
    )
    decoder, ids = Decoder(config), some_ids(1, 12)
    decoder.init_weights(4)
    without = Decoder.from_tensors(bare, decoder.tensors())
    torch.testing.assert_close(decoder(ids), without(ids))


@pytest.mark.parametrize("name", SHARING)
def test_a_folder_stores_it_once_and_gives_it_back_shared(tmp_path: Path, name: str) -> None:
    config = SHARING[name]
    tensors = random_tensors(config, 5)
    save_checkpoint(tmp_path / "m", config, Decoder.from_tensors(config, tensors).tensors())
    opened = open_checkpoint(tmp_path / "m")
    assert opened.config == config
    data = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert data - 4 * config.num_parameters < 16384, "beside the parameters there is a header, and no second copy"
    again = Decoder.from_tensors(opened.config, opened.tensors)
    borrower = next(i for i, layer in enumerate(config.layers) if layer.weights is not None)
    layers = again.model.layers
    assert layers[borrower].mlp.up_proj.weight is layers[config.home(borrower)].mlp.up_proj.weight
    torch.testing.assert_close(again(some_ids(1, 9)), Decoder.from_tensors(config, tensors)(some_ids(1, 9)))
    with pytest.raises(ValueError, match="smelt_"):
        AutoConfig.from_pretrained(tmp_path / "m")


def test_a_config_that_cannot_be_is_refused() -> None:
    document = json.loads(json.dumps(to_hf(SHARING["gemma3-loop-residue-entries"])))
    assert document["layer_weights"] == [0, 1, 2, 1, 2, 5]
    for wrong in (
        [0, 1, 2, 1, 2],
        [0, 1, 2, 1, 2, 6],
        [0, 2, 2, 1, 2, 5],
        [0, 1, 1, 2, 2, 5],
        [0, 1, 2, 1, True, 5],
        3,
    ):
        with pytest.raises(CheckpointError, match="layer_weights must be"):
            from_hf(document | {"layer_weights": wrong})
    with pytest.raises(CheckpointError, match="layer_residue_ranks must be a list of 6"):
        from_hf(document | {"layer_residue_ranks": [4] * 5 + [-1]})
    with pytest.raises(CheckpointError, match="layer_entry_biases must be a list of 6"):
        from_hf(document | {"layer_entry_biases": [0] * 6})
    plain = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    with pytest.raises(UnsupportedError, match="layer_weights"):
        from_hf(document | plain)
    with pytest.raises(ValueError, match="layer 1 uses the weights of layer 2"):
        sharing("llama", (None, 2, None))
    with pytest.raises(ValueError, match="layer 2 uses the weights of layer 1"):
        sharing("llama", (None, 0, 1))
