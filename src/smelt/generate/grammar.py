"""llguidance behind the engine's grammar port: grammars compiled once, one cheap copy per answer."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

from smelt.core.errors import EngineError
from smelt.engine.requests import TokenMatcher
from smelt.generate.landing import Closers, Landing

if TYPE_CHECKING:
    import llguidance
    import numpy as np
    from numpy.typing import NDArray

    from smelt.core.step import U32


class Vocabulary(Protocol):
    """What a grammar must know of a tokenizer; `tokenizer.Tokenizer` is one."""

    @property
    def vocab_size(self) -> int:
        """Ids the tokenizer has; the model may have more."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text; never a control id."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for; empty for a control token."""
        ...


class Constraint(Protocol):
    """What an answer may be. Immutable; shared by every choice that is held to it."""

    def matcher(self, limit: int | None = None) -> AnswerMatcher:
        """A fresh matcher at the start of an answer of at most `limit` tokens."""
        ...


class AnswerMatcher(TokenMatcher, Protocol):
    """A TokenMatcher that knows when an answer is whole."""

    @property
    def complete(self) -> bool:
        """Nothing but the end may follow. Read when the engine is done."""
        ...

    @property
    def cut_short(self) -> bool:
        """The answer was led to an early end because of its limit."""
        ...


class GrammarError(Exception):
    """llguidance refuses a grammar; the message is its own first line."""


class GrammarCompiler:
    """Grammars for one vocabulary. Thread-safe; keeps the `cache_size` grammars used last.

    vocab_size is the model's V, which may exceed the tokenizer's; ids without bytes are never allowed.
    stop_ids are what a finished grammar allows, and nothing else.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, vocab_size: int, stop_ids: frozenset[int], cache_size: int = 64
    ) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._stop_ids = stop_ids
        self._cache_size = cache_size
        self._cache: OrderedDict[bytes, Grammar] = OrderedDict()
        self._lock = threading.Lock()
        self._tools: tuple[llguidance.LLTokenizer, Closers] | None = None
        self._free_text: FreeText | None = None

    def compile(self, lark: str) -> Grammar:
        """The grammar of a Lark text. Raises GrammarError when it is wrong, too large or allows nothing at all."""
        key = hashlib.sha256(lark.encode()).digest()
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        tokenizer, closers = self._built()
        grammar = Grammar(_prototype(tokenizer, lark), self._stop_ids, closers)
        with self._lock:
            self._cache[key] = grammar
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return grammar

    def check(self, lark: str) -> None:
        """Raise GrammarError unless `lark` would compile; nothing is kept."""
        _prototype(self._built()[0], lark)

    def free_text(self) -> FreeText:
        """Any text: every token that has bytes, and the stop ids. No other control token can be drawn."""
        with self._lock:
            if self._free_text is None:
                self._free_text = FreeText(self._text_mask())
            return self._free_text

    @property
    def num_cached(self) -> int:
        """Grammars kept now."""
        return len(self._cache)

    def _text_mask(self) -> NDArray[np.uint32]:
        import numpy as np

        allowed = np.zeros(-(-self._vocab_size // 32) * 32, np.uint8)
        for token_id in range(min(self._vocab_size, self._vocabulary.vocab_size)):
            allowed[token_id] = self._vocabulary.token_bytes(token_id) != b""
        allowed[list(self._stop_ids)] = 1
        mask: NDArray[np.uint32] = np.packbits(allowed, bitorder="little").view(np.uint32)
        mask.flags.writeable = False
        return mask

    def _built(self) -> tuple[llguidance.LLTokenizer, Closers]:
        with self._lock:
            if self._tools is None:
                self._tools = self._build()
            return self._tools

    def _build(self) -> tuple[llguidance.LLTokenizer, Closers]:
        """llguidance's view of the vocabulary, from our own token bytes: about 1 s for 200,000 tokens."""
        import llguidance

        wrapped = _Wrapped(self._vocabulary, self._vocab_size, self._stop_ids)
        slices = llguidance.LLTokenizer.json_slices()
        stop_ids = sorted(self._stop_ids)
        tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(wrapped), eos_token=stop_ids, slices=slices)
        special = frozenset(wrapped.special_token_ids)
        plain = [b"" if token_id in special else raw for token_id, raw in enumerate(wrapped.tokens)]
        return tokenizer, Closers(plain, self._stop_ids)


class _Wrapped:
    """The vocabulary as llguidance's TokenizerWrapper wants it. 0xFF marks a token that no text matches."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, stop_ids: frozenset[int]) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = min(stop_ids)
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        for token_id in range(vocab_size):
            raw = vocabulary.token_bytes(token_id) if token_id < vocabulary.vocab_size else b""
            if not raw:
                self.special_token_ids.append(token_id)
            self.tokens.append(raw or b"\xff<%d>" % token_id)
        self._ids = {raw: token_id for token_id, raw in reversed(list(enumerate(self.tokens)))}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes | str) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        try:
            ids = self._vocabulary.encode(raw.decode())
        except UnicodeDecodeError:
            return self._greedy(raw)
        if b"".join(self.tokens[i] for i in ids) == raw:
            return ids
        return self._greedy(raw)

    def _greedy(self, raw: bytes) -> list[int]:
        """Longest match first, for what the tokenizer does not spell byte for byte (a leading space it adds)."""
        ids, start = [], 0
        while start < len(raw):
            for end in range(min(len(raw), start + self._longest), start, -1):
                token_id = self._ids.get(raw[start:end])
                if token_id is not None:
                    ids.append(token_id)
                    start = end
                    break
            else:
                raise EngineError(f"no token of the vocabulary begins with the byte {raw[start]}")
        return ids


def _prototype(tokenizer: llguidance.LLTokenizer, lark: str) -> llguidance.LLMatcher:
    """A matcher at the start of the grammar, proven to allow a first token."""
    import llguidance

    limits = llguidance.LLParserLimits(
        initial_lexer_fuel=1_000_000,  # about 20 ms
        step_lexer_fuel=200_000,  # about 15 ms a mask
        step_max_items=50_000,
        max_lexer_states=20_000,  # 1-2 kB each
        max_grammar_size=200_000,
        verbose_errors=False,
    )
    prototype = llguidance.LLMatcher(
        tokenizer, llguidance.LLMatcher.grammar_from_lark(lark), limits=limits, log_level=0
    )
    if prototype.is_error():
        raise GrammarError(_reason(prototype.get_error()))
    if not any(prototype.compute_bitmask()) or prototype.is_error():
        raise GrammarError("nothing satisfies it.")
    return prototype


def _reason(error: str) -> str:
    """llguidance's message without our grammar's text, line numbers or a Rust backtrace."""
    line = next((line.strip() for line in error.splitlines() if line.strip()), "it cannot be honoured.")
    if line.startswith("panic"):
        return "it is too large."
    return line.split("failed to compile JSON schema: ")[-1]


class Grammar:
    """A compiled grammar."""

    def __init__(self, prototype: llguidance.LLMatcher, stop_ids: frozenset[int], closers: Closers) -> None:
        self._prototype = prototype
        self._stop_ids = stop_ids
        self._closers = closers

    def matcher(self, limit: int | None = None) -> GrammarMatcher:
        """A fresh matcher: a copy that shares the compiled tables (microseconds)."""
        landing = None if limit is None else Landing(self._closers, limit)
        return GrammarMatcher(self._prototype.deep_copy(), self._stop_ids, landing)


class GrammarMatcher:
    """One answer under a grammar (engine.requests.TokenMatcher).

    Where the grammar forces the next bytes, the mask allows exactly the token the tokenizer itself would choose
    for them. So `forced_tokens` and drawing under masks give the same answer, and the model reads the
    spelling it was trained on.
    """

    def __init__(self, matcher: Any, stop_ids: frozenset[int], landing: Landing | None = None) -> None:
        self._matcher = matcher
        self._stop_ids = stop_ids
        self._landing = landing
        self._forced: list[int] | None = None

    def fill_mask(self, row: U32) -> None:
        """See TokenMatcher. Raises EngineError when the grammar grew too complex or has no way on."""
        forced = self.forced_tokens()
        only = forced[0] if forced else None
        if only is None and self._landing is not None and not self._matcher.is_stopped():
            only = self._landing.next_token(self._matcher)
        if only is not None and only >= 0:
            row[only // 32] |= 1 << (only % 32)
            return
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error():
            raise EngineError("the grammar of this answer became too complex to follow")
        if not row.any():
            raise EngineError("the grammar of this answer allows no token of the vocabulary")

    def advance(self, token_id: int) -> None:
        """See TokenMatcher."""
        if not self._matcher.consume_token(token_id):
            raise EngineError("the grammar of this answer does not allow the token that was drawn")
        if self._landing is not None:
            self._landing.advance(token_id)
        rest = self._forced[1:] if self._forced and self._forced[0] == token_id else []
        self._forced = rest or None

    @property
    def complete(self) -> bool:
        """See AnswerMatcher."""
        return not self.cut_short and bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def cut_short(self) -> bool:
        """See AnswerMatcher."""
        return self._landing is not None and self._landing.landing

    def forced_tokens(self) -> list[int]:
        """See TokenMatcher. Never a stop id: ending is the engine's decision, by drawing one."""
        if self._forced is None:
            self._forced = []
            for token_id in self._matcher.compute_ff_tokens():
                if token_id in self._stop_ids:
                    break
                self._forced.append(token_id)
        return list(self._forced)


class FreeText:
    """Text without structure: the same mask at every place."""

    def __init__(self, mask: U32) -> None:
        self._mask = mask

    def matcher(self, limit: int | None = None) -> FreeText:
        """Itself: it has no state."""
        return self

    def fill_mask(self, row: U32) -> None:
        """See TokenMatcher."""
        row[:] = self._mask

    def advance(self, token_id: int) -> None:
        """See TokenMatcher. Every token drawn under the mask is right."""

    @property
    def complete(self) -> bool:
        """See AnswerMatcher. Text could always go on."""
        return False

    @property
    def cut_short(self) -> bool:
        """See AnswerMatcher. Text ends wherever the limit ends it."""
        return False

    def forced_tokens(self) -> list[int]:
        """See TokenMatcher. Text is never forced."""
        return []
