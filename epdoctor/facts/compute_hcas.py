"""Which HCAs carry EP traffic on a node, and how they were chosen (docs/design.md section 3).

Storage, management and BlueField ports may be down by design and must not be judged; a compute HCA that is
down must stay in the set, or a dead rail would look fine. So HCAs are grouped by adapter and board, never by
the state or rate of the link as it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.rdma import Port, RdmaDevice
from epdoctor.facts.selectors import Selection, nccl_hcas, nvshmem_hcas

if TYPE_CHECKING:
    from epdoctor.facts import Node

_NOMINAL_GBPS = {
    # Highest port rate of the adapter family by its PCI device id (hca_type), from NVIDIA's product pages.
    # Only used to order groups that have no active port.
    "MT4115": 100, "MT4117": 50, "MT4119": 100, "MT4121": 100, "MT4123": 200, "MT4125": 200, "MT4127": 50,
    "MT4129": 400, "MT4131": 800, "MT41682": 100, "MT41686": 200, "MT41692": 400,
}  # fmt: skip


@dataclass(frozen=True)
class ComputeHcas:
    names: tuple[str, ...]
    ports: tuple[tuple[str, int], ...]
    """(device, port number); of a device with several ports those that are up, or all where none is."""
    how: str
    """For the report: "NCCL_IB_HCA=mlx5 from pid 4711"."""
    others: tuple[str, ...]
    """RDMA devices that are not judged."""

    def select(self, devices: Iterable[RdmaDevice]) -> tuple[Port, ...]:
        """The ports as facts, in order."""
        return tuple(
            port for device in devices for port in device.ports if (device.name, port.number) in self.ports
        )


def _variable(node: Node, name: str) -> tuple[str, str]:
    """Value and source, or empty texts."""
    try:
        found = node.environment.get(name)
    except Unmeasured:
        return "", ""
    return (found.value, found.source) if found is not None else ("", "")


def _gpu_count(node: Node) -> int:
    try:
        return len(node.gpu.gpus)
    except Unmeasured:
        return 0


def _by_topology(node: Node, devices: list[RdmaDevice]) -> list[RdmaDevice]:
    """Each GPU's nearest HCAs by nvidia-smi topo -m; empty where it does not say."""
    nearest: set[str] = set()
    among = tuple(device.name for device in devices)
    try:
        for gpu in node.gpu.gpus:
            nearest.update(node.topology.best_nics(f"GPU{gpu.index}", among)[1])
    except Unmeasured:
        return []
    return [device for device in devices if device.name in nearest]


def _best_groups(devices: list[RdmaDevice], gpus: int) -> list[RdmaDevice]:
    """The devices of the model that serves EP: enough of them for the GPUs first, then the fastest."""
    groups: dict[tuple[str, str], list[RdmaDevice]] = {}
    for device in devices:
        groups.setdefault(device.model, []).append(device)

    def active_rates(group: list[RdmaDevice]) -> list[float]:
        return [p.rate_gbps or 0.0 for device in group for p in device.ports if p.active]

    def rank(group: list[RdmaDevice]) -> tuple[bool, bool, float, bool]:
        rates = active_rates(group)
        rate = max(rates) if rates else float(_NOMINAL_GBPS.get(group[0].hca_type, 0))
        return (not group[0].is_software, gpus > 1 and len(group) >= gpus / 2, rate, bool(rates))

    best = max((rank(group) for group in groups.values()), default=(False, False, 0.0, False))
    kept = {device.name for group in groups.values() if rank(group) == best for device in group}
    types = {device.hca_type for device in devices if device.name in kept and device.hca_type}
    # A card that was replaced has another board; it is one of them as long as it runs like them.
    for group in groups.values():
        if group[0].hca_type in types and best[2] in active_rates(group):
            kept |= {device.name for device in group}
    return [device for device in devices if device.name in kept]


def _without_idle_functions(devices: list[RdmaDevice]) -> list[RdmaDevice]:
    """Two-port cards show as PCI functions .0 and .1. A function number that is down on every card, where
    another one is up on every card, is a port that nobody cabled."""
    by_function: dict[str, list[RdmaDevice]] = {}
    for device in devices:
        if "." not in device.pci_address:
            return devices
        by_function.setdefault(device.pci_address.rpartition(".")[2], []).append(device)
    cards = {device.pci_address.rpartition(".")[0] for device in devices}
    if len(by_function) < 2 or any(len(group) != len(cards) for group in by_function.values()):
        return devices

    def active(device: RdmaDevice) -> bool:
        return any(port.active for port in device.ports)

    if not any(all(active(device) for device in group) for group in by_function.values()):
        return devices
    idle = {d.name for group in by_function.values() if not any(map(active, group)) for d in group}
    return [device for device in devices if device.name not in idle]


def _ports(
    devices: list[RdmaDevice], only: tuple[tuple[str, int], ...] | None
) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for device in devices:
        ports = [p for p in device.ports if only is None or (device.name, p.number) in only]
        up = [port for port in ports if port.active]
        found += [(device.name, port.number) for port in (up or ports)]
    return tuple(found)


def _named(node: Node) -> Iterable[tuple[str, str, Callable[[str, list[tuple[str, int]]], Selection]]]:
    """(value, how, parser) of what names HCAs, strongest first."""
    if node.goal.compute_hcas:
        yield node.goal.compute_hcas, f"compute_hcas = {node.goal.compute_hcas} in epdoctor.toml", nccl_hcas
    value, source = _variable(node, "NCCL_IB_HCA")
    if value:
        yield value, f"NCCL_IB_HCA={value} from {source}", nccl_hcas
    value, source = _variable(node, "NVSHMEM_HCA_LIST")
    if value and _variable(node, "NVSHMEM_ENABLE_NIC_PE_MAPPING")[0].strip().lower() in (
        "1",
        "true",
        "yes",
        "on",
        "y",
    ):
        yield value, f"NVSHMEM_HCA_LIST={value} from {source}", nvshmem_hcas


def select(node: Node) -> ComputeHcas:
    """Raises Unmeasured where the RDMA devices are not known."""
    everything = list(node.rdma.devices)
    physical = [device for device in everything if not device.is_virtual_function]
    devices = physical or everything
    gpus = _gpu_count(node)
    all_ports = [(port.device, port.number) for port in node.rdma.ports]
    missed = ""
    for value, how, resolve in _named(node):
        selection = resolve(value, all_ports)
        chosen = [device for device in everything if device.name in selection.names]
        if not chosen:
            missed = f" ({how} names no HCA here)"
            continue
        exact = not selection.excludes and (
            selection.exact or all(entry.split(":")[0] in selection.names for entry in value.split(","))
        )
        if exact and not selection.missing:
            return _result(everything, chosen, how, selection.ports)
        # A prefix or an exclusion takes in idle storage ports as well: NCCL passes over them, so do we.
        narrowed = _narrow(chosen, gpus)
        return _result(everything, narrowed, how, selection.ports)
    if not everything:
        return ComputeHcas((), (), "no RDMA device", ())
    nearest = _by_topology(node, devices)
    if nearest:
        # One each, or one for several GPUs: nothing to sort out.
        nearest = nearest if len(nearest) <= gpus else _narrow(nearest, gpus)
        return _result(
            everything,
            nearest,
            "nearest to each GPU by nvidia-smi topo -m" + missed,
            None,
        )
    best = _narrow(devices, gpus)
    words = {port.link_layer for device in best for port in device.ports} - {""}
    kind = " and ".join(sorted({device.kind or "RDMA" for device in best}))
    layer = "/".join(sorted(words)).replace("Ethernet", "RoCE")
    return _result(
        everything, best, f"all {kind} {layer} HCAs of the fastest model".replace("  ", " ") + missed, None
    )


def _narrow(devices: list[RdmaDevice], gpus: int) -> list[RdmaDevice]:
    return _without_idle_functions(_best_groups(devices, gpus))


def _result(
    everything: list[RdmaDevice], chosen: list[RdmaDevice], how: str, only: tuple[tuple[str, int], ...] | None
) -> ComputeHcas:
    names = tuple(device.name for device in chosen)
    return ComputeHcas(
        names,
        _ports(chosen, only),
        how,
        tuple(device.name for device in everything if device.name not in names),
    )
