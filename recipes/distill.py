"""A model learns from chat files: from their answers, and from a larger model's distributions where one is at hand.

    smelt train recipes/distill.py --out build/mine --set chats=traffic.jsonl
    smelt train recipes/distill.py --out build/mine --set chats=traffic.jsonl --set teacher=build/large

The files are OpenAI's chat fine-tuning format, hand-written or recorded by `smelt record`. Without a teacher the run
is plain supervised fine-tuning; a teacher must have the student's own tokenizer. Without files the generated tasks
are learned. Called again with the same `--out` it goes on. The result is `<out>/model`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smelt.data.batches import Batch, Encoded, encode
from smelt.train.recipe import Recipe, Workshop

if TYPE_CHECKING:
    from smelt.chat import Renderer
    from smelt.checkpoint import Checkpoint
    from smelt.model.decoder import Decoder
    from smelt.tokenizer import Tokenizer
    from smelt.train.loop import Run, Stream
    from smelt.train.objectives import Objective
    from smelt.train.teachers.cache import CachedTeacher, Scorer
    from smelt.train.teachers.cache_format import CacheSettings, Kept

_HELD_OUT_EVERY = 20  # of the conversations one is kept back, to say what was learned


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """chats: JSONL files. student, teacher: folders, Hugging Face ids or shipped names; no teacher: fine-tuning alone.
    A teacher may be an OpenAI-compatible URL too (http://.../v1, with teacher_model and the key in SMELT_TEACHER_KEY)
    that scores texts with log-probabilities; prices are per million tokens, for the cost shown.

    ratio: the teacher's share against the files' own answers. beta: 0 forward KL to 1 reverse KL. cache: "online" asks
    the teacher at every step; "sampled" and "top_k" ask it once an epoch's batches and keep cache_k ids a token;
    "recorded" takes the log-probabilities that came with the files' answers, and no teacher.
    on_policy: share of batches the student continues itself (beta of 0.5 or 1 suits it). generated: conversations
    drawn where there are no files. Learning rates are a tenth of those from scratch.
    """

    chats: tuple[Path, ...] = ()
    skip_problems: bool = True
    student: str = "spark"
    teacher: str = ""
    ratio: float = 1.0
    beta: float = 0.0
    temperature: float = 1.0
    teacher_model: str = ""
    input_price: float = 0.0
    output_price: float = 0.0
    cache: Literal["online", "sampled", "top_k", "recorded"] = "online"
    cache_k: int = 12
    on_policy: float = 0.0
    max_new: int = 128
    generated: int = 2000
    total_steps: int = 200
    row_len: int = 1024
    rows: int = 4
    muon_lr: float = 2e-3
    adam_lr: float = 3e-4
    workers: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Cycled:
    """The first `num_chunks` chunks of a stream again and again: what a cache of an epoch is shown by."""

    stream: Stream
    num_chunks: int

    def chunk(self, number: int) -> Sequence[Batch]:
        """Chunk `number` modulo their number."""
        return self.stream.chunk(number % self.num_chunks)


def make(config: DistillConfig, shop: Workshop) -> Path:
    """Read, learn, measure on what was kept back, export; returns the model folder."""
    from smelt.chat import renderer_for
    from smelt.checkpoint import open_checkpoint, resolve_model
    from smelt.model.decoder import Decoder
    from smelt.tokenizer import Tokenizer

    start = open_checkpoint(resolve_model(config.student))
    tokenizer = Tokenizer.load(start.folder)
    learned, kept_back = documents(config, renderer_for(tokenizer), tokenizer, start, shop)
    pad_id = start.config.pad_id or 0
    stream = epoch(config, learned, pad_id)
    student = Decoder.from_tensors(start.config, start.tensors)
    chosen = objective(config, tokenizer, start, stream, shop)
    run = make_run(config, student, stream, chosen, shop)
    held_out = [batch for batch in epoch(config, kept_back, pad_id).chunk(0) if batch.num_learned]
    before = held_out_loss(student, held_out, run)  # of the start: the run takes up its own weights in train()
    position = run.train()
    result = run.result()
    folder = shop.out / "model"
    if shop.world.writes:
        after = held_out_loss(result, held_out, run)
        told: dict[str, Any] = {"objective": chosen.name, "steps": position.step}
        told |= {"held_out_nats_before": before, "held_out_nats_after": after}
        shop.say(f"held out: {before:.4f} nats a token before, {after:.4f} after")
        export(config, start, result, folder, told)
    return folder


def documents(
    config: DistillConfig, renderer: Renderer, tokenizer: Tokenizer, start: Checkpoint, shop: Workshop
) -> tuple[list[Encoded], list[Encoded]]:
    """Conversations to learn and those kept back; says what was left out. Raises DataError where nothing is left."""
    from smelt.core.errors import DataError
    from smelt.data.chat_jsonl import encode_record, encode_text, read_chat_jsonl
    from smelt.data.tasks.mixture import Mixture

    found: list[Encoded] = []
    for path in config.chats:
        file = read_chat_jsonl(path, on_problem="skip" if config.skip_problems else "raise")
        for problem in file.problems[:5]:
            shop.say(f"{path.name} left out: {problem}")
        end_id = start.config.eos_ids[0] if start.config.eos_ids else None
        found += [encode_record(renderer, record) for record in file.records]
        found += [encode_text(tokenizer, record, end_id) for record in file.texts]
        shop.say(f"{path.name}: {len(file.records) + len(file.texts)} used, {len(file.problems)} left out")
    if not config.chats:
        mixture = Mixture(weights={"call": 1.0, "result": 1.0, "extract": 1.0, "service": 1.0})
        found = [encode(renderer, mixture.example(config.seed, i)) for i in range(config.generated)]
    fitting = [document for document in found if 1 < len(document.ids) <= config.row_len]
    if len(fitting) < len(found):
        shop.say(f"{len(found) - len(fitting)} longer than {config.row_len} tokens left out; see row_len")
    if not fitting:
        raise DataError(f"sought conversations of at most {config.row_len} tokens, found none")
    if len(fitting) < 2 * _HELD_OUT_EVERY:
        shop.say("too few conversations to keep any back: the measured loss is of what was learned")
        return fitting, fitting
    return [d for i, d in enumerate(fitting) if i % _HELD_OUT_EVERY], fitting[::_HELD_OUT_EVERY]


def epoch(config: DistillConfig, encoded: list[Encoded], pad_id: int) -> Cycled:
    """Packed batches that show each conversation about once, then again in the same order."""
    from smelt.data.stream import PackedStream, Recorded

    stream = PackedStream(
        sources=[(Recorded(documents=encoded, max_len=config.row_len, seed=config.seed), 1.0)],
        row_len=config.row_len,
        rows=config.rows,
        pad_id=pad_id,
        seed=config.seed,
    )
    tokens = sum(len(document.ids) - 1 for document in encoded)
    return Cycled(stream, max(1, round(tokens / (config.row_len * config.rows * stream.batches_per_chunk))))


def objective(
    config: DistillConfig, tokenizer: Tokenizer, start: Checkpoint, stream: Cycled, shop: Workshop
) -> Objective:
    """Cross-entropy, or distillation from the teacher; its cache is built, or gone on with, first."""
    from smelt.checkpoint import resolve_model
    from smelt.train.distill.divergence import Divergence
    from smelt.train.distill.objective import Distillation
    from smelt.train.distill.on_policy import OnPolicy
    from smelt.train.objectives import CrossEntropy
    from smelt.train.teachers.cache_scorer import ModelScorer
    from smelt.train.teachers.online import load_teacher

    divergence = Divergence(beta=config.beta, temperature=config.temperature)
    if config.cache == "recorded":
        cached = cache(config, recorded(config, tokenizer), stream, shop)
        return Distillation(cached, divergence=divergence, ratio=config.ratio)
    if not config.teacher:
        return CrossEntropy()
    if config.teacher.startswith(("http://", "https://")):
        with behind_url(config, tokenizer, shop) as scorer:
            cached = cache(config, scorer, stream, shop)
        return Distillation(cached, divergence=divergence, ratio=config.ratio)
    teacher = load_teacher(resolve_model(config.teacher), tokenizer)
    own = None
    if config.on_policy:
        own = OnPolicy(
            share=config.on_policy,
            max_new=config.max_new,
            vocab_len=teacher.vocab_len,
            end_ids=frozenset(start.config.eos_ids),
            seed=config.seed,
        )
    chosen = (
        teacher if config.cache == "online" else cache(config, ModelScorer(teacher, shop.world.device), stream, shop)
    )
    return Distillation(chosen, divergence=divergence, ratio=config.ratio, on_policy=own)


def cache(config: DistillConfig, scorer: Scorer, stream: Cycled, shop: Workshop) -> CachedTeacher:
    """The scorer's answers to one epoch, under `<out>/teacher`; one process asks, the others wait."""
    from smelt.train.teachers.cache import CachedTeacher, build_cache, report_line
    from smelt.train.teachers.cache_format import CacheSettings

    settings = CacheSettings(
        method="sampled" if config.cache == "sampled" else "top_k",
        k=config.cache_k,
        temperature=config.temperature,
        seed=config.seed,
    )

    def build() -> Path:
        return build_cache(
            shop.out / "teacher",
            scorer,
            stream,
            stream.num_chunks,
            settings,
            on_report=lambda report: shop.say(report_line(report)),
        )

    if shop.world.writes:
        build()
    shop.world.wait()
    return CachedTeacher(build())


@contextmanager
def behind_url(config: DistillConfig, tokenizer: Tokenizer, shop: Workshop) -> Iterator[Scorer]:
    """A teacher that scores our texts at a URL, and tells what that costs after every chunk."""
    from smelt.train.teachers.asking import Asker, Spent
    from smelt.train.teachers.url import URLScorer

    class Told(URLScorer):
        def score(self, batches: Sequence[Batch], settings: CacheSettings) -> list[Kept]:
            found = super().score(batches, settings)
            shop.say(f"teacher: {self.asker.spent.line()}")
            return found

    asker = Asker(
        config.teacher,
        config.teacher_model,
        api_key=os.environ.get("SMELT_TEACHER_KEY", "none"),
        spent=Spent(input_price=config.input_price, output_price=config.output_price),
    )
    with closing(asker):
        yield Told(asker, tokenizer)


def recorded(config: DistillConfig, tokenizer: Tokenizer) -> Scorer:
    """The log-probabilities that came with the files' answers. Raises DataError where none did."""
    from smelt.chat import renderer_for
    from smelt.core.errors import DataError
    from smelt.data.chat_jsonl import encode_record, read_chat_jsonl
    from smelt.train.teachers.url import RecordedScorer, TokenNames, recorded_rows

    renderer, names = renderer_for(tokenizer), TokenNames(tokenizer)
    files = [read_chat_jsonl(path, on_problem="skip" if config.skip_problems else "raise") for path in config.chats]
    records = [record for file in files for record in file.records if record.logprobs]
    if not records:
        raise DataError("cache=recorded: sought answers with log-probabilities in the side field, found none")
    rows = dict(recorded_rows(encode_record(renderer, r), r.logprobs, tokenizer, names) for r in records)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in config.chats)).hexdigest()
    return RecordedScorer(rows, tokenizer.vocab_size, digest)


def make_run(config: DistillConfig, student: Decoder, stream: Cycled, chosen: Objective, shop: Workshop) -> Run:
    """One stage, all steps."""
    from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from smelt.train.loop import Run, Stage

    warmup = min(40, config.total_steps // 10 + 1)
    return Run(
        model=student,
        stages=[Stage(name="distil" if config.teacher else "tune", stream=stream, objective=chosen)],
        config=TrainConfig(
            optimizer=OptimizerConfig(muon_lr=config.muon_lr, adam_lr=config.adam_lr, weight_decay=0.0),
            schedule=ScheduleConfig(total_steps=config.total_steps, warmup_steps=warmup),
            seed=config.seed,
            workers=config.workers,
        ),
        folder=shop.out / "run",
        on_report=shop.on_report,
        stopping=shop.stopping,
    )


def held_out_loss(model: Decoder, batches: list[Batch], run: Run) -> float:
    """Cross-entropy a learned token, in nats."""
    from smelt.train.objectives import mean_loss

    return mean_loss(model.to(run.device), batches, run.device)


def export(config: DistillConfig, start: Checkpoint, result: Decoder, folder: Path, told: dict[str, Any]) -> None:
    """The student's folder with the new weights; its lineage goes on, its old card's scores are no longer true."""
    from smelt.train.finetune.folder import base_facts, base_name, save_tuned

    step = {
        "step": "distil" if config.teacher else "tune",
        "data": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in config.chats},
        "settings": json.loads(json.dumps(asdict(config), default=lambda path: path.name)),
        **told,
    }
    before = start.card or {}
    card: dict[str, Any] = {
        "name": f"{base_name(start)}-distilled" if config.teacher else f"{base_name(start)}-tuned",
        "summary": f"{base_name(start)}, taught on {len(config.chats) or 'no'} files of conversations.",
        "parameters": result.config.num_parameters,
        **{key: before[key] for key in ("languages", "licence") if key in before},
        "context_len": result.config.context_len,
        "base": base_facts(start),
        "held_out": told,
        "scores": "those of the base do not hold for it; `smelt eval` measures this folder",
    }
    save_tuned(folder, start, result, card, [step])


recipe = Recipe(
    settings=DistillConfig(),
    smoke=DistillConfig(teacher="spark", cache="top_k", cache_k=8, generated=60, total_steps=4, row_len=256, rows=2),
    make=make,
)
