"""What a GPU looks like to the rules, whether NVML or nvidia-smi told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import require

# nvml.h: nvmlClocksEventReason*; only those that mean that hardware protects itself.
HARDWARE_REASONS = {0x08: "HW slowdown", 0x40: "HW thermal slowdown", 0x80: "HW power brake"}
REASON_IDLE = 0x01


@dataclass(frozen=True)
class NvLink:
    """One NVLink of a GPU."""

    index: int
    active: bool
    speed_mbps: int | Unmeasured
    """Per direction, as NVML counts it: 26562 = 26.562 GB/s."""
    version: int | Unmeasured
    """NVML's enumeration (6 on H200), not the marketing generation."""
    remote: str | Unmeasured
    """gpu | switch | npu."""


@dataclass(frozen=True)
class Fabric:
    """Registration with the NVLink fabric (nvmlGpuFabricInfo)."""

    state: str
    """not supported | not started | in progress | completed."""
    status: str
    """"success", or what NVML reports once completed."""
    clique_id: int | Unmeasured
    cluster_uuid: str | Unmeasured
    """All zero inside one NVSwitch node; the NVL domain's otherwise."""


@dataclass(frozen=True)
class GpuProcess:
    """A process with a compute context on the GPU; pid as the host (or this PID namespace) sees it."""

    pid: int
    memory_bytes: int | Unmeasured


@dataclass(frozen=True)
class Gpu:
    """One GPU. A field is Unmeasured where neither NVML nor nvidia-smi told it."""

    index: int
    """NVML index (PCI order), not CUDA's."""
    name: str | Unmeasured
    uuid: str | Unmeasured
    bus_id: str | Unmeasured
    """sysfs form, "0000:00:06.0"."""
    minor: int | Unmeasured
    """N of /dev/nvidiaN."""
    vbios: str | Unmeasured
    memory_total_bytes: int | Unmeasured
    bar1_total_bytes: int | Unmeasured
    """Window through which a NIC reaches the GPU's memory."""
    compute_capability: tuple[int, int] | Unmeasured
    """(9, 0) for Hopper."""
    ecc_enabled: bool | Unmeasured
    ecc_volatile_uncorrected: int | Unmeasured
    """Since the driver was loaded."""
    ecc_aggregate_uncorrected: int | Unmeasured
    """In the GPU's life."""
    remapped_correctable: int | Unmeasured
    remapped_uncorrectable: int | Unmeasured
    remap_pending: bool | Unmeasured
    """A row waits for a GPU reset to be remapped."""
    remap_failed: bool | Unmeasured
    """No spare row was left: the GPU must be replaced."""
    mig_enabled: bool | Unmeasured
    compute_mode: str | Unmeasured
    """default | exclusive process | prohibited | exclusive thread."""
    persistence: bool | Unmeasured
    pcie_gen: int | Unmeasured
    pcie_gen_max: int | Unmeasured
    """What GPU and slot can do together."""
    pcie_width: int | Unmeasured
    """Lanes."""
    pcie_width_max: int | Unmeasured
    event_reasons: int | Unmeasured
    """NVML's bit set of clocks event reasons; REASON_IDLE, HARDWARE_REASONS."""
    processes: tuple[GpuProcess, ...] | Unmeasured
    nvlinks: tuple[NvLink, ...] | Unmeasured
    """Empty: no NVLink, or switched off (NvLinkDisable)."""
    fabric: Fabric | Unmeasured

    @property
    def label(self) -> str:
        """How findings call it: "GPU 2"."""
        return f"GPU {self.index}"

    @property
    def active_nvlinks(self) -> int:
        """Unmeasured where links are."""
        return sum(link.active for link in require(self.nvlinks))

    @property
    def idle(self) -> bool:
        """NVML's idle reason is set. Unmeasured where reasons are."""
        return bool(require(self.event_reasons) & REASON_IDLE)

    @property
    def hardware_slowdowns(self) -> tuple[str, ...]:
        """Reasons by which the hardware throttles itself now."""
        reasons = require(self.event_reasons)
        return tuple(name for bit, name in HARDWARE_REASONS.items() if reasons & bit)


@dataclass(frozen=True)
class GpuFacts:
    """NVIDIA GPUs of the node, in NVML order. `gpus` is empty where the PCI bus has none."""

    pci_bus_ids: tuple[str, ...]
    """NVIDIA display and 3D controllers on the PCI bus, known without the driver."""
    listed: tuple[Gpu, ...] | Unmeasured
    """What the driver lists. Unmeasured where neither NVML nor nvidia-smi answered."""
    driver_version: str | Unmeasured
    """User-space driver's answer, "580.159.04"."""
    cuda_driver_version: tuple[int, int] | Unmeasured
    """Newest CUDA that the driver can run, (13, 0)."""
    p2p_read: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """(i, j) with i < j -> OK | CNS | GNS | TNS | DR | NS | unknown. Pairs that were asked only."""
    p2p_measured: bool = False
    failure: str = ""
    """What NVML or nvidia-smi said instead of answering."""
    read_by: str = ""
    """NVML | nvidia-smi."""

    @property
    def present(self) -> bool:
        """An NVIDIA GPU is on the PCI bus or known to the driver. A loaded driver that does not answer counts:
        "no GPU" would be a guess."""
        return (
            bool(self.pci_bus_ids)
            or bool(self.failure)
            or (not isinstance(self.listed, Unmeasured) and bool(self.listed))
        )

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """() where there is none; Unmeasured where there are some but the driver did not answer."""
        return require(self.listed) if self.present else ()
