"""spark, the shipped default: a house-shaped model small enough to be made here, in under an hour of two cores.

    python -m recipes.spark --data ../shared/data --out build/spark --minutes 55
    python -m recipes.spark --out build/spark-smoke --smoke

Called again with the same `--out` it goes on where it stopped. The result is `<out>/spark`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

from recipes.spark_card import evaluate, export, origin
from recipes.spark_config import SMOKE, SparkConfig
from recipes.spark_data import load_pools, load_sources, make_stages, make_tokenizer
from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.tokenizer import Tokenizer


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


def make(config: SparkConfig, data: Path | None, out: Path, *, train: bool = True) -> Path:
    """Train, export, evaluate; returns the model folder. Without `train`: export the last checkpoint as it is."""
    import torch

    from smelt.chat.house import HouseRenderer
    from smelt.model.decoder import Decoder
    from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from smelt.train.loop import Run

    torch.set_num_threads(1)  # two workers compute whole batches instead (train/config.py)
    began = time.time()
    sources = load_sources(data if train else None, config.seed)
    print("sources:", {name: len(examples) for name, examples in sources.items()}, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "origin.json").is_file():
        (out / "origin.json").write_text(json.dumps(origin(data), indent=1))
    tokenizer_folder = out / "tokenizer"
    if not (tokenizer_folder / "tokenizer.json").is_file():
        make_tokenizer(sources, config.vocab_size, config.tokenizer_examples, config.seed).save(tokenizer_folder)
    tokenizer = Tokenizer.load(tokenizer_folder)
    renderer = HouseRenderer(tokenizer)
    model = Decoder(shape(config, tokenizer))
    model.init_weights(config.seed)
    print(f"{model.config.num_parameters / 1e6:.2f}M parameters; {time.time() - began:.0f} s to prepare", flush=True)
    stages = make_stages(
        renderer,
        tokenizer.control_ids["<|pad|>"],
        sources,
        load_pools(data),
        batch_tokens=config.batch_tokens,
        early_tokens=config.early_tokens,
    )
    schedule = ScheduleConfig(total_steps=config.max_steps, deadline_s=config.minutes * 60, decay_share=0.55)
    run = Run(
        model=model,
        stages=stages,
        config=TrainConfig(
            schedule=schedule,
            optimizer=OptimizerConfig(),
            accumulate=2,
            workers=2,
            seed=config.seed,
            checkpoint_s=config.checkpoint_s,
        ),
        folder=out / "run",
    )
    folder = out / "spark"
    if not train:
        run.resume()
        export(config, model, tokenizer, folder, data=data, position=run.position, scores=None)
        return folder
    position = run.train()
    export(config, model, tokenizer, folder, data=data, position=position, scores=None)
    scores = evaluate(config, folder, data)
    export(config, model, tokenizer, folder, data=data, position=position, scores=scores)
    return folder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None, help="folder of public data; generated tasks only without")
    parser.add_argument("--out", type=Path, required=True, help="folder for the run and the result")
    parser.add_argument("--minutes", type=float, default=55.0, help="wall time of the training")
    parser.add_argument("--smoke", action="store_true", help="a few seconds of everything")
    parser.add_argument("--export", action="store_true", help="only export the last checkpoint, unmeasured")
    arguments = parser.parse_args()
    config = SMOKE if arguments.smoke else SparkConfig(minutes=arguments.minutes)
    print(make(config, arguments.data, arguments.out, train=not arguments.export))


if __name__ == "__main__":
    main()
