"""Files of a fine-tuning job as documents, batches and a number of steps. Shapes: T tokens."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smelt.chat.renderer import Renderer
from smelt.core.errors import DataError
from smelt.data.batches import Batch, Encoded
from smelt.data.chat_jsonl import encode_record, encode_text, read_chat_jsonl
from smelt.data.preference_jsonl import read_preference_jsonl
from smelt.data.preferences import EncodedPair, cut, cut_pair, encode_pair, epoch_order, one_row
from smelt.tokenizer import Tokenizer

Method = Literal["supervised", "dpo"]


@dataclass(frozen=True, kw_only=True)
class Documents:
    """What a file holds, as ids: `answers` of a supervised file or `pairs` of a dpo file.

    num_left_out: examples of which nothing learned was left behind the cut at `max_len`. sha256: of the file.
    """

    answers: list[Encoded] = dataclasses.field(default_factory=list)
    pairs: list[EncodedPair] = dataclasses.field(default_factory=list)
    num_left_out: int = 0
    sha256: str = ""

    @property
    def num_examples(self) -> int:
        """Conversations or pairs."""
        return len(self.answers) + len(self.pairs)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example, both documents of a pair together."""
        pairs = [len(pair.chosen.ids) + len(pair.rejected.ids) for pair in self.pairs]
        return [len(answer.ids) for answer in self.answers] + pairs


def read_documents(
    path: Path, method: Method, tokenizer: Tokenizer, renderer: Renderer | None, end_id: int | None, max_len: int
) -> Documents:
    """A JSONL file, checked and rendered; longer examples are cut at the end, as OpenAI's are.

    Raises DataError for a file that is wrong, of the other kind, or for conversations where the model has no chat
    format.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    if method == "dpo":
        if renderer is None:
            raise DataError("preference pairs are conversations; the model has no chat format")
        pairs = [cut_pair(encode_pair(renderer, one), max_len) for one in read_preference_jsonl(path)]
        kept_pairs = [pair for pair in pairs if pair is not None]
        found = Documents(pairs=kept_pairs, num_left_out=len(pairs) - len(kept_pairs), sha256=digest)
    else:
        file = read_chat_jsonl(path)
        if file.records and renderer is None:
            raise DataError(
                f"{path.name} holds conversations; the model has no chat format (sought prompt, completion)"
            )
        answers = [cut(encode_record(renderer, one), max_len) for one in file.records if renderer is not None]
        answers += [cut(encode_text(tokenizer, one, end_id), max_len) for one in file.texts]
        kept = [answer for answer in answers if answer is not None]
        found = Documents(answers=kept, num_left_out=len(answers) - len(kept), sha256=digest)
    if not found.num_examples:
        raise DataError(f"{path.name}: nothing to learn is left of {found.num_left_out} examples cut at {max_len} ids")
    return found


@dataclass(frozen=True, kw_only=True)
class AnswerStream:
    """`train.loop.Stream`: chunk n is epoch n, each conversation once, in an order by seed; a batch is one row [1, T].

    Documents stand behind each other and attend alone, so nothing is padded but the row's end.
    """

    answers: Sequence[Encoded]
    pad_id: int
    examples_per_batch: int
    seed: int

    def chunk(self, number: int) -> list[Batch]:
        """Epoch `number`."""
        order = epoch_order(len(self.answers), self.seed, number)
        groups = [order[i : i + self.examples_per_batch] for i in range(0, len(order), self.examples_per_batch)]
        return [one_row([self.answers[i] for i in group], self.pad_id) for group in groups]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a file becomes steps: `batch_size` examples each, in `accumulate` batches of `per_batch`."""

    epochs: int
    batch_size: int
    per_batch: int
    accumulate: int
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """All epochs."""
        return self.epochs * self.steps_per_epoch


def plan(lengths: Sequence[int], epochs: int | None, batch_size: int | None, batch_tokens: int) -> Plan:
    """Steps for examples of these lengths.

    epochs None: three, more for fewer than 34 examples and fewer for more than 8,333, as OpenAI's published rule has
    it. batch_size None: a five-hundredth of the examples, 4 to 64. A batch holds as many examples as stay below
    `batch_tokens` even where all are of the longest kind, and a divisor of the batch size.
    """
    num = len(lengths)
    if epochs is None:
        epochs = min(25, max(1, 100 // num)) if num * 3 < 100 else 3 if num * 3 <= 25_000 else max(1, 25_000 // num)
    size = min(num, batch_size if batch_size is not None else max(4, min(64, num // 500)))
    room = max(1, min(size, batch_tokens // max(lengths)))
    per_batch = max(part for part in range(1, room + 1) if size % part == 0)
    accumulate = size // per_batch
    batches = -(-num // per_batch)
    return Plan(
        epochs=epochs,
        batch_size=size,
        per_batch=per_batch,
        accumulate=accumulate,
        steps_per_epoch=max(1, round(batches / accumulate)),
    )
