"""CTRF, the Common Test Report Format (ctrf.io, specification 1.0.0): a test a check and node.

passed, failed and skipped as in JUnit's form; what is unknown is "other", never passed.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import Any

from epdoctor import __version__
from epdoctor.model import Finding, Report
from epdoctor.report.formats import Style
from epdoctor.report.sanitize import sanitize
from epdoctor.report.verdict import Mark, by_place, mark, message

SUMMARY = "Common Test Report Format"

_STATUS = {
    Mark.PASSED: "passed",
    Mark.FAILED: "failed",
    Mark.NOTED: "skipped",
    Mark.WAIVED: "skipped",
    Mark.SKIPPED: "skipped",
    Mark.UNKNOWN: "other",
    Mark.UNSEEN: "other",
}


def render(report: Report, style: Style) -> Iterator[str]:
    del style
    tests = [_test(place, finding, report) for place, findings in by_place(report) for finding in findings]
    tests += [
        {
            "name": "ssh.reached",
            "status": "other",
            "duration": round(outcome.seconds * 1000),
            "suite": [sanitize(outcome.node)],
            "message": sanitize(outcome.error),
            "rawStatus": "not reached",
        }
        for outcome in report.outcomes
        if outcome.error
    ]
    if report.fail_on_expired_waiver:
        tests += [
            {
                "name": waiver.check,
                "status": "failed",
                "duration": 0,
                "suite": ["waivers"],
                "message": sanitize(f"{waiver.location}: expired {waiver.expires}: {waiver.reason}"),
                "rawStatus": "expired waiver",
            }
            for waiver in report.expired_waivers
        ]
    count = dict.fromkeys(("passed", "failed", "skipped", "pending", "other"), 0)
    for test in tests:
        count[test["status"]] += 1
    start = _milliseconds(report.collected_at)
    head = {
        "reportFormat": "CTRF",
        "specVersion": "1.0.0",
        "generatedBy": f"epdoctor {__version__}",
        "results": {
            "tool": {"name": "epdoctor", "version": report.tool_version or __version__},
            "summary": {
                "tests": len(tests),
                **count,
                "suites": len({test["suite"][0] for test in tests}),
                "start": start,
                "stop": start + round(report.seconds * 1000),
            },
            "tests": [],
        },
    }
    encode = json.JSONEncoder().encode
    before, _, after = json.dumps(head, indent=1).rpartition("[]")
    yield before + "[\n"
    for index, test in enumerate(tests):
        yield encode(test) + (",\n" if index + 1 < len(tests) else "\n")
    yield "]" + after + "\n"


def _test(place: str, finding: Finding, report: Report) -> dict[str, Any]:
    kind = mark(finding, report)
    test: dict[str, Any] = {
        "name": finding.check,
        "status": _STATUS[kind],
        "duration": round(finding.seconds * 1000),
        "suite": [sanitize(place)],
        "rawStatus": "waived" if kind is Mark.WAIVED else finding.status.value,
    }
    if kind is not Mark.PASSED:
        test["message"] = sanitize(message(finding))
        test["tags"] = [finding.severity.value]
    if finding.traceback:
        test["trace"] = sanitize(finding.traceback, 4000)
    location = next((p.location for p in finding.problems if p.location is not None), None)
    if location is not None:
        test["filePath"] = sanitize(location.path)
        if location.line:
            test["line"] = location.line
    return test


def _milliseconds(stamp: str) -> int:
    try:
        when = datetime.datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    except ValueError:
        return 0
    return round(when.timestamp() * 1000) if when.tzinfo is not None else 0
