"""Results as Markdown: every score with its interval and n, and beside it what knowing nothing would score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Summary = Mapping[str, Mapping[str, Mapping[str, Any]]]  # suite -> language or "all" -> measures (suite.summary)


def table(summary: Summary, *, control: Summary | None = None, names: Mapping[str, str] | None = None) -> str:
    """One line a suite, languages together; `names` chooses suites and what they are called.

    `control` holds scores of random weights under the same grammar; else chance or what compression reaches is shown.
    """
    chosen = names if names is not None else {suite: suite for suite in summary}
    rows = [(words, suite, summary[suite]["all"]) for suite, words in chosen.items() if suite in summary]
    timed = any("seconds" in row for _, _, row in rows)  # the first cards have no seconds
    heads = ["suite", "score (95 % interval)", "n", "knowing nothing", *(["seconds", "tokens in / out"] * timed)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for words, suite, row in rows:
        cells = [words, score(row), str(num_of(row)), nothing(row, control, suite)]
        if timed:
            cells += [f"{row['seconds']:.1f}", " / ".join(map(str, row["tokens"]))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def score(row: Mapping[str, Any]) -> str:
    """The measures of one suite in words."""
    parts = []
    if num_of(row) == 0:
        parts.append("-")
    elif "bits_per_byte" in row:
        bpb = row["bits_per_byte"]
        low, high = bpb["interval95"]
        parts.append(f"{bpb['value']:.3f} bits per byte ({low:.3f}-{high:.3f})")
    elif "f1" in row:
        parts.append(f"F1 {_interval(row['f1'])}, exact {row['exact']['value']:.0%}")
    else:
        parts.append(_interval(row["exact"]))
    if "loose" in row:
        parts.append(f"loose {row['loose']['value']:.0%}")
    if "tool_choice" in row:
        parts.append(f"right tool {row['tool_choice']['value']:.0%}")
    if "field_f1" in row and abs(value_of(row["field_f1"]) - row["exact"]["value"]) > 5e-5:
        parts.append(f"parts F1 {value_of(row['field_f1']):.2f}")
    if row.get("cut"):
        parts.append(f"{row['cut']} cut at the length limit")
    if row.get("not_asked"):
        parts.append(f"{row['not_asked']} did not fit or were refused")
    return ", ".join(parts)


def nothing(row: Mapping[str, Any], control: Summary | None, suite: str) -> str:
    """What random weights, a blind guess or a compressor scores."""
    parts = []
    if control is not None and suite in control:
        other = control[suite]["all"]
        bits = other.get("bits_per_byte")
        parts.append(
            f"random weights {other['exact']['value']:.0%}" if bits is None else f"random weights {bits['value']:.2f}"
        )
    elif row.get("chance") is not None:
        parts.append(f"chance {row['chance']:.0%}")
    if "control" in row:
        parts.append(f"xz {row['control']['xz']:.2f}, byte frequencies {row['control']['byte_frequencies']:.2f}")
    return ", ".join(parts)


def differences(found: Mapping[str, Mapping[str, Any]]) -> str:
    """`compare.compare` as Markdown."""
    lines = ["| suite | measure | difference (95 % interval) | n | only ours / only theirs | p |", "|---" * 6 + "|"]
    for suite, measures in found.items():
        for name, row in measures.items():
            low, high = row["interval95"]
            only = f"{row['only_ours']} / {row['only_theirs']}" if "p" in row else ""
            shown = f"{row['value']:+.3f} ({low:+.3f} to {high:+.3f})"
            lines.append(f"| {suite} | {name} | {shown} | {row['n']} | {only} | {row.get('p', '')} |")
    return "\n".join(lines)


def aligned(markdown: str) -> str:
    """A Markdown table with its columns padded, for a terminal."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    rows = [row for row in rows if not set("".join(row)) <= {"-"}]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def num_of(row: Mapping[str, Any]) -> int:
    """How many questions count."""
    for name in ("bits_per_byte", "exact"):
        if name in row:
            return int(row[name]["n"])
    return 0


def value_of(measure: Any) -> float:
    """The value of a measure; cards written before measures had intervals hold a bare number."""
    return float(measure["value"] if isinstance(measure, Mapping) else measure)


def _interval(measure: Mapping[str, Any]) -> str:
    low, high = measure["interval95"]
    return f"{measure['value']:.0%} ({low * 100:.0f}-{high * 100:.0f})"
