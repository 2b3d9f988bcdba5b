"""What a finding, a node and a run came to, said once for all formats. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from epdoctor.model import Finding, Problem, Report, Severity, Status
from epdoctor.report.summary import Group, group_findings
from epdoctor.waivers import waiver_text


class Mark(str, enum.Enum):
    """A finding's weight in this run: what --fail-on and the waivers make of status and severity."""

    PASSED = "passed"
    FAILED = "failed"
    """At or above --fail-on: makes exit code 1."""
    NOTED = "noted"
    """Failed below --fail-on."""
    UNKNOWN = "unknown"
    """Unknown, or broken by a bug of ours, at or above --fail-on: makes exit code 3."""
    UNSEEN = "unseen"
    """Unknown below --fail-on."""
    WAIVED = "waived"
    SKIPPED = "skipped"


def mark(finding: Finding, report: Report) -> Mark:
    if finding.waived:
        return Mark.WAIVED
    if finding.status is Status.PASS:
        return Mark.PASSED
    if finding.status is Status.SKIP:
        return Mark.SKIPPED
    counts = finding.severity.rank >= report.fail_on.rank
    if finding.status is Status.FAIL:
        return Mark.FAILED if counts else Mark.NOTED
    return Mark.UNKNOWN if counts else Mark.UNSEEN


def about(problem: Problem, *, place: bool = True) -> str:
    """What was found, and on what if the text itself does not say; and where, unless the form has a field for that."""
    text = problem.found
    if problem.subject and problem.subject not in text:
        text = f"{problem.subject}: {text}"
    return f"{problem.location}: {text}" if problem.location and place else text


def message(finding: Finding) -> str:
    """A finding in one line: what was found and expected, or why it is not known, or who waived it."""
    parts = [
        f"{about(problem)} (expected {problem.expected})" if problem.expected else about(problem)
        for problem in finding.problems
    ]
    text = "; ".join(parts) or finding.reason
    if finding.waiver is not None:
        kind = "waiver" if finding.waiver.expired else "waived"
        return f"{kind}: {waiver_text(finding.waiver)}; {text}"
    return f"waived: {finding.waived}; {text}" if finding.waived else text


def commands(finding: Finding, report: Report) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(now, for good): the problems' own commands, else the check's."""
    fix = report.checks[finding.check].fix
    now = tuple(dict.fromkeys(c for p in finding.problems for c in p.now)) or fix.now
    permanent = tuple(dict.fromkeys(c for p in finding.problems for c in p.permanent)) or fix.permanent
    return now, permanent


def nodes_of(finding: Finding) -> tuple[str, ...]:
    """The node, or those that a finding of the cluster names."""
    if finding.node:
        return (finding.node,)
    return tuple(dict.fromkeys(node for problem in finding.problems for node in problem.odd_nodes))


def place(finding: Finding, report: Report) -> str:
    """Where a finding belongs: its node, "cluster" or "launch"."""
    return finding.node or report.checks[finding.check].scope


def by_place(report: Report) -> Iterator[tuple[str, list[Finding]]]:
    """Findings by node in the order of the run, then those of the cluster and of the launch."""
    found: dict[str, list[Finding]] = {outcome.node: [] for outcome in report.outcomes}
    wide: dict[str, list[Finding]] = {}
    for finding in report.findings:
        if finding.node:
            found.setdefault(finding.node, []).append(finding)
        else:
            wide.setdefault(place(finding, report), []).append(finding)
    yield from found.items()
    yield from wide.items()


@dataclass(frozen=True)
class Tally:
    """A run in numbers. Groups are checks folded over their nodes, as the text report shows them."""

    errors: list[Group]
    warnings: list[Group]
    notes: list[Group]
    unknown: list[Group]
    """At the bar."""
    waived: list[Group]
    unreached: int
    nodes: int

    @property
    def failing_nodes(self) -> set[str]:
        return {node for group in (*self.errors, *self.warnings) for node in group.nodes}

    @property
    def state(self) -> str:
        """not ready | cannot tell | ready (as far as the findings say)."""
        if self.errors:
            return "not ready"
        return "cannot tell" if self.unknown or self.unreached else "ready"


def tally(report: Report) -> Tally:
    failed = group_findings(report, Status.FAIL)
    open_ = group_findings(report, Status.UNKNOWN) + group_findings(report, Status.ERROR)
    counted = [group for group in failed if not group.waived]
    return Tally(
        [group for group in counted if group.severity is Severity.ERROR],
        [group for group in counted if group.severity is Severity.WARNING],
        [group for group in counted if group.severity is Severity.INFO],
        [g for g in open_ if not g.waived and g.severity.rank >= report.fail_on.rank],
        [group for group in (*failed, *open_) if group.waived],
        sum(1 for outcome in report.outcomes if outcome.error),
        len(report.outcomes),
    )


def sentence(counts: Tally) -> str:
    """ "2 errors, 1 warning on 3 of 6 nodes, 1 node not reached, 2 waived"."""
    parts = [
        f"{number} {noun}{'s' if number != 1 and plural else ''}"
        for number, noun, plural in (
            (len(counts.errors), "error", True),
            (len(counts.warnings), "warning", True),
            (len(counts.unknown), "unknown", False),
        )
        if number
    ]
    text = ", ".join(parts) or "nothing found"
    if counts.failing_nodes and counts.nodes > 1:
        text += f" on {len(counts.failing_nodes)} of {counts.nodes} nodes"
    if counts.unreached:
        text += f", {counts.unreached} of {counts.nodes} nodes not reached"
    if counts.waived:
        text += f", {len(counts.waived)} waived"
    return text


def headline(report: Report, counts: Tally) -> str:
    """READY, NOT READY, CANNOT TELL..., in the words of the text report's first line."""
    if report.interrupted:
        return "INTERRUPTED"
    if counts.errors:
        return "NOT READY"
    if report.fail_on_expired_waiver and report.expired_waivers:
        return "WAIVER EXPIRED"
    if counts.unknown or counts.unreached:
        return "CANNOT TELL"
    from epdoctor.report.summary import no_gpu

    if report.selected or not report.outcomes:
        return "PASS"
    if no_gpu(report):
        return "NO GPU HERE"
    ready = any(row.ready and not row.not_ready and not row.unknown for row in report.readiness)
    return "READY" if ready or all(row.ready for row in report.readiness) else "NOT READY"


# ---------------------------------------------------------------- nodes for a scheduler


def node_verdicts(report: Report) -> dict[str, Mark]:
    """passed | failed | unknown for every node: the worst that counts on it. A node that was not reached failed.

    What the cluster lacks as a whole, without naming a node, counts for every node."""
    worst = {outcome.node: Mark.FAILED if outcome.error else Mark.PASSED for outcome in report.outcomes}
    for finding in report.findings:
        kind = mark(finding, report)
        if kind not in (Mark.FAILED, Mark.UNKNOWN):
            continue
        for node in nodes_of(finding) or tuple(worst):
            if node in worst and worst[node] is not Mark.FAILED:
                worst[node] = kind
    return worst
