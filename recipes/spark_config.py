"""The values that decide a spark run, and those of a smoke run."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.house import TINY, Shape


@dataclass(frozen=True, kw_only=True)
class SparkConfig:
    """Everything that decides the outcome; a smoke run differs only here.

    minutes: wall time of the training. export_only: write the last checkpoint as it is, unmeasured, and train nothing.
    """

    minutes: float = 55.0
    export_only: bool = False
    shape: Shape = Shape()
    vocab_size: int = 4096
    tokenizer_examples: int = 40_000
    batch_tokens: int = 3072
    early_tokens: int = 400_000
    max_steps: int = 1_000_000
    checkpoint_s: float = 240.0
    cases_per_language: int = 100
    long_cases: int = 40
    seed: int = 20


SMOKE = SparkConfig(
    minutes=0.2,
    shape=TINY,
    vocab_size=1024,
    tokenizer_examples=300,
    batch_tokens=1024,
    early_tokens=10_000,
    max_steps=30,
    cases_per_language=1,
    long_cases=0,
)
