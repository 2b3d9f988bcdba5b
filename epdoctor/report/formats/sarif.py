"""SARIF 2.1.0 (OASIS): what failed or is unknown; rules from the catalogue, waived findings suppressed.

A finding on a node has a logical location, one of a launch file a physical one. Unknown is kind "open" ("insufficient
information to decide"); a node that was not reached and a bug of ours are notifications of the invocation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from epdoctor import __version__
from epdoctor.model import Check, Finding, Location, Problem, Report, Severity, Status, Waiver
from epdoctor.report.formats import Style
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import exit_code
from epdoctor.report.verdict import about, commands, nodes_of

SUMMARY = "SARIF 2.1.0 for code scanning and editors"

SCHEMA_URI = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_URL = re.compile(r"https://[A-Za-z0-9./_~#%?=&+:@-]{3,300}")


def render(report: Report, style: Style) -> Iterator[str]:
    del style
    results = []
    used: dict[str, int] = {}
    for finding in report.findings:
        if finding.status in (Status.FAIL, Status.UNKNOWN):
            index = used.setdefault(finding.check, len(used))
            results += [_result(finding, problem, index, report) for problem in finding.problems or (None,)]
    # Rules of the catalogue that found nothing follow: a reader sees what was looked at.
    order = [*used, *(check for check in report.checks if check not in used)]
    data = {
        "$schema": SCHEMA_URI,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "epdoctor",
                        "version": report.tool_version or __version__,
                        "rules": [_rule(report.checks[check]) for check in order],
                    }
                },
                "invocations": [_invocation(report)],
                "columnKind": "unicodeCodePoints",
                "results": results,
                "properties": {
                    "source": sanitize(report.source),
                    "backend": report.goal.backend,
                    "catalogue": report.catalogue_date,
                },
            }
        ],
    }
    yield json.dumps(data, indent=1, ensure_ascii=True) + "\n"


def _text(text: str, limit: int = 2000) -> str:
    """A message's text. `[text](target)` is a link in SARIF (3.11.6), and nodes make no links."""
    text = sanitize(text, limit)
    return re.sub(r"([\[\]])", r"\\\1", text) if "](" in text else text


def _rule(check: Check) -> dict[str, Any]:
    lines = [check.why]
    if check.by_hand:
        lines.append(f"By hand: {check.by_hand}")
    lines += [f"Now: {command}" for command in check.fix.now]
    lines += [f"For good: {command}" for command in check.fix.permanent]
    if check.fix.workaround:
        lines.append(f"Meanwhile: {check.fix.workaround}")
    lines += [f"Source: {reference}" for reference in check.references]
    rule: dict[str, Any] = {
        "id": check.id,
        "shortDescription": {"text": sanitize(check.title)},
        "fullDescription": {"text": sanitize(check.why) or sanitize(check.title)},
        "help": {
            "text": "\n".join(sanitize(line) for text in lines for line in text.splitlines()) or check.id
        },
        "defaultConfiguration": {"level": _LEVELS[check.severity["default"]]},
        "properties": {"tags": list(dict.fromkeys((check.category, check.scope, *check.tags)))},
    }
    url = next((m.group().rstrip(".,:") for text in check.references if (m := _URL.search(text))), "")
    if url:
        rule["helpUri"] = url
    return rule


def _result(finding: Finding, problem: Problem | None, index: int, report: Report) -> dict[str, Any]:
    check = report.checks[finding.check]
    title = sanitize(check.title)
    if problem is None:
        text = f"{title}: unknown: {sanitize(finding.reason)}"
        level = "none"
    else:
        expected = f"; expected {sanitize(problem.expected)}" if problem.expected else ""
        text = f"{title}: {sanitize(about(problem, place=False))}{expected}"
        level = _LEVELS[problem.severity or finding.severity]
    nodes = problem.odd_nodes if problem is not None and not finding.node else nodes_of(finding)
    now, permanent = commands(finding, report)
    result: dict[str, Any] = {
        "ruleId": finding.check,
        "ruleIndex": index,
        "kind": "open" if problem is None else "fail",
        "level": level,
        "message": {"text": _text(text, 8000)},
        "locations": _locations(nodes, problem.location if problem is not None else None, check.scope),
        "partialFingerprints": {"epdoctorFinding/v1": _fingerprint(finding, problem)},
        "suppressions": [_suppression(finding)] if finding.waived else [],
        "properties": {"status": finding.status.value, "nodes": [sanitize(node) for node in nodes]},
    }
    properties = result["properties"]
    if now:
        properties["now"] = [sanitize(line) for line in now]
    if permanent:
        properties["permanent"] = [sanitize(line) for line in permanent]
    if problem is not None and problem.evidence:
        properties["evidence"] = [sanitize(line) for line in problem.evidence]
    if finding.waiver is not None and finding.waiver.expired:
        properties["expiredWaiver"] = _waiver(finding.waiver)
    return result


def _locations(nodes: tuple[str, ...], location: Location | None, scope: str) -> list[dict[str, Any]]:
    if location is not None and location.path != "--":
        return [{"physicalLocation": _physical(location)}]
    # One result, several places that all have to change (3.27.12).
    names = [sanitize(node) for node in nodes] or ["command line" if location is not None else scope]
    return [
        {"logicalLocations": [{"name": name, "fullyQualifiedName": name, "kind": "resource"}]}
        for name in names
    ]


def _physical(location: Location) -> dict[str, Any]:
    path = sanitize(location.path)
    artifact: dict[str, Any] = {"uri": quote(path)}
    if path.startswith("/"):
        artifact["uri"] = "file://" + quote(path)
    else:
        artifact["uriBaseId"] = "%SRCROOT%"
    physical: dict[str, Any] = {"artifactLocation": artifact}
    if location.line:
        physical["region"] = {"startLine": location.line}
        if location.column:
            physical["region"]["startColumn"] = location.column
    return physical


def _fingerprint(finding: Finding, problem: Problem | None) -> str:
    """The same finding in the next run: by check, place and subject, not by the text found."""
    subject = problem.subject if problem is not None else ""
    path = problem.location.path if problem is not None and problem.location is not None else ""
    key = f"{finding.check}\0{finding.node}\0{subject}\0{path}"
    return hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def _waiver(waiver: Waiver) -> dict[str, str]:
    values = {
        "nodes": waiver.nodes,
        "expires": waiver.expires,
        "owner": waiver.owner,
        "reason": waiver.reason,
    }
    return {key: sanitize(value) for key, value in values.items() if value}


def _suppression(finding: Finding) -> dict[str, Any]:
    data: dict[str, Any] = {
        "kind": "external",
        "status": "accepted",
        "justification": sanitize(finding.waived),
    }
    if finding.waiver is not None:
        data["properties"] = _waiver(finding.waiver)
        if finding.waiver.location is not None:
            data["location"] = {"physicalLocation": _physical(finding.waiver.location)}
    return data


def _invocation(report: Report) -> dict[str, Any]:
    notices: list[dict[str, Any]] = [
        {
            "level": "error",
            "message": {"text": f"{sanitize(outcome.node)} was not reached: {_text(outcome.error)}"},
            "locations": _locations((outcome.node,), None, "node"),
        }
        for outcome in report.outcomes
        if outcome.error
    ]
    notices += [
        {
            "level": "error",
            "message": {"text": f"{finding.check}: {_text(finding.reason)}"},
            "exception": {"message": sanitize(finding.traceback, 4000)},
        }
        for finding in report.findings
        if finding.status is Status.ERROR
    ]
    notices += [{"level": "warning", "message": {"text": _text(warning)}} for warning in report.warnings]
    invocation: dict[str, Any] = {
        "executionSuccessful": not report.interrupted and all(not o.error for o in report.outcomes),
        "exitCode": exit_code(report),
        "toolExecutionNotifications": notices,
    }
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", report.collected_at):
        invocation["startTimeUtc"] = report.collected_at
    return invocation
