"""Does learning a teacher's distributions beat learning the text, at equal steps? Three seeds, bits per held-out byte.

    python bench/distill.py --data ../shared/data [--out build/bench-distill] [--teacher-minutes 6] [--steps 150]

A teacher is trained on English Wikipedia. For each seed two students with the same initial weights see the same
batches in the same order for the same number of steps: one learns the next token (cross-entropy), one the teacher's
distribution (forward KL, temperature 1, no cross-entropy). Held-out articles come from another file. Prints a card and
one final JSON line; called again with the same --out it goes on where it stopped. Made for two quiet cores, 15 minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.tokenizer import Tokenizer, train_tokenizer
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.distill.objective import Distillation
from smelt.train.loop import Run, Stage
from smelt.train.objectives import CrossEntropy, Objective, mean_loss
from smelt.train.report import Report
from smelt.train.teachers.online import DecoderTeacher

TRAIN, HELD_OUT = "text/enwiki2015_AA.txt.zst", "text/enwiki2015_AB.txt.zst"
T95_TWO_DEGREES = 4.302653  # Student's t, two degrees of freedom: three pairs
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    hidden: int
    inner: int
    heads: int
    layers: int


TEACHER, STUDENT = Size(192, 512, 6, 5), Size(96, 256, 3, 3)
TINY_TEACHER, TINY_STUDENT = Size(64, 128, 4, 2), Size(32, 64, 2, 1)


@dataclass(frozen=True)
class Windows:
    """Random windows of a text's ids, a function of (seed, number) alone."""

    ids: np.ndarray
    seed: int
    rows: int = 16
    row_len: int = 256

    def chunk(self, number: int) -> list[Batch]:
        rng = np.random.default_rng((self.seed, number))
        batches = []
        for _ in range(8):
            starts = rng.integers(0, len(self.ids) - self.row_len - 1, self.rows)
            rows = self.ids[starts[:, None] + np.arange(self.row_len + 1)].astype(np.int64)
            batches.append(Batch(rows[:, :-1], rows[:, 1:]))
        return batches


def decoder(size: Size, vocab: int, seed: int) -> Decoder:
    config = DecoderConfig(
        family="qwen3",
        vocab_size=vocab,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_heads=size.heads,
        num_kv_heads=size.heads,
        head_dim=32,
        layers=(LayerConfig(),) * size.layers,
        ropes=(RopeConfig(base=10_000.0),),
        context_len=512,
        qk_norm=True,
        tie_embeddings=True,
        attention_scale=32**-0.5,
    )
    model = Decoder(config)
    model.init_weights(seed)
    return model


def read_text(path: Path, max_chars: int) -> str:
    """Articles without their markup lines."""
    import zstandard

    found, held = [], 0
    with path.open("rb") as raw:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8"):
            if line.startswith(("<doc", "</doc")) or not line.strip():
                continue
            found.append(line)
            held += len(line)
            if held >= max_chars:
                break
    return "".join(found)


def prose() -> tuple[str, str]:
    """What stands in this repository's own pages: for a smoke run without data."""
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    texts = [page.read_text() for page in pages]
    return "\n".join(texts[:-2]) * 3, "\n".join(texts[-2:])


def held_out_rows(tokenizer: Tokenizer, ids: np.ndarray, row_len: int, rows: int) -> tuple[list[Batch], int]:
    """The text in rows, each token but a row's first scored once; and the bytes of what is scored."""
    num_rows = (len(ids) - 1) // row_len
    table = ids[: num_rows * row_len].reshape(num_rows, row_len).astype(np.int64)
    sizes = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
    batches = [Batch(part[:, :-1], part[:, 1:]) for part in np.array_split(table, max(1, num_rows // rows))]
    return batches, int(sizes[table[:, 1:]].sum())


def bits_per_byte(model: Decoder, batches: list[Batch], num_bytes: int) -> float:
    nats = mean_loss(model, batches, CPU) * sum(batch.num_learned for batch in batches)
    return nats / math.log(2) / num_bytes


def train(model: Decoder, stream: Windows, objective: Objective, schedule: ScheduleConfig, folder: Path) -> Decoder:
    """Run or go on; prints a line every so often."""

    def show(report: Report) -> None:
        left = f"{report.left_s:5.0f} s left" if report.left_s >= 0 else "until the deadline"
        rate = f"{report.tokens_per_s:8,.0f} tokens/s"
        print(f"  {folder.name:<12} step {report.step:5d}  loss {report.loss:.4f}  {rate}  {left}", flush=True)

    run = Run(
        model=model,
        stages=[Stage(name="text", stream=stream, objective=objective)],
        config=TrainConfig(
            optimizer=OptimizerConfig(), schedule=schedule, accumulate=2, workers=2, device="cpu", log_every=50
        ),
        folder=folder,
        on_report=show,
    )
    run.train()
    return run.result()


def interval(gains: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired gains (Student's t; its factor is for three)."""
    mean = sum(gains) / len(gains)
    if len(gains) < 3:
        return mean, float("-inf"), float("inf")
    spread = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1) / len(gains))
    return mean, mean - T95_TWO_DEGREES * spread, mean + T95_TWO_DEGREES * spread


@dataclass(frozen=True)
class Setting:
    """What all students share."""

    size: Size
    vocab: int
    steps: int
    out: Path


def student(setting: Setting, objective: Objective, stream: Windows, name: str) -> Decoder:
    """One student; its initial weights and its batches depend on the seed alone."""
    schedule = ScheduleConfig(total_steps=setting.steps, warmup_steps=min(20, setting.steps // 3))
    model = decoder(setting.size, setting.vocab, 1 + stream.seed)
    return train(model, stream, objective, schedule, setting.out / name)


def card(teacher: Decoder, setting: Setting, scores: dict[str, list[float]], ceiling: float) -> dict[str, object]:
    """Print the card; the same as values."""
    gains = [1 - d / c for c, d in zip(scores["cross_entropy"], scores["distilled"], strict=True)]
    mean, low, high = interval(gains)
    parameters = decoder(setting.size, setting.vocab, 0).config.num_parameters
    print(f"\nteacher        {teacher.config.num_parameters / 1e6:.2f}M parameters  {ceiling:.4f} bits per byte")
    for name, values in scores.items():
        print(f"{name:<14} {parameters / 1e6:.2f}M parameters  " + "  ".join(f"{value:.4f}" for value in values))
    verdict = "reached" if low >= 0.01 else "not reached" if high < 0.01 else "not decided by three seeds"
    print(f"distilled is better by {mean:.2%} (95 % interval {low:.2%} to {high:.2%}); 1 %: {verdict}")
    return {
        "bench": "distill",
        "teacher_parameters": teacher.config.num_parameters,
        "student_parameters": parameters,
        "steps": setting.steps,
        "teacher_bpb": round(ceiling, 4),
        **{f"{name}_bpb": [round(value, 4) for value in values] for name, values in scores.items()},
        "gain": round(mean, 5),
        "gain_interval95": [round(low, 5), round(high, 5)],
        "target_1_percent": verdict,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="folder of public data; a smoke run needs none")
    parser.add_argument("--out", type=Path, default=Path("build/bench-distill"))
    parser.add_argument("--teacher-minutes", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=150, help="of each student, 8,192 tokens each")
    parser.add_argument("--smoke", action="store_true", help="everything in seconds; its numbers mean nothing")
    args = parser.parse_args()
    if args.data is None and not args.smoke:
        parser.error("--data: sought the folder of public data; only --smoke runs without")
    torch.set_num_threads(1)
    began = time.monotonic()
    sizes = (TINY_TEACHER, TINY_STUDENT) if args.smoke else (TEACHER, STUDENT)
    train_text, test_text = (
        prose()
        if args.data is None
        else (read_text(args.data / TRAIN, 24_000_000), read_text(args.data / HELD_OUT, 800_000))
    )
    tokenizer = train_tokenizer([train_text[:4_000_000]], 512 if args.smoke else 2048)
    ids, test_ids = (
        np.array([i for part in tokenizer.encode_batch(text.splitlines(keepends=True)) for i in part], np.uint16)
        for text in (train_text, test_text)
    )
    tests, num_bytes = held_out_rows(tokenizer, test_ids, 64 if args.smoke else 256, 16)
    shape = {"rows": 4, "row_len": 64} if args.smoke else {}
    steps = 6 if args.smoke else args.steps
    minutes = 0.05 if args.smoke else args.teacher_minutes
    print(f"{len(ids):,} tokens to learn, {num_bytes:,} bytes held out, vocabulary {tokenizer.vocab_size}", flush=True)

    teacher_steps = ScheduleConfig(total_steps=1_000_000, deadline_s=60 * minutes, decay_share=0.4)
    teacher = train(
        decoder(sizes[0], tokenizer.vocab_size, 0),
        Windows(ids, 1000, **shape),
        CrossEntropy(),
        teacher_steps,
        args.out / "teacher",
    )
    ceiling = bits_per_byte(teacher, tests, num_bytes)
    distilling = Distillation(DecoderTeacher(teacher, tokenizer.vocab_size))
    setting = Setting(sizes[1], tokenizer.vocab_size, steps, args.out)
    scores: dict[str, list[float]] = {"cross_entropy": [], "distilled": []}
    for seed in range(3):
        for name, objective in (("cross_entropy", CrossEntropy()), ("distilled", distilling)):
            made = student(setting, objective, Windows(ids, seed, **shape), f"{name}-{seed}")
            scores[name].append(bits_per_byte(made, tests, num_bytes))
            print(f"{name}, seed {seed}: {scores[name][-1]:.4f} bits per byte", flush=True)
    result = card(teacher, setting, scores, ceiling)
    print(json.dumps({**result, "smoke": args.smoke, "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
