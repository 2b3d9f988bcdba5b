"""Rules on what the mlx5 compute HCAs grant: DEVX, the atomics that NVSHMEM asks for, PCIe atomics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts import devx as facts
from epdoctor.facts.base import require
from epdoctor.facts.devx import BYTES_4, BYTES_8, Device, Devx
from epdoctor.facts.rdma import RdmaDevice
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.rdma import compute_devices

_RESTART = "sudo reboot  # a setting holds from the next start of the firmware"

_OPERATIONS = (
    (facts.CAS, "compare-and-swap"),
    (facts.FETCH_ADD, "fetch-and-add"),
    (facts.MASKED_CAS, "masked compare-and-swap"),
    (facts.MASKED_FETCH_ADD, "masked fetch-and-add"),
)


def _asked(node: Node) -> tuple[Devx, list[RdmaDevice]]:
    """What was asked, and the HCAs that it is judged for. NotApplicable without mlx5 or in an older recording."""
    devices = [device for device in compute_devices(node) if device.kind == "mlx5"]
    if not devices:
        raise NotApplicable("no mlx5 HCA")
    if node.source.status("devx.caps") == "absent":
        raise NotApplicable("not in this recording, which is older than this check")
    return node.devx, devices


def _judge(node: Node, found_on: Callable[[Device], str]) -> Iterator[tuple[str, list[RdmaDevice]]]:
    """What is wrong -> the devices with it, in the node's order. `found_on` gives "" for a healthy one.

    What is not measured hides no fault of another device; alone it is unknown."""
    devx, devices = _asked(node)
    groups: dict[str, list[RdmaDevice]] = {}
    unmeasured: Unmeasured | None = None
    for device in devices:
        try:
            found = found_on(devx.device(device.name))
        except Unmeasured as reason:
            unmeasured = unmeasured or reason
            continue
        if found:
            groups.setdefault(found, []).append(device)
    if unmeasured is not None and not groups:
        raise unmeasured
    yield from groups.items()


def _names(devices: list[RdmaDevice]) -> str:
    return ", ".join(device.name for device in devices)


def _settable(devices: list[RdmaDevice]) -> list[str]:
    """What mlxconfig takes. Virtual functions and subfunctions (mlx5_core.sf.4) have no settings of their own."""
    return [
        device.pci_address or device.name
        for device in devices
        if not device.is_virtual_function and not device.pci_address.startswith("mlx5_core.")
    ]


def _query(devices: list[RdmaDevice], setting: str) -> tuple[str, ...]:
    return tuple(f"sudo mlxconfig -d {target} q {setting}" for target in _settable(devices)[:1])


def _set(devices: list[RdmaDevice], assignment: str) -> tuple[str, ...]:
    """A setting holds from the next start of the firmware, which takes the port down."""
    commands = [f"sudo mlxconfig -y -d {target} set {assignment}" for target in _settable(devices)]
    return (*commands, _RESTART) if commands else ()


_REFUSED = {
    "EINVAL": "the firmware gives this function no user contexts",
    "EOPNOTSUPP": "this kernel's mlx5_ib knows no DEVX",
}
"""Linux drivers/infiniband/hw/mlx5: mlx5_ib_devx_create, mlx5_ib_alloc_ucontext."""


@node_rule
def rdma_devx_granted(node: Node) -> Iterator[Problem]:
    """Each mlx5 compute HCA opens with DEVX, and not without it alone."""

    def refused(device: Device) -> str:
        return "" if require(device.devx) else device.refusal

    for refusal, devices in _judge(node, refused):
        why = _REFUSED.get(refusal, "")
        yield Problem(
            f"{_names(devices)}: DEVX refused ({refusal}{': ' + why if why else ''})",
            "a device that opens with DEVX",
            (f"mlx5dv_open_device(MLX5DV_CONTEXT_FLAGS_DEVX): {refusal}; ibv_open_device: opened",),
            now=_query(devices, "UCTX_EN"),
            permanent=_set(devices, "UCTX_EN=1"),
            subject=_names(devices),
        )


@node_rule
def rdma_extended_atomics(node: Node) -> Iterator[Problem]:
    """The mlx5 compute HCAs offer every atomic operation that NVSHMEM's IBGDA demands, with RC and DC queue pairs:
    nvshmemt_ib_common_check_nic_ext_atomic_support (NVSHMEM 3.5.1, transport_mlx5_common.cpp)."""

    def lacking(device: Device) -> str:
        atomics = require(device.atomics)
        missing = [words for bit, words in _OPERATIONS if not atomics.operations & bit]
        missing += [
            f"operands of {size} bytes"
            for size in (BYTES_4, BYTES_8)
            if not atomics.size_qp & atomics.size_dc & size
        ]
        return ", ".join(missing)

    for missing, devices in _judge(node, lacking):
        yield Problem(
            f"{_names(devices)}: no {missing}",
            "compare-and-swap and fetch-and-add, masked ones too, of 4 and 8 bytes",
            ("QUERY_HCA_CAP of the atomics, current values, as NVSHMEM asks it",),
            now=_query(devices, "PCI_ATOMIC_MODE"),
            permanent=_set(devices, "PCI_ATOMIC_MODE=4"),
            subject=_names(devices),
        )


@node_rule
def rdma_pci_atomics(node: Node, *, backend: str) -> Iterator[Problem]:
    """The mlx5 compute HCAs do fetch-and-add and compare-and-swap of 8 bytes as PCIe AtomicOps (what libmlx5 calls
    IBV_ATOMIC_GLOB). NICs come with them off, so this is said only to who runs `backend`."""
    if node.goal.backend != backend:
        raise NotApplicable(f"only {backend} is known to gain by them")

    def off(device: Device) -> str:
        atomics = require(device.atomics)
        return "" if atomics.pci_fetch_add & atomics.pci_compare_swap & BYTES_8 else "PCIe atomics are off"

    for found, devices in _judge(node, off):
        yield Problem(
            f"{_names(devices)}: {found}",
            "fetch-and-add and compare-and-swap of 8 bytes as PCIe AtomicOps",
            ("QUERY_HCA_CAP of the atomics: fetch_add_pci_atomic, compare_swap_pci_atomic",),
            now=_query(devices, "PCI_ATOMIC_MODE"),
            permanent=_set(devices, "PCI_ATOMIC_MODE=4"),
            subject=_names(devices),
        )
