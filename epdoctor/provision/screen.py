"""A run as text and as JSON: component x node, failures, what waits, and the table of before and after. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from epdoctor.model import Finding, Severity, Status
from epdoctor.nodenames import fold
from epdoctor.provision.advice import advice
from epdoctor.provision.result import Change, Remark, RunResult
from epdoctor.report.sanitize import sanitize

_WORDS = {
    "right": "right already",
    "absent": "does not apply",
    "left-alone": "left alone",
    "failed": "FAILED",
    "unreachable": "not reached",
    "not-tried": "not tried",
}
_MAX_DIFF_LINES = 12


def _by_nodes(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(text, node) pairs folded: text -> nodes, in the order of their first appearance."""
    found: dict[str, list[str]] = {}
    for text, node in pairs:
        nodes = found.setdefault(text, [])
        if node not in nodes:
            nodes.append(node)
    return list(found.items())


def _by_pairs(
    lost: Mapping[str, tuple[str, str]], nodes: Iterable[str]
) -> list[tuple[tuple[str, str], list[str]]]:
    """(component, task) -> nodes, for those of `nodes` that have one."""
    found: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        if lost.get(node, ("", ""))[0]:
            found.setdefault(lost[node], []).append(node)
    return list(found.items())


def table(result: RunResult, *, plan: bool) -> list[str]:
    """One row for each component and state, with its nodes and what changes."""
    lines = []
    width = max((len(name) for name in result.components), default=0)
    for component in result.components:
        cells = ((result.state(component, node), node) for node in result.nodes)
        states = _by_nodes(cell for cell in cells if cell[0] != "not-asked")
        for index, (state, nodes) in enumerate(states):
            word = _WORDS.get(state, "will change" if plan else "changed")
            head = component.ljust(width) if index == 0 else " " * width
            lines.append(f"{head}  {word:<14} {fold(nodes)}")
            # What was written before a failure, too.
            if state == "change" or (not plan and state in ("failed", "unreachable")):
                changes = [c for c in result.changes if c.component == component and c.node in nodes]
                changes.sort(key=lambda change: nodes.index(change.node))
                lines += _changes(changes, nodes, width, plan)
            if state in ("absent", "left-alone"):
                remarks = [
                    (r.text, r.node)
                    for r in result.remarks
                    if r.component == component and r.kind == state and r.node in nodes
                ]
                lines += [f"{' ' * width}    {sanitize(text)}" for text, _ in _by_nodes(remarks)]
    return lines


def _changes(changes: Sequence[Change], nodes: Sequence[str], width: int, plan: bool) -> list[str]:
    lines = []
    for what, where in _by_nodes((change.what, change.node) for change in changes):
        some = "" if len(where) == len(nodes) else f"  ({fold(where)})"
        lines.append(f"{' ' * width}    {sanitize(what)}{some}")
        if not plan:
            continue
        diffs = _by_nodes((c.diff, c.node) for c in changes if c.what == what and c.diff)
        for diff, owners in diffs[:3]:
            if len(diffs) > 1:
                lines.append(f"{' ' * width}      {fold(owners)}:")
            body = [line for line in diff.splitlines() if not line.startswith(("---", "+++", "@@"))]
            shown = [line for line in body if not line.startswith("+#")]
            lines += [f"{' ' * width}      {sanitize(line)}" for line in shown[:_MAX_DIFF_LINES]]
            if len(shown) > _MAX_DIFF_LINES:
                lines.append(f"{' ' * width}      ... {len(shown) - _MAX_DIFF_LINES} more lines")
        if len(diffs) > 3:
            lines.append(f"{' ' * width}      ... and {len(diffs) - 3} more (--format json)")
    return lines


def troubles(result: RunResult, missed: Mapping[str, str], *, plan: bool = False) -> list[str]:
    """Failures with the task's own error and its line, nodes not reached, what crashed."""
    lines = []
    failures = _by_nodes((f"{f.component}\0{f.task}\0{f.error}\0{f.where}", f.node) for f in result.failures)
    for text, nodes in failures:
        component, task, error, where = text.split("\0")
        lines += [
            f"FAILED  {component} on {fold(nodes)}: {sanitize(error)}",
            f"        task {sanitize(task)!r}, {where}",
        ]
    for what in advice([*(failure.error for failure in result.failures), *result.unreachable.values()]):
        lines.append(f"        try: {what}")
    for text, nodes in _by_nodes((why, node) for node, why in {**missed, **result.unreachable}.items()):
        lines.append(f"NOT REACHED  {fold(nodes)}: {sanitize(text)}")
        for (component, task), some in _by_pairs(result.lost, nodes):
            lines.append(f"        lost in {component}, task {sanitize(task)!r}: {fold(some)}")
    if result.crashed:
        lines.append(f"FAILED  ansible-playbook: {sanitize(result.crashed)}")
    if result.stopped == "interrupted":
        again = "run the same command again to go on, or epdoctor rollback"
        lines.append(f"INTERRUPTED  {'nothing was changed' if plan else 'what was written stays; ' + again}")
    elif result.stopped:
        lines.append(
            "FAILED  it took longer than --timeout and was ended; run the same command again to go on"
        )
    return lines


def waiting(remarks: Iterable[Remark]) -> list[str]:
    """What needs a reboot or a restart, and notes."""
    found = list(remarks)
    lines = []
    for text, nodes in _by_nodes((r.text, r.node) for r in found if r.kind == "reboot"):
        lines.append(f"reboot needed   {fold(nodes)}: {sanitize(text)}")
    for text, nodes in _by_nodes((r.text, r.node) for r in found if r.kind == "refused"):
        lines.append(f"not rebooted    {fold(nodes)}: {sanitize(text)}")
    for text, nodes in _by_nodes((r.text, r.node) for r in found if r.kind == "by-hand"):
        lines.append(f"do by hand      {fold(nodes)}: {sanitize(text)}")
    for text, nodes in _by_nodes((r.text, r.node) for r in found if r.kind == "restart"):
        lines.append(
            f"restart needed  {fold(nodes)}: {sanitize(text)} (running with the old limit; --restart-services)"
        )
    for text, nodes in _by_nodes((r.text, r.node) for r in found if r.kind == "note"):
        lines.append(f"note            {fold(nodes)}: {sanitize(text)}")
    return lines


def rebooted(changes: Iterable[Change]) -> list[str]:
    """The nodes that came back from a reboot, proved by their boot ids."""
    nodes = [change.node for change in changes if change.component == "reboot"]
    return [f"rebooted        {fold(nodes)}: each is back with another boot id"] if nodes else []


_ORDER = (Status.FAIL, Status.ERROR, Status.UNKNOWN, Status.PASS, Status.SKIP)
_STATUS_WORDS = {Status.FAIL: "fail", Status.ERROR: "error", Status.UNKNOWN: "unknown", Status.PASS: "pass"}


def _counts(findings: Iterable[Finding]) -> str:
    counts = Counter(finding.status for finding in findings)
    words = [
        f"{counts[status]} {_STATUS_WORDS[status]}"
        for status in _ORDER
        if counts[status] and status in _STATUS_WORDS
    ]
    return ", ".join(words) or "does not apply"


def before_after(
    before: Sequence[Finding], after: Sequence[Finding], checks: Iterable[str]
) -> list[tuple[str, str, str]]:
    """(check id, before, after) of the checks that were not simply fine both times."""
    rows = []
    for check in checks:
        old = [finding for finding in before if finding.check == check]
        new = [finding for finding in after if finding.check == check]
        calm = (Status.PASS, Status.SKIP)
        if all(finding.status in calm for finding in (*old, *new)):
            continue
        rows.append((check, _counts(old), _counts(new)))
    return rows


def before_after_lines(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    if not rows:
        return []
    first = max(len("check"), *(len(row[0]) for row in rows))
    second = max(len("before"), *(len(row[1]) for row in rows))
    out = [f"{'check':<{first}}  {'before':<{second}}  after"]
    return out + [f"{check:<{first}}  {old:<{second}}  {new}" for check, old, new in rows]


def justification(findings: Iterable[Finding], checks: Collection[str]) -> list[str]:
    """Failing findings that the components mend: "host.memlock-unlimited  gpu[01-03]  64 KiB ..." """
    failing = [
        f
        for f in findings
        if f.check in checks and f.status is Status.FAIL and f.severity is not Severity.INFO
    ]
    lines = []
    for text, nodes in _by_nodes(
        (f"{f.check}\0{f.problems[0].found if f.problems else ''}", f.node) for f in failing
    ):
        check, found = text.split("\0")
        lines.append(f"{check}  {fold([n for n in nodes if n]) or 'cluster'}: {sanitize(found)}")
    return lines


def as_json(result: RunResult, missed: Mapping[str, str]) -> dict[str, Any]:
    """The run for --format json."""
    return {
        "nodes": list(result.nodes),
        "components": {
            component: {node: result.state(component, node) for node in result.nodes}
            for component in result.components
        },
        "changes": [
            {"node": c.node, "component": c.component, "what": c.what, "diff": c.diff} for c in result.changes
        ],
        "failures": [
            {"node": f.node, "component": f.component, "task": f.task, "error": f.error, "where": f.where}
            for f in result.failures
        ],
        "remarks": [
            {"node": r.node, "component": r.component, "kind": r.kind, "text": r.text} for r in result.remarks
        ],
        "not_reached": {**missed, **result.unreachable},
        "lost_in": {
            node: {"component": component, "task": task} for node, (component, task) in result.lost.items()
        },
        "stopped": result.stopped,
        "crashed": result.crashed,
        "seconds": round(result.seconds, 2),
    }
