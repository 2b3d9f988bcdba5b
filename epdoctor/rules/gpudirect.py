"""Rules about GPUDirect RDMA and GDRCopy: can a NIC, and can the CPU, reach GPU memory directly.

Requirements: NVIDIA open kernel modules >= 515 on Turing or newer with Linux >= 5.12 for DMA-BUF; NCCL's user
guide (deviceapi.rst, v2.30.7) for GPU-initiated networking; NVSHMEM 3.5.1 ibgda.cpp for the order of the two.
"""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.devices import GDRDRV
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, need, node_rule
from epdoctor.rules.driver import gdrdrv_usable, version_tuple

DMABUF_DRIVER = 515
DMABUF_CAPABILITY = (7, 5)
DMABUF_RDMA_CORE = (34,)


@need("gdrdrv")
def has_gdrdrv(node: Node) -> bool:
    """The gdrdrv module is not loaded"""
    return node.modules.has("gdrdrv")


def why_no_dmabuf(node: Node, kernel: str) -> str:
    """Why DMA-BUF cannot register GPU memory on this node; empty if it can. Unmeasured where it is open."""
    modules = node.modules
    version = require(modules.nvidia_version)
    if require(modules.nvidia_flavour) != "open":
        return f"proprietary kernel modules {version}"
    if modules.nvidia_version_tuple[0] < DMABUF_DRIVER:
        return f"driver {version} is older than {DMABUF_DRIVER}"
    if require(node.system.kernel_version)[:2] < version_tuple(kernel):
        return f"Linux {node.system.kernel_release} is older than {kernel}"
    for gpu in node.gpu.gpus:
        capability = gpu.compute_capability
        if not isinstance(capability, Unmeasured) and capability < DMABUF_CAPABILITY:
            return f"{gpu.label} is older than Turing"
    rdma_core = node.rdma.rdma_core_version
    # ibv_reg_dmabuf_mr came with rdma-core 34; a container may bring its own, so unknown is no reason.
    if not isinstance(rdma_core, Unmeasured) and version_tuple(rdma_core) < DMABUF_RDMA_CORE:
        return f"rdma-core {rdma_core} is older than 34"
    return ""


def _not_on_efa(node: Node) -> None:
    kinds = {device.kind for device in node.rdma.devices}
    if kinds == {"efa"}:
        raise NotApplicable("EFA registers GPU memory by its own driver")


def _peermem(node: Node, legacy: bool) -> bool:
    modules = node.modules
    if modules.has("nvidia_peermem") or "nvidia-peermem" in modules.memory_peers:
        return True
    return legacy and (modules.has("nv_peer_mem") or "nv_mem" in modules.memory_peers)


@node_rule
def gpu_memory_registrable(node: Node, *, kernel: str, legacy: bool) -> Iterator[Problem]:
    """nvidia_peermem is loaded, or DMA-BUF works (from Linux `kernel` on; `legacy`: nv_peer_mem counts)."""
    _not_on_efa(node)
    if _peermem(node, legacy):
        return
    reason = why_no_dmabuf(node, kernel)
    if reason:
        yield Problem(
            f"nvidia_peermem not loaded; DMA-BUF no ({reason})",
            f"nvidia_peermem, or DMA-BUF through the open kernel modules and Linux {kernel} or newer",
        )


@node_rule
def peermem_at_boot(node: Node, *, kernel: str) -> Iterator[Problem]:
    """Where nvidia_peermem is the only way, the next boot loads it too."""
    _not_on_efa(node)
    modules = node.modules
    if not modules.has("nvidia_peermem"):
        raise NotApplicable("nvidia_peermem is not loaded")
    if not why_no_dmabuf(node, kernel) or "nvidia_peermem" in require(modules.load_at_boot):
        return
    yield Problem("nvidia_peermem is loaded now, but no file of modules-load.d names it", "loaded at boot")


def _gdrcopy_by_dmabuf(node: Node, gdrcopy: str, cuda: str) -> bool:
    """GDRCopy maps GPU memory by DMA-BUF and needs no module. Not known counts as no."""
    try:
        library = version_tuple(node.libraries.version_of("gdrapi"))
        driver = require(node.gpu.cuda_driver_version)
    except Unmeasured:
        return False
    return library >= version_tuple(gdrcopy) and driver >= version_tuple(cuda)


@node_rule
def gdrdrv_loaded(node: Node, *, nvshmem: str, gdrcopy: str, cuda: str) -> Iterator[Problem]:
    """gdrdrv is there, unless the driver options are live, NVSHMEM is at least `nvshmem`, or libgdrapi of
    `gdrcopy` and a driver for CUDA `cuda` do without it."""
    modules = node.modules
    if modules.has("gdrdrv"):
        return
    if modules.stream_mem_ops and modules.peer_mapping_override:
        return
    version = node.libraries.version_of("nvshmem")
    if version_tuple(version) >= version_tuple(nvshmem) or _gdrcopy_by_dmabuf(node, gdrcopy, cuda):
        return
    yield Problem(
        f"gdrdrv not loaded, driver options not live, NVSHMEM {version}", "gdrdrv, or the driver options"
    )


@node_rule
def gdrdrv_accessible(node: Node) -> Iterator[Problem]:
    """/dev/gdrdrv exists and this user may open it."""
    if gdrdrv_usable(node):
        return
    device = node.devices.node(GDRDRV)
    if device is None:
        yield Problem("gdrdrv is loaded, but /dev/gdrdrv does not exist", "/dev/gdrdrv, mode 666")
    else:
        now = ("sudo chmod 666 /dev/gdrdrv",)
        yield Problem(f"/dev/gdrdrv has mode {device.mode & 0o777:o}", "mode 666", now=now)


@node_rule
def gdrdrv_new_enough(node: Node, *, driver: str, gdrdrv: str) -> Iterator[Problem]:
    """From NVIDIA driver `driver` on, gdrdrv is at least `gdrdrv`."""
    if node.modules.nvidia_version_tuple < version_tuple(driver):
        return
    version = node.modules.versions.get("gdrdrv")
    if version is None:
        raise Unmeasured("/sys/module/gdrdrv/version: not there")
    found, wanted = version_tuple(version), version_tuple(gdrdrv)
    # The module calls itself by major and minor alone ("2.4").
    if len(found) < 3 and found == wanted[:2] and len(wanted) > 2 and wanted[2] > 0:
        raise Unmeasured(f"gdrdrv {version}: its version does not tell the patch level")
    if found < wanted:
        yield Problem(
            f"gdrdrv {version} with driver {node.modules.nvidia_version}", f"gdrdrv {gdrdrv} or newer"
        )
