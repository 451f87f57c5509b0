"""Repair by distillation: a damaged or smaller model learns its teacher's distributions again, through the one loop.

Forward KL on the logits alone is what won in published prune-and-distil runs (Muralidharan et al. 2024,
arXiv:2407.14679; Sreenivas et al. 2024, arXiv:2408.11796). Hidden-state terms help where depth was cut or widths
differ much; cross-entropy is a guard where the teacher is weak on the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from smelt.checkpoint import Checkpoint
from smelt.compress.made import telling, train_config, write_made
from smelt.compress.stage import Needs, Progress, Work, how
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer
from smelt.train.config import OptimizerConfig
from smelt.train.distill.divergence import Divergence
from smelt.train.distill.hidden import HiddenMatch, HiddenTerms
from smelt.train.distill.objective import Distillation
from smelt.train.loop import Run, Stream
from smelt.train.loop import Stage as Part
from smelt.train.objectives import CrossEntropy, Objective
from smelt.train.report import read
from smelt.train.teachers.cache import CachedTeacher, CacheReport, build_cache, report_line
from smelt.train.teachers.cache_format import CacheSettings
from smelt.train.teachers.cache_scorer import ModelScorer
from smelt.train.teachers.online import DecoderTeacher, Teacher, shared_vocabulary


@dataclass(frozen=True, kw_only=True)
class Distil:
    """steps of `batch` batches of the material's stream each; with `tokens` as many steps as those take.

    loss: the divergence from the teacher; beta and temperature as in `train.distill.divergence`, beta for "jsd" alone.
    ratio: its share against the text's cross-entropy; 0 learns from the text alone and needs no teacher. hidden: draws
    the outputs of layers towards the teacher's, the layers spread evenly over its depth. cache: "online" asks the
    teacher at every step, "sampled" and "top_k" ask it once and keep `cache_k` ids a token (hidden needs "online").
    Rates are a tenth of those from scratch. fresh: forget the source's weights and keep its shape, a control.
    store: what the result is stored in; "source" is what the source was.
    """

    steps: int = 200
    tokens: int | None = None
    batch: int = 1
    loss: Literal["forward", "reverse", "jsd"] = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    ratio: float = 1.0
    hidden: Literal["none", "cosine", "mse"] = "none"
    hidden_weight: float = 1.0
    cache: Literal["online", "sampled", "top_k"] = "online"
    cache_k: int = 16
    muon_lr: float = 2e-3
    adam_lr: float = 3e-4
    weight_decay: float = 0.0
    warmup: float = 0.05
    decay: float = 0.4
    fresh: bool = False
    store: Literal["source", "F32", "BF16", "F16"] = "source"
    seed: int = 0
    workers: int = how(1)
    device: str = how("auto")
    checkpoint_s: float = how(60.0)
    name: ClassVar[str] = "distil"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or (self.tokens is not None and self.tokens < 1):
            raise InvalidRequestError(f"{self.name}: steps, tokens and batch must be at least 1")
        if not 0.0 <= self.ratio <= 1.0:
            raise InvalidRequestError(
                f"{self.name}: ratio is {self.ratio}; sought 0 (the text alone) to 1 (the teacher)"
            )
        if self.hidden != "none" and (self.cache != "online" or self.ratio == 0.0):
            raise InvalidRequestError(f"{self.name}: hidden-state terms need cache=online and a ratio above 0")

    def needs(self, config: DecoderConfig) -> Needs:
        """Weights, gradients, two momenta and a copy of them for the checkpoint; the teacher; a row's activations."""
        whole = 4 * config.num_parameters
        rows = 4 * config.context_len * config.hidden_size * config.num_layers * 16
        teacher = 0 if self.ratio == 0.0 else whole
        return Needs(memory_bytes=7 * whole + teacher + min(rows, 1 << 30), disk_bytes=8 * whole)

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """Train to the end and write the folder; facts: objective, steps, tokens, first and last loss.

        Raises InvalidRequestError for a source in few bits, UnsupportedError for a teacher with another vocabulary,
        TrainingStoppedError after `work.stopping`.
        """
        if source.scheme is not None:
            raise InvalidRequestError(
                f"{self.name}: the source's weights are stored in {source.scheme.weights.bits} bits; sought floating "
                "point: distil before quantizing, or train in few bits by the stage made for that"
            )
        torch.manual_seed(self.seed)
        student = self._student(source)
        stream = work.material.stream(self.seed)
        steps = self._num_steps(stream)
        objective = self._objective(source, student, stream, steps, work)

        run = Run(
            model=student,
            stages=[Part(name=self.name, stream=stream, objective=objective)],
            config=train_config(self, steps, self._optimizer, warmup=self.warmup, decay=self.decay),
            folder=work.scratch / "run",
            on_report=telling(work, steps),
            stopping=work.stopping,
            before_step=self._before_step(student, steps),
        )
        position = run.train()
        made = run.result()
        dtype = None if self.store == "source" else self.store
        write_made(work, source, made.config, made.tensors(), dtype=dtype)
        losses = [entry["loss"] for entry in read(run.folder)]
        return {
            "objective": objective.name,
            "steps": position.step,
            "tokens": position.num_tokens,
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }

    def _before_step(self, student: Decoder, steps: int) -> Callable[[int], None]:
        """What a stage does to its student between steps; see `train.loop.Run`. This one nothing."""
        return lambda _: None

    def _student(self, source: Checkpoint) -> Decoder:
        if not self.fresh:
            return Decoder.from_tensors(source.config, source.tensors)
        student = Decoder(source.config)
        student.init_weights(self.seed)
        return student

    def _num_steps(self, stream: Stream) -> int:
        if self.tokens is None:
            return self.steps
        first = stream.chunk(0)
        a_batch = sum(batch.inputs.size for batch in first) / len(first)
        return max(1, math.ceil(self.tokens / (a_batch * self.batch)))

    @property
    def _optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(muon_lr=self.muon_lr, adam_lr=self.adam_lr, weight_decay=self.weight_decay)

    def _objective(self, source: Checkpoint, student: Decoder, stream: Stream, steps: int, work: Work) -> Objective:
        if self.ratio == 0.0:
            return CrossEntropy()
        vocab_len = shared_vocabulary(Tokenizer.load(source.folder), Tokenizer.load(work.teacher.folder))
        model = Decoder.from_tensors(work.teacher.config, work.teacher.tensors)
        online = DecoderTeacher(model, vocab_len)
        beta = {"forward": 0.0, "reverse": 1.0, "jsd": self.beta}[self.loss]
        divergence = Divergence(beta=beta, temperature=self.temperature)
        terms = None
        if self.hidden != "none":
            match = HiddenMatch(
                pairs=layer_pairs(student.config.num_layers, model.config.num_layers),
                kind=self.hidden,
                weight=self.hidden_weight,
            )
            terms = HiddenTerms(match, student, model, seed=self.seed)
        teacher: Teacher = online if self.cache == "online" else self._cached(online, stream, steps, work)
        return Distillation(teacher, divergence=divergence, ratio=self.ratio, hidden=terms)

    def _cached(self, teacher: DecoderTeacher, stream: Stream, steps: int, work: Work) -> CachedTeacher:
        """The teacher's word on every batch of the run, made once; chunks that a killed call finished are kept."""
        settings = CacheSettings(
            method="sampled" if self.cache == "sampled" else "top_k",
            k=min(self.cache_k, teacher.vocab_len),
            temperature=self.temperature,
            seed=self.seed,
        )
        num_chunks = math.ceil(steps * self.batch / len(stream.chunk(0)))

        def told(report: CacheReport) -> None:
            work.say(report_line(report))
            done = Progress(
                unit="chunks of the teacher's cache",
                done=report.num_done,
                total=report.num_chunks,
                left_s=report.left_s if report.tokens_per_s else None,
            )
            work.on_progress(done)

        scorer = ModelScorer(teacher, torch.device("cpu"))
        folder: Path = build_cache(work.scratch / "teacher", scorer, stream, num_chunks, settings, on_report=told)
        return CachedTeacher(folder)


@dataclass(frozen=True, kw_only=True)
class Finetune(Distil):
    """Supervised fine-tuning that the teacher regularises: half the answer of the text, half the teacher's word."""

    ratio: float = 0.5
    muon_lr: float = 1e-3
    adam_lr: float = 1e-4
    name: ClassVar[str] = "finetune"


def layer_pairs(ours: int, theirs: int) -> tuple[tuple[int, int], ...]:
    """(student layer, teacher layer): every layer of the student with the one as deep, the last with the last."""
    return (
        tuple((i, (i + 1) * theirs // ours - 1) for i in range(ours))
        if ours <= theirs
        else tuple((i, min(theirs - 1, i * theirs // ours)) for i in range(ours))
    )
