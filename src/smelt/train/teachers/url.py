"""A teacher behind an OpenAI-compatible URL that reports log-probabilities: its top k and the rest, for a cache.

Two ways, as APIs allow: `URLScorer` has texts of ours scored (/completions with echo and logprobs), `RecordedScorer`
uses what came with answers the teacher wrote itself (chat logprobs, as `smelt record` and `teachers.text` keep them).
Both need the student's own vocabulary at the other end and check it token by token.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smelt.core.errors import DataError, InvalidRequestError, UnsupportedError
from smelt.data.batches import Batch, Encoded
from smelt.tokenizer import Tokenizer
from smelt.train.distill.on_policy import Ids, documents
from smelt.train.teachers.asking import Asker
from smelt.train.teachers.cache_format import CacheSettings, Kept

Alternatives = Sequence[tuple[int, float]]  # (id, log-probability)
_SURE: tuple[float, float] = (0.0, -math.inf)


class TokenNames:
    """Ids by the names APIs give tokens: their text, `bytes:\\xe4\\xbd`, `token_id:17`, or a control token's name.

    Where several ids share a name (bytes that are no text show as U+FFFD) none of them is meant for sure.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        controls = {token_id: name for name, token_id in tokenizer.control_ids.items()}
        self.names: list[frozenset[str]] = []
        self._ids: dict[str, int | None] = {}
        for token_id in range(tokenizer.vocab_size):
            names = self._of(tokenizer.token_bytes(token_id), controls.get(token_id), token_id)
            self.names.append(names)
            for name in names:
                self._ids[name] = None if name in self._ids else token_id

    def id_of(self, name: str) -> int | None:
        """The id meant by a name, None where it is not clear. Raises KeyError for a name no id has."""
        return self._ids[name]

    def _of(self, raw: bytes, control: str | None, token_id: int) -> frozenset[str]:
        text = raw.decode("utf-8", "replace")
        own = {f"token_id:{token_id}"}
        if control is not None:
            return frozenset({*own, control, ""})
        if "\ufffd" in text:
            return frozenset({*own, text, "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)})
        return frozenset({*own, text})


class URLScorer:
    """Scores documents at /completions. Needs an endpoint that takes token ids and echoes them with log-probabilities.

    The endpoint decides how many alternatives it gives (OpenAI's own at most 5, vLLM 20 or as configured).
    """

    def __init__(self, asker: Asker, tokenizer: Tokenizer) -> None:
        self.asker, self.names = asker, TokenNames(tokenizer)
        self.vocab_len = tokenizer.vocab_size

    @property
    def fingerprint(self) -> str:
        """Of address and model name: all that is known of its weights."""
        return hashlib.sha256(f"{self.asker.base_url} {self.asker.model}".encode()).hexdigest()

    def score(self, batches: Sequence[Batch], settings: CacheSettings) -> list[Kept]:
        """All documents of the batches, several at a time.

        Raises InvalidRequestError for settings an API cannot serve, UnsupportedError for another vocabulary.
        """
        if settings.method != "top_k" or settings.temperature != 1.0:
            raise InvalidRequestError("a URL gives its top k at temperature 1; sought method top_k, temperature 1")
        work = [(ids, targets) for batch in batches for ids, targets in documents(batch)]
        scored = self.asker.each(lambda document: self._score(*document, settings.k), work)
        found = []
        for batch in batches:
            parts = [next(scored) for _ in documents(batch)]
            found.append(_joined([row for part in parts for row in part], settings.k))
        return found

    def _score(self, inputs: Ids, targets: Ids, k: int) -> list[tuple[Alternatives, float]]:
        learned = np.flatnonzero(targets >= 0)
        if not len(learned):
            return []
        whole = [int(i) for i in (*inputs, *targets[-1:])] if targets[-1] >= 0 else [int(i) for i in inputs]
        body = {"prompt": whole, "echo": True, "logprobs": k, "max_tokens": 1, "temperature": 0}
        answer = self.asker.post("/completions", body)
        try:
            lists = answer["choices"][0]["logprobs"]
            names, tops = list(lists["tokens"]), list(lists["top_logprobs"])
        except (KeyError, IndexError, TypeError) as error:
            raise UnsupportedError(
                "the teacher's answer has no log-probabilities of the prompt; sought an endpoint with echo and logprobs"
            ) from error
        self._check(whole, names)
        return [self._alternatives(tops[place + 1], int(targets[place])) for place in learned]

    def _check(self, sought: list[int], found: list[Any]) -> None:
        if len(found) < len(sought):
            raise UnsupportedError(f"the teacher tokenizes differently: {len(sought)} ids sent, {len(found)} came back")
        for place, (token_id, name) in enumerate(zip(sought, found, strict=False)):
            if name not in self.names.names[token_id]:
                raise UnsupportedError(
                    f"the teacher has another vocabulary: id {token_id} at place {place} is "
                    f"{min(self.names.names[token_id])!r} here and {name!r} there"
                )

    def _alternatives(self, top: Any, target: int) -> tuple[Alternatives, float]:
        if not isinstance(top, Mapping) or not top:
            raise UnsupportedError("the teacher gives no alternatives; sought an endpoint with top log-probabilities")
        return kept(self.names, list(top.items()))


def kept(names: TokenNames, top: Sequence[tuple[str, float]]) -> tuple[Alternatives, float]:
    """Named alternatives as ids, best first, and the log-mass of all other ids.

    Unclear names count among the others. Raises UnsupportedError for a name that no id here has.
    """
    found: dict[int, float] = {}
    for name, logprob in top:
        try:
            token_id = names.id_of(name)
        except KeyError:
            raise UnsupportedError(f"the teacher has another vocabulary: {name!r} is no token here") from None
        if token_id is not None:
            found[token_id] = max(float(logprob), found.get(token_id, -math.inf))
    best = sorted(found.items(), key=lambda item: -item[1])
    return best, rest_of(best)


def rest_of(best: Alternatives) -> float:
    """log(1 - their sum)."""
    mass = math.fsum(math.exp(min(0.0, logprob)) for _, logprob in best)
    return math.log1p(-mass) if mass < 1.0 else -math.inf


def _joined(rows: Sequence[tuple[Alternatives, float]], k: int) -> Kept:
    ids = np.full((len(rows), k), -1, np.int64)
    log_probs = np.full((len(rows), k), -np.inf, np.float32)
    rest: NDArray[np.float32] = np.full(len(rows), -np.inf, np.float32)
    for i, (best, left) in enumerate(rows):
        shown = best[:k]
        ids[i, : len(shown)] = [token_id for token_id, _ in shown]
        log_probs[i, : len(shown)] = [logprob for _, logprob in shown]
        rest[i] = left if len(best) <= k else rest_of(shown)
    return Kept(ids, log_probs, rest, 0.0)


@dataclass(frozen=True)
class RecordedScorer:
    """Log-probabilities that came with recorded answers: `rows` by document (`recorded_rows`).

    A learned token without any (tool calls, the end of the turn) keeps the teacher's own choice as its only
    alternative: a sample of one from its distribution, which is what cross-entropy learns.
    """

    rows: Mapping[str, Sequence[tuple[Alternatives, float]]]
    vocab_len: int
    fingerprint: str

    def score(self, batches: Sequence[Batch], settings: CacheSettings) -> list[Kept]:
        """Looked up; a document that is not there is learned from its own tokens."""
        if settings.method != "top_k" or settings.temperature != 1.0:
            raise InvalidRequestError("recorded answers carry the top k at temperature 1; sought method top_k")
        found = []
        for batch in batches:
            rows: list[tuple[Alternatives, float]] = []
            for inputs, targets in documents(batch):
                plain = [([(int(target), _SURE[0])], _SURE[1]) for target in targets if target >= 0]
                rows += self.rows.get(_document_key(inputs, targets), plain)
            found.append(_joined(rows, settings.k))
        return found


def recorded_rows(
    encoded: Encoded, content: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, names: TokenNames
) -> tuple[str, list[tuple[Alternatives, float]]]:
    """A conversation's key and rows, from the `logprobs.content` of its last answer.

    Raises DataError where the answer's tokens are not the student's: the texts are equal, the vocabularies are not.
    """
    ids, learned = encoded.ids, [i for i, on in enumerate(encoded.loss_mask) if on and i > 0]
    texts = [_bytes(entry) for entry in content]
    start = next((s for s in range(len(learned)) if _stands(learned[s:], texts, ids, tokenizer)), None)
    if start is None:
        raise DataError("the recorded tokens are not those of this tokenizer; sought the teacher's own vocabulary")
    rows: list[tuple[Alternatives, float]] = [([(ids[place], _SURE[0])], _SURE[1]) for place in learned]
    for i, entry in enumerate(content):
        top = [(_name(option), float(option["logprob"])) for option in entry.get("top_logprobs") or ()]
        if top:
            rows[start + i] = kept(names, top)
    mask = np.frombuffer(encoded.loss_mask, np.uint8)[1:] == 1
    whole = np.array(ids, np.int64)
    targets = np.where(mask, whole[1:], -100)
    return _document_key(whole[:-1], targets), rows


def _stands(places: Sequence[int], texts: Sequence[bytes], ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    if len(places) < len(texts) or not texts:
        return False
    return all(tokenizer.token_bytes(ids[place]) == text for place, text in zip(places, texts, strict=False))


def _bytes(entry: Mapping[str, Any]) -> bytes:
    return bytes(entry["bytes"]) if entry.get("bytes") is not None else str(entry.get("token", "")).encode()


def _name(option: Mapping[str, Any]) -> str:
    raw = option.get("bytes")
    if not raw:
        return str(option.get("token", ""))
    text = bytes(raw).decode("utf-8", "replace")
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw) if "\ufffd" in text else text


def _document_key(inputs: Ids, targets: Ids) -> str:
    """A document by its content up to its last learned token: padding and packing do not change it."""
    end = int(np.flatnonzero(targets >= 0)[-1]) + 1 if (targets >= 0).any() else 0
    content = np.concatenate([inputs[:end], targets[:end]]).astype("<i8").tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
