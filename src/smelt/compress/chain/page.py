"""report.html: the report as one page that needs nothing else: no script, no font, no address."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from smelt.compress.chain.figures import COLUMNS, bars, cells, curve, estimate, plain, size

_STYLE = """
body{font:15px/1.5 sans-serif;color:#333;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;font-size:13px}
td,th{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}
.scroll{overflow-x:auto}.flag{color:#b5442c}.pass{color:#3a8a4d}
svg{width:100%;height:auto;margin:1rem 0}pre{background:#f6f6f6;padding:.5rem;overflow-x:auto;font-size:12px}
"""


def page(report: Mapping[str, Any]) -> str:
    """The whole page. Every figure in it stands in the report."""
    rows: list[Mapping[str, Any]] = list(report["rows"])
    shown = [*rows, report["control"]] if report["control"] else rows
    title = f"{report['source']}: the chain"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _verdict(report),
        _flags(report["flags"]),
        *(f"<p>{escape(note)}</p>" for note in report["notes"]),
        _table(shown),
        "<h2>Size, quality, speed</h2>",
        curve(rows),
        *_bars(shown),
        "<h2>Stages</h2>",
        *(_stage(row) for row in rows[1:]),
        "<h2>Measured on</h2>",
        _pre({key: report[key] for key in ("material", "measured_as", "hardware", "libraries", "command")}),
        "<p>Intervals: 95 % by bootstrap over held-out rows; speeds by order statistics of the rounds.</p>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(report: Mapping[str, Any]) -> str:
    change = report["change"]
    faster = "" if change["decode_ratio"] is None else f", decode at {change['decode_ratio']:.2f} times the speed"
    told = (
        f"{change['bytes_ratio']:.0%} of the bytes{faster}; bits per byte {change['bpb_increase']:+.2%}, "
        f"{change['agreement']:.1%} of tokens as the teacher's"
    )
    gates = [
        f'<li class="{"pass" if gate["passed"] else "flag"}">{escape(gate["gate"])}: sought {plain(gate["sought"])}, '
        f"found {plain(gate['found'])}</li>"
        for gate in report["gates"]
    ]
    ended = "" if report["passed"] else '<p class="flag">A gate failed: nothing was published.</p>'
    return f"<p>{escape(told)}</p>{ended}" + (f"<ul>{''.join(gates)}</ul>" if gates else "")


def _flags(flags: Sequence[str]) -> str:
    if not flags:
        return ""
    return "<h2>Red flags</h2><ul>" + "".join(f'<li class="flag">{escape(flag)}</li>' for flag in flags) + "</ul>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for _, heading in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _bars(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def taken(key: str, digits: int) -> list[tuple[str, float | None, str]]:
        found = [(row["name"], row["measured"][key]) for row in rows]
        return [(name, None if each is None else each["value"], estimate(each, digits)) for name, each in found]

    bytes_ = [(row["name"], float(row["measured"]["bytes"]), size(row["measured"]["bytes"])) for row in rows]
    memory = [(row["name"], row["measured"]["peak_memory_bytes"]) for row in rows]
    return [
        bars("bytes on disk", bytes_),
        bars("bits per held-out byte", taken("bits_per_byte", 4)),
        bars("decode, tokens a second", taken("decode_tok_s", 0)),
        bars("peak memory", [(name, each, "—" if each is None else size(each)) for name, each in memory]),
    ]


def _stage(row: Mapping[str, Any]) -> str:
    told = {key: row[key] for key in ("id", "settings", "facts", "wall_s", "hash")}
    if "tasks" in row["measured"]:
        told["tasks"] = row["measured"]["tasks"]
    return f"<details><summary>{escape(row['name'])}</summary>{_pre(told)}</details>"


def _pre(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"
