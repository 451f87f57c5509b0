"""How fast smelt serves here, beside llama.cpp on the same weights in the same run.

    python bench/serve.py [--model spark] [--rounds 5] [--threads 2]

Rounds are interleaved (smelt, rival, smelt, rival, ...) so that a noisy neighbour hits both; medians are shown.
"Engine" figures are in process on both sides; "HTTP" figures go through a live `smelt serve` and its SSE stream.
Prints a card and one final JSON line; `--save` also writes it to bench/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx
from rival import Rival, write_gguf

from smelt import native
from smelt.checkpoint import open_checkpoint, resolve_model
from smelt.cli.load import load_engine
from smelt.engine.measure import BATCH, DECODE_LEN, DECODE_PROMPT_LEN, PREFILL_LEN, measure
from smelt.tokenizer import Tokenizer

HTTP_ANSWER_LEN = 128


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    """A live `smelt serve` process of our own."""

    def __init__(self, model: str, control_ids: set[int]) -> None:
        self._never_stop = dict.fromkeys(map(str, control_ids), -100.0)
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [
            sys.executable,
            "-c",
            "from smelt.cli import main; main()",
            "serve",
            "-m",
            model,
            "--port",
            str(port),
        ]
        start = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                httpx.get(self.url + "/health", timeout=1).raise_for_status()
                break
            except httpx.HTTPError:
                if self._process.poll() is not None or time.perf_counter() - start > 60:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.02)
        self.start_s = time.perf_counter() - start

    def rss_mb(self) -> float:
        """Resident memory of the process in 10^6 bytes."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stream(self, prompt: list[int]) -> tuple[float, float, int]:
        """Seconds to the first token, seconds of the whole answer, tokens of the answer."""
        body = {
            "model": "gpt-4o-mini",
            "prompt": prompt,
            "max_tokens": HTTP_ANSWER_LEN,
            "temperature": 0,
            "stream": True,
        }
        body["stream_options"] = {"include_usage": True}
        body["logit_bias"] = self._never_stop
        start, first, tokens = time.perf_counter(), 0.0, 0
        with httpx.stream("POST", self.url + "/v1/completions", json=body, timeout=120) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    first = first or time.perf_counter() - start
                    tokens = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", tokens)
        return first, time.perf_counter() - start, tokens

    def close(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)


def http_sample(server: Server, text_ids: list[int]) -> dict[str, float]:
    """One round through the server: TTFT of a long prompt, decode of one stream, decode of eight."""

    def prompt(length: int) -> list[int]:
        return random.choices(text_ids, k=length)

    ttft_s, _, _ = server.stream(prompt(PREFILL_LEN))
    first, whole, tokens = server.stream(prompt(DECODE_PROMPT_LEN))
    with ThreadPoolExecutor(BATCH) as pool:
        start = time.perf_counter()
        answers = list(pool.map(server.stream, [prompt(DECODE_PROMPT_LEN) for _ in range(BATCH)]))
        eight_s = time.perf_counter() - start
    return {
        "http_ttft_s": ttft_s,
        "http_decode_tok_s": (tokens - 1) / (whole - first) if tokens > 1 else float("nan"),
        "http_batch8_tok_s": sum(tokens for _, _, tokens in answers) / eight_s,
    }


def rival_sample(rival: Rival, vocab_size: int) -> dict[str, float]:
    """One round of llama.cpp with the same lengths."""
    ids = [random.randrange(vocab_size) for _ in range(PREFILL_LEN)]
    ttft_s = rival.prefill_s(ids)
    short = ids[:DECODE_PROMPT_LEN]
    return {
        "rival_prefill_tok_s": PREFILL_LEN / ttft_s,
        "rival_ttft_s": ttft_s,
        "rival_decode_tok_s": rival.decode_tok_s(short, num_sequences=1, num_tokens=DECODE_LEN),
        "rival_batch8_tok_s": rival.decode_tok_s(short, num_sequences=BATCH, num_tokens=DECODE_LEN),
    }


def run(args: argparse.Namespace) -> dict[str, object]:
    """All rounds; medians."""
    checkpoint = open_checkpoint(resolve_model(args.model))
    config = checkpoint.config
    engine, _, weight_bytes = load_engine(args.model, threads=args.threads)
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "rival.gguf"
        write_gguf(gguf, config, checkpoint.tensors)
        rival = Rival(
            gguf, context_len=4096, num_sequences=BATCH, num_threads=args.threads, vocab_size=config.vocab_size
        )
        control_ids = set(Tokenizer.load(checkpoint.folder).control_ids.values())
        text_ids = [i for i in range(config.vocab_size) if i not in control_ids]
        server = Server(args.model, control_ids)
        rival_sample(rival, config.vocab_size)
        for sample in measure(engine, config.vocab_size, rounds=args.rounds):
            found = {
                "prefill_tok_s": sample.prefill_tok_s,
                "ttft_s": sample.ttft_s,
                "decode_tok_s": sample.decode_tok_s,
                "batch8_tok_s": sample.batch_tok_s,
                "read_gb_s": native.read_bandwidth(),
                **rival_sample(rival, config.vocab_size),
                **http_sample(server, text_ids),
            }
            for name, value in found.items():
                samples.setdefault(name, []).append(value)
        rss_mb = server.rss_mb()
        server.close()
    result: dict[str, object] = {name: median(values) for name, values in samples.items()}
    result["decode_bandwidth_share"] = median(
        rate * weight_bytes / 1e9 / gb for rate, gb in zip(samples["decode_tok_s"], samples["read_gb_s"], strict=True)
    )
    return result | {"rss_mb": rss_mb, "start_s": server.start_s, "weight_mb": weight_bytes / 1e6}


def show(result: dict[str, object]) -> None:
    """The card."""

    def line(label: str, ours: str, theirs: str | None, unit: str) -> None:
        mine = float(result[ours])  # type: ignore[arg-type]
        text = f"  {label:28s}{mine:12.4g} {unit}"
        if theirs:
            rival = float(result[theirs])  # type: ignore[arg-type]
            text += f"   llama.cpp {rival:10.4g}   ratio {mine / rival:5.2f}"
        print(text)

    print(f"{result['model']} on {result['cpu']}, {result['threads']} threads, median of {result['rounds']} rounds")
    line("prefill 512", "prefill_tok_s", "rival_prefill_tok_s", "tok/s")
    line("time to first token, 512", "ttft_s", "rival_ttft_s", "s    ")
    line("decode, 1 user", "decode_tok_s", "rival_decode_tok_s", "tok/s")
    line("decode, 8 users together", "batch8_tok_s", "rival_batch8_tok_s", "tok/s")
    line("HTTP: time to first token", "http_ttft_s", None, "s")
    line("HTTP: decode, 1 user", "http_decode_tok_s", None, "tok/s")
    line("HTTP: 8 users together", "http_batch8_tok_s", None, "tok/s")
    line("memory read", "read_gb_s", None, "GB/s")
    line("share of it in decode", "decode_bandwidth_share", None, "(above 1: the weights fit the cache)")
    line("server memory", "rss_mb", None, "MB")
    line("server start to /health", "start_s", None, "s")


def cpu_name() -> str:
    """The processor's name, as the kernel gives it."""
    for row in Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            return row.split(":", 1)[1].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spark")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=native.machine_report().threads)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    about = {"bench": "serve", "model": args.model, "cpu": cpu_name(), "threads": args.threads, "rounds": args.rounds}
    result = about | run(args) | {"command": "python " + " ".join(sys.argv), "date": time.strftime("%Y-%m-%d")}
    show(result)
    if args.save:
        Path(__file__).parent.joinpath("results", f"serve_{args.model}.json").write_text(
            json.dumps(result, indent=1) + "\n"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
