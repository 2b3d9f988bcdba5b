"""The report as JSON; the schema is report_schema.json beside this file."""

from __future__ import annotations

import json
from typing import Any

from epdoctor import __version__
from epdoctor.model import Finding, Location, Report, Status, Waiver
from epdoctor.report.summary import exit_code

SCHEMA_VERSION = 1


def report_data(report: Report) -> dict[str, Any]:
    """The report as JSON values. A failure is listed for each node; what is alike otherwise is one entry with its
    nodes."""
    folded: dict[tuple[Any, ...], list[Finding]] = {}
    findings = []
    for finding in report.findings:
        if finding.status is Status.FAIL:
            findings.append(_finding(finding, report))
        else:
            f = finding
            key = (
                f.check,
                f.status,
                f.severity,
                f.reason,
                f.waiver,
                f.waived,
                f.needs_root,
                f.blocks,
                f.traceback,
            )
            folded.setdefault(key, []).append(finding)
    findings += [_folded(same, report) for same in folded.values()]
    goal = report.goal
    data: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "tool": {
            "name": "epdoctor",
            "version": report.tool_version or __version__,
            "catalogue": report.catalogue_date,
        },
        "source": report.source,
        "collected_at": report.collected_at,
        "seconds": round(report.seconds, 3),
        "exit_code": exit_code(report),
        "interrupted": report.interrupted,
        "selected": report.selected,
        "fail_on": report.fail_on.value,
        "fail_on_expired_waiver": report.fail_on_expired_waiver,
        "expired_waivers": [_waiver(waiver) for waiver in report.expired_waivers],
        "vllm_versions": report.vllm_versions,
        "hca_sets": report.hca_sets,
        "goal": {
            "backend": goal.backend,
            "requested_backend": goal.requested_backend,
            "multinode": goal.multinode,
            "multinode_reason": goal.multinode_reason,
            "vllm_version": goal.vllm_version,
            "max_num_batched_tokens": goal.max_num_batched_tokens,
        },
        "warnings": report.warnings,
        "nodes": [
            {
                "name": outcome.node,
                "reached": not outcome.error,
                "error": outcome.error,
                "kind": outcome.kind,
                "hint": outcome.hint,
                "warnings": list(outcome.warnings),
                "seconds": round(outcome.seconds, 3),
                "slowest_probe": outcome.slowest_probe,
                "slowest_probe_seconds": round(outcome.slowest_probe_s, 3),
            }
            for outcome in report.outcomes
        ],
        "readiness": [
            {
                "backend": row.backend,
                "ready": list(row.ready),
                "not_ready": list(row.not_ready),
                "unknown": list(row.unknown),
                "because": list(row.because),
                "waived": list(row.waived),
            }
            for row in ([] if report.selected else report.readiness)
        ],
        "findings": findings,
    }
    if report.topologies:
        data["topologies"] = [
            {"nodes": list(topology.nodes), "shape": dict(topology.shape)} for topology in report.topologies
        ]
    return data


def _folded(same: list[Finding], report: Report) -> dict[str, Any]:
    data = _finding(same[0], report)
    data["nodes"] = [finding.node for finding in same if finding.node]
    data["seconds"] = round(sum(finding.seconds for finding in same), 6)
    return data


def _finding(finding: Finding, report: Report) -> dict[str, Any]:
    check = report.checks[finding.check]
    nodes = (
        [finding.node]
        if finding.node
        else list(dict.fromkeys(n for p in finding.problems for n in p.odd_nodes))
    )
    data: dict[str, Any] = {
        "id": finding.check,
        "title": check.title,
        "status": finding.status.value,
        "severity": finding.severity.value,
        "scope": check.scope,
        "nodes": nodes,
        "seconds": round(finding.seconds, 6),
    }
    if finding.waived:
        data["waived"] = finding.waived
    if finding.waiver is not None:
        data["waiver"] = _waiver(finding.waiver)
    if finding.reason or finding.status not in (Status.PASS, Status.FAIL):
        data["reason"] = finding.reason
    if finding.needs_root:
        data["needs_root"] = True
    if finding.traceback:
        data["traceback"] = finding.traceback
    if finding.blocks:
        data["blocks"] = list(finding.blocks)
    if finding.problems:
        data["problems"] = [
            {
                "subject": problem.subject,
                "found": problem.found,
                "expected": problem.expected,
                "evidence": list(problem.evidence),
                "now": list(problem.now),
                "permanent": list(problem.permanent),
                "odd_nodes": list(problem.odd_nodes),
                **({"severity": problem.severity.value} if problem.severity is not None else {}),
                **({"location": _location(problem.location)} if problem.location is not None else {}),
            }
            for problem in finding.problems
        ]
        data["actual"] = "; ".join(problem.found for problem in finding.problems)
        data["expected"] = "; ".join(dict.fromkeys(problem.expected for problem in finding.problems))
        data["evidence"] = [line for problem in finding.problems for line in problem.evidence]
    if finding.status in (Status.FAIL, Status.UNKNOWN, Status.ERROR):
        fix = check.fix
        data["why"] = check.why
        data["by_hand"] = check.by_hand
        data["fix"] = {
            "now": list(dict.fromkeys(c for p in finding.problems for c in p.now)) or list(fix.now),
            "permanent": list(dict.fromkeys(c for p in finding.problems for c in p.permanent))
            or list(fix.permanent),
            "workaround": fix.workaround,
            "playbook": fix.playbook,
            "tags": list(fix.tags),
            "action": fix.action.value,
            "disruption": fix.disruption.value,
        }
        data["causes"] = list(check.causes)
        data["references"] = list(check.references)
    return data


def _location(location: Location) -> dict[str, Any]:
    return {"path": location.path, "line": location.line, "column": location.column}


def _waiver(waiver: Waiver) -> dict[str, Any]:
    data: dict[str, Any] = {
        "check": waiver.check,
        "nodes": waiver.nodes,
        "reason": waiver.reason,
        "expires": waiver.expires,
        "owner": waiver.owner,
        "expired": waiver.expired,
    }
    if waiver.location is not None:
        data["location"] = _location(waiver.location)
    return data


def render_json(report: Report) -> str:
    return json.dumps(report_data(report), indent=1, ensure_ascii=True) + "\n"
