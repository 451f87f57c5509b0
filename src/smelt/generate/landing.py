"""Bringing a JSON answer to its end inside its token limit.

An answer cut at `max_tokens` is broken JSON, and a small model is easily caught in an endless string. So while an
answer is made, the shortest way to its end is known: close the string, take no further property, fill what is
required with the least. When the tokens left are as many as that way takes, the answer is led along it. It then ends
with reason "length" as any answer does that the limit cut short, but what was written parses and follows the schema.
Where an answer may end at any place (text), nothing is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smelt.core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smelt.core.step import U32

MAX_WAY_LEN = 1_500  # tokens; a way that long is not looked for to its end
FAR = 512  # tokens beyond the way within which it is measured whenever something opened (about 4 us a token)
MARGIN = 4  # an escape or a character of several tokens lengthens the way by as much
# What closes first, then what separates, then the shortest beginnings of a value.
_ORDER = b'}],:"0123456789ntf-.[{'
_FILLERS = b"a@b.c:/0-1T9zA_ eE+"  # for strings that a pattern keeps from closing


class Closers:
    """What a vocabulary has for closing: ids of single-byte tokens. Made once per vocabulary."""

    def __init__(self, tokens: Sequence[bytes], stop_ids: frozenset[int]) -> None:
        self.tokens = tokens
        single = {raw[0]: token_id for token_id, raw in reversed(list(enumerate(tokens))) if len(raw) == 1}
        self.order = [*sorted(stop_ids), *(single[byte] for byte in _ORDER if byte in single)]
        self.quote = single.get(ord('"'), -1)
        self.fillers = [single[byte] for byte in _FILLERS if byte in single]
        self.stop_ids = stop_ids
        self.num_words = -(-len(tokens) // 32)


class Quotes:
    """Whether the next byte stands inside a JSON string."""

    def __init__(self) -> None:
        self.inside = False
        self._escaped = False

    def feed(self, raw: bytes) -> bool:
        """One token's bytes; whether any of them opened or separated something."""
        if not raw:
            self.inside = self._escaped = False  # a control token: JSON begins anew after it
        structural = False
        for byte in raw:
            if not self.inside:
                self.inside = byte == 0x22
                structural = structural or byte in b"{[,:"
            elif self._escaped:
                self._escaped = False
            else:
                self._escaped = byte == 0x5C
                self.inside = byte != 0x22
        return structural

    def copy(self) -> Quotes:
        """The same state, apart."""
        other = Quotes()
        other.inside, other._escaped = self.inside, self._escaped
        return other


class Landing:
    """Watches one answer of at most `limit` tokens; call `advance` for each, `next_token` before each draw."""

    def __init__(self, closers: Closers, limit: int) -> None:
        self._closers = closers
        self._left = self._left_before = limit
        self._quotes = Quotes()
        self._way_len: int | None = None  # from the place it was last measured
        self._stale = True  # something opened since
        self._look_again = limit  # tokens left at which to look for a way where none was found
        self._largest_drop = 0  # of spare tokens by one draw, with what it forced: an item of an array, say
        self._num_led = 0
        self.landing = False

    def advance(self, token_id: int) -> None:
        """The token joined the answer."""
        self._left -= 1
        self._num_led += self.landing
        if self._quotes.feed(self._closers.tokens[token_id]):
            self._stale = True

    def next_token(self, matcher: Any) -> int | None:
        """The token that leads to the end, when it is time to go there; None while the model may choose."""
        if not self.landing:
            self.landing = self._must_land(matcher)
            self._left_before = self._left
        return self._closing_token(matcher, self._quotes, self._num_led) if self.landing else None

    def _must_land(self, matcher: Any) -> bool:
        if matcher.is_accepting():
            self._way_len = 0
            return False
        self._look(matcher)
        if self._way_len is None or self._way_len > self._left:
            return False  # it cannot be done; the answer will be cut
        drop = 0 if self._quotes.inside else self._largest_drop
        return self._left <= self._way_len + drop + MARGIN

    def _look(self, matcher: Any) -> None:
        """Measure the way again where it may have changed and the limit is not far."""
        known = self._way_len
        if known is None:
            if self._left > self._look_again:
                return
        elif self._left > known + self._largest_drop + (FAR if self._stale else 8 * MARGIN):
            return
        self._way_len = self._measure(matcher)
        self._stale = False
        if self._way_len is None:
            self._look_again = self._left * 3 // 4
        elif known is not None:
            drop = (self._left_before - known) - (self._left - self._way_len)
            self._largest_drop = max(self._largest_drop, drop)

    def _measure(self, matcher: Any) -> int | None:
        """Tokens on the way to the end from here, the end itself not counted; None if there is no short one."""
        copy, quotes, num_tokens = matcher.deep_copy(), self._quotes.copy(), 0
        while num_tokens <= min(MAX_WAY_LEN, self._left):
            if copy.is_stopped():
                return num_tokens
            step = copy.compute_ff_tokens()
            if not step:
                step = [self._closing_token(copy, quotes, num_tokens)]
                if step[0] in self._closers.stop_ids:
                    return num_tokens
            if step[0] < 0 or not copy.consume_tokens(step):
                return None
            for token_id in step:
                quotes.feed(self._closers.tokens[token_id])
            num_tokens += len(step)
        return None

    def _closing_token(self, matcher: Any, quotes: Quotes, turn: int) -> int:
        """The allowed token that closes most; -1 if none is known. `turn` varies the fillers of a string."""
        row = _mask(matcher, self._closers.num_words)
        if quotes.inside:
            fillers = self._closers.fillers
            at = turn % len(fillers) if fillers else 0
            wanted = [self._closers.quote, *fillers[at:], *fillers[:at]]
        else:
            wanted = self._closers.order
        for token_id in wanted:
            if token_id >= 0 and row[token_id // 32] >> (token_id % 32) & 1:
                return token_id
        return _first(row)


def _mask(matcher: Any, num_words: int) -> U32:
    import numpy as np

    row = np.zeros(num_words, np.uint32)
    matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
    if matcher.is_error():
        raise EngineError("the grammar of this answer became too complex to follow")
    return row


def _first(row: U32) -> int:
    """The lowest token a mask allows, -1 if none."""
    for word, bits in enumerate(row.tolist()):
        if bits:
            return word * 32 + int(bits & -bits).bit_length() - 1
    return -1
