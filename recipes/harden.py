"""A folder taught whom to listen to, by its own answers: SecAlign-type pairs, then preference tuning on them.

    smelt train recipes/harden.py --out build/hard --set base=FOLDER --set pairs.num_prompts=2000

First `<out>/pairs.jsonl` is written (the model answers clean prompts and injected orders, both itself), then the model
is tuned on it; a tenth is kept apart for the before and after in the card. Stopped, the same command goes on. The
result is `<out>/tuned/model`. Whether it helped is for `smelt eval` to say, on styles of attack never trained on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from smelt.core.errors import DataError
from smelt.train.align.pairs import PairProgress, PairSettings, write_pairs
from smelt.train.finetune.job import FineTuneConfig, Measured, Watch, fine_tune
from smelt.train.recipe import Recipe, Workshop


@dataclass(frozen=True, kw_only=True)
class Harden:
    """base: a folder or a shipped model's name. pairs: how many prompts, how they are answered. tuning: method dpo."""

    base: str = "spark"
    pairs: PairSettings = PairSettings(num_prompts=2000)
    tuning: FineTuneConfig = FineTuneConfig(method="dpo", epochs=1, batch_size=16)
    device: str = "auto"


SMOKE = Harden(
    pairs=PairSettings(num_prompts=24, per_batch=12, max_new=48),
    tuning=FineTuneConfig(method="dpo", epochs=1, batch_size=4),
)


def make(settings: Harden, shop: Workshop) -> Path:
    """Pairs, then tuning; returns the tuned folder."""
    from smelt.chat import renderer_for
    from smelt.checkpoint import open_checkpoint, resolve_model
    from smelt.data.attacked import Attacks
    from smelt.data.text import read_pools
    from smelt.model.decoder import Decoder
    from smelt.tokenizer import Tokenizer
    from smelt.train.hardware import pick_device

    folder = resolve_model(settings.base)
    opened, device = open_checkpoint(folder), pick_device(settings.device)
    model = Decoder.from_tensors(opened.config, opened.tensors).eval().to(device)
    path = shop.out / "pairs.jsonl"
    num = write_pairs(
        model,
        renderer_for(Tokenizer.load(folder)),
        Attacks(seed=settings.pairs.seed, pools=read_pools(shop.data)),
        settings.pairs,
        path,
        device=device,
        on_progress=lambda now: shop.say(_told(now)),
    )
    training, validation = _split(path, num)
    found = fine_tune(
        Path(folder),
        training,
        shop.out / "tuned",
        dataclasses.replace(settings.tuning, method="dpo"),
        validation=validation,
        watch=Watch(on_report=shop.on_report, stopping=shop.stopping),
    )
    if found.before and found.after:
        shop.say(f"pairs apart, before: {_numbers(found.before)}; after: {_numbers(found.after)}")
    return found.folder


def _split(path: Path, num: int) -> tuple[Path, Path]:
    """Nine tenths to learn from, the rest apart. Raises DataError where too few pairs came out."""
    if num < 10:
        raise DataError(f"only {num} pairs came out of the prompts; sought at least 10: take more prompts")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    cut = len(lines) - max(1, len(lines) // 10)
    parts = (path.with_name("training.jsonl"), path.with_name("validation.jsonl"))
    for part, some in zip(parts, (lines[:cut], lines[cut:]), strict=True):
        part.write_text("".join(some), encoding="utf-8")
    return parts


def _told(now: PairProgress) -> str:
    return f"{now.prompts} of {now.total} prompts answered, {now.pairs} pairs, {now.left_s / 60:.1f} min left"


def _numbers(measured: Measured) -> str:
    return f"loss {measured.loss:.4f}, accuracy {measured.logs['accuracy']:.3f}, margin {measured.logs['margin']:.3f}"


recipe = Recipe(settings=Harden(), smoke=SMOKE, make=make)
