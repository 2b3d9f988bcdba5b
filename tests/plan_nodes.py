"""Recordings to plan from: tests/records/8xh200-ib.json under other names, as tests/demo_cluster.py does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from epdoctor.collect.record import Recording
from epdoctor.collect.store import parse_record, save
from epdoctor.facts.base import CollectOptions
from tests.demo_cluster import BASE, COLLECTED_AT, Probes, healthy


def unchanged(probes: Probes) -> None:
    """As recorded."""


def without_rdma(probes: Probes) -> None:
    probes["rdma.sysfs"]["data"] = []


def rdma_unread(probes: Probes) -> None:
    probes["rdma.sysfs"] = {"status": "timeout", "seconds": 5.0}


def recording(
    path: Path, number: int, edit: Callable[[Probes], None] = unchanged, prefix: str = "gpu"
) -> Path:
    """`number` healthy nodes of 8 H200 with InfiniBand, each changed by `edit`."""
    base = json.loads(BASE.read_text())
    nodes = {f"{prefix}{index:02d}": f"10.40.0.{10 + index}" for index in range(1, number + 1)}
    records = []
    for name in nodes:
        probes = healthy(name, nodes)
        edit(probes)
        raw = {**base, "node": name, "probes": probes, "outcome": {"seconds": 0.9}}
        records.append(parse_record(json.dumps(raw).encode(), name))
    options = CollectOptions(node_names=(*nodes, *nodes.values()))
    save(path, Recording("inventory.ini", options, COLLECTED_AT), records)
    return path
