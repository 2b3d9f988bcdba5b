"""GitHub Actions: an annotation a finding (workflow commands). The job summary is the markdown form.

Folded over nodes, since GitHub shows ten annotations of a kind and step. What runs stays in this one line: a
command's value escapes %, CR and LF, its properties also : and , (docs.github.com, workflow commands).
"""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.model import Location, Report, Severity, Status
from epdoctor.nodenames import fold
from epdoctor.report.formats import Style
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import Group, group_findings
from epdoctor.report.verdict import about, headline, sentence, tally
from epdoctor.waivers import waiver_text

SUMMARY = "annotations for GitHub Actions; the job summary too"

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def render(report: Report, style: Style) -> Iterator[str]:
    del style
    for outcome in report.outcomes:
        if outcome.error:
            yield command("error", f"Not reached: {outcome.node}", outcome.error)
    if report.fail_on_expired_waiver:
        for waiver in report.expired_waivers:
            text = f"the waiver of {waiver.check} expired on {waiver.expires}"
            yield command("error", "Waiver expired", text, waiver.location)
    for group in group_findings(report, Status.FAIL):
        level = "notice" if group.waived else _LEVELS[group.severity]
        waived = (
            f"waived: {waiver_text(group.waiver) if group.waiver else group.waived}; " if group.waived else ""
        )
        for variant in group.variants:
            for problem in variant.problems:
                where = f" on {fold(variant.nodes)}" if variant.nodes else ""
                expected = f"\nexpected {problem.expected}" if problem.expected else ""
                fix = "".join(f"\n$ {line}" for line in (problem.now or group.check.fix.now))
                text = f"{waived}{about(problem, place=_at(problem.location) is None)}{where}{expected}{fix}"
                yield command(level, f"{group.check.title} ({group.check.id})", text, problem.location)
    for group in group_findings(report, Status.UNKNOWN) + group_findings(report, Status.ERROR):
        if not group.waived and group.severity.rank >= report.fail_on.rank:
            yield command("warning", f"Unknown: {group.check.title} ({group.check.id})", _unknown(group))
    counts = tally(report)
    yield f"epdoctor: {sanitize(headline(report, counts))}: {sentence(counts)}\n"


def _unknown(group: Group) -> str:
    where = f" on {fold(group.nodes)}" if group.nodes else ""
    reasons = "; ".join(reason for reason, _ in group.reasons[:3])
    return f"unknown{where}: {reasons}\n$ {group.check.by_hand}"


def command(level: str, title: str, text: str, location: Location | None = None) -> str:
    """One workflow command, at the start of its line."""
    properties = {}
    location = _at(location)
    if location is not None:
        properties["file"] = location.path
        if location.line:
            properties["line"] = str(location.line)
        if location.column:
            properties["col"] = str(location.column)
    properties["title"] = title
    inner = ",".join(f"{key}={_property(sanitize(value))}" for key, value in properties.items())
    lines = "\n".join(sanitize(line) for line in text.split("\n"))
    return f"::{level} {inner}::{_data(lines)}\n"


def _at(location: Location | None) -> Location | None:
    """Where it is a line of a file, and not of our own command line."""
    return location if location is not None and location.path != "--" else None


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
