"""GGUF files in llama.cpp: every family, every tokenizer, and what must not pass."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gguf", reason="the extra train is not installed")
pytest.importorskip("llama_cpp", reason="the independent reader is not installed (llama-cpp-python)")

from smelt.chat import renderer_of_folder
from smelt.chat.house import HOUSE_CONTROLS
from smelt.checkpoint import open_checkpoint, save_checkpoint
from smelt.checkpoint.gguf import PackedTensors
from smelt.compress.export import gguf_file
from smelt.compress.export.compare import Check, placed
from smelt.compress.export.llama_reader import LlamaReader
from smelt.compress.export.plain import plain_of
from smelt.compress.export.samples import TEXTS
from smelt.compress.quantize.rtn import rounded
from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.core.quantization import Scheme, WeightFormat
from smelt.tokenizer import Tokenizer, train_tokenizer
from tests.tiny import make_tiny_folder, random_tensors, tiny_config, variants
from tests.tokenizer.samples import (
    CORPUS,
    foreign_tokenizer,
    house_tokenizer,
    random_texts,
    sentencepiece_spec,
    tokenizer_of,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def checks_of(folder: Path, format: Any = "f16") -> dict[str, Check]:
    """The folder as a GGUF file beside it, and what llama.cpp makes of it."""
    tokenizer = Tokenizer.load(folder)
    renderer = renderer_of_folder(tokenizer)
    path = folder / "model.gguf"
    made, _ = gguf_file.write(path, plain_of(open_checkpoint(folder)), tokenizer, renderer, format, "tiny")
    return {check.name: check for check in gguf_file.check(path, made, tokenizer, renderer)}


def failed(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.told for name, check in checks.items() if not check.passed}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"ropes": variants()["llama-llama3"].ropes, "qkv_bias": True, "o_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"layers": (LayerConfig(),) * 2, "ropes": variants()["llama-linear"].ropes}),
    "qwen2": ("qwen2", {"hidden_size": 64, "ropes": variants()["qwen2-yarn-window"].ropes}),
    "qwen3": ("qwen3", {"tie_embeddings": True, "num_kv_heads": 1}),
    "gemma3": (
        "gemma3_text",
        {"attention_scale": 0.2, "ropes": (RopeConfig(base=1e6, scaling="linear", factor=8.0), RopeConfig(base=500.0))},
    ),
    "gemma3, no windows": ("gemma3_text", {"layers": (LayerConfig(),) * 2, "tie_embeddings": False}),
}


@pytest.mark.parametrize("case", list(FAMILIES))
def test_every_family_computes_the_same(case: str, tmp_path: Path) -> None:
    """In float32, so that a wrong rotation, gain or window cannot hide behind rounding."""
    family, changes = FAMILIES[case]
    checks = checks_of(make_tiny_folder(tmp_path / "m", family=family, **changes), "f32")  # type: ignore[arg-type]
    assert not failed(checks)
    assert float(checks["logits, the source"].found or 1) < 1e-3
    assert float(checks["ids of texts"].found or 0) == 1.0
    assert {"chat", "chat with a call", "answers"} <= set(checks)


def test_blocks_keep_the_codes_of_a_quantized_folder(tmp_path: Path) -> None:
    """Q4_0 from 4-bit groups of 32 and an embedding in 8: the source's numbers, no second rounding."""
    make_tiny_folder(tmp_path / "m", family="qwen3", hidden_size=64, tie_embeddings=True)
    plain = open_checkpoint(tmp_path / "m")
    scheme = Scheme(weights=WeightFormat(bits=4, group_size=32), head=WeightFormat(bits=8))
    codes = rounded(plain.config, plain.tensors, scheme)
    files = {name: (tmp_path / "m" / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    save_checkpoint(tmp_path / "q", plain.config, plain.tensors, quantized=codes, scheme=scheme, files=files)
    source = plain_of(open_checkpoint(tmp_path / "q"))
    tokenizer = Tokenizer.load(tmp_path / "q")
    made, written = gguf_file.write(tmp_path / "q.gguf", source, tokenizer, None, "q4_0", "q")
    assert (written.matrices, written.kept) == ({"q8_0": 1, "q4_0": 21}, 22)
    for name in codes:
        np.testing.assert_array_equal(made.tensors.meaning(name), source.tensors[name])
    checks = {check.name: check for check in gguf_file.check(tmp_path / "q.gguf", made, tokenizer, None)}
    assert not failed(checks)
    assert checks["logits, the source"].found == checks["logits, what is stored"].found


def test_shared_layers_are_written_out(tmp_path: Path) -> None:
    layers = (LayerConfig(), LayerConfig(weights=0), LayerConfig(weights=0, residue_rank=2))
    folder = make_tiny_folder(tmp_path / "m", family="llama", layers=layers)
    checks = checks_of(folder)
    assert not failed(checks)


def folder_with(path: Path, tokenizer: Tokenizer, settings: dict[str, Any], family: Any = "llama") -> Path:
    config = tiny_config(family, vocab_size=tokenizer.vocab_size + 5, hidden_size=64, bos_id=None, eos_ids=(2,))
    files = {"tokenizer.json": tokenizer.json.encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    save_checkpoint(path, config, random_tensors(config), files=files)
    return path


def test_a_foreign_chat_template_and_vocabulary(tmp_path: Path) -> None:
    tokenizer = foreign_tokenizer("chatml")
    folder = folder_with(tmp_path / "m", tokenizer, {"chat_template": CHATML}, "qwen2")
    end = tokenizer.control_ids["<|im_end|>"]
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config))
    checks = checks_of(folder)
    assert not failed(checks)
    assert checks["chat"].passed
    assert "our renderer" in checks["chat"].told


def encoder(folder: Path) -> tuple[Tokenizer, LlamaReader]:
    """llama.cpp in this process, for many texts."""
    tokenizer = Tokenizer.load(folder)
    plain = plain_of(open_checkpoint(folder))
    gguf_file.write(folder / "m.gguf", plain, tokenizer, renderer_of_folder(tokenizer), "f16", "m")
    return tokenizer, LlamaReader(folder / "m.gguf", context_len=64, num_threads=1)


def same_tokens(tokenizer: Tokenizer, reader: LlamaReader, texts: Sequence[str]) -> float:
    """The share of tokens that stand at the same place with the same id."""
    same = total = 0
    for text in texts:
        sought, found = placed(tokenizer, tokenizer.encode(text)), placed(tokenizer, reader.encode(text))
        same, total = same + len(sought & found), total + max(len(sought), len(found))
    return same / total


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k_base", "o200k_base", "qwen2", "tekken"])
def test_known_expressions_cut_as_ours_do(pattern: str, tmp_path: Path) -> None:
    """Over scripts, runs and mixtures."""
    tokenizer = train_tokenizer(CORPUS, 600, controls=("<s>", "</s>", "<pad>"), pattern=pattern)
    if pattern == "tekken":
        spec = json.loads(tokenizer.json)
        spec["model"]["ignore_merges"] = True
        tokenizer = tokenizer_of(spec)
    tokenizer, reader = encoder(folder_with(tmp_path / "m", tokenizer, {}))
    assert same_tokens(tokenizer, reader, [*CORPUS, *random_texts(300, 5)]) == 1.0
    reader.close()


@pytest.mark.parametrize(("pattern", "least"), [("house", 1.0), ("copying", 0.95)])
def test_our_expressions_cut_nearly_the_same(pattern: str, least: float, tmp_path: Path) -> None:
    """What differs still: a short word that is no token with its space."""
    tokenizer = train_tokenizer(TEXTS * 3, 420, controls=HOUSE_CONTROLS, pattern=pattern)
    folder = folder_with(tmp_path / "m", tokenizer, {})
    tokenizer, reader = encoder(folder)
    assert same_tokens(tokenizer, reader, random_texts(300, 5)) > 0.999
    share = same_tokens(tokenizer, reader, [*TEXTS, "No gym nor pub", "f('such','tis')", "it's Anna's"])
    assert share >= least
    for text in random_texts(50, 6):  # however it is cut, nothing is lost
        assert reader.text(reader.encode(text)) == text
    assert not set(tokenizer.control_ids.values()) & set(reader.encode("<|bos|><|call|><|begin_call|>"))
    reader.close()


def test_merges_across_our_cuts_must_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long word behind a space starts with a token that has the space, where that merge is still there."""
    tokenizer = train_tokenizer(TEXTS * 3, 420, controls=HOUSE_CONTROLS, pattern="copying")
    folder, text = folder_with(tmp_path / "m", tokenizer, {}), "in in in information, in insight"
    tokenizer, reader = encoder(folder)
    assert same_tokens(tokenizer, reader, [text]) == 1.0
    reader.close()
    monkeypatch.setattr("smelt.compress.export.vocabulary._crosses", lambda pair, ours: False)
    _, reader = encoder(folder)
    assert same_tokens(tokenizer, reader, [text]) < 0.9
    reader.close()


@pytest.mark.parametrize("prefix_space", [True, False])
def test_a_sentencepiece_vocabulary(prefix_space: bool, tmp_path: Path) -> None:
    spec = sentencepiece_spec(prefix_space=prefix_space)
    tokenizer, reader = encoder(folder_with(tmp_path / "m", tokenizer_of(spec), {}))
    texts = ["hello world", "hell w  helo\n\n\nhi", "Größe 你好", "well", " hello"]
    assert [reader.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
    reader.close()


def test_a_call_does_not_end_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp ends at every token called <|call|>, so the file calls it otherwise; without that the check fails."""
    folder = make_tiny_folder(tmp_path / "m", hidden_size=64, embedding_scale=8.0)
    call = Tokenizer.load(folder).control_ids["<|call|>"]
    assert not failed(checks_of(folder))
    monkeypatch.setattr("smelt.compress.export.vocabulary._ENDS_FOR_LLAMA_CPP", frozenset())
    assert failed(checks_of(folder)) == {"begin and end": f"{call}, inside a call, ends it"}


def wrong_config(config: DecoderConfig) -> Iterator[tuple[str, DecoderConfig]]:
    """What a writer could get wrong, and still write a file that loads."""
    yield "gains without their offset", dataclasses.replace(config, norm_offset=0.0)
    yield "another base", dataclasses.replace(config, ropes=(RopeConfig(base=1e6), RopeConfig(base=300.0)))
    yield "another scale", dataclasses.replace(config, attention_scale=0.5)
    window = tuple(dataclasses.replace(layer, window=layer.window and 7) for layer in config.layers)
    yield "a window less one", dataclasses.replace(config, layers=window)


def test_a_wrong_file_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_folder(tmp_path / "m", hidden_size=64, embedding_scale=8.0)
    checkpoint, tokenizer = open_checkpoint(folder), Tokenizer.load(folder)
    plain = plain_of(checkpoint)
    for what, config in wrong_config(checkpoint.config):
        wrong = dataclasses.replace(plain, config=config)
        made, _ = gguf_file.write(folder / "m.gguf", wrong, tokenizer, None, "f16", "wrong")
        right = PackedTensors(plain.config, plain.tensors, {}, format="f16", header=made.header)
        sound = dataclasses.replace(made, plain=plain, tensors=right)
        checks = {check.name: check for check in gguf_file.check(folder / "m.gguf", sound, tokenizer, None)}
        assert set(failed(checks)) == {"logits, what is stored", "logits, the source"}, what


def test_a_reader_that_aborts_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A period of 1, which we do not write, ends llama.cpp's process by an assertion; ours goes on and tells."""
    config = tiny_config("gemma3_text", layers=(LayerConfig(),) * 2)
    folder = make_tiny_folder(tmp_path / "m", layers=config.layers)
    keys = {"attention.sliding_window": 8, "attention.sliding_window_pattern": 1}
    monkeypatch.setattr("smelt.checkpoint.gguf.header._gemma_keys", lambda config, notes: keys)
    checks = checks_of(folder)
    assert list(checks) == ["loads"]
    assert "llama.cpp gave up on the file" in checks["loads"].told
    assert "ASSERT" in checks["loads"].told


def test_a_house_vocabulary_of_rows_without_tokens(tmp_path: Path) -> None:
    """An embedding may have more rows than the tokenizer has ids; they are named, and never made of text."""
    tokenizer, reader = encoder(folder_with(tmp_path / "m", house_tokenizer(), {}))
    assert reader.vocab_size == tokenizer.vocab_size + 5
    assert max(reader.encode("[UNUSED820] [UNUSED821]", controls=True)) < tokenizer.vocab_size
    reader.close()
