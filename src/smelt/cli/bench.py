"""`smelt bench`: how fast the model runs here, and how near that is to what the memory allows."""

from __future__ import annotations

import json
from dataclasses import asdict


def bench_command(*, model: str, weights: str, threads: int, rounds: int, as_json: bool) -> None:
    """Print a card of medians, or one JSON object."""
    from rich.progress import track

    from smelt import native
    from smelt.cli.load import load_engine
    from smelt.engine.measure import measure, median_sample

    engine, config, weight_bytes = load_engine(model, weights=weights, threads=threads)
    rounds_done = measure(engine, config.vocab_size, rounds=rounds)
    samples = list(track(rounds_done, total=rounds, description="measuring", disable=as_json, transient=True))
    found = median_sample(samples)
    bandwidth = native.read_bandwidth()
    result = {
        "model": model,
        "weights": weights,
        "parameters": config.num_parameters,
        **asdict(found),
        "read_gb_s": bandwidth,
        "decode_bandwidth_share": found.decode_tok_s * weight_bytes / 1e9 / bandwidth,
        "rounds": rounds,
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"{model}: {config.num_parameters / 1e6:.1f}M parameters, {weights}, median of {rounds}")
    print(f"  prefill 512 tokens   {found.prefill_tok_s:10.0f} tok/s   first token after {found.ttft_s * 1e3:.1f} ms")
    print(f"  decode, one user     {found.decode_tok_s:10.0f} tok/s")
    print(f"  decode, eight users  {found.batch_tok_s:10.0f} tok/s together")
    share = result["decode_bandwidth_share"]
    print(f"  memory read          {bandwidth:10.1f} GB/s   decode reads {share:.0%} of it (above 100 %: from cache)")
