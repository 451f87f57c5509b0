"""The native core alone: no engine, no server. Prefill, decode, a batch of eight, and their share of the limit.

    python bench/native.py [--rounds 7] [--weights w8] [--isa avx2] [--threads 2] [--save]

A random model of the shipped shape (Gemma 3, 8M parameters). Every round measures the read bandwidth and the multiply
rate beside each figure, so that a slow minute of the machine is told from a slow kernel. Medians and best are shown.
Prints a card and one final JSON line; `--save` also writes it to bench/results/native.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.core.step import StepBatch
from smelt.native import NativeRunner, machine_report, multiply_rate, read_bandwidth

BLOCK_SIZE = 16
CONTEXT_LEN = 4096
PREFILL_LEN = 512
DECODE_POSITION = 128
DECODE_STEPS = 64


def shipped_shape() -> DecoderConfig:
    """Gemma 3: five sliding layers to one global, grouped-query attention, norms before and after."""
    layers = tuple(LayerConfig(window=None if i % 6 == 5 else 512, rope=int(i % 6 != 5)) for i in range(8))
    return DecoderConfig(
        family="gemma3_text",
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=768,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        layers=layers,
        ropes=(RopeConfig(base=1e6), RopeConfig(base=1e4)),
        context_len=CONTEXT_LEN,
        norm_offset=1.0,
        activation="gelu_tanh",
        qk_norm=True,
        post_norms=True,
        embedding_scale=16.0,
        attention_scale=0.125,
    )


def random_weights(config: DecoderConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5))
        for name, shape in config.tensor_shapes().items()
    }


def make_batch(num_sequences: int, first: int, num_tokens: int, vocab_size: int) -> StepBatch:
    """Every sequence computes `num_tokens` tokens from position `first` and draws one, greedily."""
    n, blocks = num_sequences, CONTEXT_LEN // BLOCK_SIZE
    rng = np.random.default_rng(1)
    zeros, no_floats = np.zeros(n, np.float32), np.zeros(0, np.float32)
    return StepBatch(
        token_ids=rng.integers(0, vocab_size, n * num_tokens).astype(np.int32),
        starts=np.arange(0, n * num_tokens + 1, num_tokens, dtype=np.int32),
        next_ids=np.full(n * num_tokens, -1, np.int32),
        first_positions=np.full(n, first, np.int32),
        block_tables=np.arange(n * blocks, dtype=np.int32).reshape(n, blocks),
        sample=np.ones(n, np.uint8),
        score=np.zeros(n, np.uint8),
        temperatures=zeros,
        top_ps=zeros + 1,
        presence_penalties=zeros,
        frequency_penalties=zeros,
        seeds=np.zeros(n, np.uint64),
        draws=np.zeros(n, np.uint64),
        top_k=np.full(n, -1, np.int32),
        bias_starts=np.zeros(n + 1, np.int32),
        bias_ids=np.zeros(0, np.int32),
        bias_values=no_floats,
        count_starts=np.zeros(n + 1, np.int32),
        count_ids=np.zeros(0, np.int32),
        counts=np.zeros(0, np.int32),
        mask_rows=np.full(n, -1, np.int32),
        masks=np.zeros((0, -(-vocab_size // 32)), np.uint32),
    )


def rate(runner: NativeRunner, batch: StepBatch, steps: int) -> float:
    """Tokens computed per second."""
    start = time.perf_counter()
    for _ in range(steps):
        runner.step(batch)
    return steps * len(batch.token_ids) / (time.perf_counter() - start)


def one_round(runner: NativeRunner, config: DecoderConfig) -> dict[str, float]:
    vocab_size = config.vocab_size
    prefill = make_batch(1, 0, PREFILL_LEN, vocab_size)
    figures = {
        "read_gb_s": read_bandwidth(runner.num_threads),
        "multiply_gops": multiply_rate(runner.num_threads, runner.isa),
    }
    figures["prefill_tok_s"] = rate(runner, prefill, 2)
    for name, num_sequences in (("decode", 1), ("batch4", 4), ("batch8", 8)):
        batch = make_batch(num_sequences, DECODE_POSITION, 1, vocab_size)
        figures[f"{name}_tok_s"] = rate(runner, batch, DECODE_STEPS)
    figures["decode_at_4000_tok_s"] = rate(runner, make_batch(1, 4000, 1, vocab_size), DECODE_STEPS)
    read_gb = figures["decode_tok_s"] * runner.weight_bytes / 1e9
    figures["decode_weight_gb_s"] = read_gb
    gops = 2 * figures["prefill_tok_s"] * (config.num_parameters - vocab_size * config.hidden_size) / 1e9
    figures["prefill_multiply_share"] = gops / figures["multiply_gops"]  # the head is computed for one token only
    figures["decode_bandwidth_share"] = read_gb / figures["read_gb_s"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--weights", choices=("w8", "fp32"), default="w8")
    parser.add_argument("--isa", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    config, machine = shipped_shape(), machine_report()
    runner = NativeRunner(
        config,
        random_weights(config),
        weights=args.weights,
        num_blocks=8 * CONTEXT_LEN // BLOCK_SIZE,
        block_size=BLOCK_SIZE,
        num_threads=args.threads,
        isa=args.isa,
    )
    rounds = [one_round(runner, config) for _ in range(args.rounds + 1)][1:]
    result: dict[str, Any] = {
        "bench": "native",
        "parameters": config.num_parameters,
        "weights": args.weights,
        "weight_bytes": runner.weight_bytes,
        "isa": runner.isa,
        "threads": runner.num_threads,
        "machine": f"{platform.machine()}, {machine.affinity} processors",
        "load_average": os.getloadavg()[0],
        "rounds": args.rounds,
    }
    print(f"{config.num_parameters / 1e6:.1f}M parameters, {args.weights}, {runner.isa}, {runner.num_threads} threads")
    for name in rounds[0]:
        values = [figures[name] for figures in rounds]
        result[name] = {"median": round(median(values), 3), "best": round(max(values), 3)}
        print(f"  {name:24} median {median(values):10.2f}   best {max(values):10.2f}")
    line = json.dumps(result)
    print(line)
    if args.save:
        Path(__file__).with_name("results").joinpath("native.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
