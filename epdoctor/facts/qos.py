"""What the NIC's driver shows of RoCE traffic: traffic class and ECN in sysfs, PFC and DSCP priorities by netlink.

Sources: NVIDIA MLNX_OFED / DOCA-OFED documentation, "RoCE congestion control (ECN)" (/sys/class/net/NETDEV/ecn/roce_np
and roce_rp, enable/PRIORITY) and "RoCE traffic class" (/sys/class/infiniband/HCA/tc/PORT/traffic_class). The kernel's
own mlx5 driver has neither folder. PFC and the DSCP table: linux/dcbnl.h, and in the kernel's own mlx5 driver
(en_dcbnl.c) the table has DSCP entries where the port trusts DSCP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from epdoctor.facts.base import CollectOptions, Files, Probe, Script, Source

if TYPE_CHECKING:
    from epdoctor.facts import Node

_ECN, _CLASS = "/sys/class/net/", "/sys/class/infiniband/"


_EOPNOTSUPP = 95


@dataclass(frozen=True)
class Dcb:
    """Data center bridging of one netdev."""

    pfc: frozenset[int]
    """Priorities that priority flow control makes lossless."""
    dscp: Mapping[int, int]
    """DSCP -> priority; empty: the port does not go by DSCP."""

    def __str__(self) -> str:
        on = "+".join(map(str, sorted(self.pfc))) or "off"
        if not self.dscp:
            return f"PFC {on}; no DSCP table"
        odd = [f"{dscp}->{priority}" for dscp, priority in sorted(self.dscp.items()) if priority != dscp >> 3]
        return f"PFC {on}; DSCP {', '.join(odd[:8]) or 'in steps of eight'}"


@dataclass(frozen=True)
class Qos:
    ecn: dict[str, str] | None
    """Netdev -> priorities that notify and react, "np 3, rp 3" ("np none, rp none": off). None: a recording from
    before this was looked at."""
    traffic_class: dict[str, str]
    """HCA -> what traffic_class says, "Global tclass=106"."""
    dcb: Mapping[str, Dcb] | None = None
    """Netdev -> its PFC. None: a recording from before this was asked."""
    dcb_unread: Mapping[str, str] = field(default_factory=dict)
    """Netdev -> why its driver told nothing."""


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
        Script("qos.dcb", script="dcb.py", timeout_s=5.0, only_if_exists=_CLASS.rstrip("/")),
    )


def _numbers(value: object) -> dict[int, int]:
    """{"26": 3} of a script's row."""
    if not isinstance(value, dict):
        return {}
    return {
        int(key): priority
        for key, priority in value.items()
        if str(key).isdecimal() and len(str(key)) < 4 and isinstance(priority, int)
    }


def _dcb(source: Source) -> tuple[dict[str, Dcb] | None, dict[str, str]]:
    if source.status("qos.dcb") == "absent":
        return None, {}
    if source.status("qos.dcb") == "skipped":
        return {}, {}
    found: dict[str, Dcb] = {}
    unread: dict[str, str] = {}
    for name, value in source.values("qos.dcb").items():
        mask = value.get("pfc") if isinstance(value, dict) else None
        if isinstance(mask, int) and 0 <= mask < 256:
            pfc = frozenset(priority for priority in range(8) if mask >> priority & 1)
            found[name] = Dcb(pfc, _numbers(value.get("dscp")))
        else:
            number = value.get("errno") if isinstance(value, dict) else None
            unread[name] = (
                "its driver has no DCB" if number == _EOPNOTSUPP else f"no PFC told (errno {number})"
            )
    return found, unread


def parse(source: Source) -> Qos:
    """Raises Unmeasured where sysfs or the drivers were not asked to the end."""
    dcb, unread = _dcb(source)
    if source.status("qos.files") == "absent":
        return Qos(None, {}, dcb, unread)
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
        dcb,
        unread,
    )


def _qos(node: Node) -> str | None:
    """One text for the node's RoCE compute HCAs, None where the driver shows nothing."""
    qos = node.qos
    if not qos.ecn and not qos.traffic_class and not qos.dcb:
        return None
    found = []
    for device in node.rdma.devices:
        if device.name in node.compute_hcas.names and any(p.link_layer == "Ethernet" for p in device.ports):
            ecn = next((qos.ecn[name] for name in device.netdevs if qos.ecn and name in qos.ecn), "not shown")
            text = f"ECN {ecn}; {qos.traffic_class.get(device.name, 'no traffic class')}"
            told = next((qos.dcb[name] for name in device.netdevs if qos.dcb and name in qos.dcb), None)
            found.append(f"{text}; {told}" if told else text)
    counts = Counter(found).most_common()
    if len(counts) <= 1:
        return counts[0][0] if counts else None
    return " | ".join(f"{count} x {text}" for text, count in counts)


DIGEST: dict[str, Callable[[Node], Any]] = {"rdma.qos": _qos}
