"""From what registering GPU memory answered to what is wrong. Pure.

Source: nvidia-peermem gives ibv_reg_mr the pages of GPU memory; without it the kernel finds no user pages at a GPU
address and answers EFAULT. RLIMIT_MEMLOCK is judged before (ENOMEM), for host memory alike. ibv_reg_dmabuf_mr
answers EOPNOTSUPP where the HCA's driver, and EPROTONOSUPPORT or ENOSYS where libibverbs, knows no dma-buf; CUDA
gives no handle where the driver's modules are not the open ones (CUDA error 801, not supported).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_SUPPORTED = "CUDA error 801"


@dataclass(frozen=True)
class GpuMemory:
    """One GPU on one HCA."""

    ways: tuple[str, ...]
    """"nvidia-peermem", "dma-buf": what works."""
    detail: str
    """What does not, and what each answered."""
    cause: str = ""
    """Id of the cause, where none works."""
    check: str = ""


def decide(answer: Mapping[str, Any]) -> GpuMemory | None:
    """None where the answer makes no sense."""
    if "step" in answer:
        number = str(answer.get("errno", ""))
        words = f"{answer['step']}: {number or answer.get('text', '')}"
        if number in ("EACCES", "EPERM"):
            return GpuMemory((), words, "rdma-uverbs-permission-denied", "rdma.uverbs-accessible")
        return GpuMemory((), words)
    if not all(isinstance(answer.get(key), str) for key in ("plain", "dmabuf", "host")):
        return None
    plain, dmabuf, host = answer["plain"], answer["dmabuf"], answer["host"]
    ways = tuple(name for name, said in (("nvidia-peermem", plain), ("dma-buf", dmabuf)) if not said)
    said = f"ibv_reg_mr {plain or 'works'}, ibv_reg_dmabuf_mr {dmabuf or 'works'}"
    if ways:
        return GpuMemory(ways, "" if len(ways) == 2 else said)
    if host == "ENOMEM":
        return GpuMemory(
            (), f"not even host memory: ibv_reg_mr {host}; {said}", "memlock-limit", "host.memlock-unlimited"
        )
    if host in ("EPERM", "EACCES"):
        return GpuMemory(
            (),
            f"not even host memory: ibv_reg_mr {host}",
            "rdma-uverbs-permission-denied",
            "rdma.uverbs-accessible",
        )
    if plain == "EFAULT":
        cause = "dmabuf-needs-open-kernel-module" if dmabuf == NOT_SUPPORTED else "nvidia-peermem-not-loaded"
        return GpuMemory((), said, cause, "gpudirect.memory-registrable")
    return GpuMemory((), said, "", "gpudirect.memory-registrable")
