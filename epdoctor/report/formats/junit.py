"""JUnit XML as Jenkins and GitLab read it: a suite a node, a case a check; the cluster and the launch are suites.

What makes the exit code is `failure` (1) or `error` (3). What was found or is unknown below --fail-on, and what is
waived, is `skipped` with its text: neither red nor green. Element order follows junit-10.xsd of the xunit plugin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr  # nosec - these write XML, and read none

from epdoctor.model import Finding, Report
from epdoctor.report.formats import Style
from epdoctor.report.sanitize import sanitize
from epdoctor.report.verdict import Mark, by_place, commands, mark, message

SUMMARY = "JUnit XML for Jenkins, GitLab: a suite a node, a case a check"

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 forbids even as a character reference (section 2.2, Char)."""
_TAGS = {Mark.FAILED: "failure", Mark.UNKNOWN: "error"}
_TYPES = {
    Mark.NOTED: "below --fail-on",
    Mark.UNSEEN: "unknown, below --fail-on",
    Mark.WAIVED: "waived",
    Mark.SKIPPED: "does not apply",
}


@dataclass
class _Case:
    name: str
    tag: str = ""
    """failure | error | skipped; empty: passed."""
    type: str = ""
    message: str = ""
    body: str = ""
    seconds: float = 0.0


def render(report: Report, style: Style) -> Iterator[str]:
    del style
    suites = [(name, _cases(name, findings, report)) for name, findings in by_place(report)]
    if report.fail_on_expired_waiver and report.expired_waivers:
        expired = [
            _Case(w.check, "failure", "expired waiver", f"{w.location}: expired {w.expires}: {w.reason}")
            for w in report.expired_waivers
        ]
        suites.append(("waivers", expired))
    every = [case for _, cases in suites for case in cases]
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield f'<testsuites name="epdoctor" {_counts(every)} time="{report.seconds:.3f}">\n'
    for name, cases in suites:
        yield from _suite(name, cases, report)
    yield "</testsuites>\n"


def _cases(place: str, findings: list[Finding], report: Report) -> list[_Case]:
    outcome = next((o for o in report.outcomes if o.node == place and o.error), None)
    cases = (
        [] if outcome is None else [_Case("ssh.reached", "error", outcome.kind, outcome.error, outcome.hint)]
    )
    for finding in findings:
        kind = mark(finding, report)
        case = _Case(finding.check, seconds=finding.seconds)
        if kind is not Mark.PASSED:
            case.tag = _TAGS.get(kind, "skipped")
            case.type = _TYPES.get(kind, finding.severity.value if case.tag == "failure" else "unknown")
            level = f"{finding.severity.value}: " if kind in (Mark.FAILED, Mark.NOTED) else ""
            what = "unknown: " if kind in (Mark.UNKNOWN, Mark.UNSEEN) else ""
            case.message = f"{level}{what}{message(finding)}"
            if kind in (Mark.FAILED, Mark.NOTED, Mark.UNKNOWN):
                case.body = "\n".join(_body(finding, report))
        cases.append(case)
    return cases


def _body(finding: Finding, report: Report) -> Iterator[str]:
    check = report.checks[finding.check]
    yield sanitize(check.title)
    for problem in finding.problems:
        yield from (sanitize(f"  {line}") for line in problem.evidence)
    yield sanitize(check.why)
    now, permanent = commands(finding, report)
    for label, lines in (("now", now), ("for good", permanent)):
        yield from (f"{label}: {sanitize(line)}" for command in lines for line in command.splitlines())
    if finding.traceback:
        yield from map(sanitize, finding.traceback.splitlines())


def _suite(name: str, cases: list[_Case], report: Report) -> Iterator[str]:
    seconds = sum(case.seconds for case in cases)
    stamp = f' timestamp="{report.collected_at[:19]}"' if re.match(r"\d{4}-", report.collected_at) else ""
    yield (
        f"<testsuite name={_attribute(name)} {_counts(cases, skipped=True)}"
        f' time="{seconds:.3f}"{stamp} hostname={_attribute(name)}>\n'
    )
    place = _attribute(name)
    for case in cases:
        head = f'<testcase name={_attribute(case.name)} classname={place} time="{case.seconds:.3f}"'
        if not case.tag:
            yield f"{head}/>\n"
            continue
        yield (
            f"{head}><{case.tag} type={_attribute(case.type)} message={_attribute(case.message)}>"
            f"{escape(_legal(case.body))}</{case.tag}></testcase>\n"
        )
    yield "</testsuite>\n"


def _counts(cases: Iterable[_Case], *, skipped: bool = False) -> str:
    tags = [case.tag for case in cases]
    text = f'tests="{len(tags)}" failures="{tags.count("failure")}" errors="{tags.count("error")}"'
    return f'{text} skipped="{tags.count("skipped")}"' if skipped else text


def _attribute(text: str) -> str:
    return quoteattr(_legal(sanitize(text)))


def _legal(text: str) -> str:
    return _FORBIDDEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
