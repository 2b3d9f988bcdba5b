"""The ladder's report for programs. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict

from epdoctor.bench.results import LadderReport

SCHEMA_VERSION = 1


def render_bench_json(report: LadderReport) -> str:
    """One object: every measurement of every layer, with what the tools printed."""
    found = {
        "schema_version": SCHEMA_VERSION,
        "ended_at": report.ended_at,
        "seconds": round(report.seconds, 2),
        "budget_s": report.budget_s,
        "exit_code": report.exit_code,
        "interrupted": report.interrupted,
        "nodes": list(report.nodes),
        "missing": dict(report.missing),
        "next": report.next,
        "layers": [{**asdict(layer), "status": layer.status.value} for layer in report.layers],
    }
    return json.dumps(found, indent=1) + "\n"
