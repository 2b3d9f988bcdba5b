"""From failing findings to the components that mend them, and what is left for a person. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from epdoctor.model import Check, Finding, Severity, Status


@dataclass(frozen=True)
class ByHand:
    """A failing check that no playbook mends."""

    check: str
    nodes: tuple[str, ...]
    found: str
    """On the first of the nodes."""
    commands: tuple[str, ...]
    severity: Severity


@dataclass(frozen=True)
class Mending:
    """What a list of findings asks for."""

    where: Mapping[str, tuple[str, ...]]
    """Component -> nodes whose findings ask for it, in the order of the inventory."""
    nodes: tuple[str, ...]
    """Where something is to be mended, in the order of the inventory."""
    checks: tuple[str, ...]
    """That fail and should pass afterwards."""
    by_hand: tuple[ByHand, ...]
    unknown: tuple[tuple[str, str, str], ...]
    """(check, node, why) of what could not be told."""

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(self.where)


def plan_mending(
    findings: Iterable[Finding], checks: Mapping[str, Check], nodes: Sequence[str], *, asked: bool
) -> Mending:
    """`nodes`: that were reached; `asked`: the user named the checks, so that information counts, too.

    A check of the whole cluster is mended on its odd nodes, or on all where the rule names none."""
    wanted: dict[str, set[str]] = {}
    mended: list[str] = []
    by_hand: dict[str, list[Finding]] = {}
    unknown = []
    for finding in findings:
        check = checks.get(finding.check)
        if check is None or finding.waived or (finding.severity is Severity.INFO and not asked):
            continue
        if finding.status in (Status.UNKNOWN, Status.ERROR) and (asked or finding.severity is Severity.ERROR):
            unknown.append((finding.check, finding.node, finding.reason))
        if finding.status is not Status.FAIL:
            continue
        if not check.fix.tags or not check.fix.playbook:
            by_hand.setdefault(finding.check, []).append(finding)
            continue
        for tag in check.fix.tags:
            wanted.setdefault(tag, set()).update(_nodes(finding, nodes))
        if finding.check not in mended:
            mended.append(finding.check)
    return Mending(
        {tag: tuple(node for node in nodes if node in where) for tag, where in wanted.items()},
        tuple(node for node in nodes if any(node in where for where in wanted.values())),
        tuple(mended),
        tuple(
            sorted((_by_hand(checks[check], found, nodes) for check, found in by_hand.items()), key=_worst)
        ),
        tuple(unknown),
    )


def as_errors(checks: Mapping[str, Check], wanted: Iterable[str]) -> dict[str, Check]:
    """What was asked to be mended is not right until it passes, whatever its severity."""
    return {name: replace(checks[name], severity={"default": Severity.ERROR}) for name in wanted}


def _found(findings: Sequence[Finding]) -> str:
    """What the first node shows; nodes that show something else are only counted."""
    texts = list(dict.fromkeys(finding.problems[0].found for finding in findings if finding.problems))
    return (texts[0] if texts else "") + (f" (others: {len(texts) - 1} more)" if len(texts) > 1 else "")


def _worst(one: ByHand) -> int:
    return -one.severity.rank


def _nodes(finding: Finding, nodes: Sequence[str]) -> tuple[str, ...]:
    odd = tuple(dict.fromkeys(node for problem in finding.problems for node in problem.odd_nodes))
    return (finding.node,) if finding.node else odd or tuple(nodes)


def _by_hand(check: Check, findings: Sequence[Finding], nodes: Sequence[str]) -> ByHand:
    first = findings[0]
    problem = next((problem for problem in first.problems if problem.now or problem.permanent), None)
    commands = (problem.permanent or problem.now) if problem else check.fix.permanent or check.fix.now
    where = dict.fromkeys(node for finding in findings for node in _nodes(finding, nodes))
    return ByHand(check.id, tuple(where), _found(findings), tuple(commands), first.severity)
