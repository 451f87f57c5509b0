"""`smelt export`: a model in the forms that other programs load, each read back and compared."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from smelt.compress.export.export import Export


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `smelt export` is told."""

    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face id, or a shipped model's name.")]
    to: Annotated[str, typer.Option(help="hf (safetensors), compressed-tensors or gguf.")]
    out: Annotated[Path, typer.Option(help="Folder, or file for gguf; must not be there yet.")]
    type: Annotated[
        str,
        typer.Option(
            help="hf: f32, bf16, f16; compressed-tensors: w8, w4, w8a8; gguf: f32, bf16, f16, q8_0, q4_0. "
            "Left out: as the model is stored."
        ),
    ] = ""
    check: Annotated[bool, typer.Option(help="Read it back with transformers or llama.cpp and compare.")] = True
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False


def export_command(options: ExportOptions) -> None:
    """Write, compare, and say what came of it; exit status 1 where a comparison failed."""
    from smelt.compress.export.export import ExportSettings, export

    made = export(
        ExportSettings(model=options.model, to=options.to, out=options.out, type=options.type, check=options.check)
    )
    print(json.dumps(made.document(), ensure_ascii=False) if options.as_json else shown(made))
    if not made.passed:
        failed = ", ".join(check.name for check in made.checks if not check.passed)
        print(f"smelt: {failed}: not as sought; what was written is {made.path.name}", file=sys.stderr)
        sys.exit(1)


def shown(made: Export) -> str:
    """What was written and how it compares, in lines."""
    counts = ", ".join(f"{count} matrices {format}" for format, count in made.matrices.items())
    lines = [f"{made.path}: {made.type}, {made.num_bytes / 1e6:,.2f} MB{', ' + counts if counts else ''}"]
    lines += [f"  note     {note}" for note in made.notes]
    lines += [f"  {'ok' if check.passed else 'FAILED':<8} {check.name}: {check.told}" for check in made.checks]
    if made.unchecked:
        lines.append(f"  NOT CHECKED: {made.unchecked}")
    return "\n".join(lines)
