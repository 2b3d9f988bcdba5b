"""What a run came to: changes, failures and remarks by component and node, and the exit code. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from epdoctor.model import Finding, Severity, Status


@dataclass(frozen=True)
class Change:
    """One thing that was changed, or in a plan would be."""

    node: str
    component: str
    what: str
    """A path, or the name of the task."""
    diff: str = ""
    """Unified diff of a file; empty for other things."""


@dataclass(frozen=True)
class Failure:
    node: str
    component: str
    task: str
    error: str
    """The task's own words."""
    where: str
    """File and line of the task: "roles/limits/tasks/main.yml:12"."""


@dataclass(frozen=True)
class Remark:
    node: str
    component: str
    kind: str
    """note | absent (does not apply) | left-alone | reboot | restart | by-hand (steps that only a person can do,
    a reboot among them) | refused (a reboot)"""
    text: str


@dataclass
class RunResult:
    nodes: tuple[str, ...]
    """That the run was for."""
    components: tuple[str, ...]
    changes: list[Change] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    """Node -> why."""
    lost: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Node that could not be reached -> the component and the task that it was lost in."""
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Component -> the nodes that it was for; a component that is not named was for all."""
    outputs: dict[tuple[str, str], str] = field(default_factory=dict)
    """(node, task) -> standard output of a command; for the journal."""
    finished: set[str] = field(default_factory=set)
    """Components whose play came to its end. What was not seen to the end is never called right."""
    visited: set[tuple[str, str]] = field(default_factory=set)
    """(component, node) where a task ran: with --serial a run can end before it comes to every node."""
    seconds: float = 0.0
    stopped: str = ""
    """ "interrupted" | "timeout" | "" """
    crashed: str = ""
    """Ansible ended without a result; its last words."""

    def state(self, component: str, node: str) -> str:
        """One cell: failed | unreachable | change | not-asked | not-tried | absent | left-alone | right."""
        if node in self.unreachable and not self._after(self.lost.get(node, ("", ""))[0], component):
            return "unreachable"
        if any(f.node == node and f.component == component for f in self.failures):
            return "failed"
        if any(c.node == node and c.component == component for c in self.changes):
            return "change"
        if node not in self.where.get(component, self.nodes):
            return "not-asked"
        if component not in self.finished or (component, node) not in self.visited:
            return "not-tried"
        # A node that failed does not go on to later components.
        failed = [f.component for f in self.failures if f.node == node]
        if failed and self._after(component, failed[0]):
            return "not-tried"
        for remark in self.remarks:
            if (
                remark.node == node
                and remark.component == component
                and remark.kind in ("absent", "left-alone")
            ):
                return remark.kind
        return "right"

    def _after(self, component: str, failed: str) -> bool:
        """Whether `component` comes later than `failed`."""
        order = list(self.components)
        return component in order and failed in order and order.index(component) > order.index(failed)

    def pending(self) -> list[Remark]:
        """What waits for a reboot, a restart or a person."""
        return [remark for remark in self.remarks if remark.kind in ("reboot", "restart", "by-hand")]


def wrong_after(findings: Iterable[Finding], checks: Iterable[str]) -> tuple[list[Finding], list[Finding]]:
    """(failing, unknown) findings of severity error among these checks."""
    wanted = set(checks)
    failing, unknown = [], []
    for finding in findings:
        if finding.check not in wanted or finding.severity is not Severity.ERROR or finding.waived:
            continue
        if finding.status is Status.FAIL:
            failing.append(finding)
        elif finding.status in (Status.UNKNOWN, Status.ERROR):
            unknown.append(finding)
    return failing, unknown


def exit_code(
    result: RunResult,
    missed: Mapping[str, str],
    failing: Iterable[Finding] = (),
    unknown: Iterable[Finding] = (),
) -> int:
    """0 now right; 1 something failed; 3 a reboot or restart is pending, a node was missed, or a check of
    severity error cannot tell; 130 interrupted."""
    if result.stopped == "interrupted":
        return 130
    if result.failures or result.stopped or result.crashed:
        return 1
    waiting = {remark.node for remark in result.pending()}
    if any(finding.node not in waiting for finding in failing):
        return 1
    if waiting or missed or result.unreachable or any(True for _ in unknown):
        return 3
    return 0
