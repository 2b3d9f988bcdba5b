"""GitHub flavoured Markdown, for pull requests, issues and job summaries.

All text from outside stands in code spans and fenced blocks, where it is no link, mention, image or HTML; tables hold
only epdoctor's own words, numbers and node names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from epdoctor.model import Report, Severity, Status
from epdoctor.nodenames import fold
from epdoctor.report.formats import Style
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import Group
from epdoctor.report.verdict import about, headline, sentence, tally
from epdoctor.waivers import waiver_text

SUMMARY = "GitHub flavoured Markdown for pull requests and job summaries"

_SIGNS = {Severity.ERROR: "❌", Severity.WARNING: "⚠️", Severity.INFO: "ℹ️"}
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#!|~@&])")
_MAX_ROWS = 20


def render(report: Report, style: Style) -> Iterator[str]:
    counts = tally(report)
    yield f"## epdoctor: {words(headline(report, counts))}\n\n"
    goal = report.goal
    facts = [
        words(sentence(counts)),
        code(report.source) if report.source else "",
        f"{words(goal.backend or 'all back ends')} {'across nodes' if goal.multinode else 'on a single node'}",
        f"catalogue of {words(report.catalogue_date)}" if report.catalogue_date else "",
    ]
    yield " · ".join(filter(None, facts)) + "\n\n"
    for warning in report.warnings:
        yield f"- {code(warning)}\n"
    if report.warnings:
        yield "\n"
    yield from _unreached(report)
    notes = counts.notes if style.verbose else []
    for group in (*counts.errors, *counts.warnings, *notes):
        yield from _finding(group)
    for group in counts.unknown:
        yield from _unknown(group)
    if counts.waived:
        yield "### Waived\n\n"
        for group in counts.waived:
            text = waiver_text(group.waiver) if group.waiver else group.waived
            where = f" on {code(fold(group.nodes))}" if group.nodes else ""
            yield f"- {code(group.check.id)}{where}: {code(text)}\n"
        yield "\n"
    yield from _readiness(report)
    passed = len({finding.check for finding in report.findings if finding.status is Status.PASS})
    yield f"{len({f.check for f in report.findings})} checks, {passed} pass on a node or more. "
    yield "The whole report: `epdoctor check -v`\n" if not style.verbose else "\n"


def words(text: str) -> str:
    """Short text of our own, or nearly so, with every sign of markup taken literally."""
    return _MARKUP.sub(r"\\\1", sanitize(text))


def code(text: str) -> str:
    """A code span whose fence is longer than any within (CommonMark 6.1)."""
    text = sanitize(text)
    if not text.strip():
        return ""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest or text[0] == " " or text[-1] == " " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(lines: list[str]) -> str:
    """A fenced block that its content cannot end."""
    clean = [sanitize(part) for line in lines for part in line.splitlines()]
    longest = max((len(run) for line in clean for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n" + "".join(f"{line}\n" for line in clean) + f"{fence}\n"


def _unreached(report: Report) -> Iterator[str]:
    missed = [outcome for outcome in report.outcomes if outcome.error]
    if not missed:
        return
    yield f"### ❌ Not reached: {len(missed)} of {len(report.outcomes)} nodes\n\n"
    for outcome in missed[:_MAX_ROWS]:
        yield f"- {code(outcome.node)}: {code(outcome.error)}\n"
    if len(missed) > _MAX_ROWS:
        yield f"- and {len(missed) - _MAX_ROWS} more\n"
    yield "\n"


def _finding(group: Group) -> Iterator[str]:
    yield f"### {_SIGNS[group.severity]} {words(group.check.title)}\n\n"
    where = f" on {code(fold(group.nodes))}" if group.nodes else ""
    yield f"{code(group.check.id)}{where}\n\n"
    for variant in group.variants[:5]:
        several = f" on {code(fold(variant.nodes))}" if len(group.variants) > 1 and variant.nodes else ""
        for problem in variant.problems[:5]:
            yield f"- found {code(about(problem))}{several}\n"
        if len(variant.problems) > 5:
            yield f"- and {len(variant.problems) - 5} more{several}\n"
    if len(group.variants) > 5:
        yield f"- and {len(group.variants) - 5} more kinds\n"
    for text in dict.fromkeys(p.expected for v in group.variants[:5] for p in v.problems if p.expected):
        yield f"- expected {code(text)}\n"
    if group.waiver is not None:
        yield f"- waiver {code(waiver_text(group.waiver))}\n"
    yield f"\n{words(' '.join(group.check.why.split()))}\n\n"
    problems = group.variants[0].problems
    now = list(dict.fromkeys(line for p in problems for line in p.now)) or list(group.check.fix.now)
    permanent = list(dict.fromkeys(line for p in problems for line in p.permanent)) or list(
        group.check.fix.permanent
    )
    for label, lines in (("Now", now), ("For good", permanent)):
        if lines:
            yield f"{label}:\n\n{block(lines)}\n"


def _unknown(group: Group) -> Iterator[str]:
    yield f"### ❔ {words(group.check.title)}\n\n"
    where = f" on {code(fold(group.nodes))}" if group.nodes else ""
    yield f"{code(group.check.id)}{where}: unknown\n\n"
    for reason, _ in group.reasons[:3]:
        yield f"- {code(reason)}\n"
    yield f"\nBy hand:\n\n{block([group.check.by_hand])}\n"


def _readiness(report: Report) -> Iterator[str]:
    rows = [] if report.selected else report.readiness
    if not rows:
        return
    yield "### Back ends\n\n| back end | ready | not ready | unknown | because of |\n| --- | --: | --: | --: | --- |\n"
    for row in rows:
        because = ", ".join(f"`{check}`" for check in row.because[:3])
        waived = f" (waived: {', '.join(f'`{check}`' for check in row.waived)})" if row.waived else ""
        yield (
            f"| {words(row.backend)} | {len(row.ready)} | {len(row.not_ready)} | {len(row.unknown)} "
            f"| {because}{waived} |\n"
        )
    yield "\n"
