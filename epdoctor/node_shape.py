"""How a node hangs together, as JSON values for a picture: GPUs, NICs, PCIe switches, NUMA nodes, NVLink.

Of facts only, and nothing in it tells two equal nodes apart (no serial numbers), so that a cluster of one model
is a handful of shapes. The fields are told in epdoctor/report/report_schema.json, `topologies`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.gpu_model import Gpu
from epdoctor.facts.pci import Pci, PciDevice
from epdoctor.facts.rdma import RdmaDevice
from epdoctor.report.sanitize import sanitize

MAX_DEVICES = 64
"""Of a kind. A node has 8 or 16; what lies in a recording may be anything."""

T = TypeVar("T")
Shape = dict[str, Any]


def node_shape(node: Node) -> Shape:
    """What could be measured; why the rest could not is in `unknown`. Raises nothing."""
    unknown: list[str] = []
    pci = _known(lambda: node.pci, unknown)
    matrix = _known(lambda: node.topology, [])
    gpus = _known(lambda: node.gpu.gpus, unknown) or ()
    rdma = _known(lambda: node.rdma, unknown)
    chosen = _known(lambda: node.compute_hcas, [])
    compute = set(chosen.names) if chosen is not None else set()
    devices = [device for device in rdma.devices if not device.is_software] if rdma is not None else []
    functions = sum(device.is_virtual_function for device in devices)
    # Virtual functions are drawn only where they are all there is: in a virtual machine or a container.
    if functions < len(devices):
        devices = [device for device in devices if not device.is_virtual_function]
    else:
        functions = 0
    drawn = [_gpu(gpu, pci) for gpu in gpus[:MAX_DEVICES]]
    among = tuple(name for name in compute if matrix is not None and name in matrix.nics)
    for entry in drawn:
        name = f"GPU{entry['index']}"
        if matrix is None:
            continue
        affinity = matrix.affinity.get(name)
        if affinity is not None and entry["numa"] is None and affinity.numa.isdigit():
            entry["numa"] = int(affinity.numa[:4])
        if affinity is not None:
            entry["cpus"] = _text(affinity.cpus)
        nearest = _known(lambda name=name: matrix.best_nics(name, among or None), [])  # type: ignore[misc]  # a default argument in a lambda
        if nearest is not None:
            entry["relation"], entry["nearest"] = nearest[0], [_text(nic) for nic in nearest[1][:MAX_DEVICES]]
    if matrix is None and drawn and devices:
        reason = _reason(lambda: node.topology)
        unknown.append(f"which NIC is nearest: {reason}")
    nics = [_nic(device, pci, device.name in compute) for device in devices[:MAX_DEVICES]]
    return {
        "gpus": drawn,
        "nics": nics,
        "pairs": _pairs(gpus[:MAX_DEVICES], node),
        "left_out": functions + max(len(gpus) - MAX_DEVICES, 0) + max(len(devices) - MAX_DEVICES, 0),
        "other_gpus": _other_gpus(node),
        "virtual": _virtual(node),
        "grace": _known(lambda: _flag(node.system.is_grace), []) or False,
        "unknown": [_text(reason, 160) for reason in unknown[:8]],
    }


def _known(read: Callable[[], T], reasons: list[str]) -> T | None:
    try:
        return read()
    except Unmeasured as reason:
        reasons.append(str(reason))
        return None


def _reason(read: Callable[[], Any]) -> str:
    reasons: list[str] = []
    _known(read, reasons)
    return reasons[0] if reasons else ""


def _text(text: str, limit: int = 64) -> str:
    return sanitize(text, limit)


def _value(value: T | Unmeasured) -> T | None:
    return None if isinstance(value, Unmeasured) else value


def _flag(value: bool | Unmeasured) -> bool:
    return value is True


def _virtual(node: Node) -> bool | None:
    """Whether a hypervisor may hide the host's PCIe topology; None: not known."""
    kind = _known(lambda: node.system.virtualization, [])
    return None if kind is None or isinstance(kind, Unmeasured) else kind != "none"


def _other_gpus(node: Node) -> int:
    others = _known(lambda: node.accelerators, [])
    return len(others.amd) + len(others.intel) if others is not None else 0


def _place(bus_id: str, pci: Pci | None) -> dict[str, Any]:
    """NUMA node, and the switch or host bridge above a device."""
    device = pci.devices.get(bus_id) if pci is not None else None
    if device is None or pci is None:
        return {"bus_id": _text(bus_id), "numa": None, "switch": "", "root": "", "acs": False}
    numa = _value(device.numa_node)
    return {
        "bus_id": bus_id,
        "numa": numa if numa is not None and 0 <= numa < 4096 else None,
        # The first bridge is the root port; where a second follows, it is a switch's upstream port.
        "switch": device.upstream[1] if len(device.upstream) > 1 else "",
        "root": _text(device.root),
        "acs": _redirected(device, pci),
    }


def _redirected(device: PciDevice, pci: Pci) -> bool:
    """A bridge of the switch above sends traffic between two devices below it up to the CPU."""
    if isinstance(pci.acs, Unmeasured):
        return False
    above = set(device.upstream[1:])
    return any(acs.bus_id in above and acs.redirects for acs in pci.acs)


def _gpu(gpu: Gpu, pci: Pci | None) -> dict[str, Any]:
    bus_id = _value(gpu.bus_id) or ""
    links = _value(gpu.nvlinks)
    return {
        "index": gpu.index,
        "name": _text(_value(gpu.name) or ""),
        **_place(bus_id, pci),
        "cpus": "",
        "pcie": [_value(gpu.pcie_gen), _value(gpu.pcie_width), _value(gpu.pcie_width_max)],
        "nvlinks": None if links is None else sum(link.active for link in links),
        "nvlinks_down": None if links is None else [link.index for link in links if not link.active][:64],
        "nvswitch": links is not None and any(link.remote == "switch" for link in links),
        "relation": "",
        "nearest": [],
    }


def _nic(device: RdmaDevice, pci: Pci | None, compute: bool) -> dict[str, Any]:
    place = _place(device.pci_address, pci)
    if place["numa"] is None and device.numa_node is not None and 0 <= device.numa_node < 4096:
        place["numa"] = device.numa_node
    ports = device.ports
    return {
        "name": _text(device.name),
        **place,
        "compute": compute,
        "state": _text(ports[0].state if ports else ""),
        "up": any(port.active for port in ports) if ports and any(port.state for port in ports) else None,
        "rate_gbps": max((port.rate_gbps or 0.0 for port in ports if port.active), default=None),
        "layer": _text(ports[0].link_layer if ports else ""),
    }


def _pairs(gpus: tuple[Gpu, ...], node: Node) -> list[list[int]]:
    """[GPU, GPU, NVLinks] of GPUs that are linked without a switch."""
    matrix = _known(lambda: node.topology, [])
    if matrix is None or len(gpus) > 16:
        return []
    direct = [gpu.index for gpu in gpus if any(link.remote == "gpu" for link in (_value(gpu.nvlinks) or ()))]
    found = []
    for at, one in enumerate(direct):
        for other in direct[at + 1 :]:
            count = _known(lambda one=one, other=other: matrix.nvlinks(f"GPU{one}", f"GPU{other}"), [])  # type: ignore[misc]  # default arguments in a lambda
            if count:
                found.append([one, other, count])
    return found
