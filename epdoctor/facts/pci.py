"""PCI devices that matter here (NVIDIA, network, bridges), their links, NUMA nodes, and ACS and IOMMU state.

Sources: Linux Documentation/ABI/testing/sysfs-bus-pci; PCI Express Base Specification (ACS control bits).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, Links, Probe, Script, Source, Stat

if TYPE_CHECKING:
    from epdoctor.facts import Node

NVIDIA = 0x10DE
MELLANOX = 0x15B3

# ACS control bits that send peer-to-peer traffic up to the root complex.
ACS_SOURCE_VALIDATION = 0x01
ACS_REQUEST_REDIRECT = 0x04
ACS_COMPLETION_REDIRECT = 0x08

_BUS_ID = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_DEVICES = "/sys/bus/pci/devices/"


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    """sysfs only; lspci is not run. Extended configuration space is read as root (for others: denied)."""
    del options
    attributes = ("vendor", "device", "class", "numa_node")
    return (
        Files(
            name="pci.devices", globs=tuple(f"{_DEVICES}*/{name}" for name in attributes), max_file_bytes=64
        ),
        # Reading *_link_* wakes nothing up: the kernel reads the capability register of the device.
        Files(
            name="pci.links",
            globs=tuple(
                f"{_DEVICES}*/{which}_link_{what}"
                for which in ("current", "max")
                for what in ("speed", "width")
            ),
            max_file_bytes=64,
        ),
        Links(name="pci.paths", globs=(_DEVICES + "*",)),
        Stat(name="pci.iommu", globs=("/sys/kernel/iommu_groups/*", "/sys/class/iommu/*")),
        Files(name="pci.iommu-types", globs=("/sys/kernel/iommu_groups/*/type",), max_file_bytes=64),
        Links(name="pci.drivers", globs=(_DEVICES + "*/driver",)),
        Links(name="pci.iommu-of", globs=(_DEVICES + "*/iommu_group",)),
        Script(name="pci.acs", script="acs.py", timeout_s=5.0),
    )


def normalise_bus_id(text: str) -> str:
    """ "00000000:00:06.0" and "0000:00:06.0" -> "0000:00:06.0" (sysfs form). Unmeasured if it is none."""
    lower = text.strip().lower()[:32]
    if lower.count(":") == 1:
        lower = "0000:" + lower
    if not _BUS_ID.fullmatch(lower):
        raise Unmeasured("not a PCI address")
    domain, _, rest = lower.partition(":")
    return f"{int(domain, 16):04x}:{rest}"


@dataclass(frozen=True)
class PciDevice:
    """One PCI function."""

    bus_id: str
    vendor: int
    device: int
    class_code: int
    """24 bits: 0x030200 3D controller, 0x020700 InfiniBand, 0x020000 Ethernet, 0x060400 bridge."""
    numa_node: int | Unmeasured
    """-1 is "the firmware does not say"."""
    speed_gtps: float | Unmeasured
    """Current link speed, GT/s."""
    speed_max_gtps: float | Unmeasured
    width: int | Unmeasured
    """Current lanes."""
    width_max: int | Unmeasured
    upstream: tuple[str, ...]
    """Bus ids of the bridges above, outermost (root port) first."""
    root: str
    """Host bridge, "pci0000:40"; empty if unknown."""
    driver: str | Unmeasured
    """Kernel driver that holds it, "nvidia", "vfio-pci"; empty: none."""

    @property
    def is_gpu(self) -> bool:
        """NVIDIA display or 3D controller."""
        return self.vendor == NVIDIA and self.class_code >> 16 == 0x03

    @property
    def is_nvswitch(self) -> bool:
        """NVIDIA bridge of class 0x0680: an NVSwitch."""
        return self.vendor == NVIDIA and self.class_code >> 8 == 0x0680

    @property
    def is_nic(self) -> bool:
        return self.class_code >> 16 == 0x02

    @property
    def is_bridge(self) -> bool:
        return self.class_code >> 8 == 0x0604


@dataclass(frozen=True)
class Acs:
    """ACS of one PCI bridge."""

    bus_id: str
    control: int
    """The control word; bits ACS_*."""

    @property
    def redirects(self) -> bool:
        """Whether peer-to-peer traffic through this bridge is sent to the root complex."""
        return bool(self.control & (ACS_SOURCE_VALIDATION | ACS_REQUEST_REDIRECT | ACS_COMPLETION_REDIRECT))


@dataclass(frozen=True)
class Pci:
    """Every PCI function by bus id."""

    devices: Mapping[str, PciDevice]
    iommu_active: bool | Unmeasured
    """/sys/kernel/iommu_groups has groups: the kernel translates DMA with an IOMMU."""
    iommu_types: Mapping[str, str]
    """Bus id -> type of its IOMMU group (identity, DMA, DMA-FQ), where known."""
    acs: tuple[Acs, ...] | Unmeasured
    """Bridges with ACS. Unmeasured without root."""
    nic_control: Mapping[str, int] | None
    """NIC's bus id -> its PCI Express device control word; empty without root; None: an older recording."""

    @property
    def gpus(self) -> tuple[PciDevice, ...]:
        return tuple(device for device in self.devices.values() if device.is_gpu)

    @property
    def nics(self) -> tuple[PciDevice, ...]:
        return tuple(device for device in self.devices.values() if device.is_nic)

    @property
    def bridges(self) -> tuple[PciDevice, ...]:
        return tuple(device for device in self.devices.values() if device.is_bridge)


def _hex(text: str | None) -> int:
    try:
        return int((text or "").strip()[:16], 16)
    except ValueError:
        return 0


def _link(texts: Mapping[str, str], path: str, name: str) -> float | Unmeasured:
    """ "32.0 GT/s PCIe" -> 32.0, "16" -> 16.0."""
    words = texts.get(f"{path}/{name}", "").split()
    try:
        value = float(words[0][:12])
    except (IndexError, ValueError):
        return Unmeasured(f"{path}/{name}: not there")
    return value if 0 < value < 1e6 else Unmeasured(f"{path}/{name}: {words[0][:12]}")


def _numa(text: str | None) -> int | Unmeasured:
    try:
        return int((text or "").strip()[:8])
    except ValueError:
        return Unmeasured("numa_node: not there")


def _lanes(value: float | Unmeasured) -> int | Unmeasured:
    return value if isinstance(value, Unmeasured) else int(value)


def _acs(source: Source) -> tuple[Acs, ...] | Unmeasured:
    try:
        values = source.values("pci.acs")
    except Unmeasured as reason:
        return reason
    if values.get("denied") or not isinstance(values.get("bridges"), int):
        return Unmeasured("ACS of PCI bridges: only root can read it")
    found = []
    for bus_id, value in values.items():
        control = value.get("control") if isinstance(value, dict) else None
        if isinstance(control, int) and _BUS_ID.fullmatch(bus_id[:32]):
            found.append(Acs(bus_id, control))
    return tuple(sorted(found, key=lambda acs: acs.bus_id))


def _nic_control(source: Source) -> dict[str, int] | None:
    try:
        values = source.values("pci.acs")
    except Unmeasured:
        return {}
    if "nics_denied" not in values:
        return None
    return {
        key[4:]: value["device_control"]
        for key, value in values.items()
        if key.startswith("nic ") and isinstance(value, dict) and isinstance(value.get("device_control"), int)
    }


def _iommu(source: Source) -> tuple[bool | Unmeasured, dict[str, str]]:
    try:
        active = any(path.startswith("/sys/kernel/iommu_groups/") for path in source.stats("pci.iommu"))
    except Unmeasured as reason:
        return reason, {}
    try:
        types = source.files("pci.iommu-types")
        groups = source.links("pci.iommu-of")
    except Unmeasured:
        return active, {}
    found = {}
    for path, target in groups.items():
        kind = types.get(f"/sys/kernel/iommu_groups/{target.rpartition('/')[2]}/type")
        if kind is not None:
            found[path[len(_DEVICES) :].partition("/")[0]] = kind.strip()[:16]
    return active, found


@lru_cache(maxsize=2)  # the GPUs' facts ask for it, too: parsing it twice was a quarter of a node's judgement
def parse(source: Source) -> Pci:
    """Unmeasured where /sys/bus/pci could not be read. A machine without PCI has no devices."""
    texts = source.files("pci.devices")
    try:
        links: Mapping[str, str] = source.files("pci.links")
    except Unmeasured:
        links = {}
    try:
        chains = source.links("pci.paths")
    except Unmeasured:
        chains = {}
    drivers: Mapping[str, str] | Unmeasured
    try:
        drivers = source.links("pci.drivers")
    except Unmeasured as reason:
        drivers = reason
    devices = {}
    for path in sorted(name[: -len("/class")] for name in texts if name.endswith("/class")):
        bus_id = path[len(_DEVICES) :]
        if not _BUS_ID.fullmatch(bus_id[:32]):
            continue
        parts = chains.get(path, "").split("/")
        devices[bus_id] = PciDevice(
            bus_id=bus_id,
            vendor=_hex(texts.get(path + "/vendor")),
            device=_hex(texts.get(path + "/device")),
            class_code=_hex(texts.get(path + "/class")),
            numa_node=_numa(texts.get(path + "/numa_node")),
            speed_gtps=_link(links, path, "current_link_speed"),
            speed_max_gtps=_link(links, path, "max_link_speed"),
            width=_lanes(_link(links, path, "current_link_width")),
            width_max=_lanes(_link(links, path, "max_link_width")),
            upstream=tuple(part for part in parts[:-1] if _BUS_ID.fullmatch(part[:32])),
            root=next((part for part in parts if part.startswith("pci") and ":" in part), ""),
            driver=drivers
            if isinstance(drivers, Unmeasured)
            else drivers.get(path + "/driver", "").rpartition("/")[2][:64],
        )
    active, types = _iommu(source)
    return Pci(devices, active, types, _acs(source), _nic_control(source))


def _gpu_count(node: Node) -> int:
    return len(node.pci.gpus)


def _nic_count(node: Node) -> int:
    """Network functions of Mellanox/NVIDIA, physical and virtual."""
    return sum(nic.vendor == MELLANOX for nic in node.pci.nics)


DIGEST: dict[str, Callable[[Node], Any]] = {"pci.gpu-count": _gpu_count, "pci.nic-count": _nic_count}
