"""spark, the shipped default: a house-shaped model small enough to be made here, in under an hour of two cores.

    smelt train recipes/spark.py --data ../shared/data --out build/spark
    smelt train recipes/spark.py --out build/spark-smoke --smoke

Called again with the same `--out` it goes on where it stopped. The result is `<out>/spark`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.spark_card import evaluate, export, origin
from recipes.spark_config import SMOKE, SparkConfig
from recipes.spark_data import DECISION_WEIGHT, load_pools, load_sources, make_stages, make_tokenizer
from smelt.chat.house import HouseRenderer
from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.tokenizer import Tokenizer
from smelt.train.recipe import Recipe, Workshop

if TYPE_CHECKING:
    from smelt.data.example import Example
    from smelt.model.decoder import Decoder
    from smelt.train.loop import Run


def shape(config: SparkConfig, tokenizer: Tokenizer) -> DecoderConfig:
    """Gemma 3's text shape at our widths: sliding windows with a global layer after every five."""
    controls = tokenizer.control_ids
    return DecoderConfig(
        family="gemma3_text",
        vocab_size=tokenizer.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        layers=tuple(
            LayerConfig(window=None, rope=0) if i in config.global_layers else LayerConfig(window=config.window, rope=1)
            for i in range(config.num_layers)
        ),
        ropes=(RopeConfig(base=1_000_000.0), RopeConfig(base=10_000.0)),
        context_len=config.context_len,
        norm_offset=1.0,
        activation="gelu_tanh",
        qk_norm=True,
        post_norms=True,
        embedding_scale=math.sqrt(config.hidden_size),
        attention_scale=config.head_dim**-0.5,
        bos_id=controls["<|bos|>"],
        eos_ids=(controls["<|end|>"],),
        pad_id=controls["<|pad|>"],
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
    model = Decoder(shape(config, tokenizer))
    model.init_weights(config.seed)
    shop.say(f"{model.config.num_parameters / 1e6:.2f}M parameters; {time.time() - began:.0f} s to prepare")
    run = make_run(config, model, tokenizer, sources, shop)
    folder = out / "spark"
    if config.export_only:
        run.resume()
        export(config, model, tokenizer, folder, data=shop.data, position=run.position, scores=None)
        return folder
    position = run.train()
    if shop.world.writes:
        model = run.result()
        export(config, model, tokenizer, folder, data=shop.data, position=position, scores=None)
        scores = evaluate(config, folder, shop.data)
        export(config, model, tokenizer, folder, data=shop.data, position=position, scores=scores)
    return folder


def prepare(config: SparkConfig, sources: dict[str, list[Example]], shop: Workshop) -> Tokenizer:
    """The tokenizer, trained where there is none yet, and a note of what the examples come from."""
    folder = shop.out / "tokenizer"
    if shop.world.writes:
        shop.out.mkdir(parents=True, exist_ok=True)
        if not (shop.out / "origin.json").is_file():
            (shop.out / "origin.json").write_text(json.dumps(origin(shop.data), indent=1))
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
        load_pools(shop.data),
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
