"""From records to a Report: one node after the other as they arrive, or a recording with a process a core."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from epdoctor.collect.record import Record, Recording
from epdoctor.collect.store import StoredRecord, load
from epdoctor.engine import Engine, NodeJudgement, candidate_backends
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions
from epdoctor.model import Check, Goal, NodeOutcome, Report, Severity, SharedTopology, Waiver
from epdoctor.report.summary import merge_judgements, readiness
from epdoctor.waivers import apply_waivers

PARALLEL_FROM = 48
"""Below this many nodes, starting worker processes costs more than it saves."""


@dataclass(slots=True)
class JudgedNode:
    """A node without its raw text: what a report keeps of it."""

    outcome: NodeOutcome
    judgement: NodeJudgement | None
    """None where the node was not reached."""
    shape: str = ""
    """Its topology as JSON text (epdoctor/node_shape.py), where it was asked for."""
    told: Any = None
    """What `also` said of the node, which is parsed once for all."""


def judge_record(
    record: Record,
    engine: Engine,
    options: CollectOptions,
    *,
    topology: bool = False,
    also: Callable[[Record, Node], Any] | None = None,
) -> JudgedNode:
    """Parse and judge one record; its raw text can be dropped afterwards. `topology`: keep its picture's data."""
    if not record.reached and not record.probes:
        return JudgedNode(record.outcome, None)
    node = Node(record.node, record.source(), engine.goal, options)
    judgement = engine.judge_node(node)
    try:
        others = node.accelerators
        judgement.notes["gpu"] = "yes" if node.gpu.gpus or others.amd or others.intel else "no"
    except Unmeasured:
        judgement.notes["gpu"] = "unknown"
    shape = ""
    if topology:
        from epdoctor.node_shape import node_shape

        shape = json.dumps(node_shape(node))
    return JudgedNode(record.outcome, judgement, shape, also(record, node) if also is not None else None)


def has_rdma(record: Record, options: CollectOptions) -> bool:
    """Whether a single machine has RDMA devices: then it is judged as a part of a cluster."""
    try:
        return bool(Node(record.node, record.source(), Goal(), options).rdma.devices)
    except Unmeasured:
        return False


def decide_multinode(goal: Goal, chosen: bool | None, nodes: int, rdma: bool) -> Goal:
    """--multinode/--single-node win; else several nodes, or RDMA devices on the only one, mean a cluster."""
    if chosen is not None:
        return replace(goal, multinode=chosen, multinode_reason="--multinode" if chosen else "--single-node")
    if nodes > 1:
        return replace(goal, multinode=True, multinode_reason=f"{nodes} nodes")
    if rdma:
        return replace(
            goal, multinode=True, multinode_reason="it has RDMA devices (--single-node to leave them out)"
        )
    return replace(goal, multinode=False, multinode_reason="one node without RDMA devices")


def build_report(
    judged: Iterable[JudgedNode],
    engine: Engine,
    checks: Mapping[str, Check],
    *,
    source: str,
    fail_on: Severity,
    collected_at: str = "",
    catalogue_date: str = "",
    waivers: Sequence[Waiver] = (),
) -> Report:
    """Cluster checks, waivers, readiness and the rest of the report. Order of nodes is kept."""
    nodes = list(judged)
    judgements = [node.judgement for node in nodes if node.judgement is not None]
    reached = {j.node: j for j in judgements}
    complete = [n.judgement for n in nodes if n.judgement is not None and not n.outcome.error]
    cluster = engine.judge_cluster({j.node: j.digest for j in complete})
    findings = apply_waivers(merge_judgements(judgements, cluster), waivers)
    outcomes = [node.outcome for node in nodes]
    gpu = {name: {"yes": True, "no": False}.get(j.notes.get("gpu", "")) for name, j in reached.items()}
    report = Report(engine.goal, outcomes, findings, dict(checks), source=source, fail_on=fail_on)
    report.readiness = readiness(candidate_backends(engine.goal), outcomes, findings, gpu)
    report.expired_waivers = [waiver for waiver in waivers if waiver.expired]
    report.collected_at = collected_at
    report.catalogue_date = catalogue_date
    for judgement in judgements:
        version = judgement.digest.get("python.vllm")
        if isinstance(version, str):
            report.vllm_versions.setdefault(version, []).append(judgement.node)
        if "hcas" in judgement.notes and engine.goal.multinode:
            report.hca_sets.setdefault(judgement.notes["hcas"], []).append(judgement.node)
    shapes: dict[str, list[str]] = {}
    for judged_node in nodes:
        if judged_node.shape:
            shapes.setdefault(judged_node.shape, []).append(judged_node.outcome.node)
    report.topologies = [SharedTopology(tuple(names), json.loads(shape)) for shape, names in shapes.items()]
    return report


# ---------------------------------------------------------------- recordings

_engine: Engine | None = None


def _start_worker(checks: dict[str, Check], goal: Goal) -> None:
    global _engine
    _engine = Engine(checks, goal)


def _judge_stored(
    options: CollectOptions, topology: bool, also: Callable[[Record, Node], Any] | None, item: StoredRecord
) -> JudgedNode:
    assert _engine is not None
    return judge_record(item.read(), _engine, options, topology=topology, also=also)


def judge_recording(
    path: Path,
    checks: dict[str, Check],
    goal: Goal,
    chosen_multinode: bool | None,
    overrides: Mapping[str, object],
    *,
    topology: bool = False,
    also: Callable[[Record, Node], Any] | None = None,
) -> tuple[Engine, Recording, Iterator[JudgedNode]]:
    """Judge a folder or archive. `overrides`: collection options given again on the command line. `also`: a function
    of a module, whose answer is kept as JudgedNode.told.

    Raises RecordError for a recording that cannot be read."""
    recording, items = load(path)
    recording.options = replace(recording.options, **overrides)  # type: ignore[arg-type]  # names come from the CLI
    if goal.max_num_batched_tokens is None:
        goal = replace(
            goal,
            max_num_batched_tokens=recording.options.max_num_batched_tokens,
            token_limit_source=recording.options.token_limit_source,
        )
    rdma = False
    if len(items) == 1 and chosen_multinode is None:
        rdma = has_rdma(items[0].read(), recording.options)
    goal = decide_multinode(goal, chosen_multinode, len(items), rdma)
    engine = Engine(checks, goal)
    order = {name: index for index, name in enumerate(recording.options.node_names)}

    def in_order(judged: Iterable[JudgedNode]) -> Iterator[JudgedNode]:
        yield from sorted(
            judged, key=lambda node: (order.get(node.outcome.node, len(order)), node.outcome.node)
        )

    workers = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 32
    )
    if len(items) < PARALLEL_FROM or workers < 2:
        return (
            engine,
            recording,
            in_order(
                judge_record(item.read(), engine, recording.options, topology=topology, also=also)
                for item in items
            ),
        )
    import gc
    import multiprocessing

    # Hundreds of thousands of findings without cycles: walking them again and again costs a third of the time.
    gc.disable()
    with multiprocessing.get_context("fork").Pool(workers, _start_worker, (checks, goal)) as pool:
        judged = pool.map(
            partial(_judge_stored, recording.options, topology, also),
            items,
            chunksize=max(1, len(items) // (workers * 8)),
        )
    return engine, recording, in_order(judged)
