"""ember's accelerator tier: a teacher too large to ship, and a student of 16 MB that learns its distributions.

    python -m recipes.ember_pack pack build/ember-pack --corpus build/corpus --data ../shared/data \\
        --tokenizer build/ember/tokenizer
    smelt train recipes/ember_gpu.py --out build/ember-gpu --data build/ember-pack --set times.minutes=9.5
    smelt train recipes/ember_gpu.py --out build/ember-gpu-smoke --data build/ember-pack --smoke

Each call is one command of at most `times.minutes`: it goes on where the last one stopped and ends by itself, with a
checkpoint. How the time is shared out stands in recipes/ember_gpu_clock.py. Every call leaves `<out>/home.tar.xz`: the
student's folder `ember` as it is then, and the run's records. The teacher stays where it was made.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.ember import STORY
from recipes.ember_gpu_clock import Clock, Times
from recipes.ember_gpu_data import Rows, Shares, end, stages_of
from recipes.ember_gpu_folder import export_student, take_home
from recipes.ember_material import restored
from recipes.ember_pack import read_manifest, unpack
from recipes.folder import Made
from recipes.house import TINY, Shape
from recipes.mixtures import DECISION_WEIGHT
from smelt.core.errors import InvalidRequestError, TrainingStoppedError
from smelt.tokenizer import Tokenizer
from smelt.train.lineage import digest, hardware
from smelt.train.loop import Run
from smelt.train.recipe import Recipe, Workshop

if TYPE_CHECKING:
    import torch

    from recipes.ember_data import Material
    from smelt.train.objectives import Objective


_RECORDS = ("metrics.jsonl", "curves.csv", "curves.svg")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the two models. `accumulate` batches make a step; rates and decay are TrainConfig's."""

    shape: Shape
    shares: Shares
    accumulate: int
    decay_share: float
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100


@dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """Everything that decides the outcome, beside the pack.

    The student's 7.6M parameters are 15.2 MB in bf16. ratio: the teacher's share against the texts themselves.
    """

    times: Times = Times()
    rows: Rows = Rows()
    teacher: Part = Part(
        shape=Shape(
            hidden_size=768,
            intermediate_size=2304,
            num_heads=12,
            num_kv_heads=4,
            head_dim=64,
            num_layers=12,
            global_layers=(2, 5, 8, 11),
            window=512,
            context_len=4096,
        ),
        shares=Shares(early_tokens=20_000_000, text=0.5, last_text=0.3),
        accumulate=4,
        decay_share=0.4,
    )
    student: Part = Part(
        shape=Shape(
            hidden_size=256,
            intermediate_size=768,
            num_heads=8,
            num_kv_heads=2,
            head_dim=32,
            num_layers=8,
            global_layers=(3, 7),
            window=512,
            context_len=4096,
        ),
        shares=Shares(early_tokens=10_000_000, text=0.35, last_text=0.0),
        accumulate=2,
        decay_share=0.35,
    )
    ratio: float = 0.9
    compile: bool = True
    max_steps: int = 1_000_000
    checkpoint_s: float = 150.0
    log_every: int = 20
    seed: int = 50


_SMALL = Shares(early_tokens=3_000, text=0.3, last_text=0.0)
SMOKE = GpuConfig(
    times=Times(minutes=0.075, commands=2, start_s=0.4, reserve_s=0.5, teacher_share=0.6, slack=0.1, least_s=1.0),
    rows=Rows(rows=2, row_len=512, short_len=512, workers=1),
    teacher=Part(
        shape=dataclasses.replace(TINY, hidden_size=64, num_heads=4), shares=_SMALL, accumulate=1, decay_share=0.4
    ),
    student=Part(shape=TINY, shares=_SMALL, accumulate=1, decay_share=0.35),
    compile=False,
    log_every=5,
)


@dataclass(kw_only=True)
class Fitting(Run):
    """A run whose falling rate, once under way, reaches zero in the time that a `clock` has left.

    Steps settled in an earlier command would otherwise be cut off where the next one starts more slowly than planned.
    """

    clock: Clock | None = None

    def resume(self) -> None:
        """As the loop's, the last steps cut to those that fit at the speed so far."""
        super().resume()
        step = self.position.step
        if self.clock is not None and self.plan.settled and 0 < step < self.plan.total_steps:
            fitting = int(self.clock.fitting_s * step / self.position.elapsed_s)
            self.plan.total_steps = min(self.plan.total_steps, step + max(1, fitting))


@dataclass(frozen=True, kw_only=True)
class Site:
    """What both parts work with. folder: the unpacked pack."""

    config: GpuConfig
    shop: Workshop
    clock: Clock
    pack: dict[str, Any]
    folder: Path
    material: Material
    tokenizer: Tokenizer
    device: torch.device


def make(config: GpuConfig, shop: Workshop) -> Path:
    """One command's work; returns the student's folder, or `out` while there is none.

    Raises InvalidRequestError without a pack, or for several processes: one accelerator is what the plan is for.
    """
    from smelt.train.hardware import pick_device

    if shop.data is None or shop.world.size > 1:
        raise InvalidRequestError("ember_gpu: sought --data with a pack (recipes/ember_pack.py) and a single process")
    began = time.monotonic()
    pack = read_manifest(shop.data)
    folder = shop.out / f"material-{digest(pack)[:12]}"
    unpack(shop.data, folder)  # a piece that has not come costs no command of the plan
    clock = Clock(config.times, shop.out / "plan.json", began=began)
    with clock.stops(shop.stopping):
        site = Site(
            config=config,
            shop=shop,
            clock=clock,
            pack=pack,
            folder=folder,
            material=restored(folder),
            tokenizer=Tokenizer.load(folder / "tokenizer"),
            device=pick_device("auto"),
        )
        shop.say(f"command {clock.told['commands']} of {config.times.commands}: {clock.here_s:.0f} s for training here")
        finished = make_teacher(site) and make_student(site)
    shop.say("done" if finished else "stopped in time, with a checkpoint: the same command goes on")
    records = [shop.out / name for name in ("ember", "plan.json", "settings.json", "teacher/teacher.json")]
    records += [shop.out / run / file for run in ("teacher-run", "student-run") for file in _RECORDS]
    take_home(shop.out, records)
    return shop.out / "ember" if (shop.out / "ember").is_dir() else shop.out


def make_teacher(site: Site) -> bool:
    """Train the teacher as far as this command's time goes; True when `<out>/teacher` is there."""
    from smelt.checkpoint import save_checkpoint
    from smelt.train.objectives import CrossEntropy

    folder = site.shop.out / "teacher"
    if folder.is_dir():
        return True
    if not site.clock.may_begin:
        return False
    objective = CrossEntropy(first_weight=DECISION_WEIGHT)
    run = make_run(site, "teacher", site.config.teacher, objective, site.config.times.teacher_share)
    if not worked(site, run, "teacher"):
        return False
    model = run.result()
    told = {
        "parameters": model.config.num_parameters,
        "steps": run.position.step,
        "tokens": run.position.num_tokens,
        "wall_s": round(run.position.elapsed_s),
        "hardware": hardware(str(run.device)),
    }
    files = {"teacher.json": (json.dumps(told, indent=1) + "\n").encode()}
    files |= {path.name: path.read_bytes() for path in (site.folder / "tokenizer").iterdir()}
    save_checkpoint(folder, model.config, model.tensors(), dtype="BF16", files=files)
    return True


def make_student(site: Site) -> bool:
    """Distil as far as this command's time goes, and export what there is; True when it is done."""
    from smelt.train.distill.objective import Distillation
    from smelt.train.hardware import compile_layers
    from smelt.train.teachers.online import load_teacher

    if not site.clock.may_begin:
        return False
    out = site.shop.out
    teacher = load_teacher(out / "teacher", site.tokenizer)
    if compiles(site):
        compile_layers(teacher.model)
    run = make_run(site, "student", site.config.student, Distillation(teacher, ratio=site.config.ratio), 1.0)
    finished = worked(site, run, "student")
    made = Made(
        story=dataclasses.replace(STORY, recipe="recipes/ember_gpu.py"),
        settings=site.config,
        model=run.result(),
        tokenizer=site.tokenizer,
        position=run.position,
        data=None,
    )
    told = {"finished": finished, "objective": run.stages[0].objective.name, "hardware": hardware(str(run.device))}
    export_student(made, out / "ember", site.pack, json.loads((out / "teacher/teacher.json").read_text()), told)
    return finished


def make_run(site: Site, name: str, part: Part, objective: Objective, share: float) -> Run:
    """The part's run under `<out>/<name>-run`, its deadline settled when it is first made."""
    from smelt.model.decoder import Decoder
    from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig

    config, seed = site.config, site.config.seed + (100 if name == "student" else 0)
    stages = stages_of(
        site.material, site.tokenizer, site.shop, objective, rows=config.rows, shares=part.shares, seed=seed
    )
    model = Decoder(part.shape.decoder(site.tokenizer))
    model.init_weights(seed)
    deadline_s = site.clock.deadline(name, share)  # behind the tokens above, which take their time once
    site.shop.say(f"{name}: {model.config.num_parameters / 1e6:.2f}M parameters, {deadline_s:.0f} s of training in all")
    return Fitting(
        clock=site.clock if name == "student" else None,
        model=model,
        stages=stages,
        config=TrainConfig(
            optimizer=OptimizerConfig(muon_lr=part.muon_lr, adam_lr=part.adam_lr, weight_decay=part.weight_decay),
            schedule=ScheduleConfig(
                total_steps=config.max_steps,
                warmup_steps=part.warmup_steps,
                decay_share=part.decay_share,
                deadline_s=deadline_s,
            ),
            accumulate=part.accumulate,
            seed=seed,
            compile=compiles(site),
            checkpoint_s=config.checkpoint_s,
            log_every=config.log_every,
        ),
        folder=site.shop.out / f"{name}-run",
        on_report=site.shop.on_report,
        stopping=site.shop.stopping,
    )


def worked(site: Site, run: Run, name: str) -> bool:
    """Train until the part is done or this command's time over; True when done. Leaves the speed in `plan.json`."""
    try:
        run.resume()
        if not is_done(run):
            warm(site, run, name)
            run.train()
        return True
    except TrainingStoppedError:
        if not site.clock.ran_out:  # someone else stopped it
            raise
        return False
    finally:
        waited = end(run.stages)
        position = run.position
        speed = round(position.num_tokens / max(1e-9, position.elapsed_s))
        site.clock.tell(**{f"{name}_tokens_per_s": speed, f"{name}_waited_for_data_s": round(waited, 1)})


def is_done(run: Run) -> bool:
    """Whether the run's checkpoint is of its last step."""
    return run.plan.settled and run.position.step >= run.plan.total_steps


def warm(site: Site, run: Run, name: str) -> None:
    """Compile, and measure a step's speed, before the run's clock counts; changes no weight."""
    stage = run.stages[run.position.stage]
    batch = stage.stream.chunk(run.position.chunk)[0]
    taken = []
    for _ in range(2):
        began = time.monotonic()
        _, gradients = run.gradients(stage.objective, [batch], map)
        float(sum(gradient.sum() for gradient in gradients))  # waits for the device
        taken.append(time.monotonic() - began)
    speed = round(batch.inputs.size / taken[1])
    site.shop.say(f"{name}: the first batch took {taken[0]:.1f} s (compiling), the next ran at {speed:,} tokens/s")
    site.clock.tell(**{f"{name}_first_tokens_per_s": speed})


def compiles(site: Site) -> bool:
    """On an accelerator alone; from then on every shape is compiled for itself.

    Teacher and student run the same code at two widths: torch would take the second for a width that varies, and make
    slower kernels for it. There are four kinds of layers (two windows, two models) and one shape of batches.
    """
    if not site.config.compile or site.device.type != "cuda":
        return False
    import torch

    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = 64
    return True


recipe = Recipe(settings=GpuConfig(), smoke=SMOKE, make=make)
