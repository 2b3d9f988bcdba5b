"""What planning needs to know of a node: from its facts, or only what the user said. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured, UsageError
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.provision import environment

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\Z")
_ADDRESS = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]{0,200}\Z")


@dataclass(frozen=True)
class PlanNode:
    name: str
    address: str
    """What other nodes reach it by."""
    gpus: int
    gpu_bytes: float
    gpu: str
    """Its product's name."""
    rdma: bool | None
    """HCAs for computing with an active port; None: not known."""
    nvlink: bool | None
    """Every GPU has active NVLinks; None: not known."""
    facts: Node | None = None

    def environment(self, backend: str, tokens: int | None) -> tuple[dict[str, str], tuple[str, ...]]:
        """Variables of this node for a back end, and what was left out and why."""
        if self.facts is None:
            return {}, (f"{self.name}: interfaces and HCAs are not known (-i inventory, or --from RECORD)",)
        found = environment.compute(self.facts, self.address, backend)
        # How deep the queues must be hangs on the plan's token limit, not on what runs there now.
        values = {name: value for name, value in found.values.items() if name != "NVSHMEM_QP_DEPTH"}
        notes = [note for note in found.notes if not note.startswith("NVSHMEM_QP_DEPTH")]
        return values, tuple(f"{self.name}: {note}" for note in notes)


def _checked(name: str, address: str) -> None:
    """Names become names of files and words of commands."""
    if not _NAME.match(name) or ".." in name:
        raise UsageError(f"the node name {name[:60]!r} cannot be the name of a file")
    if not _ADDRESS.match(address):
        raise UsageError(f"{name}: {address[:60]!r} is no address")


def _rdma(node: Node) -> bool | None:
    try:
        names = node.compute_hcas.names
        ports = [port for port in node.rdma.ports if port.device in names]
    except Unmeasured:
        return None
    if any(not port.state for port in ports):
        return None
    return bool(ports) and any(port.active for port in ports)


def _nvlink(node: Node) -> bool | None:
    try:
        return all(gpu.active_nvlinks > 0 for gpu in node.gpu.gpus)
    except Unmeasured:
        return None


def node_of(node: Node, address: str) -> PlanNode:
    """Raises UsageError for a node that has no GPU or does not say its memory."""
    try:
        gpus = node.gpu.gpus
        sizes = [require(gpu.memory_total_bytes) for gpu in gpus]
    except Unmeasured as reason:
        raise UsageError(f"{node.name}: its GPUs are not known: {reason}", hint="epdoctor check") from reason
    if not gpus:
        raise UsageError(f"{node.name} has no GPU", hint="leave it out: -l '!NODE'")
    address = _own_address(node, address or node.name) or address or node.name
    _checked(node.name, address)
    first = gpus[0].name
    return PlanNode(
        name=node.name,
        address=address,
        gpus=len(gpus),
        gpu_bytes=float(min(sizes)),
        gpu=first if isinstance(first, str) else "GPU",
        rdma=_rdma(node),
        nvlink=_nvlink(node),
        facts=node,
    )


def _own_address(node: Node, address: str) -> str:
    """Its address on the interface that other nodes reach it by; empty: open."""
    return environment.compute(node, address, "allgather_reducescatter").values.get("VLLM_HOST_IP", "")


def nodes_by_number(number: int, gpus: int, gpu: str, gpu_bytes: float) -> tuple[PlanNode, ...]:
    """Nodes that nobody has looked at."""
    names = [f"node{index}" for index in range(number)]
    return tuple(PlanNode(name, name, gpus, gpu_bytes, gpu, None, None) for name in names)


def alike(nodes: tuple[PlanNode, ...]) -> None:
    """Raises UsageError where nodes differ in a way that a layout cannot follow."""
    counts: Mapping[int, list[str]] = {}
    counts = {n: [node.name for node in nodes if node.gpus == n] for n in {node.gpus for node in nodes}}
    if len(counts) > 1:
        text = "; ".join(f"{number} on {', '.join(names[:4])}" for number, names in sorted(counts.items()))
        raise UsageError(
            f"the nodes have different numbers of GPUs: {text}", hint="choose alike nodes with -l"
        )
