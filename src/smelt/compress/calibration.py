"""Sequences that statistics are taken from: a user's text, a training shard, or what the model itself says.

128 sequences are the published habit (GPTQ, Wanda); what matters more is that they look like what the model will read:
the begin id in front of each, conversations through the chat format, as they are served.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smelt.chat.formats import renderer_of_folder
from smelt.compress.stage import Progress
from smelt.core.errors import DataError, InvalidRequestError
from smelt.core.messages import Privilege
from smelt.data.batches import Batch, Encoded
from smelt.data.chat_jsonl import ChatRecord, TextRecord, encode_record, encode_text, lines, read_chat_jsonl
from smelt.data.corpus.readers import USER_SUFFIXES, Meter, by_suffix
from smelt.data.corpus.shards import sample_documents
from smelt.data.packing import Piece, lay_out, pack
from smelt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smelt.checkpoint import Checkpoint
    from smelt.train.loop import Stream

SELF = "self"
_SHORT_LEN = 24  # nothing shorter is called a loop


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """source: where the sequences come from, in words. digest: sha256 of the token ids. batches: in order."""

    source: str
    digest: str
    batches: tuple[Batch, ...]

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return sum(batch.num_tokens for batch in self.batches)


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """What is taken of a source.

    num_sequences: at most as many texts, conversations or rows. max_len: ids of each, at most the model's context;
    longer ones are cut. least_tokens: fewer are refused, as statistics over fewer tokens than a matrix has inputs
    say little about it. batch_tokens: about how many are computed at once. temperature: of what the model writes.
    """

    num_sequences: int = 128
    max_len: int = 2048
    least_tokens: int = 16_384
    batch_tokens: int = 8192
    temperature: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_sequences, self.batch_tokens, self.least_tokens) < 1 or self.max_len < 2:
            raise InvalidRequestError("calibration needs 1 sequence, 1 token and a max_len of 2 at least")
        if self.temperature <= 0:
            raise InvalidRequestError(f"the temperature is {self.temperature}; sought above 0", param="temperature")


def load_calibration(
    spec: str,
    model: Checkpoint,
    config: CalibrationConfig = CalibrationConfig(),
    *,
    scratch: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Calibration:
    """Calibration from what a user named.

    spec: `self` (the model writes), a text or JSON-lines file (`{"text": ...}`, or conversations in OpenAI's
    fine-tuning format), or a corpus folder. scratch: keeps what the model wrote, so that a killed run or a second one
    does not ask again. Raises InvalidRequestError for a spec that is none of these, DataError for a file that is wrong
    or for too little text.
    """
    config = replace(config, max_len=min(config.max_len, model.config.context_len))
    if spec == SELF:
        from smelt.compress.self_text import written_by

        documents = written_by(model, config, scratch=scratch, on_progress=on_progress)
        return gathered(documents, f"text of the model itself at temperature {config.temperature:g}", config, model)
    path = Path(spec)
    tokenizer = Tokenizer.load(model.folder)
    if path.is_dir():
        found = sample_documents(path, config.num_sequences, config.seed)
        texts = [document.text for document in found]
        return gathered(_of_texts(texts, tokenizer, model, config), f"the corpus {path.resolve().name}", config, model)
    if not path.is_file():
        raise InvalidRequestError(
            f"calibration: sought `self`, a text or JSONL file, or a corpus folder; found {spec!r}"
        )
    if not path.name.endswith(USER_SUFFIXES):
        raise InvalidRequestError(f"{path.name}: sought a file that ends in {', '.join(USER_SUFFIXES)}")
    if _holds_conversations(path):
        return gathered(_of_conversations(path, tokenizer, model, config), path.name, config, model)
    return gathered(_of_texts(_sampled(path, config), tokenizer, model, config), path.name, config, model)


def gathered(documents: Iterable[Encoded], source: str, config: CalibrationConfig, model: Checkpoint) -> Calibration:
    """Documents, each cut at `max_len`, packed into rows; equal ones once. Raises DataError where they are too little.

    Where some are loops of a few tokens, `source` says so: a small model that learned answers alone writes such text.
    """
    cut = {
        tuple(one.ids[: config.max_len + 1]): (one.loss_mask[: config.max_len + 1], _said(one, config))
        for one in documents
        if len(one.ids) > 1
    }
    pieces = [Piece.of(Encoded(list(ids), *others)) for ids, others in cut.items()]
    total = sum(map(len, pieces))
    _check(total, len(pieces), source, config)
    row_len = max(*map(len, pieces), min(config.max_len, total), 1)
    rows = pack(pieces, row_len)
    height = max(1, config.batch_tokens // row_len)
    pad_id = model.config.pad_id or 0
    batches = [lay_out(rows[i : i + height], row_len, pad_id, privileges=True) for i in range(0, len(rows), height)]
    loops = sum(_is_loop(piece.inputs) for piece in pieces)
    told = f" ({loops} of them loops of a few tokens)" if loops else ""
    return _calibration(batches, f"{len(pieces)} sequences of {source}, {total} tokens{told}")


def calibration_of_stream(stream: Stream, source: str, config: CalibrationConfig = CalibrationConfig()) -> Calibration:
    """The first `num_sequences` rows of a training stream. Raises DataError where they hold too little."""
    batches: list[Batch] = []
    missing, chunk = config.num_sequences, 0
    while missing > 0 and (made := [batch for batch in stream.chunk(chunk) if len(batch.inputs)]):
        for batch in made:
            if missing > 0:
                batches.append(_first_rows(batch, missing))
                missing -= len(batch.inputs)
        chunk += 1
    num_rows, total = sum(len(batch.inputs) for batch in batches), sum(batch.num_tokens for batch in batches)
    _check(total, num_rows, source, config)
    return _calibration(batches, f"{num_rows} rows of {source}, {total} tokens")


def _is_loop(ids: NDArray[np.int64]) -> bool:
    """Fewer than a tenth of its pairs of neighbours are different ones; running text has most of them once."""
    pairs = set(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
    return len(ids) > _SHORT_LEN and len(pairs) < 0.1 * len(ids)


def _check(total: int, num: int, source: str, config: CalibrationConfig) -> None:
    if total < config.least_tokens:
        raise DataError(
            f"calibration on {source}: sought {config.least_tokens} tokens at least, in up to {config.num_sequences} "
            f"different sequences of {config.max_len}, found {total} in {num}; add text, or let the model write it "
            f"(`{SELF}`)"
        )


def _calibration(batches: Sequence[Batch], source: str) -> Calibration:
    digest = hashlib.sha256()
    for batch in batches:
        for array in (batch.inputs, batch.targets, batch.segment_ids, batch.privileges):
            if array is not None:
                digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return Calibration(source=source, digest=digest.hexdigest(), batches=tuple(batches))


def _first_rows(batch: Batch, num: int) -> Batch:
    return Batch(
        batch.inputs[:num],
        batch.targets[:num],
        None if batch.segment_ids is None else batch.segment_ids[:num],
        None if batch.privileges is None else batch.privileges[:num],
    )


def _said(one: Encoded, config: CalibrationConfig) -> bytes:
    """Who said each id; plain text is the assistant's, as in training."""
    return (one.privileges or bytes([Privilege.ASSISTANT]) * len(one.ids))[: config.max_len + 1]


def _holds_conversations(path: Path) -> bool:
    """By the first line: chats or prompts with completions, not `{"text": ...}`."""
    if not path.name.endswith((".jsonl", ".ndjson")):
        return False
    first = next((text for _, text in lines(path)), "")
    return '"messages"' in first or '"prompt"' in first


def _of_conversations(path: Path, tokenizer: Tokenizer, model: Checkpoint, config: CalibrationConfig) -> list[Encoded]:
    """Conversations as they are served, a random choice of them."""
    file, renderer = read_chat_jsonl(path), renderer_of_folder(tokenizer)
    if file.records and renderer is None:
        raise DataError(f"{path.name} holds conversations; the model has no chat format (sought plain text)")
    end_id = next(iter(model.config.eos_ids), None)
    records: list[ChatRecord | TextRecord] = [*file.records, *file.texts]
    chosen = random.Random(config.seed).sample(range(len(records)), min(config.num_sequences, len(records)))
    found = []
    for record in (records[i] for i in sorted(chosen)):
        if isinstance(record, TextRecord):
            found.append(encode_text(tokenizer, record, end_id))
        elif renderer is not None:
            found.append(encode_record(renderer, record))
    return found


def _sampled(path: Path, config: CalibrationConfig) -> list[str]:
    """At most `num_sequences` texts of a file, each with the same chance, holding no more than these in memory."""
    rng, kept = random.Random(config.seed), list[str]()
    texts = (raw.text for raw in by_suffix(path, Meter()) if raw.text)
    for number, text in enumerate(texts):
        at = number if number < config.num_sequences else rng.randrange(number + 1)
        if at == len(kept):
            kept.append(text)
        elif at < len(kept):
            kept[at] = text
    return kept


def _of_texts(
    texts: Sequence[str], tokenizer: Tokenizer, model: Checkpoint, config: CalibrationConfig
) -> list[Encoded]:
    """Windows of the texts, one of each before a second of any; every one begins as a text does."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    end = list(model.config.eos_ids[:1])
    rng = random.Random(f"windows/{config.seed}")

    def windows(ids: list[int]) -> Iterator[list[int]]:
        room = config.max_len + 1 - len(begin)
        parts = [begin + ids[at : at + room] for at in range(0, len(ids), room)]
        rng.shuffle(parts)
        yield from parts

    all_windows = [windows([*ids, *end]) for ids in tokenizer.encode_batch(texts)]
    rounds = (part for parts in zip_longest(*all_windows) for part in parts if part is not None)
    chosen = [part for part, _ in zip(rounds, range(config.num_sequences), strict=False)]
    said = bytes([Privilege.ASSISTANT])
    return [Encoded(ids, b"\x01" * len(ids), said * len(ids)) for ids in chosen]
