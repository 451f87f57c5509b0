"""The folder of a made model: weights, tokenizer, what it can do (card.json) and where it comes from (lineage.json)."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.public import available
from smelt.cli.load import limits_of
from smelt.cli.suites import ABOUT, FAMILIES, corpus_family, held_out_cases, long_cases
from smelt.core.errors import InvalidRequestError
from smelt.data import text
from smelt.data.tasks.about import Limits
from smelt.evals.cases import Question
from smelt.evals.suite import sample, summary
from smelt.train.lineage import chained, digest, hardware

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from smelt.model.decoder import Decoder
    from smelt.tokenizer import Tokenizer
    from smelt.train.state import Position

_SUITES = {
    **ABOUT,
    "long_*": "one to three facts somewhere in a text of that many characters, English",
    "snips_*, sgd_*, clinc150_*, banking77_*, crosswoz_*": "test parts of public sets whose train parts were learned: "
    "calls among 1 to 5 tools, or JSON, exact",
    "bfcl_*": "Berkeley Function Calling Leaderboard v4, never trained on",
}


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a card says in words.

    recipe: the file that makes it. trained_len: the longest text it learned from. cutoff: year and month its texts end.
    """

    name: str
    recipe: str
    summary: str
    can: tuple[str, ...]
    cannot: tuple[str, ...]
    trained_len: int
    cutoff: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model as training left it, with what made it: settings, public data, a corpus of running text or None."""

    story: Story
    settings: DataclassInstance
    model: Decoder
    tokenizer: Tokenizer
    position: Position
    data: Path | None
    corpus: Path | None = None


def export(made: Made, folder: Path, scores: dict[str, Any] | None = None) -> None:
    """Write the model folder. `origin.json` beside it is what `keep_origin` wrote."""
    told = json.loads((folder.parent / "origin.json").read_text())
    write_folder(made, folder, card(made, scores), lineage(made, told))


def write_folder(made: Made, folder: Path, card: dict[str, Any], lineage: dict[str, Any]) -> None:
    """Weights in bf16, tokenizer, card and lineage, in place of what is there."""
    from smelt.chat.house_template import house_tokenizer_config
    from smelt.checkpoint import save_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        made.tokenizer.save(scratch, house_tokenizer_config())
        files = {path.name: path.read_bytes() for path in Path(scratch).iterdir()}
    files["card.json"] = _json_bytes(card)
    files["lineage.json"] = _json_bytes(lineage)
    save_checkpoint(folder, made.model.config, made.model.tensors(), dtype="BF16", files=files, replace=True)


def card(made: Made, scores: dict[str, Any] | None) -> dict[str, Any]:
    """What the model is, can and cannot do, with measured numbers."""
    story = made.story
    return {
        "name": story.name,
        "summary": story.summary,
        "parameters": made.model.config.num_parameters,
        "languages": ["en", "de", "zh"],
        "context_len": made.model.config.context_len,
        "trained_len": story.trained_len,
        "cutoff": "{:04}-{:02}".format(*story.cutoff),
        "trained_tokens": made.position.num_tokens,
        "can": list(story.can),
        "cannot": list(story.cannot),
        "scores": scores or "not measured yet",
        "suites": _SUITES,
        "scored_with": "greedy decoding in the native core with int8 weights, under the server's own grammar; "
        "held-out words, phrasings, records and tools come from the same generators as the training texts",
        "licence": "Apache-2.0",
        "data": data_rows(made.data, made.corpus),
    }


def data_rows(data: Path | None, corpus: Path | None) -> list[dict[str, str]]:
    """Name, origin and licence of everything a model learned from."""
    rows = [{"name": "generated tasks of this project", "licence": "Apache-2.0"}]
    for source in available(data):
        rows.append({"name": source.name, "origin": source.origin, "licence": source.licence})
    if text.available(data):
        rows.append({"name": "sentences", "origin": text.ORIGIN, "licence": text.LICENCE})
    for row in _corpus_sources(corpus):
        rows.append({"name": row["name"], "origin": row["origin"], "licence": row["licence"]})
    return rows


def _corpus_sources(corpus: Path | None) -> list[dict[str, Any]]:
    if corpus is None:
        return []
    from smelt.data.corpus.shards import manifest_of

    sources: list[dict[str, Any]] = manifest_of(corpus)["sources"]
    return sources


def origin(data: Path | None, corpus: Path | None = None) -> dict[str, Any]:
    """Hashes of what decides the examples: the code that makes them and the public files. Taken before training."""
    root = Path(__file__).resolve().parents[1]
    code = [*(root / "recipes").glob("*.py"), *(root / "src/smelt/data").rglob("*.*")]
    code += (root / "src/smelt/train").rglob("*.py")
    found: dict[str, Any] = {
        "code_sha256": _source_hash([path for path in code if "__pycache__" not in path.parts]),
        "sources_sha256": {source.name: source.sha256(data) for source in available(data) if data is not None},
        "text_sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in text.available(data)},
    }
    if corpus is not None:
        found["corpus_sha256"] = hashlib.sha256((corpus / "manifest.json").read_bytes()).hexdigest()
    return found


def keep_origin(out: Path, data: Path | None, corpus: Path | None = None) -> None:
    """Note in `out`/origin.json what the examples come from; called again, what changed since, and from which state on.

    A run of many hours may go on with other code than it began with: its lineage says so.
    """
    out.mkdir(parents=True, exist_ok=True)
    path, now = out / "origin.json", origin(data, corpus)
    if path.is_file():
        told = json.loads(path.read_text())
        known = {key: value for part in (told, *told.get("changed", [])) for key, value in part.items()}
        if different := {key: value for key, value in now.items() if known.get(key) != value}:
            state = max((folder.name for folder in (out / "run").glob("state-*")), default="the beginning")
            told.setdefault("changed", []).append({"from": state, **different})
        now = told
    path.write_text(json.dumps(now, indent=1))


def lineage(made: Made, origin: dict[str, Any]) -> dict[str, Any]:
    """Data, tokenizer, training and weights, chained by hash. `origin` is what the function of that name told."""
    weights = {name: digest(tensor.tobytes().hex()) for name, tensor in made.model.tensors().items()}
    steps: list[dict[str, Any]] = [
        {"step": "data", **origin},
        {"step": "tokenizer", "sha256": digest(made.tokenizer.json), "vocab_size": made.tokenizer.vocab_size},
        {
            "step": "train",
            "recipe": made.story.recipe,
            "config": asdict(made.settings),
            "steps": made.position.step,
            "tokens": made.position.num_tokens,
            "wall_s": round(made.position.elapsed_s),
            "hardware": hardware("cpu"),
        },
        {"step": "weights", "float32_sha256": digest(weights)},
    ]
    return {"chain": chained(steps)}


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What a made model is asked: generated suites, long ones, public sets' test parts, BFCL and `extra` families.

    Only what needs no missing file; with a corpus its held-out documents are scored too. per_size: questions a length
    of the long suites.
    """

    per_language: int
    per_size: int
    data: Path | None
    corpus: Path | None = None
    extra: tuple[str, ...] = ()

    def questions(self, limits: Limits) -> list[Question]:
        """Everything asked of a model of which `limits` is true. Raises InvalidRequestError for an unknown family."""
        asked: list[Question] = [one for suite in ABOUT for one in held_out_cases(suite, self.per_language, limits)]
        asked += long_cases(self.per_size) if self.per_size else []
        wanted = {source.name for source in available(self.data)} | {"bfcl", *self.extra}
        known = {family.name: family for family in FAMILIES}
        if unknown := set(self.extra) - set(known):
            raise InvalidRequestError(f"no such family of suites: {sorted(unknown)}; there are {', '.join(known)}")
        for name, family in known.items():
            if name in wanted and self.data is not None and family.available(self.data):
                made = family.make(self.data)
                limit = None if name == "bfcl" and self.per_language > 10 else 3 * self.per_language
                for suite in dict.fromkeys(one.suite for one in made):
                    asked += sample([one for one in made if one.suite == suite], limit)
        if self.corpus is not None:
            asked += sample(list(corpus_family(self.corpus).make(self.corpus)), 3 * self.per_language)
        return asked


def evaluate(name: str, folder: Path, exam: Exam, *, baseline: Path | None = None) -> dict[str, Any]:
    """Held-out accuracy of `folder`, beside random weights of the same shape under the same grammar, and a `baseline`.

    The keys are the models' names; each is asked about itself what is true of it. Answers are kept beside the folder,
    so that a run that was stopped goes on. Of the control a fifth of the generated questions is asked.
    """
    from smelt.cli.evaluate import EvalOptions, asked_rows, opened, random_model

    options = EvalOptions(model=str(folder), results=folder.parent / "answers")
    found: dict[str, Any] = {}
    for label, model in [(name, folder)] + ([] if baseline is None else [(baseline.name, baseline)]):
        with opened(str(model), options) as sampler:
            found[label] = summary(asked_rows(sampler, exam.questions(limits_of(str(model))), options))
    with random_model(options) as sampler:
        few = [one for suite in ABOUT for one in held_out_cases(suite, max(1, exam.per_language // 5))]
        found["random_weights_same_grammar"] = summary(asked_rows(sampler, few, options))
    return found


def _source_hash(files: Sequence[Path]) -> str:
    """sha256 over names and contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
