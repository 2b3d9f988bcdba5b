"""What differs between two sides: nodes, findings, facts; equal changes folded over their nodes. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from epdoctor.compare.facts import IDENTITY, Facts, Value
from epdoctor.compare.side import Side, renamed
from epdoctor.exceptions import Unmeasured
from epdoctor.model import Finding, Severity, Status
from epdoctor.report.verdict import about
from epdoctor.waivers import waiver_text

NOT_SEEN = "?"
"""In a fact's text: this part was not measured; never a difference."""

_COUNTS = (
    "kernel.", "gpu.ecc-clean", "gpu.rows-remapped", "gpu.free-of-strangers", "gpu.not-throttled", "rdma.error-counters",
    "rdma.link-not-flapping", "host.shm-has-space", "host.shm-no-leftovers", "time.", "sample.",
)  # fmt: skip
"""Checks whose findings name counters, times, pids and free space: their numbers move by themselves."""
_NUMBER = re.compile(r"\d[\d.,:]*")
_MOVING = re.compile(
    r"\bpids? \d+(?:, \d+)*|\[ *\d+\.\d+\]|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*|\b\d+(?:\.\d+)? ?(?:ms|s|min|h|d|seconds|minutes|hours|days) ago\b"
    r"|\b\d+ of \d+\b|\(\d+ x "
)


@dataclass(frozen=True)
class FactChange:
    """The same change of one fact on one or more nodes."""

    fact: str
    subjects: tuple[str, ...]
    """Within the fact: "mlx5_0:1", a variable's name; empty for a fact of one value."""
    kind: str
    """appeared | went | changed | unseen (measured before, not now) | seen (the other way round)"""
    before: str
    after: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class FindingChange:
    """The same change of one check's finding on one or more nodes."""

    check: str
    title: str
    severity: Severity
    scope: str
    kind: str
    """appeared | went | changed | unknown (was told, cannot be told now) | known (the other way round)"""
    before: str
    """ "pass", "fail: 8 MiB", "unknown: denied"."""
    after: str
    nodes: tuple[str, ...]


@dataclass
class Difference:
    """All of it. Empty lists: the same."""

    nodes_new: list[str] = field(default_factory=list)
    nodes_gone: list[str] = field(default_factory=list)
    now_unreached: dict[str, str] = field(default_factory=dict)
    now_reached: list[str] = field(default_factory=list)
    findings: list[FindingChange] = field(default_factory=list)
    facts: list[FactChange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was not compared, and why."""

    @property
    def same(self) -> bool:
        return not (
            self.nodes_new or self.nodes_gone or self.now_unreached or self.now_reached or self.findings or self.facts
        )  # fmt: skip

    @property
    def changed_nodes(self) -> set[str]:
        names = {node for finding in self.findings for node in finding.nodes}
        return names | {node for fact in self.facts for node in fact.nodes}


def difference(a: Side, b: Side) -> Difference:
    """From `a` to `b`. Two single nodes of different names are held against each other as machines."""
    found = Difference()
    without: Collection[str] = ()
    if len(a.nodes) == len(b.nodes) == 1 and a.nodes != b.nodes:
        found.notes.append(
            f"two machines, {a.nodes[0]} and {b.nodes[0]}: names, addresses and serial numbers are not compared"
        )
        a, without = renamed(a, a.nodes[0], b.nodes[0]), IDENTITY
    old, new = a.unreached, b.unreached
    both = [node for node in b.nodes if node in set(a.nodes)]
    found.nodes_new = [node for node in b.nodes if node not in set(a.nodes)]
    found.nodes_gone = [node for node in a.nodes if node not in set(b.nodes)]
    found.now_unreached = {node: new[node] for node in both if node in new and node not in old}
    found.now_reached = [node for node in both if node in old and node not in new]
    seen = {node for node in both if node not in old and node not in new}
    found.findings = _findings(a, b, seen, found)
    if a.has_facts and b.has_facts:
        found.facts = facts_difference(
            {n: a.facts[n] for n in seen if n in a.facts}, {n: b.facts[n] for n in both if n in b.facts}, without
        )  # fmt: skip
    else:
        which = "both are reports" if not a.has_facts and not b.has_facts else "one is a report"
        found.notes.append(f"{which}, and a report holds no facts: only nodes and findings were compared")
    return found


# ---------------------------------------------------------------- facts


def facts_difference(
    before: Mapping[str, Facts], after: Mapping[str, Facts], without: Collection[str] = ()
) -> list[FactChange]:
    """Of the nodes that both have; facts that one side does not know at all (another version) are left out."""
    found: dict[tuple[str, str, str, str, str], list[str]] = {}
    for node, new in after.items():
        old = before.get(node)
        if old is None:
            continue
        for name in old.keys() & new.keys():
            if name in without or old[name] == new[name]:
                continue
            for subject, kind, was, now in fact_changes(old[name], new[name]):
                found.setdefault((name, subject, kind, was, now), []).append(node)
    folded: dict[tuple[str, str, str, str, tuple[str, ...]], list[str]] = {}
    for (name, subject, kind, was, now), nodes in found.items():
        folded.setdefault((name, kind, was, now, tuple(nodes)), []).append(subject)
    changes = [
        FactChange(name, tuple(sorted(filter(None, subjects))), kind, was, now, nodes)
        for (name, kind, was, now, nodes), subjects in folded.items()
    ]
    return sorted(changes, key=lambda c: (-len(c.nodes), c.nodes, c.fact, c.subjects, c.before, c.after))


def fact_changes(old: Value, new: Value) -> Iterator[tuple[str, str, str, str]]:
    """(subject, kind, before, after) of one fact on one node."""
    if isinstance(old, Unmeasured) or isinstance(new, Unmeasured):
        if not isinstance(new, Unmeasured):
            yield "", "seen", f"not measured: {old}", _whole(new)
        elif not isinstance(old, Unmeasured):
            yield "", "unseen", _whole(old), f"not measured: {new}"
        return
    if isinstance(old, dict) or isinstance(new, dict):
        was = old if isinstance(old, dict) else {}
        now = new if isinstance(new, dict) else {}
        for subject in sorted(was.keys() | now.keys()):
            x, y = was.get(subject), now.get(subject)
            if x != y and NOT_SEEN not in (x, y):
                kind = "appeared" if x is None else "went" if y is None else "changed"
                yield subject, kind, x if x is not None else "", y if y is not None else ""
        return
    if old != new:
        kind = "appeared" if old is None else "went" if new is None else "changed"
        yield "", kind, old or "", new or ""


def _whole(value: Value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in sorted(value.items())) or "none"
    return str(value) if value is not None else "none"


# ---------------------------------------------------------------- findings


def _findings(a: Side, b: Side, seen: set[str], found: Difference) -> list[FindingChange]:
    old, new = _by_place(a, seen), _by_place(b, seen)
    a_checks, b_checks = {f.check for f in a.report.findings}, {f.check for f in b.report.findings}
    for label, only in ((a.label, a_checks - b_checks), (b.label, b_checks - a_checks)):
        if only:
            shown = ", ".join(sorted(only)[:3]) + (", ..." if len(only) > 3 else "")
            found.notes.append(f"judged in {label} alone, not compared: {len(only)} checks ({shown})")
    if a.report.goal.backend != b.report.goal.backend:
        found.notes.append(
            "judged for different back ends: "
            f"{a.report.goal.backend or 'all'}, then {b.report.goal.backend or 'all'}"
        )
    folded: dict[tuple[str, str, str, str, Severity], list[str]] = {}
    same_nodes = not found.nodes_new and not found.nodes_gone
    for key, after in new.items():
        before = old.get(key)
        check, node = key
        if before is None or (not node and b.report.checks[check].scope == "cluster" and not same_nodes
                              and before.status is after.status):  # fmt: skip
            continue
        kind = _kind(before, after)
        if not kind:
            continue
        severity = before.severity if kind == "went" else after.severity
        where = (
            [node] if node else sorted({n for f in (before, after) for p in f.problems for n in p.odd_nodes})
        )
        folded.setdefault((check, kind, _told(before), _told(after), severity), []).extend(where)
    changes = [
        FindingChange(
            check, b.report.checks[check].title, severity, b.report.checks[check].scope, kind, was, now, tuple(nodes)
        )
        for (check, kind, was, now, severity), nodes in folded.items()
    ]  # fmt: skip
    order = ("appeared", "changed", "unknown", "went", "known")
    return sorted(
        changes, key=lambda c: (order.index(c.kind), -c.severity.rank, -len(c.nodes), c.check, c.nodes)
    )


def _by_place(side: Side, seen: set[str]) -> dict[tuple[str, str], Finding]:
    return {(f.check, f.node): f for f in side.report.findings if not f.node or f.node in seen}


_OPEN = (Status.UNKNOWN, Status.ERROR)


def _kind(before: Finding, after: Finding) -> str:
    """Empty: no change worth telling. Between pass and skip the facts tell more."""
    if after.status is Status.FAIL:
        if before.status is not Status.FAIL:
            return "appeared"
        same = _essence(before) == _essence(after) and before.severity is after.severity
        return "" if same and bool(before.waived) == bool(after.waived) else "changed"
    if before.status is Status.FAIL:
        return "unknown" if after.status in _OPEN else "went"
    if after.status in _OPEN:
        return "" if before.status in _OPEN else "unknown"
    return "known" if before.status in _OPEN else ""


def _essence(finding: Finding) -> frozenset[tuple[str, str]]:
    """What was found on what, without what moves by itself."""

    def still(text: str) -> str:
        text = _MOVING.sub("#", text)
        return _NUMBER.sub("#", text) if finding.check.startswith(_COUNTS) else text

    return frozenset((problem.subject, still(about(problem))) for problem in finding.problems)


def _told(finding: Finding) -> str:
    text = "; ".join(about(problem) for problem in finding.problems) or finding.reason
    if finding.waiver is not None and finding.waived:
        text = f"waived ({waiver_text(finding.waiver)}); {text}"
    elif finding.waived:
        text = f"waived ({finding.waived}); {text}"
    return (
        f"{finding.status.value}: {text}"
        if text and finding.status is not Status.PASS
        else finding.status.value
    )
