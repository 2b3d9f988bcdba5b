"""The checks of the chosen components on records that were just collected, and what the playbooks need of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from epdoctor.collect.record import Record
from epdoctor.collect.targets import Target
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions
from epdoctor.model import Check, Finding, Goal
from epdoctor.provision.components import Component
from epdoctor.provision.environment import NodeEnvironment, compute


@dataclass(frozen=True)
class Judged:
    """The checks' view of the nodes."""

    findings: tuple[Finding, ...]
    missed: dict[str, str]
    """Node -> why it was not reached."""


def checks_of(components: Sequence[Component], every: Mapping[str, Check]) -> dict[str, Check]:
    """The components' checks that the catalogue has."""
    wanted = [check for component in components for check in component.checks]
    return {check: every[check] for check in wanted if check in every}


def judge(records: Sequence[Record], checks: dict[str, Check], goal: Goal, options: CollectOptions) -> Judged:
    """Judge for serving across nodes: that is what is being prepared."""
    from epdoctor.engine import Engine
    from epdoctor.judge import build_report, judge_record
    from epdoctor.model import Severity

    goal = replace(goal, multinode=True, multinode_reason="being prepared")
    engine = Engine(checks, goal)
    judged = [judge_record(record, engine, options) for record in records]
    report = build_report(judged, engine, checks, source="", fail_on=Severity.ERROR)
    missed = {outcome.node: outcome.error for outcome in report.outcomes if outcome.error}
    return Judged(tuple(report.findings), missed)


def environments(
    records: Sequence[Record], targets: Sequence[Target], goal: Goal, options: CollectOptions
) -> dict[str, NodeEnvironment]:
    """Node -> the environment of its workers, for the nodes that were reached."""
    goal = replace(goal, multinode=True)
    addresses = {target.name: target.address for target in targets}
    return {
        record.node: compute(
            Node(record.node, record.source(), goal, options), addresses.get(record.node, ""), goal.backend
        )
        for record in records
        if record.reached and not record.outcome.error
    }
