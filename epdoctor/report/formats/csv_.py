"""CSV (RFC 4180, UTF-8): a row a problem and node, for spreadsheets.

A cell that a spreadsheet would take for a formula starts with an apostrophe (OWASP, CSV Injection); every cell is
quoted, so that no other separator of a locale starts a cell either.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import lru_cache

from epdoctor.model import Finding, Problem, Report
from epdoctor.nodenames import fold
from epdoctor.report.formats import Style
from epdoctor.report.sanitize import sanitize
from epdoctor.report.verdict import commands

SUMMARY = "a row a finding, for spreadsheets"

COLUMNS = (
    "node", "check", "title", "status", "severity", "subject", "found", "expected", "reason", "location", "now",
    "for_good", "waived", "waiver_expires", "waiver_owner",
)  # fmt: skip
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
"""Also as full-width characters, which some spreadsheets read alike."""


def render(report: Report, style: Style) -> Iterator[str]:
    del style
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for finding in report.findings:
        for problem in finding.problems or (None,):
            writer.writerow(map(cell, _row(finding, problem, report)))
        if buffer.tell() > 65536:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    for outcome in report.outcomes:
        if outcome.error:
            row = [outcome.node, "ssh.reached", "Not reached", "unknown", "error", "", "", "", outcome.error]
            writer.writerow([cell(text) for text in [*row, "", outcome.hint, "", "", "", ""]])
    yield buffer.getvalue()


def _row(finding: Finding, problem: Problem | None, report: Report) -> list[str]:
    check = report.checks[finding.check]
    nodes = finding.node or (fold(problem.odd_nodes) if problem is not None else "") or check.scope
    row = [nodes, finding.check, check.title, finding.status.value, finding.severity.value]
    if problem is None:
        row += ["", "", "", finding.reason, "", "", ""]
    else:
        now, permanent = commands(finding, report)
        place = str(problem.location) if problem.location is not None else ""
        row += [problem.subject, problem.found, problem.expected, finding.reason, place]
        row += [" && ".join(now), " && ".join(permanent)]
    waiver = finding.waiver
    waived = finding.waived or (f"expired: {waiver.reason}" if waiver is not None else "")
    return [
        *row,
        waived,
        waiver.expires if waiver is not None else "",
        waiver.owner if waiver is not None else "",
    ]


@lru_cache(maxsize=16384)
def cell(text: str) -> str:
    text = sanitize(text)
    return f"'{text}" if text.lstrip()[:1] in _FORMULA and text.strip() else text
