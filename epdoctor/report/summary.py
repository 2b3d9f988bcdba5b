"""From judgements to the Report: folding, readiness, counts, exit code. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from epdoctor.engine import NodeJudgement
from epdoctor.model import Check, Finding, NodeOutcome, Problem, Readiness, Report, Severity, Status, Waiver


@dataclass(frozen=True)
class Variant:
    """The same problem on one or more nodes."""

    nodes: tuple[str, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Group:
    """One check's findings of one status, over its nodes; variants with the most nodes first."""

    check: Check
    status: Status
    severity: Severity
    nodes: tuple[str, ...]
    variants: tuple[Variant, ...]
    reasons: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Unknown and error: (reason, nodes)."""
    blocks: tuple[str, ...] = ()
    waived: str = ""
    needs_root: bool = False
    waiver: Waiver | None = None


def group_findings(report: Report, status: Status) -> list[Group]:
    """Findings of one status folded over nodes: worst severity first, then most nodes, then id."""
    by_check: dict[tuple[str, Severity, str, Waiver | None], list[Finding]] = {}
    for finding in report.findings:
        if finding.status is status:
            key = (finding.check, finding.severity, finding.waived, finding.waiver)
            by_check.setdefault(key, []).append(finding)
    groups = []
    for (check_id, severity, waived, waiver), findings in by_check.items():
        variants: dict[tuple[str, ...], list[Finding]] = {}
        reasons: dict[str, list[str]] = {}
        for finding in findings:
            same_problems = tuple(f"{p.subject}\0{p.found}\0{p.expected}" for p in finding.problems)
            variants.setdefault(same_problems, []).append(finding)
            if finding.reason:
                reasons.setdefault(finding.reason, []).append(finding.node)
        nodes = tuple(finding.node for finding in findings if finding.node)
        if not nodes:
            nodes = tuple(dict.fromkeys(n for f in findings for p in f.problems for n in p.odd_nodes))
        groups.append(
            Group(
                report.checks[check_id],
                status,
                severity,
                nodes,
                tuple(
                    Variant(
                        tuple(f.node for f in same if f.node)
                        or tuple(dict.fromkeys(n for p in same[0].problems for n in p.odd_nodes)),
                        same[0].problems,
                    )
                    for same in sorted(variants.values(), key=lambda same: -len(same))
                ),
                tuple(
                    (reason, tuple(where))
                    for reason, where in sorted(reasons.items(), key=lambda x: -len(x[1]))
                ),
                tuple(dict.fromkeys(name for finding in findings for name in finding.blocks)),
                waived,
                all(finding.needs_root for finding in findings),
                waiver,
            )
        )
    return sorted(
        groups,
        key=lambda g: (
            bool(g.waived),
            -g.severity.rank,
            g.check.scope == "cluster",
            -len(g.nodes),
            g.check.id,
        ),
    )


def readiness(
    backends: Iterable[str],
    outcomes: list[NodeOutcome],
    findings: list[Finding],
    gpu_nodes: Mapping[str, bool | None],
) -> list[Readiness]:
    """For each back end: the nodes where nothing blocks it, those where something does, those not known.

    A cluster finding blocks the nodes it names; `gpu_nodes` says whether a node has a GPU (None: not known)."""
    reached = [outcome.node for outcome in outcomes if not outcome.error]
    missed = [outcome.node for outcome in outcomes if outcome.error]
    blocked: dict[str, dict[str, dict[str, None]]] = {}
    unsure: dict[str, dict[str, dict[str, None]]] = {}
    waived: dict[str, dict[str, None]] = {}
    for finding in findings:
        if not finding.blocks or finding.status not in (Status.FAIL, Status.UNKNOWN, Status.ERROR):
            continue
        if finding.waived:
            for backend in finding.blocks:
                waived.setdefault(backend, {})[finding.check] = None
            continue
        table = blocked if finding.status is Status.FAIL else unsure
        nodes = [finding.node] if finding.node else list(_odd_nodes(finding)) or reached
        for backend in finding.blocks:
            for node in nodes:
                table.setdefault(backend, {}).setdefault(node, {})[finding.check] = None
    result = []
    for backend in backends:
        stopped, open_ = blocked.get(backend, {}), unsure.get(backend, {})
        ready, not_ready, unknown = [], [], list(missed)
        because: dict[str, int] = {}
        for node in reached:
            if node in stopped or gpu_nodes.get(node) is False:
                not_ready.append(node)
                for check in stopped.get(node, ()):
                    because[check] = because.get(check, 0) + 1
            elif node in open_ or gpu_nodes.get(node) is None:
                unknown.append(node)
                for check in open_.get(node, ()):
                    because[check] = because.get(check, 0) + 1
            else:
                ready.append(node)
        ranked = sorted(because, key=lambda check: (-because[check], check))
        result.append(
            Readiness(
                backend,
                tuple(ready),
                tuple(not_ready),
                tuple(unknown),
                tuple(ranked),
                tuple(waived.get(backend, ())),
            )
        )
    return result


def no_gpu(report: Report) -> bool:
    """No judged node has a GPU. A back end that no check stops, and that is ready on no node, shows it: others may be
    stopped by checks as well."""
    return any(r.not_ready and not r.ready and not r.unknown and not r.because for r in report.readiness)


def _odd_nodes(finding: Finding) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node for problem in finding.problems for node in problem.odd_nodes))


def exit_code(report: Report) -> int:
    """docs/design.md section 3: 0, 1, 3 or 130."""
    if report.interrupted:
        return 130
    bar = report.fail_on.rank
    open_ = (f for f in report.findings if f.status is not Status.PASS and f.status is not Status.SKIP)
    counted = [f for f in open_ if not f.waived and f.severity.rank >= bar]
    if any(finding.status is Status.FAIL for finding in counted):
        return 1
    if report.fail_on_expired_waiver and report.expired_waivers:
        return 1
    if any(finding.status in (Status.UNKNOWN, Status.ERROR) for finding in counted):
        return 3
    if any(outcome.error for outcome in report.outcomes):
        return 3
    return 0


def counts_by_category(report: Report) -> dict[str, dict[Status, int]]:
    """Checks (not findings) by category and worst status over the nodes."""
    order = (Status.ERROR, Status.FAIL, Status.UNKNOWN, Status.PASS, Status.SKIP)
    worst: dict[str, Status] = {}
    for finding in report.findings:
        known = worst.get(finding.check)
        if known is None or order.index(finding.status) < order.index(known):
            worst[finding.check] = finding.status
    table: dict[str, dict[Status, int]] = {}
    for check, status in worst.items():
        row = table.setdefault(report.checks[check].category, {})
        row[status] = row.get(status, 0) + 1
    return table


def merge_judgements(judgements: list[NodeJudgement], cluster: list[Finding]) -> list[Finding]:
    """All findings in one list: cluster findings last."""
    found: list[Finding] = []
    for judgement in judgements:
        found.extend(judgement.findings)
    found.extend(cluster)
    return found
