"""The options of every command that loads a model."""

from __future__ import annotations

from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A folder, a Hugging Face id, or a shipped model's name.", envvar="SMELT_MODEL"),
]
WeightsOption = Annotated[
    str, typer.Option("--weights", help="w8 (8-bit, fast) or fp32 (exact).", envvar="SMELT_WEIGHTS")
]
ThreadsOption = Annotated[
    int, typer.Option("--threads", help="0: what the machine allows (see `smelt doctor`).", envvar="SMELT_THREADS")
]
