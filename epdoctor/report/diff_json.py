"""A difference as JSON. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from epdoctor import __version__
from epdoctor.report.summary import exit_code
from epdoctor.report.verdict import headline, tally

if TYPE_CHECKING:
    from epdoctor.compare.difference import Difference
    from epdoctor.compare.side import Side

SCHEMA_VERSION = 1


def _side(side: Side) -> dict[str, Any]:
    report = side.report
    return {
        "name": side.label,
        "kind": "recording" if side.has_facts else "report",
        "collected_at": report.collected_at,
        "verdict": headline(report, tally(report)),
        "exit_code": exit_code(report),
        "backend": report.goal.backend,
        "nodes": list(side.nodes),
    }


def diff_data(a: Side, b: Side, found: Difference) -> dict[str, Any]:
    """Fields are added without a new `schema_version`; none is removed or changed without."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "epdoctor", "version": __version__},
        "before": _side(a),
        "after": _side(b),
        "same": found.same,
        "nodes": {
            "new": found.nodes_new,
            "gone": found.nodes_gone,
            "now_unreached": found.now_unreached,
            "now_reached": found.now_reached,
        },
        "findings": [
            {**asdict(c), "severity": c.severity.value, "nodes": list(c.nodes)} for c in found.findings
        ],
        "facts": [{**asdict(c), "subjects": list(c.subjects), "nodes": list(c.nodes)} for c in found.facts],
        "notes": found.notes,
    }


def render_diff_json(a: Side, b: Side, found: Difference) -> str:
    return json.dumps(diff_data(a, b, found), indent=1, ensure_ascii=True) + "\n"
