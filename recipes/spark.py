"""spark, the shipped default: a house-shaped model small enough to be made here, in under an hour of two cores.

    smelt train recipes/spark.py --data ../shared/data --out build/spark
    smelt train recipes/spark.py --out build/spark-smoke --smoke

Called again with the same `--out` it goes on where it stopped. The result is `<out>/spark`.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.folder import Exam, Made, Story, evaluate, export, keep_origin
from recipes.mixtures import DECISION_WEIGHT
from recipes.public import load_sources
from recipes.spark_config import SMOKE, SparkConfig
from recipes.spark_data import ABOUT, make_stages, make_tokenizer
from smelt.chat.house import HouseRenderer
from smelt.data.text import read_pools
from smelt.tokenizer import Tokenizer
from smelt.train.recipe import Recipe, Workshop

if TYPE_CHECKING:
    from smelt.data.example import Example
    from smelt.model.decoder import Decoder
    from smelt.train.loop import Run


STORY = Story(
    name="spark",
    recipe="recipes/spark.py",
    summary="A very small assistant for tool calls, extraction and short customer-service turns.",
    can=(
        "choose one of a few tools for a short request and copy its arguments out of it",
        "fill a JSON schema with fields that stand in labelled lines, less surely out of sentences",
        "answer short customer-service messages about orders, and questions whose answer the system prompt states",
        "say the result of a tool call",
        "all of it in English, German and Chinese",
    ),
    cannot=(
        "it knows nothing of the world: no facts, no arithmetic, no code, no stories, no translation",
        "it notices that no offered tool fits half of the time, and now and then declines where one does",
        "it copies values and does not reason: what does not stand in the text is guessed",
        "words far from the phrasings it was trained on, and long or nested schemas, go wrong often",
        "one call at a time: parallel calls were not trained",
        "it is no safeguard against hostile instructions in texts it reads",
    ),
    trained_len=3072,
    cutoff=ABOUT.cutoff,
)


def make(config: SparkConfig, shop: Workshop) -> Path:
    """Train, export, evaluate; returns the model folder. With `export_only`: the last checkpoint as it is."""
    import torch

    from smelt.model.decoder import Decoder

    torch.set_num_threads(1)  # two workers compute whole batches instead (train/config.py)
    began, out = time.time(), shop.out
    sources = load_sources(None if config.export_only else shop.data, config.seed)
    shop.say(f"sources: { {name: len(examples) for name, examples in sources.items()} }")
    tokenizer = prepare(config, sources, shop)
    model = Decoder(config.shape.decoder(tokenizer))
    model.init_weights(config.seed)
    shop.say(f"{model.config.num_parameters / 1e6:.2f}M parameters; {time.time() - began:.0f} s to prepare")
    run = make_run(config, model, tokenizer, sources, shop)
    folder = out / "spark"
    if config.export_only:
        run.resume()
        export(
            Made(story=STORY, settings=config, model=model, tokenizer=tokenizer, position=run.position, data=shop.data),
            folder,
        )
        return folder
    position = run.train()
    if shop.world.writes:
        model = run.result()
        made = Made(story=STORY, settings=config, model=model, tokenizer=tokenizer, position=position, data=shop.data)
        export(made, folder)
        exam = Exam(per_language=config.cases_per_language, per_size=config.long_cases, data=shop.data)
        export(made, folder, evaluate("spark", folder, exam))
    return folder


def prepare(config: SparkConfig, sources: dict[str, list[Example]], shop: Workshop) -> Tokenizer:
    """The tokenizer, trained where there is none yet, and a note of what the examples come from."""
    folder = shop.out / "tokenizer"
    if shop.world.writes:
        if not config.export_only:
            keep_origin(shop.out, shop.data)
        if not (folder / "tokenizer.json").is_file():
            make_tokenizer(sources, config.vocab_size, config.tokenizer_examples, config.seed).save(folder)
    shop.world.wait()
    return Tokenizer.load(folder)


def make_run(
    config: SparkConfig, model: Decoder, tokenizer: Tokenizer, sources: dict[str, list[Example]], shop: Workshop
) -> Run:
    """The run of all stages, the token that decides between call and talk weighing more."""
    from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from smelt.train.loop import Run
    from smelt.train.objectives import CrossEntropy

    stages = make_stages(
        HouseRenderer(tokenizer),
        tokenizer.control_ids["<|pad|>"],
        sources,
        read_pools(shop.data),
        batch_tokens=config.batch_tokens,
        early_tokens=config.early_tokens,
    )
    objective = CrossEntropy(first_weight=DECISION_WEIGHT)
    schedule = ScheduleConfig(total_steps=config.max_steps, deadline_s=config.minutes * 60, decay_share=0.55)
    return Run(
        model=model,
        stages=[dataclasses.replace(stage, objective=objective) for stage in stages],
        config=TrainConfig(
            schedule=schedule,
            optimizer=OptimizerConfig(),
            accumulate=2,
            workers=2,
            seed=config.seed,
            device="cpu",
            checkpoint_s=config.checkpoint_s,
        ),
        folder=shop.out / "run",
        on_report=shop.on_report,
        stopping=shop.stopping,
    )


recipe = Recipe(settings=SparkConfig(), smoke=SMOKE, make=make)
