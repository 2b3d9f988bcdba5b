"""The engine: needs, applicability, unknown, our own bugs, blocking, readiness and exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from epdoctor import rules as rules_module
from epdoctor.engine import Engine, NodeJudgement
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions, Source
from epdoctor.model import Check, Finding, Fix, Goal, NodeOutcome, Problem, Report, Severity, Status
from epdoctor.report.summary import exit_code, group_findings, readiness
from epdoctor.rules import NotApplicable, Rule

LL = "deepep_low_latency"


def make_check(**change: Any) -> Check:
    fields: dict[str, Any] = {
        "id": "host.example", "title": "t", "severity": {"default": Severity.WARNING, LL: Severity.ERROR},
        "scope": "node", "rule": "example", "params": {}, "why": "w", "by_hand": "h", "fix": Fix(),
    }  # fmt: skip
    return Check(**{**fields, **change})


def judge(
    monkeypatch: pytest.MonkeyPatch, outcome: Any, goal: Goal, check: Check, *, root: bool = True
) -> Finding:
    def example(node: Node) -> Iterator[Problem]:
        if isinstance(outcome, Exception):
            raise outcome
        yield from outcome

    monkeypatch.setitem(rules_module._REGISTRY, "example", Rule("example", "node", example))
    engine = Engine({check.id: check}, goal)
    return engine.judge_node(Node("n1", Source({}, root=root), goal, CollectOptions())).findings[0]


PROBLEM = Problem("found", "expected")


def test_fail_takes_the_back_ends_severity_and_says_what_it_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = judge(monkeypatch, [PROBLEM], Goal(multinode=True), make_check())
    assert (finding.status, finding.severity, finding.blocks) == (Status.FAIL, Severity.WARNING, (LL,))
    finding = judge(monkeypatch, [PROBLEM], Goal(backend=LL, multinode=True), make_check())
    assert finding.severity is Severity.ERROR


def test_a_problem_may_lower_the_severity(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = judge(monkeypatch, [Problem("f", "e", severity=Severity.INFO)], Goal(backend=LL), make_check())
    assert (finding.status, finding.severity, finding.blocks) == (Status.FAIL, Severity.INFO, ())


def test_unmeasured_is_unknown_and_says_when_root_would_see(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = judge(monkeypatch, Unmeasured("/x: EACCES"), Goal(), make_check(), root=False)
    assert (finding.status, finding.needs_root, finding.blocks) == (Status.UNKNOWN, True, (LL,))
    assert not judge(monkeypatch, Unmeasured("/x: EACCES"), Goal(), make_check(), root=True).needs_root


def test_our_own_bug_is_an_error_with_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = judge(monkeypatch, ZeroDivisionError("boom"), Goal(), make_check())
    assert finding.status is Status.ERROR
    assert "boom" in finding.traceback


def test_not_applicable_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = judge(monkeypatch, NotApplicable("no such thing"), Goal(), make_check())
    assert (finding.status, finding.reason) == (Status.SKIP, "no such thing")


@pytest.mark.parametrize(
    ("check", "goal", "status"),
    [
        (make_check(multinode=True), Goal(multinode=False), Status.SKIP),
        (make_check(multinode=True), Goal(multinode=True), Status.FAIL),
        (make_check(multinode=False), Goal(multinode=True), Status.SKIP),
        (make_check(backends=("deepep_v2",)), Goal(backend=LL), Status.SKIP),
        (make_check(backends=("deepep_v2",)), Goal(), Status.FAIL),
        (make_check(needs=("gpu",)), Goal(), Status.UNKNOWN),
    ],
)
def test_applicability(monkeypatch: pytest.MonkeyPatch, check: Check, goal: Goal, status: Status) -> None:
    assert judge(monkeypatch, [PROBLEM], goal, check).status is status


def finding(status: Status, severity: Severity = Severity.ERROR, node: str = "n1", **extra: Any) -> Finding:
    return Finding("host.example", status, severity, node, **extra)


def report(*findings: Finding, outcomes: list[NodeOutcome] | None = None, **extra: Any) -> Report:
    return Report(
        Goal(), outcomes or [NodeOutcome("n1")], list(findings), {"host.example": make_check()}, **extra
    )


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (report(), 0),
        (report(finding(Status.FAIL)), 1),
        (report(finding(Status.FAIL, Severity.WARNING)), 0),
        (report(finding(Status.FAIL, Severity.WARNING), fail_on=Severity.WARNING), 1),
        (report(finding(Status.UNKNOWN)), 3),
        (report(finding(Status.UNKNOWN, Severity.WARNING)), 0),
        (report(finding(Status.ERROR)), 3),
        (report(finding(Status.UNKNOWN), finding(Status.FAIL)), 1),
        (report(finding(Status.FAIL, waived="known")), 0),
        (report(outcomes=[NodeOutcome("n1"), NodeOutcome("n2", error="refused")]), 3),
        (report(finding(Status.FAIL), interrupted=True), 130),
    ],
)
def test_exit_codes(result: Report, code: int) -> None:
    assert exit_code(result) == code


def test_readiness_by_back_end_and_node() -> None:
    outcomes = [NodeOutcome(f"n{i}") for i in range(1, 6)]
    outcomes[4] = NodeOutcome("n5", error="refused")
    findings = [
        finding(Status.FAIL, node="n1", blocks=(LL,), problems=(PROBLEM,)),
        finding(Status.UNKNOWN, node="n2", blocks=(LL,), reason="?"),
        finding(Status.FAIL, node="", blocks=(LL,), problems=(Problem("f", "e", odd_nodes=("n3",)),)),
    ]
    gpus = {f"n{i}": True for i in range(1, 5)}
    rows = readiness([LL, "allgather_reducescatter"], outcomes, findings, gpus)
    assert rows[0].ready == ("n4",)
    assert rows[0].not_ready == ("n1", "n3")
    assert rows[0].unknown == ("n5", "n2")
    assert rows[0].because == ("host.example",)
    assert rows[1].ready == ("n1", "n2", "n3", "n4")


def test_a_node_without_gpu_is_never_ready() -> None:
    rows = readiness([LL], [NodeOutcome("n1"), NodeOutcome("n2")], [], {"n1": False, "n2": None})
    assert (rows[0].ready, rows[0].not_ready, rows[0].unknown) == ((), ("n1",), ("n2",))


def test_same_problems_fold_over_nodes() -> None:
    findings = [finding(Status.FAIL, node=f"n{i}", problems=(PROBLEM,)) for i in range(3)]
    findings.append(finding(Status.FAIL, node="n9", problems=(Problem("other", "expected"),)))
    (group,) = group_findings(report(*findings), Status.FAIL)
    assert [variant.nodes for variant in group.variants] == [("n0", "n1", "n2"), ("n9",)]


def test_judgement_is_small() -> None:
    assert NodeJudgement.__slots__
