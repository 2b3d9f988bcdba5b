"""Metrics for node_exporter's textfile collector (Prometheus exposition format 0.0.4).

Labels hold nothing but epdoctor's own words: check ids, severities, statuses, back ends. Node names are not among
them: which nodes those are is in every other format.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator

from epdoctor import __version__
from epdoctor.model import Report, Severity, Status
from epdoctor.report.formats import Style
from epdoctor.report.summary import exit_code
from epdoctor.report.verdict import Mark, mark, node_verdicts, nodes_of

SUMMARY = "metrics for node_exporter's textfile collector"

Sample = tuple[dict[str, str], float]


def render(report: Report, style: Style) -> Iterator[str]:
    del style
    states: dict[tuple[str, str], int] = {(s.value, level.value): 0 for s in Status for level in Severity}
    failing: dict[tuple[str, str, str], set[str]] = {}
    for finding in report.findings:
        states[finding.status.value, finding.severity.value] += 1
        kind = mark(finding, report)
        if kind in (Mark.PASSED, Mark.SKIPPED):
            continue
        status = "waived" if kind is Mark.WAIVED else finding.status.value
        nodes = nodes_of(finding) or ("",)
        failing.setdefault((finding.check, finding.severity.value, status), set()).update(nodes)
    yield from _metric(
        "epdoctor_findings",
        "Findings by status and severity; waived ones too.",
        [({"status": s, "severity": level}, count) for (s, level), count in sorted(states.items())],
    )
    yield from _metric(
        "epdoctor_check_nodes",
        "Nodes on which a check failed, is unknown or is waived; a check of the cluster that names no node counts one.",
        [
            ({"check": check, "severity": level, "status": status}, len(nodes))
            for (check, level, status), nodes in sorted(failing.items())
        ],
    )
    verdicts = list(node_verdicts(report).values())
    missed = sum(1 for outcome in report.outcomes if outcome.error)
    counts = {
        "passed": verdicts.count(Mark.PASSED),
        "failed": verdicts.count(Mark.FAILED) - missed,
        "unknown": verdicts.count(Mark.UNKNOWN),
        "not_reached": missed,
    }
    yield from _metric(
        "epdoctor_nodes",
        "Nodes by what the run came to.",
        [({"state": state}, number) for state, number in counts.items()],
    )
    rows = [] if report.selected else report.readiness
    yield from _metric(
        "epdoctor_backend_nodes",
        "Nodes that are ready for vLLM's all2all back end, are not, or could not be judged.",
        [
            ({"backend": row.backend, "state": state}, len(nodes))
            for row in rows
            for state, nodes in (("ready", row.ready), ("not_ready", row.not_ready), ("unknown", row.unknown))
        ],
    )
    yield from _metric(
        "epdoctor_waivers_expired",
        "Waivers in the file that have expired.",
        [({}, len(report.expired_waivers))],
    )
    yield from _metric(
        "epdoctor_exit_code",
        "0 nothing found, 1 findings, 3 could not tell, 130 interrupted.",
        [({}, exit_code(report))],
    )
    yield from _metric("epdoctor_run_seconds", "Duration of the run.", [({}, round(report.seconds, 3))])
    yield from _metric(
        "epdoctor_collected_timestamp_seconds",
        "When the nodes were looked at.",
        [({}, stamp) for stamp in _seconds(report.collected_at)],
    )
    version = {"version": report.tool_version or __version__, "catalogue": report.catalogue_date}
    yield from _metric("epdoctor_build_info", "Version of epdoctor and of its tables.", [(version, 1)])


def _metric(name: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}\n# TYPE {name} gauge\n"
    for labels, value in samples:
        inner = ",".join(f'{key}="{_value(word)}"' for key, word in labels.items())
        yield f"{name}{{{inner}}} {value}\n" if inner else f"{name} {value}\n"


def _value(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _seconds(stamp: str) -> list[float]:
    try:
        when = datetime.datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    except ValueError:
        return []
    return [when.timestamp()] if when.tzinfo is not None else []
