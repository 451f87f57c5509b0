"""spark's folder: weights, tokenizer, what it can do (card.json) and where it comes from (lineage.json)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.spark_config import SparkConfig
from recipes.spark_data import available, source_hash
from smelt.cli.suites import ABOUT, FAMILIES, held_out_cases, long_cases
from smelt.data import text
from smelt.evals.cases import Question
from smelt.evals.suite import sample
from smelt.train.lineage import chained

if TYPE_CHECKING:
    from smelt.model.decoder import Decoder
    from smelt.tokenizer import Tokenizer
    from smelt.train.state import Position

_CAN = [
    "choose one of a few tools for a short request and copy its arguments out of it",
    "fill a JSON schema with fields that stand in labelled lines, less surely out of sentences",
    "answer short customer-service messages about orders, and questions whose answer the system prompt states",
    "say the result of a tool call",
    "all of it in English, German and Chinese",
]
_CANNOT = [
    "it knows nothing of the world: no facts, no arithmetic, no code, no stories, no translation",
    "it notices that no offered tool fits half of the time, and now and then declines where one does",
    "it copies values and does not reason: what does not stand in the text is guessed",
    "words far from the phrasings it was trained on, and long or nested schemas, go wrong often",
    "one call at a time: parallel calls were not trained",
    "it is no safeguard against hostile instructions in texts it reads",
]
_SUITES = {
    **ABOUT,
    "long_*": "one to three facts somewhere in a text of that many characters, English",
    "snips_*, sgd_*, clinc150_*, banking77_*, crosswoz_*": "test parts of public sets whose train parts were learned: "
    "calls among 1 to 5 tools, or JSON, exact",
    "bfcl_*": "Berkeley Function Calling Leaderboard v4, never trained on",
}


def export(
    config: SparkConfig,
    model: Decoder,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    data: Path | None,
    position: Position,
    scores: dict[str, Any] | None,
) -> None:
    """Write the model folder, weights in bf16. `origin.json` beside it was written when training began."""
    from smelt.chat.house_template import house_tokenizer_config
    from smelt.checkpoint import save_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save(scratch, house_tokenizer_config())
        files = {path.name: path.read_bytes() for path in Path(scratch).iterdir()}
    files["card.json"] = _json_bytes(card(config, model, data, position, scores))
    told = json.loads((folder.parent / "origin.json").read_text())
    files["lineage.json"] = _json_bytes(lineage(config, model, tokenizer, told, position))
    save_checkpoint(folder, model.config, model.tensors(), dtype="BF16", files=files, replace=True)


def card(
    config: SparkConfig, model: Decoder, data: Path | None, position: Position, scores: dict[str, Any] | None
) -> dict[str, Any]:
    """What the model is, can and cannot do, with measured numbers."""
    return {
        "name": "spark",
        "summary": "A very small assistant for tool calls, extraction and short customer-service turns.",
        "parameters": model.config.num_parameters,
        "languages": ["en", "de", "zh"],
        "context_len": config.context_len,
        "trained_len": 3072,
        "trained_tokens": position.num_tokens,
        "can": _CAN,
        "cannot": _CANNOT,
        "scores": scores or "not measured yet",
        "suites": _SUITES,
        "scored_with": "greedy decoding in the native core with int8 weights, under the server's own grammar; "
        "held-out words, phrasings, records and tools come from the same generators as the training texts",
        "licence": "Apache-2.0",
        "data": [
            {"name": "generated tasks of this project", "licence": "Apache-2.0"},
            *({"name": source.name, "origin": source.origin, "licence": source.licence} for source in available(data)),
            *([{"name": "sentences", "origin": text.ORIGIN, "licence": text.LICENCE}] if text.available(data) else []),
        ],
    }


def origin(data: Path | None) -> dict[str, Any]:
    """Hashes of what decides the examples: the code that makes them and the public files. Taken before training."""
    root = Path(__file__).resolve().parents[1]
    code = [*(root / "recipes").glob("spark*.py"), *(root / "src/smelt/data").rglob("*.*")]
    code += (root / "src/smelt/train").glob("*.py")
    return {
        "code_sha256": source_hash([path for path in code if "__pycache__" not in path.parts]),
        "sources_sha256": {source.name: source.sha256(data) for source in available(data) if data is not None},
        "text_sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in text.available(data)},
    }


def lineage(
    config: SparkConfig, model: Decoder, tokenizer: Tokenizer, origin: dict[str, Any], position: Position
) -> dict[str, Any]:
    """Data, tokenizer, training and weights, chained by hash. `origin` is what the function of that name told."""
    from smelt.train.lineage import digest

    weights = {name: digest(tensor.tobytes().hex()) for name, tensor in model.tensors().items()}
    steps: list[dict[str, Any]] = [
        {"step": "data", **origin},
        {"step": "tokenizer", "sha256": digest(tokenizer.json), "vocab_size": tokenizer.vocab_size},
        {
            "step": "train",
            "recipe": "recipes/spark.py",
            "config": asdict(config),
            "steps": position.step,
            "tokens": position.num_tokens,
            "wall_s": round(position.elapsed_s),
            "hardware": {"cores": os.cpu_count(), "machine": platform.machine(), "accelerator": None},
        },
        {"step": "weights", "float32_sha256": digest(weights)},
    ]
    return {"chain": chained(steps)}


def evaluate(config: SparkConfig, folder: Path, data: Path | None) -> dict[str, Any]:
    """Held-out accuracy of `folder`, beside random weights of the same shape under the same grammar.

    Answers are kept beside the folder, so that a run that was stopped goes on.
    """
    from smelt.cli.evaluate import EvalOptions, asked_rows, opened, random_model
    from smelt.evals.suite import summary

    options = EvalOptions(model=str(folder), results=folder.parent / "answers")
    with opened(str(folder), options) as sampler:
        found = {"spark": summary(asked_rows(sampler, _asked(config, data), options))}
    with random_model(options) as sampler:
        few = [one for suite in ABOUT for one in held_out_cases(suite, max(1, config.cases_per_language // 5))]
        found["random_weights_same_grammar"] = summary(asked_rows(sampler, few, options))
    return found


def _asked(config: SparkConfig, data: Path | None) -> list[Question]:
    """Generated questions, long ones, the public sets' test parts and BFCL, as far as their files are there."""
    asked: list[Question] = [one for suite in ABOUT for one in held_out_cases(suite, config.cases_per_language)]
    asked += long_cases(config.long_cases) if config.long_cases else []
    public = {source.name for source in available(data)} | {"bfcl"}
    for family in FAMILIES:
        if data is not None and family.name in public and family.available(data):
            made = family.make(data)
            limit = None if family.name == "bfcl" and config.cases_per_language > 10 else 3 * config.cases_per_language
            asked += [one for name in family.suites for one in sample([q for q in made if q.suite == name], limit)]
    return asked


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
