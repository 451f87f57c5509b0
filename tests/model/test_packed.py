"""Packed rows are separate rows: the same logits and gradients, nothing from one document to another, no [T, T]."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from smelt.model.attention import Causal, Flex, Masked, Packed, Sliding, attends, document_lengths, places_in_documents
from smelt.model.attention_mask import additive_mask
from smelt.model.decoder import Decoder
from tests.tiny import WINDOW, random_tensors, tiny_config, variants

NAMES = sorted(variants())
LENGTHS = [[3, 2 * WINDOW, 5 * WINDOW - 3 - 2 * WINDOW - 4], [5 * WINDOW - 1, 1], [1, 1, 4 * WINDOW + 1]]


def segments_of(lengths: list[list[int]], width: int) -> Tensor:
    rows = [[i for i, length in enumerate(row) for _ in range(length)] for row in lengths]
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int32)


def documents(ids: Tensor, lengths: list[list[int]]) -> Iterator[tuple[int, slice, Tensor]]:
    """(row, places, ids [1, length]) of each document."""
    for row, found in enumerate(lengths):
        start = 0
        for length in found:
            yield row, slice(start, start + length), ids[row : row + 1, start : start + length]
            start += length


def built(name: str, dtype: torch.dtype) -> tuple[Decoder, Tensor]:
    config = variants()[name]
    ids = torch.randint(2, config.vocab_size, (3, 5 * WINDOW), generator=torch.Generator().manual_seed(3))
    return Decoder.from_tensors(config, random_tensors(config, 2)).to(dtype), ids


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_separate_rows(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Logits and the gradients of every parameter, on all families; padding adds nothing."""
    decoder, ids = built(name, dtype)
    packed = decoder(ids, segment_ids_BT=segments_of(LENGTHS, ids.shape[1]))
    loss, apart = packed.new_zeros(()), packed.new_zeros(())
    for row, places, alone in documents(ids, LENGTHS):
        logits = decoder(alone)
        torch.testing.assert_close(packed[row : row + 1, places], logits, atol=tolerance, rtol=tolerance)
        targets = alone.roll(1, 1).flatten()
        apart = apart + cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
        loss = loss + cross_entropy(packed[row, places], targets, reduction="sum")
    parameters = dict(decoder.named_parameters())
    ours, theirs = (torch.autograd.grad(x, list(parameters.values())) for x in (loss, apart))
    for found, sought in zip(ours, theirs, strict=True):
        size = sought.abs().max().item()
        torch.testing.assert_close(found, sought, atol=tolerance * max(1.0, size), rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
@torch.no_grad()
def test_a_document_does_not_feel_the_others(name: str) -> None:
    """Not one bit of it, whichever of the others changes."""
    decoder, ids = built(name, torch.float32)
    segments = segments_of(LENGTHS, ids.shape[1])
    before = decoder(ids, segment_ids_BT=segments)
    for row, changed, _ in documents(ids, LENGTHS):
        other = ids.clone()
        other[row, changed] = (ids[row, changed] + 1) % decoder.config.vocab_size
        after = decoder(other, segment_ids_BT=segments)
        assert not torch.equal(after[row, changed], before[row, changed])
        for neighbour, places, _ in documents(ids, LENGTHS):
            if (neighbour, places) != (row, changed):
                assert torch.equal(after[neighbour, places], before[neighbour, places])


def heads(T: int, *, rows: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:  # noqa: N803
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, n, T, 16, generator=generator, dtype=torch.float64) for n in (4, 2, 2))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@settings(max_examples=40, deadline=None)
@given(window=st.integers(1, 150), T=st.integers(1, 700), rows=st.integers(1, 2))
def test_windows_in_blocks_equal_the_dense_mask(window: int, T: int, rows: int) -> None:  # noqa: N803
    q, k, v = heads(T, rows=rows)
    places = torch.arange(T)
    twin = Masked(additive_mask(places, places, window=window, dtype=q.dtype))
    found, sought = Sliding.of(window, q)(q, k, v, 0.3), twin(q, k, v, 0.3)
    torch.testing.assert_close(found, sought, atol=1e-12, rtol=0)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype)
    ours, theirs = (torch.autograd.grad((x * pull).sum(), (q, k, v)) for x in (found, sought))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 40), max_size=5), min_size=1, max_size=3),
    fill=st.integers(0, 9),
    window=st.sampled_from([None, 1, 7, 64]),
)
def test_packed_attention_equals_the_dense_mask(lengths: list[list[int]], fill: int, window: int | None) -> None:
    width = max(sum(row) for row in lengths) + fill
    assume(any(lengths))
    q, k, v = heads(width, rows=len(lengths))
    segments = segments_of(lengths, width)
    attend = attends([window], 0, segments, q[:, 0])[window]
    assert isinstance(attend, Packed)
    found = attend(q, k, v, 0.25)
    places = torch.arange(width)
    mask = additive_mask(places, places, window=window, dtype=q.dtype)
    other = segments[:, None, :, None] != segments[:, None, None, :]
    sought = Masked(mask.expand(other.shape).masked_fill(other, -torch.inf))(q, k, v, 0.25)
    inside = (segments >= 0)[:, None, :, None]
    torch.testing.assert_close(found, sought.where(inside, 0.0), atol=1e-12, rtol=0)
    ours, theirs = (torch.autograd.grad((x * inside).square().sum(), (q, k, v)) for x in (found, sought))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_the_accelerators_kernel_sees_the_same() -> None:
    """What an accelerator runs compiled, here uncompiled: documents, windows, grouped heads, padding left out."""
    segments = segments_of([[30, 20, 10], [64]], 64)
    inside = (segments >= 0)[:, None, :, None]
    q, k, v = (x.detach() for x in heads(64, rows=2))
    for window in (None, 5):
        found = Flex.of(segments, window, compiled=False)(q, k, v, 0.25)
        sought = attends([window], 0, segments, q[:, 0])[window](q, k, v, 0.25)
        torch.testing.assert_close(found * inside, sought * inside, atol=1e-12, rtol=0)


def test_a_long_document_holds_no_square_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """T = 4,096 in one document: what the kernel is given, mask included, is linear in T."""
    T, window = 4096, 128  # noqa: N806
    largest = 0

    def spy(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, is_causal: bool, **rest: object) -> Tensor:
        nonlocal largest
        assert is_causal or attn_mask is not None
        largest = max(largest, 0 if attn_mask is None else attn_mask.numel(), *(x.numel() for x in (q, k, v)))
        return scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr("smelt.model.attention.F.scaled_dot_product_attention", spy)
    q, k, v = (torch.randn(1, n, T, 8) for n in (2, 1, 1))
    for segments in (None, torch.zeros(1, T, dtype=torch.int32)):
        for attend in attends([None, window], 0, segments, q[:, 0]).values():
            attend(q, k, v, 1.0)
    assert 0 < largest <= 4 * T * 8


@pytest.mark.parametrize("name", ["gemma3", "llama"])
def test_checkpointed_layers_change_no_bit(name: str) -> None:
    config = variants()[name]
    gradients = []
    ids = torch.randint(2, config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    segments = segments_of([[17, 20]], 40)
    for checkpointed in (False, True):
        decoder = Decoder.from_tensors(config, random_tensors(config, 2))
        decoder.checkpoint_layers = checkpointed
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        decoder.model.layers[0].register_forward_pre_hook(count)
        loss = decoder(ids, segment_ids_BT=segments).square().mean()
        gradients.append(torch.autograd.grad(loss, list(decoder.parameters())))
        assert calls == 1 + checkpointed
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_lengths_and_places() -> None:
    segments = torch.tensor([[0, 0, 1, 2, 2, -1], [4, 4, 4, 4, 4, 4], [-1, -1, -1, -1, -1, -1]])
    assert document_lengths(segments) == ((2, 1, 2), (6,), ())
    assert places_in_documents(segments).tolist() == [[0, 1, 0, 0, 1, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("row", [[0, 1, 0], [-1, 0, 0], [0, -1, 1]])
def test_a_document_in_two_pieces_is_refused(row: list[int]) -> None:
    with pytest.raises(ValueError, match="one run of places per document and padding"):
        document_lengths(torch.tensor([row]))


@torch.no_grad()
def test_frequencies_keep_their_precision_in_a_half_precision_model() -> None:
    """Found here: `.to(bfloat16)` rounded the frequencies too, so that far positions turned by wrong angles."""
    config = dataclasses.replace(tiny_config("llama"), context_len=4096)
    decoder = Decoder.from_tensors(config, random_tensors(config))
    sought = [rope(torch.arange(4000))[0] for rope in decoder.ropes]
    halved = decoder.to(torch.bfloat16)
    assert halved.model.norm.weight.dtype == torch.bfloat16
    for rope, angles in zip(halved.ropes, sought, strict=True):
        assert torch.equal(rope(torch.arange(4000))[0], angles)


def test_short_rows_need_no_mask() -> None:
    like = torch.zeros(2, 16, 4)
    assert attends([None, 16], 0, None, like) == {None: Causal(), 16: Causal()}
    assert isinstance(attends([15], 0, None, like)[15], Sliding)
    assert isinstance(attends([15], 3, None, like)[15], Masked)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other lengths in the next batch are no reason to compile again."""
    import torch._dynamo

    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    config = tiny_config("gemma3_text", num_layers=2)
    plain, compiled = (Decoder.from_tensors(config, random_tensors(config, 2)) for _ in range(2))
    for layer in compiled.model.layers:
        layer.compile()
    ids = torch.randint(2, config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    for lengths in ([10, 30], [4, 5, 6], [39]):
        logits = [model(ids, segment_ids_BT=segments_of([lengths], 40)) for model in (plain, compiled)]
        torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=0)
