"""Fine-tuning of a folder on a file of conversations or preference pairs, in OpenAI's formats.

    smelt train recipes/finetune.py --out build/mine --set base=FOLDER --set training=train.jsonl \
        --set validation=valid.jsonl --set tuning.method=supervised

The result is `<out>/model`, which `smelt serve` takes; its card.json has the validation file's before and after.
"""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path

from smelt.core.errors import InvalidRequestError
from smelt.train.config import ScheduleConfig, TrainConfig
from smelt.train.finetune.job import EpochDone, FineTuneConfig, Measured, Watch, fine_tune
from smelt.train.recipe import Recipe, Workshop


@dataclass(frozen=True, kw_only=True)
class FineTuneRun:
    """base: a model folder or the name of the shipped model. Files: JSONL. workers: cores that compute batches each."""

    base: str = "spark"
    training: Path | None = None
    validation: Path | None = None
    tuning: FineTuneConfig = FineTuneConfig()
    workers: int = 1
    device: str = "auto"
    made_up: int = 0


def make(settings: FineTuneRun, shop: Workshop) -> Path:
    """The tuned folder. With `made_up` and no files, that many invented examples take their place (smoke)."""
    from smelt.checkpoint import resolve_model

    training, validation = settings.training, settings.validation
    if training is None and settings.made_up:
        training, validation = _invented(shop.out, settings)
    if training is None:
        raise InvalidRequestError("training is missing; sought --set training=FILE.jsonl")
    steps = ScheduleConfig(total_steps=1)  # the job's own takes its place
    how = TrainConfig(
        schedule=steps, log_every=1, checkpoint_layers=True, workers=settings.workers, device=settings.device
    )
    watch = Watch(
        on_report=shop.on_report,
        on_epoch=lambda done: shop.say(_told(done)),
        on_reference=lambda now: shop.say(f"reference: {now.done} of {now.total} pairs, {now.left_s:.0f} s left"),
        stopping=shop.stopping,
    )
    found = fine_tune(
        Path(resolve_model(settings.base)),
        training,
        shop.out,
        settings.tuning,
        validation=validation,
        watch=watch,
        how=how,
    )
    shop.say(f"{found.num_examples} examples, {found.plan.epochs} epochs of {found.plan.steps_per_epoch} steps")
    if found.before and found.after:
        shop.say(f"validation before: {_numbers(found.before)}; after: {_numbers(found.after)}")
    return found.folder


def _told(done: EpochDone) -> str:
    measured = "" if done.validation is None else f": validation {_numbers(done.validation)}"
    return f"epoch {done.epoch} after step {done.step}{measured}"


def _numbers(measured: Measured) -> str:
    return f"loss {measured.loss:.4f}, accuracy {measured.logs.get('accuracy', 0.0):.3f}"


def _invented(out: Path, settings: FineTuneRun) -> tuple[Path, Path]:
    """Two files of a task anyone can check: the answer is the question's word, and for pairs, not another word."""
    rng = random.Random(settings.tuning.seed)
    words = "river stone apple cloud candle garden winter silver bridge lantern".split()
    paths = (out / "invented-training.jsonl", out / "invented-validation.jsonl")
    out.mkdir(parents=True, exist_ok=True)
    for path, num in zip(paths, (settings.made_up, max(2, settings.made_up // 4)), strict=True):
        lines = []
        for _ in range(num):
            word, other = rng.sample(words, 2)
            asked = [{"role": "user", "content": f"Say the word {word}."}]
            answers = [{"role": "assistant", "content": text} for text in (word, other)]
            if settings.tuning.method == "dpo":
                sides = {"preferred_output": answers[:1], "non_preferred_output": answers[1:]}
                lines.append(json.dumps({"input": {"messages": asked}, **sides}))
            else:
                lines.append(json.dumps({"messages": [*asked, answers[0]]}))
        path.write_text("\n".join(lines) + "\n")
    return paths


SETTINGS = FineTuneRun()
SMOKE = dataclasses.replace(SETTINGS, made_up=12, tuning=FineTuneConfig(epochs=1, batch_size=4))

recipe = Recipe(settings=SETTINGS, smoke=SMOKE, make=make)
