"""The native core alone: no engine, no server. Prefill, decode, a batch of eight, and their share of the limit.

    python bench/native.py [--rounds 7] [--weights w8] [--isa avx2] [--threads 2] [--save]
    python bench/native.py --formats [--rounds 7] [--threads 1] [--save]

A random model of the shipped shape (Gemma 3, 8M parameters). Every round measures the read bandwidth and the multiply
rate beside each figure, so that a slow minute of the machine is told from a slow kernel. Medians and best are shown.

`--formats` decodes instead with a model that no cache holds (117M parameters) in every format of weights, one after the
other in each round, and says how many times faster than fp32 each is. The processor's own time is taken, so that other
work on the machine does not choose the winner.

Prints a card and one final JSON line; `--save` also writes it to bench/results/native.json or native-formats.json.
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

from smelt.checkpoint.quantized import QuantizedWeight
from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.core.quantization import ActivationFormat, Scheme, WeightFormat
from smelt.core.step import StepBatch
from smelt.native import Integers, NativeRunner, machine_report, multiply_rate, read_bandwidth

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


def large_shape() -> DecoderConfig:
    """Qwen3: in 4 bits twice what a cache of 32 MB holds."""
    return DecoderConfig(
        family="qwen3",
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=3072,
        num_heads=16,
        num_kv_heads=4,
        head_dim=64,
        layers=(LayerConfig(),) * 9,
        context_len=CONTEXT_LEN,
        qk_norm=True,
        attention_scale=0.125,
    )


FORMATS: dict[str, Scheme | None] = {
    "fp32": None,
    "w8": None,
    "int8 rows": Scheme(weights=WeightFormat()),
    "int8 rows, inputs by token": Scheme(weights=WeightFormat(), activations=ActivationFormat()),
    "int4 g32": Scheme(weights=WeightFormat(bits=4, group_size=32)),
    "int4 g64": Scheme(weights=WeightFormat(bits=4, group_size=64)),
    "int4 g128": Scheme(weights=WeightFormat(bits=4, group_size=128)),
    "int4 g64 asymmetric": Scheme(weights=WeightFormat(bits=4, group_size=64, symmetric=False)),
}


def random_integers(config: DecoderConfig, scheme: Scheme) -> Integers:
    """Every matrix of the layers in random codes; the head at 8 bits as it is made at load."""
    rng, format, matrices = np.random.default_rng(0), scheme.weights, {}
    for name, shape in config.tensor_shapes().items():
        if name.endswith("_proj.weight"):
            groups = (shape[0], shape[1] // (format.group_size or shape[1]))
            matrices[name] = QuantizedWeight(
                format=format,
                codes=rng.integers(format.lowest, format.highest + 1, shape, np.int8),
                scales=np.full(groups, 2.0 ** (-3 - format.bits), np.float32),
                zeros=None if format.symmetric else rng.integers(-8, 8, groups, np.int8),
            )
    return Integers(matrices, scheme.activations)


def own_rate(runner: NativeRunner, batch: StepBatch, steps: int) -> float:
    """Tokens a second of this process's own processor time, over its threads."""
    start = time.process_time()
    for _ in range(steps):
        runner.step(batch)
    return steps * len(batch.token_ids) * runner.num_threads / (time.process_time() - start)


def compare_formats(rounds: int, threads: int | None, isa: str | None) -> dict[str, Any]:
    """Decode and prefill of every format: medians over rounds, and of each round's ratio to fp32."""
    config = large_shape()
    tensors, runners = random_weights(config), {}
    for name, scheme in FORMATS.items():
        plain = "fp32" if name == "fp32" else "w8"
        weights = plain if scheme is None else random_integers(config, scheme)
        runners[name] = NativeRunner(
            config, tensors, weights=weights, num_blocks=CONTEXT_LEN // BLOCK_SIZE, num_threads=threads, isa=isa
        )
    decode, prefill = make_batch(1, DECODE_POSITION, 1, config.vocab_size), make_batch(1, 0, 64, config.vocab_size)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for _ in range(rounds + 1):
        for name, runner in runners.items():
            taken[name].append((own_rate(runner, decode, 12), own_rate(runner, prefill, 1)))
    figures = {}
    for name, runner in runners.items():
        pairs = list(zip(taken[name], taken["fp32"], strict=True))[1:]
        figures[name] = {
            "weight_mb": round(runner.weight_bytes / 1e6, 1),
            "decode_tok_s": round(median(one[0] for one, _ in pairs), 1),
            "decode_times_fp32": round(median(one[0] / base[0] for one, base in pairs), 2),
            "prefill_times_fp32": round(median(one[1] / base[1] for one, base in pairs), 2),
        }
    return {"bench": "native-formats", "parameters": config.num_parameters, "isa": runner.isa, "formats": figures}


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


def print_formats(result: dict[str, Any], *, save: bool) -> None:
    for name, figures in result["formats"].items():
        print(f"{name:28}" + "  ".join(f"{key} {value:>8}" for key, value in figures.items()))
    line = json.dumps(result)
    print(line)
    if save:
        (Path(__file__).parent / "results" / "native-formats.json").write_text(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--weights", choices=("w8", "fp32"), default="w8")
    parser.add_argument("--isa", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--formats", action="store_true")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    if args.formats:
        print_formats(compare_formats(args.rounds, args.threads, args.isa), save=args.save)
        return
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
