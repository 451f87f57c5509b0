"""The training mixture of a model's recipe as a chain's material, and the examination: text of seeds of its own.

What is learned by a repair is the mixture under other seeds, with the public sets and the corpus where they are given.
What is held out are generated conversations of other seeds again, and the corpus's `valid` split: a public set's test
part is no part of the mixture, and its training part was learned. Shapes: N learned tokens, D documents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.compress.calibration import CalibrationConfig, calibration_of_stream
from smelt.compress.chain.material import text_bytes
from smelt.compress.chain.measure import decoder_of
from smelt.compress.chain.store import Artifact
from smelt.compress.stage import Material
from smelt.data.batches import Batch
from smelt.data.stream import Conversations, PackedStream, Texts
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer
from smelt.train.lineage import digest
from smelt.train.objectives import learned_hidden

CALIBRATION_SEED, STAGES_SEED, EXAM_SEED, LEARNING_SEED = 9_101, 9_102, 9_103, 9_200
CPU = torch.device("cpu")
sys.path.append(str(Path(__file__).parents[1]))  # the recipes lie beside this folder, in no installed package
_PARTS = ("inputs", "targets", "segments", "privileges")
_PIECE_LEN = 1024
_SAY_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """recipe: whose mixture. calibration_rows, stage_rows: what stages see of text.

    exam_tokens: learned ones; without: tasks left out of the exam, for a model older than their texts.
    data, corpus: folders; None: generated tasks alone.
    """

    recipe: str = "spark"
    data: Path | None = None
    corpus: Path | None = None
    batch_tokens: int = 3072
    calibration_rows: int = 32
    stage_rows: int = 16
    exam_tokens: int = 100_000
    without: tuple[str, ...] = ()


class Mixture:
    """The recipe's own stream under any seed. The public sets take a minute to read, and are read when first asked."""

    def __init__(self, setting: Setting, source: Checkpoint) -> None:
        self.setting, self.tokenizer = setting, Tokenizer.load(source.folder)
        self.privileges = source.config.num_privileges > 0

    def learned(self, seed: int) -> PackedStream:
        """With everything that is given."""
        return dataclasses.replace(_reseeded(self._whole, LEARNING_SEED + seed), privileges=self.privileges)

    def held_out(self, seed: int, without: tuple[str, ...] = ()) -> PackedStream:
        """Generated alone, and of the corpus its held-out split. Raises SystemExit for a task that there is not."""
        return dataclasses.replace(_reseeded(self._bare, seed, without), privileges=self.privileges)

    @cached_property
    def _whole(self) -> PackedStream:
        return self._stream(self.setting.data, self.setting.corpus)

    @cached_property
    def _bare(self) -> PackedStream:
        stream = self._stream(None, None)
        if self.setting.corpus is None:
            return stream
        from smelt.data.shards import tokenize_corpus

        valid = Texts(shards=tokenize_corpus(self.setting.corpus, self.tokenizer, split="valid"), seed=0)
        share = sum(weight for source, weight in self._whole.sources if isinstance(source, Texts))
        ((talk, _),) = stream.sources
        return dataclasses.replace(stream, sources=[(talk, 1.0 - share), (valid, share)])

    def _stream(self, data: Path | None, corpus: Path | None) -> PackedStream:
        """The recipe's stage that most of the training was spent in."""
        stages, name = (_spark if self.setting.recipe == "spark" else _ember)(self, data, corpus)
        (prefetched,) = [stage.stream for stage in stages if stage.name == name]
        stream: PackedStream = prefetched.stream
        return stream


def _spark(mixture: Mixture, data: Path | None, corpus: Path | None) -> tuple[list[Any], str]:
    from recipes.public import load_sources
    from recipes.spark_config import SparkConfig
    from recipes.spark_data import make_stages
    from smelt.chat.house import HouseRenderer
    from smelt.data.text import read_pools

    assert corpus is None, "spark learned no running text"
    config = SparkConfig()
    stages = make_stages(
        HouseRenderer(mixture.tokenizer),
        mixture.tokenizer.control_ids["<|pad|>"],
        load_sources(data, config.seed),
        read_pools(data or mixture.setting.data),
        batch_tokens=mixture.setting.batch_tokens,
        early_tokens=config.early_tokens,
    )
    return stages, "main"


def _ember(mixture: Mixture, data: Path | None, corpus: Path | None) -> tuple[list[Any], str]:
    from recipes.ember import EmberConfig
    from recipes.ember_data import Material as Known
    from recipes.ember_data import make_stages
    from smelt.data.text import read_pools
    from smelt.train.recipe import Workshop

    config = EmberConfig()
    known = dataclasses.replace(Known.load(data, corpus, config.seed), pools=read_pools(data or mixture.setting.data))
    stages = make_stages(
        known,
        mixture.tokenizer,
        Workshop(out=Path("build")),
        batch_tokens=mixture.setting.batch_tokens,
        early_tokens=config.early_tokens,
        main=config.main,
        choices=config.choices,
        final=config.final,
    )
    return stages, "choices"


def _reseeded(stream: PackedStream, seed: int, without: tuple[str, ...] = ()) -> PackedStream:
    """The same mixture of other examples in another order."""
    sources: list[tuple[Any, float]] = []
    for source, weight in stream.sources:
        if isinstance(source, Conversations):
            example_at: Any = source.example_at
            weights = dict(example_at.mixture.weights)
            if unknown := set(without) - set(weights):
                raise SystemExit(f"--without: no task {', '.join(sorted(unknown))}; there are {', '.join(weights)}")
            left = {task: share for task, share in weights.items() if task not in without}
            mixture = dataclasses.replace(example_at.mixture, weights=left)
            talk = dataclasses.replace(source, example_at=dataclasses.replace(example_at, seed=seed, mixture=mixture))
            sources.append((talk, weight))
        else:
            sources.append((dataclasses.replace(source, seed=seed), weight))  # type: ignore[type-var]
    return dataclasses.replace(stream, sources=sources, seed=seed)


def make_material(setting: Setting, source: Checkpoint, kept: Path) -> tuple[Material, list[Batch]]:
    """Material for stages, and the batches of the examination; kept in files, so that a second call reads no sets.

    The exam has no part in the material's digest: another one examines the same models.
    """
    mixture = Mixture(setting, source)
    learned = dataclasses.asdict(setting) | {"data": setting.data is not None, "corpus": str(setting.corpus)}
    examined = {name: learned.pop(name) for name in ("exam_tokens", "without")}
    key = digest([learned, source.fingerprint])

    def made() -> dict[str, list[Batch]]:
        config = CalibrationConfig(num_sequences=setting.calibration_rows, least_tokens=1)
        stream = mixture.learned(CALIBRATION_SEED - LEARNING_SEED)
        return {
            "calibration": list(calibration_of_stream(stream, "the recipe's mixture", config).batches),
            "stages": _rows(mixture.held_out(STAGES_SEED), setting.stage_rows),
        }

    def exam() -> dict[str, list[Batch]]:
        return {"exam": _learned(mixture.held_out(EXAM_SEED, setting.without), setting.exam_tokens)}

    found = _kept(kept / f"material-{key[:16]}.npz", made)
    found |= _kept(kept / f"exam-{digest([key, examined])[:16]}.npz", exam)
    calibration = calibration_of_stream(
        _Given(found["calibration"]),
        "the recipe's mixture",
        CalibrationConfig(num_sequences=sum(len(batch.inputs) for batch in found["calibration"]), least_tokens=1),
    )
    material = Material(
        calibration=calibration,
        held_out=found["stages"],
        held_out_bytes=text_bytes(found["stages"], mixture.tokenizer),
        stream=mixture.learned,
        digest=digest([key, calibration.digest]),
    )
    return material, found["exam"]


@dataclass(frozen=True)
class _Given:
    """Batches as a stream of one chunk."""

    batches: list[Batch]

    def chunk(self, number: int) -> list[Batch]:
        return self.batches if number == 0 else []


def _rows(stream: PackedStream, num_rows: int) -> list[Batch]:
    found: list[Batch] = []
    for batch in stream.chunk(0):
        if sum(len(each.inputs) for each in found) < num_rows:
            found.append(batch)
    return found


def _learned(stream: PackedStream, num_tokens: int) -> list[Batch]:
    found: list[Batch] = []
    number = 0
    while True:
        for batch in stream.chunk(number):
            found.append(batch)
            if sum(each.num_learned for each in found) >= num_tokens:
                return found
        number += 1


def _kept(path: Path, make: Callable[[], dict[str, list[Batch]]]) -> dict[str, list[Batch]]:
    """Named batches out of a file, made where it is not there."""
    if not path.is_file():
        arrays: dict[str, NDArray[Any]] = {}
        for name, batches in make().items():
            for i, batch in enumerate(batches):
                fields = (batch.inputs, batch.targets, batch.segment_ids, batch.privileges)
                arrays |= {f"{name}.{i}.{part}": a for part, a in zip(_PARTS, fields, strict=True) if a is not None}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part.npz")
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
    with np.load(path) as found:
        counts = Counter(key.split(".")[0] for key in found.files if key.endswith(".inputs"))
        return {
            name: [Batch(*(found.get(f"{name}.{i}.{part}") for part in _PARTS)) for i in range(count)]
            for name, count in counts.items()
        }


class Answers(NamedTuple):
    """Of each held-out document, sums over its learned tokens: cross-entropy, and KL of the source to the model."""

    nats: NDArray[np.float64]
    kl: NDArray[np.float64]


class Exam:
    """What models make of the held-out documents, taken once per artifact and kept.

    The KL stands beside the cross-entropy because a model that is sure and wrong gains bits by any noise.
    """

    def __init__(self, batches: list[Batch], num_bytes: int, source: Checkpoint, folder: Path) -> None:
        self.batches, self.num_bytes, self.source, self.folder = batches, num_bytes, source, folder
        self.num_learned = sum(batch.num_learned for batch in batches)
        self.documents, self.num_documents = self._documents()
        found = hashlib.sha256(b"".join(b.inputs.tobytes() + b.targets.tobytes() for b in batches))
        self.digest = found.hexdigest()

    def answers(self, artifact: Artifact, name: str, say: Callable[[str], None] = print) -> Answers:
        """Of a folder as it computes, in floating point; [D] each."""
        kept = self.folder / f"{artifact.hash[:16]}-{self.source.fingerprint[:16]}-{self.digest[:16]}.npy"
        if kept.is_file():
            return Answers(*np.load(kept))
        model = decoder_of(open_checkpoint(artifact.folder)).eval()
        began = said = time.monotonic()
        parts = []
        for number, batch in enumerate(self.batches, 1):
            parts.append(token_figures(model, self._teacher, batch))
            if (now := time.monotonic()) - said > _SAY_S:
                left_s = (now - began) / number * (len(self.batches) - number)
                say(f"  exam of {name}: {number} of {len(self.batches)} batches, {left_s:,.0f} s left")
                said = now
        sums = [np.bincount(self.documents, of_tokens, self.num_documents) for of_tokens in np.hstack(parts)]
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".part.npy")
        np.save(partial, np.stack(sums))
        partial.replace(kept)
        return Answers(*sums)

    @cached_property
    def _teacher(self) -> Decoder:
        return Decoder.from_tensors(self.source.config, self.source.tensors).eval()

    def _documents(self) -> tuple[NDArray[np.int64], int]:
        """Of each learned token the number of its document."""
        keys = []
        for number, batch in enumerate(self.batches):
            assert batch.segment_ids is not None
            row, _ = index = np.nonzero(batch.targets >= 0)
            keys.append((number << 40) + (row << 20) + batch.segment_ids[index])
        _, documents = np.unique(np.concatenate(keys), return_inverse=True)
        return documents, int(documents.max()) + 1


@torch.no_grad()
def token_figures(model: Decoder, source: Decoder, batch: Batch) -> NDArray[np.float64]:
    """[2, N] of a batch's learned tokens, row by row: cross-entropy, and KL(source || model), in nats."""
    ours, theirs = (learned_hidden(each, batch, CPU) for each in (model, source))
    wanted = torch.from_numpy(batch.targets[batch.targets >= 0])
    found = [torch.zeros(2, 0)]
    for at in range(0, len(wanted), _PIECE_LEN):
        part = slice(at, at + _PIECE_LEN)
        log_q, log_p = model.logits(ours[part]).log_softmax(-1), source.logits(theirs[part]).log_softmax(-1)
        nats = F.nll_loss(log_q, wanted[part], reduction="none")
        kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        found.append(torch.stack([nats, kl]))
    return np.asarray(torch.cat(found, 1).double().numpy())
