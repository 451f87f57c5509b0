"""Bits per byte of running text: how well a model predicts what it never saw, whatever its tokenizer.

The form, the same for every model: a document is cut into pieces of at most `STRIDE_BYTES`, each scored after at most
`CONTEXT_BYTES` of the text right before it; context and piece are cut before a space or line break, else between
characters. So each byte is predicted once, from 2,048 to 4,096 bytes of the same document where it has them, and a
document of up to 2,048 bytes is scored whole, as rolling log-likelihood is elsewhere. Cuts by bytes and not by tokens
give every model the same text to look back on.
"""

from __future__ import annotations

import lzma
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smelt.core.sampler import Sampler, ScoreRequest
from smelt.core.sampling import Usage
from smelt.evals.cases import Reply
from smelt.evals.grade import Grade

CONTEXT_BYTES = 2048
STRIDE_BYTES = 2048
FORM = f"pieces of {STRIDE_BYTES} bytes after {CONTEXT_BYTES} bytes of context"


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A document to predict. `group`: what it shares with others (parallel translations, pages of one book)."""

    suite: str
    language: str
    text: str
    group: str = ""
    chance: float | None = None

    def asked(self) -> Any:
        """The text and the form it is scored in."""
        return {"passage": self.text, "form": FORM}

    def ask(self, sampler: Sampler) -> Reply:
        """Score every piece after its context."""
        scores, num_tokens = [], 0
        for context, piece in pieces(self.text):
            score = sampler.score(ScoreRequest(text=piece, context=context))
            scores.append((score.nats, score.num_bytes))
            num_tokens += score.usage.prompt_tokens
        return Reply(scores=tuple(scores), usage=Usage(num_tokens, 0))

    def grade(self, reply: Reply) -> Grade:
        """Bits and bytes."""
        nats, num_bytes = (sum(column) for column in zip(*reply.scores, strict=True))
        return Grade(bits=nats / math.log(2), num_bytes=int(num_bytes))


def pieces(
    text: str, *, stride_bytes: int = STRIDE_BYTES, context_bytes: int = CONTEXT_BYTES
) -> Iterator[tuple[str, str]]:
    """(context, piece) in order; the pieces joined are `text`."""
    start = 0
    while start < len(text):
        end = _cut_after(text, start, stride_bytes)
        first = _cut_before(text, start, context_bytes)
        yield text[first:start], text[start:end]
        start = end


def _cut_after(text: str, start: int, num_bytes: int) -> int:
    """The end of the longest piece from `start` within `num_bytes`, at least one character."""
    used, end, good = 0, start, start
    while end < len(text):
        used += len(text[end].encode("utf-8", "surrogatepass"))
        if used > num_bytes:
            break
        if end > start and text[end].isspace():
            good = end
        end += 1
    if end == len(text):
        return end
    if text[end].isspace() and end > start:
        return end
    return good if good > start else max(end, start + 1)


def _cut_before(text: str, end: int, num_bytes: int) -> int:
    """The start of the longest context up to `end` within `num_bytes`, possibly none."""
    used, start, good = 0, end, None
    while start > 0:
        used += len(text[start - 1].encode("utf-8", "surrogatepass"))
        if used > num_bytes:
            break
        start -= 1
        if text[start].isspace():
            good = start
    if start == 0:
        return 0
    return start if good is None else good


def controls(texts: Sequence[str]) -> dict[str, float]:
    """Bits per byte of models that know nothing: byte frequencies alone (order 0), and xz over all texts joined."""
    raw = "\n".join(texts).encode("utf-8", "surrogatepass")
    if not raw:
        return {}
    counts = Counter(raw)
    entropy = -sum(n / len(raw) * math.log2(n / len(raw)) for n in counts.values())
    packed = len(lzma.compress(raw, preset=9)) * 8 / len(raw)
    return {"byte_frequencies": round(entropy, 4), "xz": round(packed, 4)}
