"""What the mlx5 HCAs grant a program: a DEVX context, and which atomic operations.

DEVX lets a program create queues by firmware commands of its own; NVSHMEM's IBGDA, UCX's gda_mlx5 and DOCA GPUNetIO
(NCCL's GIN) are built on it. The firmware grants it (UCTX_EN) and no capability of the process is needed: Linux
drivers/infiniband/hw/mlx5/devx.c, mlx5_ib_devx_create, answers EINVAL where the function has no user contexts
(log_max_uctx 0), and what the firmware says otherwise. mlx5dv_open_device with MLX5DV_CONTEXT_FLAGS_DEVX fails then;
ibv_open_device opens without it and says nothing (rdma-core 65.0 providers/mlx5/mlx5.c, mlx5_alloc_context).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Probe, Script, Source
from epdoctor.facts.rdma import ROOT

CAS, FETCH_ADD, MASKED_CAS, MASKED_FETCH_ADD = 1, 2, 4, 8
"""Bits of `operations` (NVSHMEM 3.5.1 mlx5_ifc.h, MLX5_ATOMIC_CAP_OP_SUPPORT_*)."""
BYTES_4, BYTES_8 = 4, 8
"""Bits of the sizes: an operand of so many bytes (MLX5_ATOMIC_CAP_SIZE_SUPPORT_*, IBV_PCI_ATOMIC_OPERATION_*)."""


@dataclass(frozen=True)
class Atomics:
    """Answer to QUERY_HCA_CAP, MLX5_CAP_ATOMIC, current values. Bit masks."""

    operations: int
    """CAS, FETCH_ADD, MASKED_CAS, MASKED_FETCH_ADD: what the HCA does for its peers."""
    size_qp: int
    """Operand sizes with RC queue pairs."""
    size_dc: int
    """Operand sizes with DC queue pairs."""
    pci_fetch_add: int
    """Operand sizes of fetch-and-add as a PCIe AtomicOp, which is atomic to CPU and GPU too; 0: not offered."""
    pci_swap: int
    pci_compare_swap: int


@dataclass(frozen=True)
class Device:
    name: str
    devx: bool | Unmeasured
    """Whether the device opens with DEVX. Unmeasured where it does not open at all."""
    refusal: str
    """Errno of opening with DEVX, where only that is refused; "" otherwise."""
    atomics: Atomics | Unmeasured
    closed_errno: str = ""
    """Errno of opening at all, with DEVX or without; "" where it opens or was not tried."""


@dataclass(frozen=True)
class Devx:
    devices: Mapping[str, Device]
    """By RDMA device; empty where there is no mlx5 device."""

    def device(self, name: str) -> Device:
        """Raises Unmeasured where it was not asked."""
        if name not in self.devices:
            raise Unmeasured(f"DEVX of {name}: not asked")
        return self.devices[name]


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    del options
    return (
        Script(
            "devx.caps", script="devx.py", params={"seconds": 4.0}, timeout_s=6.0, only_if_exists=ROOT[:-1]
        ),
    )


def _atomics(name: str, value: Mapping[str, object]) -> Atomics | Unmeasured:
    found = value.get("atomics")
    if isinstance(found, list) and len(found) == 6:
        masks = [mask for mask in found if isinstance(mask, int) and 0 <= mask <= 0xFFFF]
        if len(masks) == 6:
            return Atomics(*masks)
    why = value.get("atomics_errno")
    return Unmeasured(
        f"{name}: QUERY_HCA_CAP of the atomics: {why if isinstance(why, str) else 'no answer'}"[:200]
    )


def _device(name: str, value: object) -> Device:
    row = value if isinstance(value, dict) else {}
    granted, plain = row.get("devx"), row.get("plain")
    if granted is True:
        return Device(name, True, "", _atomics(name, row))
    if granted is False and plain == "":
        return Device(name, False, str(row.get("errno") or "no errno")[:40], _atomics(name, row))
    said = row.get("failed") if granted is None else plain
    closed = Unmeasured(f"{name} does not open: {str(said)[:120]}")
    return Device(name, closed, "", closed, str(plain)[:40] if plain and granted is False else "")


def parse(source: Source) -> Devx:
    """Raises Unmeasured where libmlx5 could not be asked at all."""
    if source.status("devx.caps") == "skipped":
        return Devx({})
    values = source.values("devx.caps")
    failed = values.pop("failed", None)
    if failed is not None and not values:
        raise Unmeasured(f"DEVX: {str(failed)[:200]}")
    return Devx({name: _device(name, value) for name, value in values.items()})
