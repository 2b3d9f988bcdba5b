"""Judge checks on facts. Pure: the same records give the same findings on any machine."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from epdoctor.cluster import Cluster, digest
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.model import Check, Finding, Goal, Problem, Severity, Status
from epdoctor.rules import NotApplicable, all_needs, all_rules

if TYPE_CHECKING:
    from epdoctor.launch.model import LaunchSet

_ROOT_WORDS = (
    "denied",
    "EACCES",
    "EPERM",
    "needs root",
    "as root",
    "not permitted",
    "Operation not permitted",
)


@dataclass(slots=True)
class NodeJudgement:
    """What judging one node came to; small enough to keep for thousands of nodes."""

    node: str
    findings: list[Finding]
    digest: dict[str, Any]
    notes: dict[str, str] = field(default_factory=dict)
    """For the report's header: "hcas" -> how the compute HCAs were chosen."""


def candidate_backends(goal: Goal) -> tuple[str, ...]:
    """The back ends that a run judges: the one asked for, else all that fit one or several nodes."""
    if goal.backend:
        return (goal.backend,)
    from epdoctor.backends import applicable_backends

    return tuple(applicable_backends(goal.multinode))


def applies(check: Check, goal: Goal, backends: Iterable[str]) -> str:
    """Empty, or why a check does not count for this run."""
    if check.multinode is True and not goal.multinode:
        return "only across nodes"
    if check.multinode is False and goal.multinode:
        return "only on a single node"
    if check.backends and not set(check.backends) & set(backends):
        return f"not for {goal.backend}" if goal.backend else "not for these back ends"
    return ""


class Engine:
    """Checks, their rules and needs, bound once and used for many nodes."""

    def __init__(self, checks: Mapping[str, Check], goal: Goal) -> None:
        self.goal = goal
        self.backends = candidate_backends(goal)
        # lint has no use for the facts that rules of nodes import.
        prefix = "launch_" if all(check.scope == "launch" for check in checks.values()) else ""
        self._rules = all_rules(prefix)
        self._needs = all_needs(prefix)
        self._node_checks = [check for check in checks.values() if check.scope == "node"]
        self._cluster_checks = [check for check in checks.values() if check.scope == "cluster"]
        self._launch_checks = [check for check in checks.values() if check.scope == "launch"]
        self._no_reason = {check.id: applies(check, goal, self.backends) for check in checks.values()}

    def judge_node(self, node: Node) -> NodeJudgement:
        """Every node check on one node, and the node's values for cluster checks."""
        findings = [self._judge_on_node(check, node) for check in self._node_checks]
        notes: dict[str, str] = {}
        try:
            chosen = node.compute_hcas
            if chosen.names:
                notes["hcas"] = f"{', '.join(chosen.names)} ({chosen.how})"
        except Unmeasured:
            pass
        return NodeJudgement(node.name, findings, digest(node), notes)

    def judge_cluster(self, digests: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
        """Every cluster check. With fewer than two nodes there is nothing to compare: skip."""
        cluster = Cluster(self.goal, digests)
        return [self._judge_on_cluster(check, cluster) for check in self._cluster_checks]

    def judge_launch(self, launch: LaunchSet) -> list[Finding]:
        """Every check of scope launch on what will be (or was) started."""
        return [self._judge_on_launch(check, launch) for check in self._launch_checks]

    def _judge_on_launch(self, check: Check, launch: LaunchSet) -> Finding:
        rule = self._rules[check.rule].function

        def run() -> Iterable[Problem]:
            self._require(check, launch)
            return rule(launch, **check.params)

        return self._judge(check, "", "", run, root=True)

    def _require(self, check: Check, subject: Any) -> None:
        for name in check.needs:
            predicate = self._needs[name]
            if not predicate(subject):
                raise NotApplicable((predicate.__doc__ or f"no {name}").strip().rstrip("."))

    def _judge_on_cluster(self, check: Check, cluster: Cluster) -> Finding:
        reason = self._no_reason[check.id] or ("only one node" if len(cluster.digests) < 2 else "")
        rule = self._rules[check.rule].function
        return self._judge(check, "", reason, lambda: rule(cluster, **check.params), root=True)

    def _judge_on_node(self, check: Check, node: Node) -> Finding:
        reason = self._no_reason[check.id]
        rule = self._rules[check.rule].function

        def run() -> Iterable[Problem]:
            self._require(check, node)
            return rule(node, **check.params)

        return self._judge(check, node.name, reason, run, root=node.root)

    def _judge(
        self, check: Check, node: str, reason: str, run: Callable[[], Iterable[Problem]], *, root: bool
    ) -> Finding:
        severity = check.severity_for(self.goal.backend)
        if reason:
            return Finding(check.id, Status.SKIP, severity, node, reason=reason)
        start = time.perf_counter()
        problems: list[Problem] = []
        unseen = ""
        try:
            problems.extend(run())
        except NotApplicable as absent:
            if not problems:
                return Finding(check.id, Status.SKIP, severity, node, reason=str(absent))
        except Unmeasured as unmeasured:
            unseen = str(unmeasured)
        except Exception:  # noqa: BLE001 - a bug in one rule is a result of its own and must not end the run
            return Finding(
                check.id, Status.ERROR, severity, node, reason="a bug in epdoctor",
                traceback=traceback.format_exc(limit=-8), blocks=self._blocks(check, None),
            )  # fmt: skip
        seconds = time.perf_counter() - start
        worst = max(
            (problem.severity or severity for problem in problems), key=lambda x: x.rank, default=None
        )
        if unseen and (worst is None or worst.rank < severity.rank):
            # What was not seen may be worse than what was found.
            found = "".join(f"{problem.found}; " for problem in problems)
            return Finding(
                check.id, Status.UNKNOWN, severity, node, reason=found + unseen,
                needs_root=not root and any(word in unseen for word in _ROOT_WORDS),
                blocks=self._blocks(check, None), seconds=seconds,
            )  # fmt: skip
        if worst is None:
            return Finding(check.id, Status.PASS, severity, node, seconds=seconds)
        blocked = {name for problem in problems for name in self._blocks(check, problem.severity)}
        return Finding(
            check.id, Status.FAIL, worst, node, problems=tuple(problems), reason=unseen,
            blocks=tuple(name for name in self.backends if name in blocked), seconds=seconds,
        )  # fmt: skip

    def _blocks(self, check: Check, override: Severity | None) -> tuple[str, ...]:
        return tuple(
            name
            for name in self.backends
            if (not check.backends or name in check.backends)
            and (override or check.severity_for(name)) is Severity.ERROR
        )
