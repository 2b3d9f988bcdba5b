"""What the NIC's driver shows in sysfs of RoCE traffic: traffic class and ECN. PFC stands in no file.

Sources: NVIDIA MLNX_OFED / DOCA-OFED documentation, "RoCE congestion control (ECN)" (/sys/class/net/NETDEV/ecn/roce_np
and roce_rp, enable/PRIORITY) and "RoCE traffic class" (/sys/class/infiniband/HCA/tc/PORT/traffic_class). The kernel's
own mlx5 driver has neither folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.facts.base import CollectOptions, Files, Probe, Source

if TYPE_CHECKING:
    from epdoctor.facts import Node

_ECN, _CLASS = "/sys/class/net/", "/sys/class/infiniband/"


@dataclass(frozen=True)
class Qos:
    ecn: dict[str, str] | None
    """Netdev -> priorities that notify and react, "np 3, rp 3" ("np none, rp none": off). None: a recording from
    before this was looked at."""
    traffic_class: dict[str, str]
    """HCA -> what traffic_class says, "Global tclass=106"."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    del options
    return (
        Files(
            "qos.files",
            globs=(
                _ECN + "*/ecn/roce_np/enable/?",
                _ECN + "*/ecn/roce_rp/enable/?",
                _CLASS + "*/tc/1/traffic_class",
            ),
            max_file_bytes=512,
        ),
    )


def parse(source: Source) -> Qos:
    """Raises Unmeasured where sysfs was not read."""
    if source.status("qos.files") == "absent":
        return Qos(None, {})
    files = source.files("qos.files")
    on: dict[str, dict[str, list[str]]] = {}
    for path, text in files.under(_ECN).items():
        parts = path.split("/")
        if len(parts) == 5 and parts[1] == "ecn" and parts[2] in ("roce_np", "roce_rp"):
            side = on.setdefault(parts[0], {"np": [], "rp": []})[parts[2][5:]]
            if text.strip() == "1":
                side.append(parts[4])
    return Qos(
        {
            netdev: ", ".join(f"{side} {'+'.join(sorted(found)) or 'none'}" for side, found in sides.items())
            for netdev, sides in on.items()
        },
        {
            path.partition("/")[0]: " ".join(text.split())[:60] or "none"
            for path, text in files.under(_CLASS).items()
            if path.endswith("/tc/1/traffic_class")
        },
    )


def _qos(node: Node) -> str | None:
    """One text for the node's RoCE compute HCAs, None where the driver shows nothing."""
    qos = node.qos
    if not qos.ecn and not qos.traffic_class:
        return None
    found = []
    for device in node.rdma.devices:
        if device.name in node.compute_hcas.names and any(p.link_layer == "Ethernet" for p in device.ports):
            ecn = next((qos.ecn[name] for name in device.netdevs if qos.ecn and name in qos.ecn), "not shown")
            found.append(f"ECN {ecn}; {qos.traffic_class.get(device.name, 'no traffic class')}")
    counts = Counter(found).most_common()
    if len(counts) <= 1:
        return counts[0][0] if counts else None
    return " | ".join(f"{count} x {text}" for text, count in counts)


DIGEST: dict[str, Callable[[Node], Any]] = {"rdma.qos": _qos}
