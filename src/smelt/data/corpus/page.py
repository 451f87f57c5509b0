"""A document as the filters see it: words, lines and hashes, each worked out once and only if a filter asks."""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property

import numpy as np
import numpy.typing as npt

from smelt.data.corpus import personal
from smelt.data.corpus.documents import Document
from smelt.data.corpus.learned import learned
from smelt.data.corpus.tokens import U64, code_points, token_hashes

_QUOTED = re.compile(
    r"\"[^\"\n]{1,300}\"|“[^”\n]{1,300}”|„[^“”\n]{1,300}[“”]|«[^»\n]{1,300}»|「[^」\n]{1,300}」|《[^》\n]{1,80}》"
)
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
MIN_LEARNED_UNITS = 25  # words


class Page:
    """Views of one document's text."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.text = document.text

    @cached_property
    def words(self) -> list[str]:
        """Runs of letters and digits; apostrophes and hyphens inside a word belong to it. Chinese: whole clauses."""
        return WORD.findall(self.text)

    @cached_property
    def lower(self) -> str:
        """The text in lower case, with straight apostrophes."""
        return self.text.lower().replace("’", "'")

    @cached_property
    def unquoted(self) -> str:
        """`lower` without what stands in quotation marks: that is not the author's."""
        return _QUOTED.sub(" ", self.lower)

    @cached_property
    def learned_shares(self) -> dict[str, float]:
        """Per learned filter the share of the page's windows that speak against it; of short pages nothing is known."""
        return learned().shares(self.unquoted, self.document.language) if self.num_units >= MIN_LEARNED_UNITS else {}

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each word stands there, in lower case."""
        return Counter(word.lower().replace("’", "'") for word in self.words)

    @cached_property
    def pairs(self) -> set[str]:
        """All characters of `lower`, and all two that stand side by side."""
        return {self.lower[i : i + size] for size in (1, 2) for i in range(len(self.lower))}

    @cached_property
    def lines(self) -> list[str]:
        """Lines that hold something, stripped."""
        return [stripped for line in self.text.split("\n") if (stripped := line.strip())]

    @cached_property
    def num_han(self) -> int:
        """Chinese characters."""
        return int(np.count_nonzero((self.codes >= 0x3400) & (self.codes < 0xA000)))

    @cached_property
    def is_chinese(self) -> bool:
        """Whether lengths count in characters: more Chinese characters than words of other scripts."""
        return self.document.language == "zh"

    @cached_property
    def num_units(self) -> int:
        """Length in words; a Chinese text counts two characters for a word."""
        return self.num_han // 2 + len(self.words) if self.is_chinese else len(self.words)

    @cached_property
    def hashes(self) -> U64:
        """uint64 [num_tokens], see `tokens.token_hashes`."""
        return token_hashes(self.codes)

    @cached_property
    def codes(self) -> npt.NDArray[np.uint32]:
        """uint32 [num_chars], the code points."""
        return code_points(self.text)

    @cached_property
    def personal_spans(self) -> list[personal.Span]:
        """What `personal.find` finds."""
        return personal.find(self.text)
