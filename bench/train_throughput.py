"""Training speed beside transformers' Trainer: same model, same batches, same machine, in one run, alternating.

    python bench/train_throughput.py [--rounds 5] [--steps 4] [--threads 2] [--save]

The model is spark's shape (Gemma 3 text, 192 x 6, vocabulary 4,096, random weights), the data conversations of its main
mixture. Each arm is a process of its own that trains a few steps when told to, so that rounds interleave and a
noisy neighbour hits all; figures are medians over rounds. Rates count real tokens, padding left out, and include
the optimizer's step (ours: Muon and AdamW, theirs: fused AdamW).

The rival is given its better side: the same documents padded by length (what it does best without packing) and the
very packed rows that we train on, each with one thread an operation and with all; the fastest of these is the rival.
All arms must first agree on the loss of the first step. Model FLOPs are counted for real tokens: 6 per parameter of a
matrix (the head's for learned tokens only) and attention within documents; recomputing and the optimizer are not
counted. Their rate is held against matrix products of the same shapes with as many threads.

Rates by processor time are there for machines that others use too: there wall time says little.

Prints a card and one final JSON line; `--save` also writes it to bench/results/train_throughput.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from train_arms import ACCUMULATE, ARMS, NUM_BATCHES, ROW_LEN, ROWS, serve_arm, shape

from smelt.chat.house import HouseRenderer
from smelt.checkpoint import resolve_model
from smelt.data.batches import mixed
from smelt.data.stream import Conversations, PackedStream
from smelt.data.tasks.mixture import Mixture
from smelt.tokenizer import Tokenizer

MAX_LEN, SEED, WARM_UP = 512, 12, 2
MIXTURE = {
    "call": 6, "session": 4, "no_tool": 4, "result": 1, "extract": 4, "free": 2, "classify": 2, "service": 3,
    "facts": 1, "talk": 1, "repeat": 1, "lookup": 1,
}  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "train_throughput.json"


def prepare(folder: Path) -> None:
    """The packed batches, and the same documents padded by length into batches of as many tokens."""
    renderer = HouseRenderer(Tokenizer.load(resolve_model("spark")))
    example_at = mixed(Mixture(weights=MIXTURE), SEED)
    source = Conversations(example_at=example_at, renderer=renderer, max_len=MAX_LEN)
    stream = PackedStream(
        sources=[(source, 1.0)], row_len=ROW_LEN, rows=ROWS, pad_id=0, seed=SEED, batches_per_chunk=NUM_BATCHES
    )
    arrays: dict[str, NDArray[Any]] = {}
    for i, batch in enumerate(stream.chunk(0)):
        assert batch.segment_ids is not None
        arrays |= {f"packed.{i}.inputs": batch.inputs, f"packed.{i}.targets": batch.targets}
        arrays[f"packed.{i}.segments"] = batch.segment_ids
        # Each pair of batches is one step: its documents, sorted by length, make the padded twin's two batches.
    for step in range(NUM_BATCHES // ACCUMULATE):
        numbers = range(step * ACCUMULATE, (step + 1) * ACCUMULATE)
        documents = sorted((pair for i in numbers for pair in _documents(arrays, i)), key=lambda pair: len(pair[0]))
        half = np.cumsum([len(inputs) for inputs, _ in documents]) <= sum(len(i) for i, _ in documents) / ACCUMULATE
        cut = int(half.sum())
        for i, part in zip(numbers, (documents[:cut], documents[cut:]), strict=True):
            width = max(len(inputs) for inputs, _ in part)
            for name, fill, column in (("inputs", 0, 0), ("targets", -100, 1)):
                arrays[f"padded.{i}.{name}"] = np.stack(
                    [np.pad(pair[column], (0, width - len(pair[column])), constant_values=fill) for pair in part]
                )
    np.savez(folder / "batches.npz", **arrays)


def _documents(arrays: dict[str, NDArray[Any]], i: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    inputs, targets, segments = (arrays[f"packed.{i}.{name}"] for name in ("inputs", "targets", "segments"))
    return [
        (inputs[row][segments[row] == number], targets[row][segments[row] == number])
        for row in range(len(inputs))
        for number in range(segments[row].max() + 1)
    ]


def step_flops(arrays: Any, config: Any) -> list[float]:
    """Model FLOPs of each batch, forward and backward."""
    body = sum(np.prod(s) for n, s in config.tensor_shapes().items() if len(s) == 2 and ".layers." in n)
    head = config.vocab_size * config.hidden_size
    width = config.num_heads * config.head_dim
    found = []
    for i in range(NUM_BATCHES):
        lengths = np.array([len(inputs) for inputs, _ in _documents(arrays, i)], float)
        assert lengths.max() <= min(layer.window or np.inf for layer in config.layers), "or windows would matter"
        learned = (arrays[f"packed.{i}.targets"] >= 0).sum()
        attention = 6.0 * width * config.num_layers * (lengths**2).sum()  # 2 products, half of the square, 3 passes
        found.append(float(6 * body * lengths.sum() + 6 * head * learned + attention))
    return found


class Child:
    """An arm in a process of its own."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name, self.threads = name, threads
        command = [sys.executable, __file__, "--arm", name, "--folder", str(folder), "--threads", str(threads)]
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # spinning threads would take the others' cores
        self.log = (folder / f"{name}-{threads}.log").open("w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment, text=True
        )

    def ask(self, what: str) -> Any:
        """The answer to one line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            tail = Path(self.log.name).read_text()[-2000:]
            raise SystemExit(f"{self.name} died:\n{tail}")
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def start(args: argparse.Namespace, folder: Path) -> dict[str, Child]:
    """The arms, warmed up, all with the same loss."""
    kinds = [(name, n) for name in args.arms for n in sorted({args.threads} | ({1} if "transf" in name else set()))]
    children = {f"{name}, {n} threads": Child(name, folder, n) for name, n in kinds}
    losses = {label: child.ask(str(WARM_UP))[0][2] for label, child in children.items()}
    if max(losses.values()) - min(losses.values()) > 1e-3:
        raise SystemExit(f"the arms do not compute the same loss: {losses}")
    return children


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds of all arms."""
    prepare(folder)
    with np.load(folder / "batches.npz") as stored:
        arrays = dict(stored)
    config = shape()
    flops = step_flops(arrays, config)
    tokens = [int((arrays[f"packed.{i}.segments"] >= 0).sum()) for i in range(NUM_BATCHES)]
    children = start(args, folder)
    rates: dict[str, list[float]] = {label: [] for label in children}
    cpu_rates: dict[str, list[float]] = {label: [] for label in children}
    utilisation: list[tuple[float, float]] = []
    for number in range(args.rounds):
        for label, child in children.items():
            seen = child.ask(str(args.steps + 1))
            # Our loop goes on from batch to batch, theirs begins anew with each call.
            first = WARM_UP + number * (args.steps + 1) if label.startswith("smelt") else 0
            steps = [(first + s) % (NUM_BATCHES // ACCUMULATE) for s in range(1, args.steps + 1)]
            batches = [step * ACCUMULATE + i for step in steps for i in range(ACCUMULATE)]
            seconds, cpu_s = (seen[-1][clock] - seen[0][clock] for clock in (0, 1))  # the first step warms up
            rates[label].append(sum(tokens[i] for i in batches) / seconds)
            cpu_rates[label].append(sum(tokens[i] for i in batches) / cpu_s)
            if label.startswith("smelt,"):
                wall, cpu = child.ask("gemm")
                done = sum(flops[i] for i in batches)
                utilisation.append((done / seconds / wall, done / cpu_s / cpu))
        print(f"round {number + 1}: " + "  ".join(f"{k} {v[-1]:,.0f}" for k, v in rates.items()), flush=True)
    for child in children.values():
        child.close()
    return {
        "bench": "train_throughput",
        **compared(rates, f"smelt, {args.threads} threads"),
        "tokens_per_cpu_s": {label: round(median(values)) for label, values in cpu_rates.items()},
        "model_flops_utilisation": round(median(wall for wall, _ in utilisation), 3),
        "model_flops_utilisation_cpu_s": round(median(cpu for _, cpu in utilisation), 3),
        "model_flops_per_token": round(sum(flops) / sum(tokens)),
        "parameters": config.num_parameters,
        "batch": {"rows": ROWS, "row_len": ROW_LEN, "accumulate": ACCUMULATE},
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": args.threads},
    }


def compared(rates: dict[str, list[float]], ours: str) -> dict[str, Any]:
    """Medians, and the median over rounds of ours against the rival's best form."""
    medians = {label: median(values) for label, values in rates.items()}
    rival = max((label for label in medians if label.startswith("transformers")), key=lambda label: medians[label])
    return {
        "tokens_per_s": {label: round(value) for label, value in medians.items()},
        "rounds": {label: [round(value) for value in values] for label, values in rates.items()},
        "rival": rival,
        "ratio": round(median(a / b for a, b in zip(rates[ours], rates[rival], strict=True)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps an arm trains in a round, one more to warm up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name} too")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        serve_arm(args.arm, args.folder, args.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    for label, value in result["tokens_per_s"].items():
        print(f"{label:36}{value:10,} tokens/s{result['tokens_per_cpu_s'][label]:10,} a second of processor time")
    print(f"{'against ' + result['rival']:36}{result['ratio']:10.2f} times")
    shares = [result[f"model_flops_utilisation{clock}"] for clock in ("", "_cpu_s")]
    print(f"{'model FLOPs of the GEMM rate':36}{shares[0]:10.1%}{shares[1]:19.1%} by processor time")
    print(json.dumps(result))
    if args.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
