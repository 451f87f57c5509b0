"""Fine-tuning: a folder and a file of examples in, a folder that is served in the base's place out.

What a job of the API calls, and recipes/finetune.py. Called again with the same folder it goes on where it stopped; a
folder of another job is refused. The card says what the validation file gave before and after, measured on the weights
as they are stored.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from smelt.chat.formats import renderer_of_folder
from smelt.checkpoint import open_checkpoint
from smelt.checkpoint.folder import Checkpoint
from smelt.checkpoint.safetensors import FloatDtype
from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.data.batches import Batch
from smelt.data.preferences import PairStream, collate_pairs, one_row
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer
from smelt.train.align.preference import AnswerTokens, PairPreference, PreferenceConfig
from smelt.train.align.reference import ReferenceProgress, reference_log_probs
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.distributed import World
from smelt.train.finetune.data import AnswerStream, Documents, Method, Plan, plan, read_documents
from smelt.train.finetune.folder import base_facts, base_name, save_tuned
from smelt.train.lineage import digest, hardware
from smelt.train.loop import Run, Stage, Stream
from smelt.train.objectives import Objective
from smelt.train.report import Report, print_report

# Peaks at a multiplier of 1, against those of a run from scratch (train/config.py). Preference tuning moves less:
# its gradient says which of two answers, not what to say.
_SHARE_OF_PEAK: dict[Method, float] = {"supervised": 0.1, "dpo": 0.02}


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """Everything that decides the outcome beside base and files; None: chosen by the examples (data.plan).

    learning_rate_multiplier: of the method's own rates. max_len: ids of an example, at most the model's context.
    batch_tokens: about how many tokens are computed at once; longer examples alone. name: the result's; by default the
    base's with "-ft" behind it. store: how weights are written; a small change to a bf16 weight may be lost
    in rounding, which F32 keeps at twice the size.
    """

    method: Method = "supervised"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float = 1.0
    seed: int = 0
    max_len: int = 65_536
    preference: PreferenceConfig = PreferenceConfig()
    batch_tokens: int = 8192
    name: str | None = None
    store: Literal["base", "F32"] = "base"

    def __post_init__(self) -> None:
        limits = {"epochs": (self.epochs, 1, 50), "batch_size": (self.batch_size, 1, 256)}
        for name, (value, low, high) in limits.items():
            if value is not None and not low <= value <= high:
                raise InvalidRequestError(f"{name} is {value}; sought {low} to {high}", param=name)
        if self.learning_rate_multiplier <= 0:
            raise InvalidRequestError(
                f"learning_rate_multiplier is {self.learning_rate_multiplier}; sought above 0",
                param="learning_rate_multiplier",
            )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A pass over a file: mean loss (per learned token, or per pair) and the objective's other means (`accuracy`)."""

    loss: float
    logs: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """The end of an epoch; `validation` is None without a validation file."""

    epoch: int
    step: int
    validation: Measured | None


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told what, and how a job is stopped: after the step under way, with a checkpoint."""

    on_report: Callable[[Report], None] = print_report
    on_epoch: Callable[[EpochDone], None] = lambda _: None
    on_reference: Callable[[ReferenceProgress], None] = lambda _: None
    stopping: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """What came of it. trained_tokens: all tokens of all epochs, as a bill would count them."""

    folder: Path
    plan: Plan
    num_examples: int
    num_left_out: int
    trained_tokens: int
    before: Measured | None
    after: Measured | None


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Everything a job is made of, opened and checked."""

    base: Checkpoint
    model: Decoder
    training: Documents
    validation: Documents | None
    plan: Plan
    pad_id: int
    config: FineTuneConfig
    folder: Path


def fine_tune(
    base: Path,
    training: Path,
    out: Path,
    config: FineTuneConfig,
    *,
    validation: Path | None = None,
    watch: Watch = Watch(),
    how: TrainConfig | None = None,
) -> FineTuned:
    """Train the model of folder `base` on file `training`; the result is `out`/model.

    how: device, workers, precision and the like; what decides the outcome is `config`'s. Raises CheckpointError for a
    folder that cannot be used or belongs to another job, DataError for a file, TrainingStoppedError after `stopping`,
    InvalidRequestError where more than one process calls it.
    """
    if (size := World.current(torch.device("cpu")).size) > 1:
        raise InvalidRequestError(f"a fine-tuning job is one process, found {size}; use `workers` or one accelerator")
    job = _opened(base, training, validation, out, config)
    _claim(job)
    measure = {"training": job.training} | ({} if job.validation is None else {"validation": job.validation})
    references = {
        name: reference_log_probs(
            job.model, found.pairs, out / "references", pad_id=job.pad_id, on_progress=watch.on_reference
        )
        for name, found in measure.items()
        if found.pairs
    }
    before = _measured(job, job.model, references)
    run = _run(job, references, watch, how)
    run.resume()
    for epoch in range(1, job.plan.epochs + 1):
        missing = epoch * job.plan.steps_per_epoch - run.position.step
        if missing > 0:
            run.train(stop_after=missing)
            watch.on_epoch(
                EpochDone(epoch=epoch, step=run.position.step, validation=_measured(job, run.model, references))
            )
    return _finished(job, run, references, before)


def _opened(base: Path, training: Path, validation: Path | None, out: Path, config: FineTuneConfig) -> _Job:
    checkpoint = open_checkpoint(base)
    tokenizer = Tokenizer.load(base)
    shape = checkpoint.config
    end_id = shape.eos_ids[0] if shape.eos_ids else None
    max_len = min(config.max_len, shape.context_len)
    renderer = renderer_of_folder(tokenizer)

    def read(path: Path) -> Documents:
        return read_documents(path, config.method, tokenizer, renderer, end_id, max_len)

    found = read(training)
    return _Job(
        base=checkpoint,
        model=Decoder.from_tensors(shape, checkpoint.tensors),
        training=found,
        validation=None if validation is None else read(validation),
        plan=plan(found.lengths, config.epochs, config.batch_size, config.batch_tokens),
        pad_id=shape.pad_id if shape.pad_id is not None else 0,
        config=config,
        folder=out,
    )


def _claim(job: _Job) -> None:
    """Write down whose folder this is. Raises CheckpointError where another job's work lies in it."""
    told = {
        "base": job.base.fingerprint,
        "training_sha256": job.training.sha256,
        "validation_sha256": None if job.validation is None else job.validation.sha256,
        "config": asdict(job.config),
    }
    path = job.folder / "job.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if differing := [key for key in told if found.get(key) != json.loads(json.dumps(told[key]))]:
            raise CheckpointError(f"the folder holds another job: {', '.join(differing)} differ; choose another folder")
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")


def _run(job: _Job, references: dict[str, Any], watch: Watch, how: TrainConfig | None) -> Run:
    config, steps = job.config, job.plan.total_steps
    share = _SHARE_OF_PEAK[config.method] * config.learning_rate_multiplier
    peaks = OptimizerConfig()
    optimizer = dataclasses.replace(
        peaks, muon_lr=peaks.muon_lr * share, adam_lr=peaks.adam_lr * share, weight_decay=0.0
    )
    schedule = ScheduleConfig(total_steps=steps, warmup_steps=max(1, min(20, steps // 10)), decay_share=0.9)
    train = dataclasses.replace(
        how or TrainConfig(schedule=schedule, log_every=1, checkpoint_layers=True),
        schedule=schedule,
        optimizer=optimizer,
        accumulate=job.plan.accumulate,
        seed=config.seed,
        ema=0.0,
    )
    stream: Stream
    if config.method == "dpo":
        stream = PairStream(
            pairs=job.training.pairs,
            references=references["training"],
            pad_id=job.pad_id,
            pairs_per_batch=job.plan.per_batch,
            seed=config.seed,
        )
    else:
        stream = AnswerStream(
            answers=job.training.answers,
            pad_id=job.pad_id,
            examples_per_batch=job.plan.per_batch,
            seed=config.seed,
        )
    return Run(
        model=job.model,
        stages=[Stage(name=config.method, stream=stream, objective=_objective(config))],
        config=train,
        folder=job.folder / "run",
        on_report=watch.on_report,
        stopping=watch.stopping,
    )


def _objective(config: FineTuneConfig) -> Objective:
    return PairPreference(config=config.preference) if config.method == "dpo" else AnswerTokens()


def _measured(job: _Job, model: Decoder, references: dict[str, Any]) -> Measured | None:
    """The validation file under `model`, one example at a time."""
    if job.validation is None:
        return None
    batches: Iterable[Batch] = (one_row([answer], job.pad_id) for answer in job.validation.answers)
    if job.validation.pairs:
        rows = zip(job.validation.pairs, references["validation"], strict=True)
        batches = (collate_pairs([pair], job.pad_id, np.array([row])) for pair, row in rows)
    return measured(model, batches, _objective(job.config))


@torch.no_grad()
def measured(model: Decoder, batches: Iterable[Batch], objective: Objective) -> Measured:
    """Means of an objective over batches, on the model's own device."""
    device = model.head_weight.device
    total, count, logs = 0.0, 0.0, dict[str, float]()
    for batch in batches:
        found = objective(model, batch, device)
        total, count = total + float(found.total), count + found.count
        for name, value in found.logs.items():
            logs[name] = logs.get(name, 0.0) + value
    count = max(1.0, count)
    return Measured(loss=total / count, logs={name: value / count for name, value in logs.items()})


def _finished(job: _Job, run: Run, references: dict[str, Any], before: Measured | None) -> FineTuned:
    """Saved, opened again as anyone else would, measured, and saved with what was found."""
    folder, result = job.folder / "model", run.result()
    tokens = job.plan.epochs * sum(job.training.lengths)
    made = {
        "step": "fine-tune",
        "training_sha256": job.training.sha256,
        "validation_sha256": None if job.validation is None else job.validation.sha256,
        "config": asdict(job.config),
        "plan": asdict(job.plan),
        "tokens": tokens,
        "wall_s": round(run.position.elapsed_s),
        "hardware": hardware(str(run.device)),
    }
    dtype: FloatDtype | None = "F32" if job.config.store == "F32" else None
    save_tuned(folder, job.base, result, _card(job, tokens, None, None), [made], dtype=dtype)
    stored = open_checkpoint(folder)
    after = _measured(job, Decoder.from_tensors(stored.config, stored.tensors).to(run.device), references)
    save_tuned(folder, job.base, result, _card(job, tokens, before, after), [made], dtype=dtype)
    return FineTuned(
        folder=folder,
        plan=job.plan,
        num_examples=job.training.num_examples,
        num_left_out=job.training.num_left_out,
        trained_tokens=tokens,
        before=before,
        after=after,
    )


def _card(job: _Job, tokens: int, before: Measured | None, after: Measured | None) -> dict[str, Any]:
    """The base's licence and languages hold; its scores do not."""
    config, base = job.config, job.base.card or {}
    kind = "conversations" if config.method == "supervised" else "preference pairs"
    validation: Any = "none given"
    if job.validation is not None and before is not None and after is not None:
        validation = {
            "sha256": job.validation.sha256,
            "num_examples": job.validation.num_examples,
            "loss": "mean cross-entropy of a learned token, nats"
            if config.method == "supervised"
            else "mean of a pair",
            "before": asdict(before),
            "after": asdict(after),
        }
    return {
        "name": config.name or f"{base_name(job.base)}-ft",
        "summary": f"{base_name(job.base)}, tuned on {job.training.num_examples} {kind}.",
        "parameters": job.model.config.num_parameters,
        **{key: base[key] for key in ("languages", "licence") if key in base},
        "context_len": job.model.config.context_len,
        "base": base_facts(job.base),
        "fine_tuning": {
            "method": config.method,
            "num_examples": job.training.num_examples,
            "num_left_out": job.training.num_left_out,
            "epochs": job.plan.epochs,
            "batch_size": job.plan.batch_size,
            "learning_rate_multiplier": config.learning_rate_multiplier,
            "tokens": tokens,
            "job": digest(asdict(config))[:16],
        },
        "validation": validation,
        "scores": "those of the base do not hold for it; `smelt eval` measures this folder",
    }
