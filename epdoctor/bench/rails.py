"""Rails: the compute ports of the nodes, in order, with the GID that their traffic will use. Pure.

The n-th compute port of one node and the n-th of another are one rail: that is how NCCL and NVSHMEM pair them,
and how rail-optimised fabrics are cabled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.rdma import Port
from epdoctor.provision.environment import NVSHMEM_BACKENDS

FULL_MESH = ("deepep_low_latency", "nixl_ep")
"""Back ends whose every rank writes to every other rank's GPU from its own HCA, so that each rail must reach each:
DeepEP README ("low-latency kernels ... pure RDMA"), vLLM 0.33.0 device_communicators/all2all.py (nixl_ep)."""


@dataclass(frozen=True)
class Rail:
    """One compute port of one node."""

    number: int
    device: str
    port: int
    gid_index: int
    """-1: addressed by LID (InfiniBand)."""
    gid_from: str
    """"its RoCE v2 GID with an IPv4 address" or "NCCL_IB_GID_INDEX=5 from /etc/environment"; "" with a LID."""
    rate_gbps: float | None
    software: bool
    """Soft-RoCE: its link rate says nothing of what it reaches."""
    problem: str = ""
    """Why it cannot carry anything: its link, or no usable GID."""
    step: str = ""
    """"link" or "gid" where there is a problem."""


def node_rails(node: Node) -> tuple[Rail, ...]:
    """Rails of one node, in order. Raises Unmeasured where its RDMA devices are not known."""
    software = {device.name for device in node.rdma.devices if device.is_software}
    found = []
    for number, port in enumerate(node.compute_hcas.select(node.rdma.devices)):
        index, how = _gid(node, port)
        step, problem = "", ""
        if port.state and not port.active:
            step = "link"
            problem = f"port {port.number} is {port.state} ({port.phys_state or 'physical state not known'})"
        elif index is None:
            step = "gid"
            problem = f"port {port.number} has no RoCE v2 GID with an IP address"
        found.append(
            Rail(
                number, port.device, port.number, -1 if index is None else index, how, port.rate_gbps,
                port.device in software, problem, step,
            )
        )  # fmt: skip
    return tuple(found)


def _gid(node: Node, port: Port) -> tuple[int | None, str]:
    """(GID index, where it comes from); -1 for InfiniBand, None where there is none."""
    if port.link_layer == "InfiniBand":
        return -1, ""
    first = ("NVSHMEM_IB_GID_INDEX", "NCCL_IB_GID_INDEX")
    for variable in first if node.goal.backend in NVSHMEM_BACKENDS else reversed(first):
        try:
            given = node.environment.get(variable)
        except Unmeasured:
            break
        if given is not None and given.value.strip().isdecimal() and len(given.value.strip()) <= 3:
            return int(given.value), f"{variable}={given.value.strip()} from {given.source}"
    if port.gid_slots_read is None:
        raise Unmeasured(f"{port.name}: its GID table was not read")
    second = [gid for gid in port.gids if gid.is_v2]
    for wanted in (
        [gid for gid in second if gid.ipv4],
        [gid for gid in second if not gid.gid.lower().startswith("fe80")],
    ):
        if wanted:
            return wanted[0].index, "its RoCE v2 GID"
    return None, ""


@dataclass(frozen=True)
class Rails:
    """Rails of all nodes."""

    of: Mapping[str, tuple[Rail, ...]]
    """Nodes that have some."""
    without: Mapping[str, str]
    """Node -> why it has none; empty where no node has any."""
    unknown: Mapping[str, str]

    @property
    def not_known(self) -> str:
        """ "vm2: ...", where a node's devices are not known; else ""."""
        return next((f"{name}: {why}" for name, why in self.unknown.items()), "")

    @property
    def count(self) -> int:
        """Rails that every node has."""
        return min((len(rails) for rails in self.of.values()), default=0)

    def label(self, number: int, a: str, b: str = "") -> str:
        """ "mlx5_2", or "mlx5_2/mlx5_3" where the ends have other names for it."""
        names = [self.of[name][number].device for name in (a, b) if name]
        return "/".join(dict.fromkeys(names))


def all_rails(nodes: Mapping[str, Node], names: Sequence[str]) -> Rails:
    """Rails of these nodes; one without any among others that have some is told apart."""
    of: dict[str, tuple[Rail, ...]] = {}
    without: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for name in names:
        if name not in nodes:
            unknown[name] = "its facts are missing"
            continue
        try:
            found = node_rails(nodes[name])
        except Unmeasured as reason:
            unknown[name] = str(reason)
            continue
        if found:
            of[name] = found
        else:
            without[name] = "no RDMA device"
    return Rails(of, without if of else {}, unknown)
