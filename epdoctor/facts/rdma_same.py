"""What of a node's HCAs should be the same on every node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import require
from epdoctor.facts.rdma import RdmaDevice

if TYPE_CHECKING:
    from epdoctor.facts import Node


def _compute_devices(node: Node) -> list[RdmaDevice]:
    chosen = node.compute_hcas.names
    return [device for device in node.rdma.devices if device.name in chosen]


def _same(values: list[str]) -> str | None:
    """One text for all HCAs: the value where they agree, else "7 x A, 1 x B"."""
    counts = Counter(values).most_common()
    if len(counts) <= 1:
        return counts[0][0] if counts else None
    return ", ".join(f"{count} x {value}" for value, count in counts)


def _gid_indexes(node: Node) -> str | None:
    """Index of the RoCE v2 IPv4 GID, "3"; by HCA where they differ, "mlx5_0=3, mlx5_1=5".

    NCCL_IB_GID_INDEX is one number for all HCAs, so other names with the same index are no difference."""
    found: dict[str, int] = {}
    for device in _compute_devices(node):
        for port in device.ports:
            if port.link_layer == "Ethernet":
                if port.gid_slots_read is None:
                    raise Unmeasured(f"{port.name}: GID table not read")
                index = next((gid.index for gid in port.gids if gid.is_v2 and gid.ipv4), None)
                if index is not None:
                    found[device.name] = index
    if len(set(found.values())) == 1:
        return str(next(iter(found.values())))
    return ", ".join(f"{name}={index}" for name, index in found.items()) or None


def _uar_space(node: Node) -> str | None:
    sizes = [d.uar_bytes for d in _compute_devices(node) if d.kind == "mlx5" and d.uar_bytes is not None]
    return _same([f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB" for size in sizes])


DIGEST: dict[str, Callable[[Node], Any]] = {
    "rdma.uar-space": _uar_space,
    "rdma.hca-names": lambda node: ", ".join(node.compute_hcas.names) or None,
    "rdma.hca-count": lambda node: str(len(node.compute_hcas.names)),
    "rdma.firmware": lambda node: _same([device.firmware for device in _compute_devices(node)]),
    "rdma.pkey": lambda node: _same(
        [
            f"0x{port.pkeys[0]:04x}"
            for d in _compute_devices(node)
            for port in d.ports
            if port.link_layer == "InfiniBand" and port.active and port.pkeys
        ]
    ),
    "rdma.rates": lambda node: _same(
        [port.rate_text or "?" for d in _compute_devices(node) for port in d.ports if port.active]
    ),
    "rdma.gid-index": _gid_indexes,
    "rdma.rdma-core": lambda node: require(node.rdma.rdma_core_version) if node.rdma.devices else None,
    "rdma.ofed": lambda node: (node.rdma.ofed_version or "inbox driver") if node.rdma.devices else None,
}
