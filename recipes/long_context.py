"""A finished folder taken to a longer context: rotary base, a short training on long texts, a needle table in its card.

    smelt train recipes/long_context.py --out build/long --data ../shared/data --set base=FOLDER --set steps=60
    smelt train recipes/long_context.py --out build/long-smoke --smoke

Runs on a CPU in pieces: stopped or killed, the same command goes on. The result is `<out>/model`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smelt.train.recipe import Recipe, Workshop

if TYPE_CHECKING:
    from smelt.checkpoint.folder import Checkpoint
    from smelt.core.decoder import DecoderConfig
    from smelt.data.stream import PackedStream, Source
    from smelt.train.loop import Run

# What the folder learned before, so that it is not lost: short conversations of every kind.
_KEEPS = {
    "call": 6, "session": 4, "offered": 4, "contrast": 3, "no_tool": 3, "result": 3, "extract": 6, "free": 3,
    "classify": 2, "service": 3, "facts": 2, "talk": 1, "aligned": 2, "conflict": 3, "tool_order": 3, "fidelity": 2,
    "document": 2, "lookup": 1, "repeat": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LongContext:
    """base: a folder or a shipped model's name. rope_base: of the layers that see everything.

    row_len: tokens of the longest document of the training, which may be shorter than context_len: the card says both.
    long_share: of the tokens, in long tasks; text_share: in joined texts of `corpus`; the rest is short conversations.
    rate: against the peaks of a run from scratch. needle_chars: lengths of smelt.evals.needle to ask at the end.
    """

    base: str = "spark"
    context_len: int = 131_072
    rope_base: float = 8_000_000.0
    row_len: int = 16_384
    steps: int = 60
    accumulate: int = 2
    workers: int = 1
    long_share: float = 0.6
    text_share: float = 0.1
    corpus: Path | None = None
    rate: float = 0.1
    needle_chars: tuple[int, ...] = (1_000, 4_000, 16_000, 64_000, 256_000)
    needles_per_cell: int = 3
    seed: int = 0


SMOKE = LongContext(
    context_len=8192, row_len=512, steps=2, accumulate=1, needle_chars=(1_000,), needles_per_cell=1, long_share=0.5
)


def make(settings: LongContext, shop: Workshop) -> Path:
    """Stretch, train, export, ask for needles; returns the folder."""
    from smelt.checkpoint import open_checkpoint, resolve_model
    from smelt.model.decoder import Decoder
    from smelt.train.finetune.folder import save_tuned
    from smelt.train.long_context import stretched

    base = open_checkpoint(resolve_model(settings.base))
    shape = stretched(base.config, settings.context_len, settings.rope_base)
    run = make_run(settings, base, shape, shop)
    position = run.train()
    folder = shop.out / "model"
    if not shop.world.writes:
        return folder
    made = {
        "step": "long-context",
        "recipe": "recipes/long_context.py",
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
        "tokens": position.num_tokens,
        "wall_s": round(position.elapsed_s),
    }
    result: Decoder = run.result()
    save_tuned(folder, base, result, card(settings, base, shape, "not measured yet"), [made])
    found = needles(settings, folder, shop)
    save_tuned(folder, base, result, card(settings, base, shape, found), [made])
    shop.say(found["table"])
    return folder


def make_run(settings: LongContext, base: Checkpoint, shape: DecoderConfig, shop: Workshop) -> Run:
    """The run over long and short documents."""
    from smelt.model.decoder import Decoder
    from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from smelt.train.loop import Run, Stage

    peaks = OptimizerConfig()
    optimizer = dataclasses.replace(
        peaks, muon_lr=peaks.muon_lr * settings.rate, adam_lr=peaks.adam_lr * settings.rate, weight_decay=0.0
    )
    config = TrainConfig(
        optimizer=optimizer,
        schedule=ScheduleConfig(total_steps=settings.steps, warmup_steps=max(1, settings.steps // 20)),
        accumulate=settings.accumulate,
        workers=settings.workers,
        seed=settings.seed,
        checkpoint_layers=True,
        checkpoint_s=120.0,
        log_every=1,
    )
    return Run(
        model=Decoder.from_tensors(shape, base.tensors),
        stages=[Stage(name="long", stream=stream(settings, base, shop))],
        config=config,
        folder=shop.out / "run",
        on_report=shop.on_report,
        stopping=shop.stopping,
    )


def stream(settings: LongContext, base: Checkpoint, shop: Workshop) -> PackedStream:
    """One row a batch: a long task, joined text, or many short conversations."""
    from smelt.chat import renderer_for
    from smelt.data.batches import mixed
    from smelt.data.shards import tokenize_corpus
    from smelt.data.stream import Conversations, PackedStream, Texts
    from smelt.data.tasks.mixture import Mixture
    from smelt.data.text import read_pools
    from smelt.tokenizer import Tokenizer
    from smelt.train.long_context import JoinedTexts, LongTasks

    tokenizer, length = Tokenizer.load(base.folder), settings.row_len
    renderer, pools = renderer_for(tokenizer), read_pools(shop.data)
    tasks = LongTasks(seed=settings.seed, min_len=length // 8, max_len=length, pools=pools)
    short = mixed(Mixture(weights=_KEEPS, pools=pools), settings.seed)
    sources: list[tuple[Source, float]] = [
        (Conversations(example_at=tasks.at, renderer=renderer, max_len=length), settings.long_share),
        (Conversations(example_at=short, renderer=renderer, max_len=min(length, 2048)), 1.0 - settings.long_share),
    ]
    if settings.corpus is not None:
        texts = Texts(shards=tokenize_corpus(settings.corpus, tokenizer), seed=settings.seed)
        sources.append((JoinedTexts(texts=texts, document_len=length), settings.text_share))
    return PackedStream(
        sources=sources,
        row_len=length,
        rows=1,
        pad_id=base.config.pad_id or 0,
        seed=settings.seed,
        batches_per_chunk=32,
        privileges=base.config.num_privileges > 0,
    )


def needles(settings: LongContext, folder: Path, shop: Workshop) -> dict[str, Any]:
    """One number in a text, by length and depth, English; beside it the same for the base, which ends earlier."""
    from smelt.cli.evaluate import EvalOptions, asked_rows, opened
    from smelt.core.sampling import SamplingParams
    from smelt.data.text import read_pools
    from smelt.evals import needle

    hay = list(read_pools(shop.data).get("en", ()))[-4000:] or _plain_hay()
    cases = needle.cases(
        hay,
        "en",
        SamplingParams(temperature=0.0, max_tokens=48),
        lengths=settings.needle_chars,
        per_cell=settings.needles_per_cell,
    )
    options = EvalOptions(model=str(folder), results=shop.out / "answers", workers=1)
    with opened(str(folder), options) as sampler:
        rows = asked_rows(sampler, cases, options)
    return {"num_asked": len(cases), "table": needle.table(rows)}


def _plain_hay() -> list[str]:
    """Sentences without any data at hand."""
    import random

    from smelt.data.tasks.lookup import filler
    from smelt.data.tasks.values import Values

    values = Values(random.Random("hay"), "en", "test")
    return [filler(values) for _ in range(400)]


def card(settings: LongContext, base: Checkpoint, shape: DecoderConfig, found: Any) -> dict[str, Any]:
    """The base's card, with what changed; what was measured of the base is not the new folder's."""
    from smelt.train.finetune.folder import base_facts, base_name

    old = base.card or {}
    return {
        **{key: value for key, value in old.items() if key != "scores"},
        "name": f"{base_name(base)}-long",
        "base": base_facts(base),
        "context_len": shape.context_len,
        "trained_len": settings.row_len,
        "rope_base": settings.rope_base,
        "needle_by_depth": found,
        "scores": "those of the base do not hold for it; `smelt eval` measures this folder",
    }


recipe = Recipe(settings=LongContext(), smoke=SMOKE, make=make)
