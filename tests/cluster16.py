"""Sixteen nodes from one record, over InfiniBand or over RoCE, all alike; a fault changes one of them.

As tests/demo_cluster.py does it: tests/records/8xh200-ib.json (its `source` says what is recorded in it and what
is made by hand) under sixteen names and addresses. Over RoCE the same ports are Ethernet, by hand: GID tables as
mlx5 fills them (v1 and v2 per address, link-local first), one subnet a rail.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from epdoctor.catalog import load_checks
from epdoctor.cluster import Digest
from epdoctor.engine import Engine, NodeJudgement
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions, Source
from epdoctor.model import Finding, Goal
from tests.demo_cluster import Probes, healthy, rows, set_file

NODES = {f"gpu{number:02d}": f"10.40.0.{10 + number}" for number in range(1, 17)}
ODD = "gpu07"
RAILS = tuple(f"mlx5_{number}" for number in (0, 1, 4, 5, 6, 7, 8, 9))
OPTIONS = CollectOptions(node_names=(*NODES, *NODES.values()), max_num_batched_tokens=256)
EP_ENV = (
    "NCCL_SOCKET_IFNAME=eth0\nNCCL_IB_TIMEOUT=22\n"
    "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME=eth0\nNVSHMEM_SYMMETRIC_SIZE=2147483648\n"
    "UCX_RC_TIMEOUT=1s\nVLLM_LOGGING_LEVEL=INFO\n"
)


def infiniband(name: str) -> Probes:
    probes = healthy(name, NODES)
    set_file(probes, "environment.files", "/etc/epdoctor/ep.env", EP_ENV)
    return probes


def roce(name: str) -> Probes:
    """The same node with Ethernet rails: 10.50.<rail>.<node>/24, MTU 9000, RoCE v2 IPv4 at GID index 3."""
    probes = infiniband(name)
    number = int(name[3:])
    for row in rows(probes, "rdma.sysfs"):
        if row[0].endswith("/link_layer"):
            row[1] = "Ethernet"
        if row[0].endswith("/sm_lid"):
            row[1] = "0x0\n"
    gids: list[list[Any]] = []
    network: list[list[Any]] = []
    for rail, hca in enumerate(RAILS):
        netdev, address = f"rail{rail}", f"10.50.{rail}.{number}"
        link_local = f"fe80:0000:0000:0000:0e42:a1ff:fe{rail:02x}:{number:04x}"
        mapped = f"0000:0000:0000:0000:0000:ffff:0a32:{rail:02x}{number:02x}"
        for index, (gid, kind) in enumerate(
            (g, k) for g in (link_local, mapped) for k in ("IB/RoCE v1", "RoCE v2")
        ):
            gids.append([f"{hca}/1/gids/{index}", {"gid": gid, "netdev": netdev, "type": kind}])
        gids.append([f"{hca}/1/scanned", 4])
        mac = f"0c:42:a1:{rail:02x}:00:{number:02x}"
        link = {"flags": 69699, "hardware": 1, "index": 10 + rail, "kind": "", "mac": mac, "master": 0}
        network += [
            ["link", {**link, "driver": "mlx5_core", "mtu": 9000, "name": netdev, "operstate": "up"}],
            ["address", {"address": address, "family": 4, "name": netdev, "prefix": 24, "scope": 0}],
            [
                "route",
                {"family": 4, "length": 24, "metric": 0, "name": netdev, "to": f"10.50.{rail}.0", "via": ""},
            ],
        ]
    old = [row for row in rows(probes, "rdma.gids") if row[0].startswith("mlx5_bond")]
    probes["rdma.gids"]["data"] = gids + old
    kept = [
        row for row in rows(probes, "network.addresses") if row[0] != "done" and row[1].get("kind") != "ipoib"
    ]
    probes["network.addresses"]["data"] = [*kept, *network, ["done", True]]
    for row in rows(probes, "rdma.netdevs"):
        for rail in range(len(RAILS)):
            row[0] = row[0].replace(f"/net/ib{rail}", f"/net/rail{rail}")
    return probes


Base = Callable[[str], Probes]
Edit = Callable[[Probes], None]
BASES: tuple[Base, ...] = (infiniband, roce)


@dataclass(frozen=True)
class Judged:
    findings: tuple[Finding, ...]
    """Of every node, and of the cluster."""

    def bad(self) -> list[Finding]:
        """Whatever did not pass and was not skipped."""
        return [finding for finding in self.findings if finding.status.value in ("fail", "unknown", "error")]


@cache
def engine(backend: str) -> Engine:
    return Engine(load_checks(), Goal(backend=backend, multinode=True))


@cache
def _probes(base: Base, name: str) -> str:
    return json.dumps(base(name))


@cache
def _equal(base: Base, backend: str, everywhere: Edit | None) -> dict[str, NodeJudgement]:
    edits = [everywhere] if everywhere else []
    return {name: judge_node(base, name, edits, backend) for name in NODES}


def judge_node(base: Base, name: str, edits: Iterable[Edit], backend: str) -> NodeJudgement:
    probes = json.loads(_probes(base, name))
    for edit in edits:
        edit(probes)
    return engine(backend).judge_node(Node(name, Source(probes), engine(backend).goal, OPTIONS))


def judge(
    base: Base,
    edits: Iterable[Edit] = (),
    *,
    backend: str = "",
    odd: str = ODD,
    everywhere: Edit | None = None,
) -> Judged:
    """All sixteen; `edits` change one, `everywhere` all. Equal nodes are judged once."""
    judgements = dict(_equal(base, backend, everywhere))
    changes = list(edits)
    if changes:
        before = [] if everywhere is None else [everywhere]
        judgements[odd] = judge_node(base, odd, [*before, *changes], backend)
    digests: dict[str, Digest] = {name: judgement.digest for name, judgement in judgements.items()}
    cluster = engine(backend).judge_cluster(digests)
    return Judged((*(f for judgement in judgements.values() for f in judgement.findings), *cluster))
