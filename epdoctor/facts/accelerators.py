"""AMD and Intel accelerators from sysfs: what they are, and whether this user may open them.

Sources: kernel Documentation/gpu/amdgpu (the kfd topology: gfx_target_version is major * 10000 + minor * 100 +
step), Documentation/gpu/drm-uapi.rst (render nodes). NVIDIA's are in `facts.gpu`.
"""

from __future__ import annotations

from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, Links, PathStat, Probe, Source, Stat

KFD = "/dev/kfd"
_TOPOLOGY = "/sys/class/kfd/kfd/topology/nodes/"
_DRM = "/sys/class/drm/"
INTEL_DRIVERS = ("xe", "i915")
INTEL_DATA_CENTRE = ("0x0bd", "0x0be", "0x0b6", "0xe2", "0x56c", "0x674", "0x6750")
"""PCI device ids: 0x0b69-0x0be5 Data Center GPU Max (PVC), 0xe2xx Battlemage (Arc B and Arc Pro B), 0x56c0/1 Flex,
0x674c-0x6750 CRI (kernel include/drm/intel/pciids.h). What else Intel makes sits in a processor and serves nothing."""


@dataclass(frozen=True)
class AmdGpu:
    node: int
    """Of the kfd topology."""
    gfx: str
    """"gfx942" (MI300X), "gfx950" (MI355X)."""
    render_minor: int
    """N of /dev/dri/renderD<N>."""


@dataclass(frozen=True)
class Accelerators:
    amd: tuple[AmdGpu, ...]
    rocm_version: str
    """"6.4.1" of /opt/rocm/.info/version; "" where there is none."""
    amdgpu_version: str
    """Of the out-of-tree driver; "" for the kernel's own."""
    intel: tuple[str, ...]
    """Render nodes ("renderD128") of Intel data-centre GPUs."""
    level_zero: bool | None
    """libze_loader.so.1 is in the system's library folders; None: not looked."""
    nodes: dict[str, PathStat] | Unmeasured
    """/dev/kfd and /dev/dri/renderD* as this user sees them."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Files(
            "accelerators.files",
            globs=(
                _TOPOLOGY + "*/properties",
                "/sys/module/amdgpu/version",
                "/opt/rocm/.info/version",
                _DRM + "renderD*/device/vendor",
                _DRM + "renderD*/device/device",
            ),
            max_file_bytes=4096,
        ),
        Links(
            "accelerators.links",
            globs=(
                _DRM + "renderD*/device/driver",
                "/usr/lib/*/libze_loader.so.1",
                "/usr/lib64/libze_loader.so.1",
                "/usr/local/lib/libze_loader.so.1",
            ),
        ),
        Stat("accelerators.nodes", globs=(KFD, "/dev/dri/renderD*")),
    )


def gfx_name(version: int) -> str:
    """90402 -> "gfx942", 90010 -> "gfx90a"."""
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}"


def _properties(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in text.splitlines()[:200]:
        name, _, value = line.strip().partition(" ")
        if value.isascii() and value.isdigit() and len(value) < 25:
            found[name] = int(value)
    return found


def parse(source: Source) -> Accelerators:
    """Raises Unmeasured where sysfs was not read. A recording from before this was looked at has none: what else
    it holds says what the machine is."""
    if source.status("accelerators.files") == "absent":
        return Accelerators((), "", "", (), None, {})
    files = source.files("accelerators.files")
    amd = []
    for path, text in files.under(_TOPOLOGY).items():
        number = path.partition("/")[0]
        values = _properties(text)
        # A node of the topology without a target is a CPU.
        if (
            number.isascii()
            and number.isdigit()
            and len(number) < 6
            and values.get("gfx_target_version", 0) > 0
        ):
            amd.append(
                AmdGpu(
                    int(number),
                    gfx_name(min(values["gfx_target_version"], 10**7)),
                    values.get("drm_render_minor", -1),
                )
            )
    try:
        links = source.links("accelerators.links")
        level_zero: bool | None = any(path.endswith("libze_loader.so.1") for path in links)
    except Unmeasured:
        links, level_zero = {}, None
    drm = files.under(_DRM)
    intel = sorted(
        name
        for path, vendor in drm.items()
        if path.endswith("/device/vendor") and vendor.strip() == "0x8086"
        for name in [path.partition("/")[0]]
        if drm.get(f"{name}/device/device", "").strip().lower().startswith(INTEL_DATA_CENTRE)
        and links.get(f"{_DRM}{name}/device/driver", "").rpartition("/")[2] in INTEL_DRIVERS
    )
    nodes: dict[str, PathStat] | Unmeasured
    try:
        nodes = source.stats("accelerators.nodes")
    except Unmeasured as reason:
        nodes = reason
    return Accelerators(
        tuple(sorted(amd, key=lambda gpu: gpu.node)),
        files.get("/opt/rocm/.info/version", "").strip()[:40],
        files.get("/sys/module/amdgpu/version", "").strip()[:40],
        tuple(intel),
        level_zero,
        nodes,
    )
