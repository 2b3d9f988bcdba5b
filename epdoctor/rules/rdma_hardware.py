"""Rules on what the HCAs are: make, physical or virtual function, firmware, room for doorbells."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.rdma import RdmaDevice
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.rdma import compute_devices, roce_ports

_PAGE = 4096
"""A UAR is one page of 4 KiB of BAR 0 (Linux mlx5 core/uar.c)."""


def _mlx5(node: Node) -> list[RdmaDevice]:
    return [device for device in compute_devices(node) if device.kind == "mlx5"]


@node_rule
def rdma_firmware_same(node: Node) -> Iterator[Problem]:
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    devices = [device for device in compute_devices(node) if not device.is_software]
    if not devices:
        raise NotApplicable("RDMA in software has no firmware")
    for device in devices:
        if not device.firmware:
            raise Unmeasured(f"/sys/class/infiniband/{device.name}/fw_ver: not read")
        groups.setdefault(device.model, {}).setdefault(device.firmware, []).append(device.name)
    for (model, board), versions in groups.items():
        if len(versions) > 1:
            most = max(versions, key=lambda version: len(versions[version]))
            for version, names in versions.items():
                if version != most:
                    yield Problem(
                        f"{', '.join(names)} run firmware {version}",
                        f"{most}, as {len(versions[most])} {model or 'HCA'} here ({board or 'no PSID'})",
                        now=("sudo mlxfwmanager --query",),
                        subject=", ".join(names),
                    )


@node_rule
def rdma_no_virtual_function(node: Node) -> Iterator[Problem]:
    if node.rdma.links_unread:
        raise Unmeasured(node.rdma.links_unread)
    names = [device.name for device in compute_devices(node) if device.is_virtual_function]
    if names:
        yield Problem(
            f"{', '.join(names)}: SR-IOV virtual function{'s' if len(names) > 1 else ''}",
            "physical functions",
            tuple(f"/sys/class/infiniband/{name}/device/physfn" for name in names),
        )


@node_rule
def rdma_all_mlx5(node: Node) -> Iterator[Problem]:
    """One sentence a kind of device: a node of AWS has 32 of one."""
    kinds: dict[str, list[str]] = {}
    for device in compute_devices(node):
        if device.kind != "mlx5":
            kinds.setdefault(device.kind, []).append(device.name)
    unknown = kinds.pop("", [])
    if unknown and not kinds:
        raise Unmeasured(f"driver of {unknown[0]}: not known")
    for kind, names in kinds.items():
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield Problem(
            f"{kind} device{'s' if len(names) > 1 else ''}: {listed}",
            "mlx5 (ConnectX-4 or newer)",
            tuple(f"/sys/class/infiniband/{name}/device/driver" for name in names[:4]),
            subject=listed,
        )


@node_rule
def rdma_firmware_without_known_fault(node: Node) -> Iterator[Problem]:
    """The firmware is in none of the ranges for which NVIDIA's release notes list a fault that EP meets."""
    rows = compat.field("firmware", "faults", list)
    adapters = {str(row["adapter"]) for row in rows}
    judged = [device for device in _mlx5(node) if device.hca_type in adapters]
    if not judged:
        raise NotApplicable("no HCA here of a type that the table knows")
    unread, faults = [device.name for device in judged if not device.firmware], 0
    ethernet = {port.device for port in roce_ports(node)}
    for row in rows:
        fabric = str(row.get("fabric", ""))
        names = [
            device.name
            for device in judged
            if device.hca_type == row["adapter"]
            and device.firmware
            and (not fabric or (fabric == "roce") == (device.name in ethernet))
            and compat.release(str(row["first"]))
            <= compat.release(device.firmware, "firmware")
            <= compat.release(str(row["last"]))
        ]
        if names:
            faults += 1
            firmware = next(device.firmware for device in judged if device.name == names[0])
            yield Problem(
                f"{', '.join(names)}: firmware {firmware}: {row['fault']}",
                f"firmware {row['fixed']} or newer" if row.get("fixed") else f"newer than {row['last']}",
                (str(row["source"]),),
                Severity.WARNING if row.get("stops") else None,
                subject=str(row["reference"]),
            )
    if unread and not faults:
        raise Unmeasured(f"/sys/class/infiniband/{unread[0]}/fw_ver: not read")


@node_rule
def rdma_uar_space(node: Node, *, at_least_mib: int) -> Iterator[Problem]:
    """BAR 0 of each mlx5 compute HCA has room for the doorbells of many queue pairs."""
    devices = _mlx5(node)
    if not devices:
        raise NotApplicable("no mlx5 HCA")
    if node.source.status("rdma.bars") == "absent":
        raise NotApplicable("not in this recording, which is older than this check")
    unread = [device.name for device in devices if device.uar_bytes is None]
    small: dict[int, list[str]] = {}
    for device in devices:
        if device.uar_bytes is not None and device.uar_bytes < at_least_mib << 20:
            small.setdefault(device.uar_bytes, []).append(device.name)
    for size, names in small.items():
        virtual = {device.name for device in devices if device.is_virtual_function}
        kind = "VF" if virtual >= set(names) else "PF"
        yield Problem(
            f"{', '.join(names)}: {size / (1 << 20):g} MiB in BAR 0, {size // _PAGE} doorbell pages (UARs)",
            f"{at_least_mib} MiB or more ({kind}_LOG_BAR_SIZE of the firmware)",
            tuple(f"/sys/class/infiniband/{name}/device/resource" for name in names),
            now=tuple(f"sudo mlxconfig -d {name} query {kind}_LOG_BAR_SIZE" for name in names[:1]),
            subject=", ".join(names),
        )
    if unread and not small:
        raise Unmeasured(f"/sys/class/infiniband/{unread[0]}/device/resource: not read")
