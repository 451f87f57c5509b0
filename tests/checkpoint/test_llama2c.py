"""The converter against an independent reading of the same bytes: numpy, interleaved rotary pairs, no code of ours."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from smelt.checkpoint import open_checkpoint
from smelt.checkpoint.llama2c import convert, read_model, read_tokenizer
from smelt.core.errors import CheckpointError
from smelt.model.cache import KVCache
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer

F32 = NDArray[np.float32]
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily"
)


class RawLlama:
    """run.c's forward pass over the raw file, token by token, in numpy."""

    def __init__(self, data: bytes) -> None:
        header = struct.unpack_from("<7i", data)
        self.dim, self.inner, self.layers, self.heads, self.kv_heads, vocab, self.seq = header
        self.vocab, self.size = abs(vocab), self.dim // self.heads
        values, at = np.frombuffer(data, "<f4", offset=28), 0

        def take(*shape: int) -> F32:
            nonlocal at
            at += int(np.prod(shape))
            return values[at - int(np.prod(shape)) : at].reshape(shape)

        n, d, h, kv = self.layers, self.dim, self.inner, self.kv_heads * self.size
        self.embedding = take(self.vocab, d)
        self.att_norm, self.wq, self.wk, self.wv, self.wo = (
            take(n, d),
            take(n, d, d),
            take(n, kv, d),
            take(n, kv, d),
            take(n, d, d),
        )
        self.ffn_norm, self.w1, self.w2, self.w3 = take(n, d), take(n, h, d), take(n, d, h), take(n, h, d)
        self.last_norm = take(d)
        take(self.seq, self.size)
        self.head = self.embedding if vocab > 0 else take(self.vocab, d)
        assert at == len(values)
        self.keys: list[list[F32]] = [[] for _ in range(n)]
        self.values: list[list[F32]] = [[] for _ in range(n)]

    def norm(self, x: F32, gain: F32) -> F32:
        return gain * x / np.sqrt(np.mean(x * x) + 1e-5)

    def turn(self, x: F32, position: int) -> F32:
        """Neighbouring pairs of each head."""
        angles = position * 10000.0 ** (-np.arange(0, self.size, 2) / self.size)
        pairs = x.reshape(-1, self.size // 2, 2)
        turned = pairs[..., 0] + 1j * pairs[..., 1]
        turned = turned * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], -1).reshape(-1, self.size)

    def step(self, token: int) -> F32:
        x, position = self.embedding[token].astype(np.float64), len(self.keys[0])
        for i in range(self.layers):
            y = self.norm(x, self.att_norm[i])
            q = self.turn(self.wq[i] @ y, position)
            self.keys[i].append(self.turn(self.wk[i] @ y, position))
            self.values[i].append((self.wv[i] @ y).reshape(-1, self.size))
            keys, values = np.stack(self.keys[i]), np.stack(self.values[i])
            out = []
            for head in range(self.heads):
                group = head // (self.heads // self.kv_heads)
                scores = keys[:, group] @ q[head] / np.sqrt(self.size)
                weights = np.exp(scores - scores.max())
                out.append(weights / weights.sum() @ values[:, group])
            x = x + self.wo[i] @ np.concatenate(out)
            y = self.norm(x, self.ffn_norm[i])
            gate = self.w1[i] @ y
            x = x + self.w2[i] @ (gate / (1 + np.exp(-gate)) * (self.w3[i] @ y))
        return self.head @ self.norm(x, self.last_norm)


def random_export(*, tied: bool, seed: int = 0) -> bytes:
    dim, inner, layers, heads, kv_heads, vocab, seq = 24, 40, 2, 4, 2, 300, 16
    size = dim // heads
    matrices = layers * (2 * dim * dim + 2 * dim * kv_heads * size + 3 * dim * inner)
    num_values = vocab * dim * (1 if tied else 2) + matrices + (2 * layers + 1) * dim + seq * size
    values = np.random.default_rng(seed).normal(scale=0.4, size=num_values).astype("<f4")
    return struct.pack("<7i", dim, inner, layers, heads, kv_heads, vocab if tied else -vocab, seq) + values.tobytes()


def plain_tokenizer(vocab_size: int) -> bytes:
    """A tokenizer.bin whose text tokens are single letters and a few pairs."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [bytes([letter]) for letter in range(0x61, 0x7B)] + [b" ", b" a", b"ab", b" ab", b"bc"]
    pieces += [chr(0x3B1 + i).encode() for i in range(vocab_size - len(pieces))]
    scored = [(-float(i) if i >= 259 else 0.0, piece) for i, piece in enumerate(pieces)]
    return struct.pack("<i", 7) + b"".join(struct.pack("<fi", score, len(piece)) + piece for score, piece in scored)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_converted_logits_equal_the_raw_forward_pass(tied: bool, tmp_path: Path) -> None:
    export = random_export(tied=tied)
    (tmp_path / "model.bin").write_bytes(export)
    (tmp_path / "tok.bin").write_bytes(plain_tokenizer(300))
    convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "folder")
    opened = open_checkpoint(tmp_path / "folder")
    assert opened.config.tie_embeddings == tied
    ids = [1, 270, 299, 3, 270, 11, 12]
    raw = RawLlama(export)
    sought = np.stack([raw.step(token) for token in ids])
    found = Decoder.from_tensors(opened.config, opened.tensors)(torch.tensor([ids]))[0].numpy()
    assert sought.std() > 0.3
    np.testing.assert_allclose(found, sought, atol=1e-4)


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    folder = shared_data / "weights" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/weights/stories260K")
    return folder


@pytest.fixture(scope="module")
def folder(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("stories") / "stories260K"
    convert(stories / "stories260K.bin", stories / "tok512.bin", target)
    return target


@torch.no_grad()
def test_the_story_word_for_word(stories: Path, folder: Path) -> None:
    """Greedy, 64 tokens behind <s>: ours, the independent pass over the raw file, and upstream's golden text."""
    opened, tokenizer = open_checkpoint(folder), Tokenizer.load(folder)
    prompt = [1, *tokenizer.encode("Once upon a time")]
    assert prompt == [1, 403, 407, 261, 378]
    decoder, cache = Decoder.from_tensors(opened.config, opened.tensors), KVCache(opened.config)
    raw = RawLlama((stories / "stories260K.bin").read_bytes())
    for token in prompt[:-1]:
        raw.step(token)
    ours, theirs = list(prompt), list(prompt)
    new = torch.tensor([prompt])
    while len(ours) < 65:
        theirs.append(int(np.argmax(raw.step(theirs[-1]))))
        ours.append(int(decoder(new, cache=cache)[0, -1].argmax()))
        new = torch.tensor([ours[-1:]])
    assert ours == theirs
    assert tokenizer.decode(ours) == STORY


def llama2c_encode(scored: list[tuple[bytes, float]], text: str) -> list[int]:
    """run.c's encoder: characters (or their bytes), then always the best-scored merge, the first where equal."""
    ids_of = {piece: token_id for token_id, (piece, _) in enumerate(scored) if token_id >= 259}
    ids: list[int] = []
    for char in " " + text if text else "":
        data = char.encode()
        ids += [ids_of[data]] if data in ids_of else [byte + 3 for byte in data]
    while True:
        best, where = -1e10, -1
        for i in range(len(ids) - 1):
            merged = ids_of.get(scored[ids[i]][0] + scored[ids[i + 1]][0]) if min(ids[i : i + 2]) >= 259 else None
            if merged is not None and scored[merged][1] > best:
                best, where = scored[merged][1], i
        if where < 0:
            return ids
        ids[where : where + 2] = [ids_of[scored[ids[where]][0] + scored[ids[where + 1]][0]]]


WORDS = ["the", "they", "wasn't", "little", "play", "ing", "Lily", "", "park\n", "ball,", "é", "中", "~", "3"]
words = st.lists(st.sampled_from(WORDS), max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    text=st.one_of(
        words.map(" ".join),
        words.map("".join),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")),
    )
)
def test_encoding_equals_llama2cs(stories: Path, folder: Path, text: str) -> None:
    scored = read_tokenizer(stories / "tok512.bin", 512)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode(text) == llama2c_encode(scored, text)


def test_files_that_are_cut_or_foreign_are_refused(tmp_path: Path) -> None:
    export, tokens = random_export(tied=True), plain_tokenizer(300)
    path = tmp_path / "x.bin"
    for data, about in (
        (b"", "too short"),
        (export[:-4], "its header calls for"),
        (export + b"\0\0\0\0", "its header calls for"),
        (struct.pack("<7i", 24, 40, 2, 5, 2, 300, 16) + export[28:], "no llama2.c header"),
        (b"PK\x03\x04" * 100, "no llama2.c header"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=about):
            read_model(path)
    for data, about in ((tokens[:-1], "claims"), (tokens[:200], "token"), (tokens + b"\0", "behind the last")):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=about):
            read_tokenizer(path, 300)
