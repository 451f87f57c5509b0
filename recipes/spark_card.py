"""spark's folder: weights, tokenizer, what it can do (card.json) and where it comes from (lineage.json)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.spark_config import SparkConfig
from recipes.spark_data import available, bfcl_cases, held_out_cases, public_cases, source_hash
from smelt.data import text
from smelt.evals.cases import Case
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
    "it hardly ever notices that no offered tool fits: with tool_choice auto it calls one all the same",
    "it copies values and does not reason: what does not stand in the text is guessed",
    "words far from the phrasings it was trained on, and long or nested schemas, go wrong often",
    "one call at a time: parallel calls were not trained",
    "it is no safeguard against hostile instructions in texts it reads",
]
_SUITES = {
    "tool_known": "tools of the training catalogue, asked for in held-out phrasings with held-out values",
    "tool_unseen": "tools never trained on, names, descriptions and phrasings included",
    "no_tool": "no offered tool fits; right is an answer without a call",
    "tool_result": "the answer to a tool's result holds every name and value of it",
    "extract": "half held-out kinds of record, half held-out phrasings of known ones",
    "extract_free": "labelled lines over random fields",
    "classify": "one of 2 to 5 labels for a customer's message, held-out phrasings",
    "service": "the reply to a held-out message names the right next step and repeats the order, name or product",
    "facts": "a question in held-out words about one of 2 to 5 facts in the system prompt",
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
    """Held-out accuracy of `folder`, beside random weights of the same shape under the same grammar."""
    cases = held_out_cases(config.cases_per_language, config.long_cases)
    bfcl = bfcl_cases(data, None if config.cases_per_language > 10 else 2)
    public = public_cases(data, 3 * config.cases_per_language)
    found = {"spark": score(folder, [*cases, *public, *bfcl])}
    with tempfile.TemporaryDirectory() as scratch:
        control = Path(scratch) / "control"
        random_weights(folder, control)
        few = held_out_cases(max(1, config.cases_per_language // 5), 0)
        found["random_weights_same_grammar"] = score(control, few)
    return found


def score(folder: Path, cases: Sequence[Case]) -> dict[str, Any]:
    """Suite results of a model folder through the native core and its grammar."""
    from smelt.evals.suite import run, summary
    from smelt.generate.llm import LLM

    llm = LLM.load(folder)
    began = time.monotonic()

    def progress(count: int) -> None:
        if count % 200 == 0:
            rate = count / (time.monotonic() - began)
            print(f"  {count} of {len(cases)} answers, {(len(cases) - count) / rate:.0f} s left", flush=True)

    try:
        return summary(run(llm, cases, workers=8, progress=progress))
    finally:
        llm.close()


def random_weights(folder: Path, control: Path) -> None:
    """A folder of the same shape and tokenizer, never trained."""
    from smelt.checkpoint import open_checkpoint, save_checkpoint
    from smelt.model.decoder import Decoder

    model = Decoder(open_checkpoint(folder).config)
    model.init_weights(1)
    files = {path.name: path.read_bytes() for path in folder.glob("tokenizer*.json")}
    save_checkpoint(control, model.config, model.tensors(), dtype="BF16", files=files)


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
