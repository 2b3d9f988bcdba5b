"""One HTML file that loads nothing: opened from disk, from a CI artifact, or printed.

What comes from nodes is text in three places: JSON in a data block (every <, >, & and line separator escaped, so that
nothing in it ends the block), SVG built as a tree, and the text report for browsers without scripts, escaped. The
scripts put text on the page with textContent alone. Should all of that fail, the content security policy runs no
script but the one whose hash it names (script-src, W3C CSP level 3), and lets nothing be loaded or sent.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from epdoctor.model import Report
from epdoctor.nodenames import fold
from epdoctor.report.formats import Style
from epdoctor.report.sanitize import sanitize

SUMMARY = "one page for a browser: map, topology, findings"

PICTURES_BUDGET = 1_000_000
"""Characters of SVG. Nodes with troubles come first; a page beyond it says what it leaves out."""

_FOLDER = Path(__file__).parent.parent / "html"
_ESCAPED = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def render(report: Report, style: Style) -> Iterator[str]:
    from epdoctor.report.html.data import page_data

    script, sheet = assets()
    data = page_data(report, style.command)
    figures, data["topologies"] = pictures(report)
    policy = (
        f"default-src 'none'; script-src 'sha256-{_digest(script)}'; style-src 'sha256-{_digest(sheet)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    run = data["run"]
    title = html.escape(sanitize(f"{run['headline']} - epdoctor, {report.source}", 200))
    yield (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{sheet}</style>\n</head>\n<body>\n"
    )
    yield f"<noscript><pre>{html.escape(_plain(report, style))}</pre></noscript>\n"
    yield '<div id="app"></div>\n<div id="pictures" hidden>\n'
    yield from figures
    yield '</div>\n<script type="application/json" id="data">'
    yield block(data)
    yield f"</script>\n<script>{script}</script>\n</body>\n</html>\n"


def block(data: object) -> str:
    """JSON that neither ends the element it stands in nor opens another; ASCII, so that no separator is left."""
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")).translate(_ESCAPED)


@cache
def assets() -> tuple[str, str]:
    """(script, style sheet), exactly as they stand in the page."""
    parts = [
        (_FOLDER / name).read_text("utf-8")
        for name in ("core.js", "map.js", "findings.js", "sections.js", "page.js")
    ]
    script = '\n(() => {\n"use strict";\n' + "".join(parts) + "})();\n"
    sheet = "\n" + "".join((_FOLDER / name).read_text("utf-8") for name in ("page.css", "picture.css"))
    return script, sheet


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def pictures(report: Report) -> tuple[list[str], list[dict[str, object]]]:
    """(figures' markup, what the page says of each), those with most to say first."""
    from epdoctor.report.html.data import ranges
    from epdoctor.report.html.picture import svg, troubles

    places = {outcome.node: index for index, outcome in enumerate(report.outcomes)}
    told = []
    for topology in report.topologies:
        found = troubles(topology.shape)
        bad = sum(trouble.level == "bad" for trouble in found)
        told.append((-bad, -len(found), -len(topology.nodes), topology, found))
    told.sort(key=lambda entry: entry[:3])
    figures: list[str] = []
    entries: list[dict[str, object]] = []
    left = PICTURES_BUDGET
    for _, _, _, topology, found in told:
        entry: dict[str, object] = {
            "n": ranges(topology.nodes, places),
            "troubles": [[trouble.level, trouble.kind, trouble.text] for trouble in found[:40]],
            "unknown": topology.shape["unknown"],
            "notes": _notes(topology.shape),
        }
        if left > 0:
            markup = svg(topology.shape, fold(topology.nodes))
            left -= len(markup)
            if markup:
                entry["figure"] = len(figures)
                figures.append(f'<div id="picture-{len(figures)}">{markup}</div>\n')
        else:
            entry["cut"] = True
        entries.append(entry)
    return figures, entries


def _notes(shape: Mapping[str, Any]) -> list[str]:
    notes = []
    if shape["virtual"]:
        notes.append("A virtual machine: what the hypervisor hides of the PCIe bus is not judged.")
    if shape["grace"]:
        notes.append("Grace: NICs hang on the CPU by design, so their distance is not judged.")
    if shape["other_gpus"]:
        notes.append(f"{shape['other_gpus']} GPUs of AMD or Intel are not drawn.")
    if shape["left_out"]:
        notes.append(f"{shape['left_out']} virtual functions and further devices are not drawn.")
    return notes


def _plain(report: Report, style: Style) -> str:
    """The text report, for a browser (or a CI server's sandbox) that runs no scripts."""
    from epdoctor.report.formats import render as other

    return "".join(other("text", report, style))
