"""The ladder's report as one HTML file that loads nothing and runs nothing: no script at all.

Every text of a node or a tool is escaped, and stands as text or in a title; the content security policy allows the one
style sheet whose hash it names, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from epdoctor.bench.results import LadderReport, LayerResult, Measurement
from epdoctor.model import Status
from epdoctor.report.bench_text import ends, head_line, not_run_lines, outcome, said
from epdoctor.report.heat_table import HeatTable, heat_tables
from epdoctor.report.sanitize import sanitize

ROWS = 400
"""Measurements of a layer in its list; those that fail come first."""
OUTPUTS = 4


def render_bench_html(report: LadderReport) -> Iterator[str]:
    """The page, in pieces."""
    sheet = _sheet()
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    head = head_line(report.layers)
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    yield (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(head, 200)} - epdoctor bench</title>\n<style>{sheet}</style>\n</head>\n<body>\n"
    )
    yield from _header(report, head)
    yield from _overview(report)
    for layer in report.layers:
        if layer.measurements:
            yield from _layer(layer)
    yield "</body>\n</html>\n"


def _header(report: LadderReport, head: str) -> Iterator[str]:
    count = len(report.nodes)
    facts = (
        f"{count} nodes" if count != 1 else report.nodes[0],
        f"{report.seconds:.1f} s of a budget of {report.budget_s:.0f} s",
        report.ended_at,
        "interrupted" if report.interrupted else "",
    )
    yield f"<h1>{_text(head)}</h1>\n"
    yield f'<p class="dim">{_text(", ".join(fact for fact in facts if fact))}</p>\n'
    for node, why in report.missing.items():
        yield f'<p><span class="badge unknown">not reached</span>{_text(node)}: {_text(why)}</p>\n'
    if report.next:
        yield f"<p>Next:</p>\n<pre>{_text(report.next, 4000)}</pre>\n"


def _overview(report: LadderReport) -> Iterator[str]:
    yield '<section>\n<h2>Layers</h2>\n<div class="scroll"><table class="list">\n'
    for layer in report.layers:
        if not layer.not_run:
            yield (
                f'<tr><td class="number">{_badge(layer.status)}</td><td class="number">{_text(layer.number)}</td>'
                f'<td>{_text(layer.title)}</td><td>{_text(said(layer))}</td><td class="number">{layer.seconds:.1f} s</td></tr>\n'
            )
    yield "</table></div>\n"
    for line in not_run_lines(report.layers, width=10_000):
        yield f'<p class="dim">{_text(line)}</p>\n'
    yield "</section>\n"


def _layer(layer: LayerResult) -> Iterator[str]:
    yield f"<section>\n<h2>{_badge(layer.status)}{_text(layer.number)} {_text(layer.title)}</h2>\n"
    yield f"<p>{_text(said(layer))}</p>\n"
    if layer.status is Status.FAIL:
        keyed = [
            *(("suspect", suspect.sentence) for suspect in layer.suspects),
            *(("means", f"{title} ({cause})") for cause, title in layer.causes),
            ("explained by", ", ".join(layer.checks)),
        ]
        for key, words in keyed:
            if words:
                yield f'<p><span class="dim">{key}</span> {_text(words)}</p>\n'
    for note in layer.notes:
        yield f'<p class="dim">{_text(note)}</p>\n'
    for table in heat_tables(layer.measurements):
        if len(table.ends) > 1:
            yield from _heat(table)
    yield from _list(layer.measurements)
    outputs = list(dict.fromkeys(one.output for one in layer.failures if one.output.strip()))
    for output in outputs[:OUTPUTS]:
        printed = "\n".join(sanitize(line, 1000) for line in output[-8000:].splitlines())
        yield f"<details><summary>what the tool printed</summary><pre>{html.escape(printed)}</pre></details>\n"
    yield "</section>\n"


def _heat(table: HeatTable) -> Iterator[str]:
    yield f'<h3>{_text(table.caption)}</h3>\n<div class="scroll"><table class="heat">\n<tr><th></th>'
    yield "".join(f"<th>{_text(end, 60)}</th>" for end in table.ends) + "</tr>\n"
    for a in table.ends:
        yield f"<tr><th>{_text(a, 60)}</th>"
        for b in table.ends:
            cell = table.cells.get((a, b))
            if cell is None:
                kind, words = ("self", "") if a == b else ("none", "")
                yield f'<td class="{kind}">{words}</td>'
            else:
                title = html.escape("\n".join(sanitize(line, 300) for line in cell.title.split("\n")))
                yield f'<td class="{cell.kind}" title="{title}">{_text(cell.text)}</td>'
        yield "</tr>\n"
    yield "</table></div>\n"
    left_out = f" {table.left_out} without a failure are left out." if table.left_out else ""
    yield (
        '<p class="dim"><span class="swatch h3"></span>0.9 of the best and more<span class="swatch h2"></span>0.7'
        '<span class="swatch h1"></span>0.5<span class="swatch h0"></span>less<span class="swatch fail"></span>fails'
        f'<span class="swatch"></span>not measured.{left_out}</p>\n'
    )


def _list(measurements: Sequence[Measurement]) -> Iterator[str]:
    order = {Status.FAIL: 0, Status.ERROR: 1, Status.UNKNOWN: 2}
    ones = sorted(measurements, key=lambda one: order.get(one.status, 3))
    counted = f"{len(ones)} measurements" if len(ones) != 1 else "1 measurement"
    opened = " open" if len(ones) <= 12 else ""
    yield f'<details{opened}><summary>{counted}</summary><div class="scroll"><table class="list">\n'
    for one in ones[:ROWS]:
        yield (
            f'<tr><td class="number">{_badge(one.status)}</td><td>{_text(one.what)}</td>'
            f'<td>{_text(ends(one))}</td><td>{_text(outcome(one).strip())}</td><td class="dim">{_text(one.expected_from)}</td></tr>\n'
        )
    yield "</table></div>"
    if len(ones) > ROWS:
        yield f'<p class="dim">{len(ones) - ROWS} more are in --format json.</p>'
    yield "</details>\n"


def _badge(status: Status) -> str:
    return f'<span class="badge {status.value}">{status.value}</span>'


def _text(text: str, limit: int = 2000) -> str:
    return html.escape(sanitize(text, limit))


@cache
def _sheet() -> str:
    return "\n" + (Path(__file__).parent / "html" / "bench.css").read_text("utf-8")
