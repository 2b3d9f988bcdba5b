"""One side of a comparison: a recording, judged now, or a saved report, as it was judged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from epdoctor.collect.record import Record
from epdoctor.collect.store import StoredRecord
from epdoctor.compare.facts import Value, node_facts
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions
from epdoctor.judge import PARALLEL_FROM, build_report, judge_recording
from epdoctor.model import Check, Goal, Report, Severity, Waiver


@dataclass(frozen=True)
class Told:
    """A node that was reached, as judge_recording(also=told) keeps it."""

    node: str
    facts: dict[str, Value]
    as_root: bool
    """Who is not root sees less: what is missing then has not moved."""


def told(record: Record, node: Node) -> Told | None:
    if not record.reached:
        return None
    return Told(record.node, node_facts(node), record.started_as.get("uid") == 0)


@dataclass
class Side:
    """What was seen at one time."""

    label: str
    """As the user named it."""
    report: Report
    facts: dict[str, dict[str, Value]] = field(default_factory=dict)
    """By node; empty for a saved report, which holds none."""
    has_facts: bool = True

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(outcome.node for outcome in self.report.outcomes)

    @property
    def unreached(self) -> dict[str, str]:
        return {outcome.node: outcome.error for outcome in self.report.outcomes if outcome.error}


def saved_side(label: str, path: Path) -> Side:
    """Raises RecordError."""
    from epdoctor.report.saved import load_report

    return Side(label, load_report(path), has_facts=False)


def recorded_side(
    label: str,
    path: Path,
    checks: dict[str, Check],
    goal: Goal,
    multinode: bool | None,
    fail_on: Severity = Severity.ERROR,
    waivers: Sequence[Waiver] = (),
) -> Side:
    """Judge a recording and read its facts. Raises RecordError."""
    from epdoctor.compat import catalogue_date

    engine, recording, judged = judge_recording(path, checks, goal, multinode, {}, also=told)
    nodes = list(judged)
    report = build_report(
        nodes, engine, checks, source=f"recording {path.name}", fail_on=fail_on,
        collected_at=recording.collected_at, catalogue_date=catalogue_date(), waivers=waivers,
    )  # fmt: skip
    return Side(label, report, {node.told.node: node.told.facts for node in nodes if node.told is not None})


def facts_of(
    items: Iterable[StoredRecord], options: CollectOptions, goal: Goal
) -> dict[str, dict[str, Value]]:
    """Facts by node of stored records; a process a core where there are many."""
    items = list(items)
    one = partial(_stored_facts, options, goal)
    workers = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 32
    )
    if len(items) < PARALLEL_FROM or workers < 2:
        return dict(filter(None, map(one, items)))
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return dict(filter(None, pool.map(one, items, chunksize=max(1, len(items) // (workers * 8)))))


def _stored_facts(
    options: CollectOptions, goal: Goal, item: StoredRecord
) -> tuple[str, dict[str, Value]] | None:
    return record_facts(item.read(), options, goal)


def record_facts(record: Record, options: CollectOptions, goal: Goal) -> tuple[str, dict[str, Value]] | None:
    """A node and its facts; None where it was not reached."""
    if not record.reached:
        return None
    return record.node, node_facts(Node(record.node, record.source(), goal, options))


def renamed(side: Side, node: str, name: str) -> Side:
    """The same with one node under another name, so that two machines can be held against each other."""
    report = replace(
        side.report,
        outcomes=[replace(o, node=name) if o.node == node else o for o in side.report.outcomes],
        findings=[replace(f, node=name) if f.node == node else f for f in side.report.findings],
    )
    facts: Mapping[str, dict[str, Value]] = side.facts
    return Side(
        side.label,
        report,
        {name if k == node else k: v for k, v in facts.items()},
        side.has_facts,
    )
