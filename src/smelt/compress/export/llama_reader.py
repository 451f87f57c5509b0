"""A GGUF file in llama.cpp (by llama-cpp-python), the independent reader: in a process of its own, which it may end.

llama.cpp aborts the whole process where a file says what it did not expect. Keys and values are kept in float32, so
that what is compared is the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smelt.core.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What is asked of a file. pieces: ids whose text is wanted; prompt: ids to go on from, by `num_answer` at most."""

    ids: Sequence[int]
    texts: Sequence[str]
    pieces: Sequence[Sequence[int]]
    chats: Sequence[list[dict[str, Any]]] = ()
    prompt: Sequence[int] = ()
    num_answer: int = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """logits [T, V] of ids. encoded, written, chats: one entry a question; chats as text and ids.

    ends: the ids at which an answer ends.
    """

    logits: NDArray[np.float32]
    encoded: list[list[int]]
    written: list[str]
    chats: list[tuple[str, list[int]]]
    answer: str
    ends: frozenset[int]
    adds_bos: bool


def ask(path: Path, questions: Questions) -> Answers:
    """llama.cpp's answers. Raises CheckpointError, with its own words, where it does not load or compute the file."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = context.Process(target=_answer, args=(path, questions, sender, log), daemon=True)
        process.start()
        sender.close()
        try:
            found = receiver.recv()
        except EOFError:
            process.join()
            said = [line for line in log.read_text(errors="replace").splitlines() if "ASSERT" in line or "rror" in line]
            why = said[-1] if said else f"exit status {process.exitcode}"
            raise CheckpointError(f"llama.cpp gave up on the file: {why.rpartition('/')[2]}") from None
        finally:
            receiver.close()
        process.join()
    if isinstance(found, str):
        raise CheckpointError(found)
    answers: Answers = found
    return answers


def _answer(path: Path, questions: Questions, sender: Any, log: Path) -> None:
    """The other process: all questions in turn; its own words go to the log."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    target = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(target, 1)
    os.dup2(target, 2)
    room = max(len(questions.ids), len(questions.prompt) + questions.num_answer)
    try:
        with contextlib.closing(LlamaReader(path, context_len=max(_BATCH, room))) as reader:
            chats = [reader.render(messages, open_turn=True) for messages in questions.chats]
            made = reader.answer(questions.prompt, questions.num_answer) if questions.prompt else []
            found = Answers(
                logits=reader.logits(questions.ids),
                encoded=[reader.encode(text) for text in questions.texts],
                written=[reader.text(ids) for ids in questions.pieces],
                chats=[(text, reader.encode(text, controls=True)) for text in chats],
                answer=reader.text(made),
                ends=frozenset(i for i in range(reader.vocab_size) if reader.ends(i)),
                adds_bos=reader.adds_bos,
            )
    except CheckpointError as error:
        sender.send(str(error))
    else:
        sender.send(found)
    sender.close()


def installed() -> bool:
    """Whether there is such a reader here."""
    import importlib.util

    return importlib.util.find_spec("llama_cpp") is not None


class LlamaReader:
    """A loaded file. Raises CheckpointError, with llama.cpp's own words, where it does not load."""

    def __init__(self, path: Path, *, context_len: int, num_threads: int = 0) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        with _said(llama_cpp) as said:
            llama_cpp.llama_backend_init()
            settings = llama_cpp.llama_model_default_params()
            settings.n_gpu_layers = 0
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
            if not self._model:
                raise CheckpointError(
                    f"llama.cpp does not load the file: {' '.join(said[-3:]) or 'it does not say why'}"
                )
            self._vocab = llama_cpp.llama_model_get_vocab(self._model)
            self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
            params = llama_cpp.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = context_len, _BATCH, _BATCH, 1
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            if num_threads:
                params.n_threads = params.n_threads_batch = num_threads
            self._context = llama_cpp.llama_init_from_model(self._model, params)
            if not self._context:
                raise CheckpointError(f"llama.cpp makes no context: {' '.join(said[-3:])}")

    def close(self) -> None:
        """Free the model."""
        if self._context:
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = self._model = None

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [T, V] of one sequence from its start."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        rows = [self._decode(ids[at : at + _BATCH], at) for at in range(0, len(ids), _BATCH)]
        return np.concatenate(rows)

    def _decode(self, ids: Sequence[int], first: int) -> NDArray[np.float32]:
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token, first + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            if self._lib.llama_decode(self._context, batch):
                raise CheckpointError("llama.cpp failed to compute the file's model")
            found = [
                np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, i), shape=(self.vocab_size,)).copy()
                for i in range(len(ids))
            ]
        finally:
            self._lib.llama_batch_free(batch)
        return np.stack(found)

    def answer(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """The likeliest next ids, one after the other, up to an end token."""
        made: list[int] = []
        row = self.logits(ids)[-1]
        while len(made) < num_tokens:
            best = int(row.argmax())
            if self.ends(best):
                break
            made.append(best)
            row = self._decode([best], len(ids) + len(made) - 1)[-1]
        return made

    def encode(self, text: str, *, controls: bool = False) -> list[int]:
        """Ids of a text; with `controls` the spellings of control tokens in it become them."""
        data = text.encode()
        size = len(data) + 16
        buffer = (self._lib.llama_token * size)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, size, False, controls)
        if count < 0:
            raise CheckpointError("llama.cpp failed to cut a text into tokens")
        return list(buffer[:count])

    def text(self, ids: Sequence[int]) -> str:
        """What ids write, control tokens nothing."""
        return b"".join(map(self._piece, ids)).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        count = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(count, 0)]

    def ends(self, token: int) -> bool:
        """Whether an answer ends at this id."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    @property
    def adds_bos(self) -> bool:
        """Whether a raw text gets the begin token in front."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    def render(self, messages: list[dict[str, Any]], *, open_turn: bool) -> str:
        """A conversation by the file's own template."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self._lib.llama_model_chat_template(self._model, None)
        if not template:
            raise CheckpointError("llama.cpp finds no chat template in the file")
        formatter = Jinja2ChatFormatter(
            template.decode(),
            eos_token=self._name(self._lib.llama_vocab_eos(self._vocab)),
            bos_token=self._name(self._lib.llama_vocab_bos(self._vocab)),
            add_generation_prompt=open_turn,
        )
        asked: Any = messages
        return str(formatter(messages=asked, enable_thinking=False).prompt)

    def _name(self, token: int) -> str:
        return self._lib.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""


@contextlib.contextmanager
def _said(lib: Any) -> Iterator[list[str]]:
    """What llama.cpp complains of in the meantime; it is silent otherwise, and afterwards too."""
    lines: list[str] = []

    def keep(level: int, text: bytes, data: object) -> None:
        if level == 4 and text.strip():  # GGML_LOG_LEVEL_ERROR
            lines.append(text.decode("utf-8", "replace").strip())

    callback = lib.llama_log_callback(keep)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        lib.llama_log_set(_SILENCE.setdefault("callback", lib.llama_log_callback(_nothing)), ctypes.c_void_p(0))


_SILENCE: dict[str, Any] = {}  # llama.cpp keeps a pointer to it


def _nothing(level: int, text: bytes, data: object) -> None:
    pass
