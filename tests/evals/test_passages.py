"""Bits per byte: every byte once, context in bounds, and controls that compress what can be compressed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.core.sampler import ChatAnswer, ChatRequest, ScoreRequest, TextScore
from smelt.core.sampling import Usage
from smelt.evals.passages import Passage, controls, pieces
from smelt.evals.suite import run, summary

texts = st.text(alphabet=st.sampled_from("ab \n中é😀"), max_size=200)


@given(texts, st.integers(4, 40), st.integers(0, 40))
def test_pieces_join_to_the_text_within_their_bounds(text: str, stride: int, context: int) -> None:
    found = list(pieces(text, stride_bytes=stride, context_bytes=context))
    assert "".join(piece for _, piece in found) == text
    done = ""
    for before, piece in found:
        assert 0 < len(piece.encode()) <= stride
        assert len(before.encode()) <= context
        assert done.endswith(before)
        done += piece


def test_cuts_fall_between_words_where_there_are_any() -> None:
    text = "alpha beta gamma delta epsilon zeta eta theta iota kappa " * 20
    found = list(pieces(text, stride_bytes=64, context_bytes=64))
    for (_, before), (context, piece) in pairwise(found):
        assert piece.startswith(" ")
        assert not before.endswith(" ")
        assert context.startswith(" ") or text.startswith(context)


def test_a_short_document_is_scored_whole() -> None:
    assert list(pieces("one two")) == [("", "one two")]


@dataclass
class Uniform:
    """Every byte has probability 1/256, one token a byte."""

    name: str = "uniform"
    fingerprint: str = "u"
    seen: list[ScoreRequest] = field(default_factory=list)

    def chat(self, request: ChatRequest) -> ChatAnswer:
        raise AssertionError("nothing to chat about")

    def score(self, request: ScoreRequest) -> TextScore:
        self.seen.append(request)
        size = len(request.text.encode())
        return TextScore(logprobs=(-math.log(256),) * size, num_bytes=size, usage=Usage(size, 0))


def test_a_uniform_model_takes_eight_bits_a_byte() -> None:
    passages = [Passage(suite="bpb", language="en", text="some words and 中文 " * n) for n in (1, 300)]
    sampler = Uniform()
    found = summary(run(sampler, passages))["bpb"]["all"]
    assert found["bits_per_byte"]["value"] == pytest.approx(8.0)
    assert found["bytes"] == sum(len(p.text.encode()) for p in passages)
    assert len(sampler.seen) > 3
    assert "exact" not in found


def test_controls_know_frequencies_and_repeats() -> None:
    assert controls(["ab" * 4000])["byte_frequencies"] == pytest.approx(1.0, abs=0.01)
    assert controls(["ab" * 4000])["xz"] < 0.2
    assert controls([]) == {}
