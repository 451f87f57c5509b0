"""Speed and memory of an artifact, measured in a process of its own so that peak memory is its alone. No torch.

    python -m smelt.compress.chain.speed FOLDER [--rounds N] [--weights served|fp32] [--threads N]

prints one JSON object: prefill and decode in tokens per second, round by round, and the peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, Literal

Form = Literal["served", "fp32"]
_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """How an artifact is run. weights: "served" as `smelt serve` does (floating point repacked to 8 bits), or "fp32".

    rounds: samples of each figure. threads 0: what the machine allows. rounds 0: speed is not measured.
    """

    rounds: int = 9
    weights: Form = "served"
    threads: int = 0


def measure_speed(folder: Path, settings: SpeedSettings) -> dict[str, Any]:
    """prefill_tok_s, decode_tok_s (each a median with its interval), peak_memory_bytes, weights, threads.

    Where the native core cannot run the folder the figures are None and `reason` says why.
    """
    if settings.rounds < 1:
        return _nothing("not asked for")
    command = [sys.executable, "-m", "smelt.compress.chain.speed", str(folder), "--rounds", str(settings.rounds)]
    command += ["--weights", settings.weights, "--threads", str(settings.threads)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return _nothing(f"no figure after {_TIMEOUT_S / 60:.0f} minutes")
    if made.returncode != 0:
        last = (made.stderr.strip().splitlines() or ["no word"])[-1]
        return _nothing(f"the process that measures ended with {made.returncode}: {last[:200]}")
    told: dict[str, Any] = json.loads(made.stdout)
    return {
        "prefill_tok_s": middle(told["prefill"]),
        "decode_tok_s": middle(told["decode"]),
        "peak_memory_bytes": told["peak_memory_bytes"],
        "weights": told["weights"],
        "threads": told["threads"],
        "reason": None,
    }


def _nothing(reason: str) -> dict[str, Any]:
    none = dict.fromkeys(("prefill_tok_s", "decode_tok_s", "peak_memory_bytes", "weights", "threads"))
    return {**none, "reason": reason}


def middle(samples: list[float]) -> dict[str, Any]:
    """The median and an interval that holds the true one, from the samples' order alone: no distribution is assumed.

    The narrowest pair of order statistics with at least 95 % (David and Nagaraja 2003, 7.1); with fewer than six
    samples the widest there is. `level` says what it holds.
    """
    ordered, n = sorted(samples), len(samples)
    outside, cut, level = 0.0, 0, 1.0 - 2.0 * 0.5**n
    for k in range(n // 2):
        outside += comb(n, k) * 0.5**n
        if 1.0 - 2.0 * outside < 0.95:
            break
        cut, level = k, 1.0 - 2.0 * outside
    return {
        "value": median(ordered),
        "n": n,
        "interval": [ordered[cut], ordered[n - 1 - cut]],
        "level": round(level, 4),
    }


def main() -> None:
    """The process's own part."""
    from smelt.checkpoint import open_checkpoint
    from smelt.engine.engine import Engine
    from smelt.engine.measure import Lengths, measure
    from smelt.generate.options import LLMOptions, window
    from smelt.native import NativeRunner, native_weights

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=SpeedSettings.rounds)
    parser.add_argument("--weights", default=SpeedSettings.weights)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    checkpoint = open_checkpoint(asked.folder)
    limits = window(checkpoint.config, LLMOptions(kv_bytes=256 << 20))
    runner = NativeRunner(
        checkpoint.config,
        checkpoint.tensors,
        weights=native_weights("fp32" if asked.weights == "fp32" else "w8", checkpoint.quantized, checkpoint.scheme),
        num_blocks=limits.num_blocks,
        num_threads=asked.threads or None,
    )
    engine = Engine(runner, context_len=limits.context_len)
    lengths = Lengths.within(limits.context_len)
    samples = list(measure(engine, checkpoint.config.vocab_size, rounds=asked.rounds, lengths=lengths))
    told = {
        "prefill": [sample.prefill_tok_s for sample in samples],
        "decode": [sample.decode_tok_s for sample in samples],
        "peak_memory_bytes": _peak_bytes(),
        "weights": asked.weights,
        "threads": runner.num_threads,
    }
    sys.stdout.write(json.dumps(told) + "\n")


def _peak_bytes() -> int | None:
    """Largest resident memory of this process. Not getrusage's: that one remembers the parent's across exec."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


if __name__ == "__main__":
    main()
