"""One fine-tuning step on one very long example, in the shipped model's shape, under a limit of address space.

    python bench/long_finetune.py [--len 65536] [--limit-gb 12] [--method supervised|dpo] [--save]

The path is the one fine-tuning takes (train/finetune/job.py): one row, every token of it learned, layers recomputed on
the way back, the head and its loss in pieces, attention without a [T, T] tensor. With dpo a pair of such documents. The
limit is RLIMIT_AS: what goes over it fails. Prints peak resident memory and seconds, and one final JSON line; `--save`
also writes it to bench/results/long_finetune.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "long_finetune.json"


def step(num_tokens: int, method: str) -> dict[str, float]:
    """Train one step; what memory and time it took."""
    import numpy as np
    import torch

    from smelt.checkpoint import open_checkpoint, resolve_model
    from smelt.data.batches import Encoded
    from smelt.data.preferences import EncodedPair, PairStream
    from smelt.model.decoder import Decoder
    from smelt.train.align.preference import AnswerTokens, PairPreference
    from smelt.train.config import ScheduleConfig, TrainConfig
    from smelt.train.finetune.data import AnswerStream
    from smelt.train.loop import Run, Stage
    from smelt.train.report import Report

    shape = open_checkpoint(resolve_model("spark")).config
    model = Decoder(dataclasses.replace(shape, context_len=max(shape.context_len, 2 * num_tokens)))
    model.init_weights(0)
    rng = np.random.default_rng(0)

    def example() -> Encoded:
        ids = rng.integers(0, shape.vocab_size, num_tokens + 1).tolist()
        return Encoded(ids, b"\1" * (num_tokens + 1), b"\2" * (num_tokens + 1))

    if method == "dpo":
        pair = EncodedPair(example(), example())
        zeros = np.zeros((1, 2))
        stage = Stage(
            name="long",
            stream=PairStream(pairs=[pair], references=zeros, pad_id=0, pairs_per_batch=1, seed=0),
            objective=PairPreference(),
        )
    else:
        answers = AnswerStream(answers=[example()], pad_id=0, examples_per_batch=1, seed=0)
        stage = Stage(name="long", stream=answers, objective=AnswerTokens())
    reports: list[Report] = []
    config = TrainConfig(schedule=ScheduleConfig(total_steps=1), checkpoint_layers=True, log_every=1, device="cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        Run(model=model, stages=[stage], config=config, folder=Path(folder), on_report=reports.append).train()
    return {
        "parameters": shape.num_parameters,
        "loss": reports[0].loss,
        "seconds": round(time.monotonic() - began, 1),
        "rss_before_gb": round(before / 2**20, 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--len", type=int, default=65_536, help="tokens of the example")
    parser.add_argument("--limit-gb", type=float, default=12.0, help="GiB of address space")
    parser.add_argument("--method", choices=["supervised", "dpo"], default="supervised")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name} too")
    arguments = parser.parse_args()
    limit = int(arguments.limit_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    result = {"bench": "long_finetune", "len": arguments.len, "method": arguments.method}
    result |= {"limit_gb": arguments.limit_gb, **step(arguments.len, arguments.method)}
    print(f"{arguments.len} tokens: {result['peak_rss_gb']} GiB at the peak, {result['seconds']} s", file=sys.stderr)
    print(json.dumps(result))
    if arguments.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
