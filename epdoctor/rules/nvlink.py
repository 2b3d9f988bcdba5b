"""Rules about NVLink and the NVSwitch fabric."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.fabric_manager import NVLSM
from epdoctor.facts.gpu_model import Gpu
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, node_rule

# Names by which NVML lists boards that always sit on NVLink ("H100 80GB HBM3" is the SXM board).
_SXM = ("SXM", "80GB HBM3")
_SXM_EXACT = ("NVIDIA H200", "NVIDIA H20", "NVIDIA B200", "NVIDIA GB200", "NVIDIA GB300", "NVIDIA H800")


def on_nvlink_board(gpu: Gpu) -> bool:
    """Whether the model is only sold on NVLink boards. Unmeasured where the name is."""
    name = require(gpu.name)
    return name in _SXM_EXACT or any(word in name for word in _SXM)


def _switched(gpu: Gpu) -> bool:
    return any(link.remote == "switch" for link in require(gpu.nvlinks))


@node_rule
def nvlinks_up(node: Node) -> Iterator[Problem]:
    """Every GPU has as many active NVLinks as its neighbours, and none is down on an NVSwitch board.

    Bridged PCIe cards leave links without a bridge inactive, so those alone are no fault."""
    gpus = node.gpu.gpus
    counts = {gpu.index: gpu.active_nvlinks for gpu in gpus}
    most = max(counts.values(), default=0)
    if most == 0:
        if not all(on_nvlink_board(gpu) for gpu in gpus):
            raise NotApplicable("these GPUs have no NVLink")
        disabled = node.modules.nvidia_params
        if not isinstance(disabled, Unmeasured) and disabled.get("NvLinkDisable") == "1":
            yield Problem(
                "NVLink is switched off (NvLinkDisable: 1)",
                "NVLink between the GPUs",
                evidence=("/proc/driver/nvidia/params NvLinkDisable: 1",),
                now=("grep -rn NVreg_NvLinkDisable /etc/modprobe.d   # remove, rebuild initramfs, reboot",),
            )
        else:
            yield Problem("no NVLink is active", "NVLink between the GPUs")
        return
    for gpu in gpus:
        links = require(gpu.nvlinks)
        down = [link.index for link in links if not link.active]
        if counts[gpu.index] < most:
            which = f", down: {', '.join(map(str, down))}" if down else ""
            found = f"{counts[gpu.index]} NVLinks active{which}"
            yield Problem(found, f"{most}, as on its neighbours", subject=gpu.label)
        elif down and _switched(gpu):
            yield Problem(
                f"NVLink {', '.join(map(str, down))} down",
                f"{len(links)} active",
                severity=Severity.WARNING,
                subject=gpu.label,
            )


@node_rule
def fabric_completed(node: Node) -> Iterator[Problem]:
    """GPUs on an NVSwitch have registered with the fabric. PCIe GPUs have none; Ampere does not report it."""
    fabrics = [(gpu, gpu.fabric) for gpu in node.gpu.gpus if not isinstance(gpu.fabric, Unmeasured)]
    if all(fabric.state in ("completed", "not supported") for _, fabric in fabrics):
        # Nothing wrong so far: then every GPU must have been measured.
        for gpu in node.gpu.gpus:
            require(gpu.fabric)
    if all(fabric.state == "not supported" for _, fabric in fabrics):
        raise NotApplicable("these GPUs report no NVLink fabric")
    for gpu, fabric in fabrics:
        if fabric.state != "completed":
            yield Problem(f"fabric state {fabric.state}", "completed", subject=gpu.label)
        elif fabric.status not in ("success", ""):
            yield Problem(f"fabric completed with {fabric.status}", "success", subject=gpu.label)


@node_rule
def fabric_one_clique(node: Node) -> Iterator[Problem]:
    """All GPUs of the node are in the same fabric domain and clique."""
    seen: dict[tuple[str, int], list[int]] = {}
    for gpu in node.gpu.gpus:
        fabric = require(gpu.fabric)
        if fabric.state == "completed":
            key = (require(fabric.cluster_uuid), require(fabric.clique_id))
            seen.setdefault(key, []).append(gpu.index)
    if not seen:
        raise NotApplicable("no GPU has completed fabric registration")
    if len(seen) > 1:
        text = "; ".join(
            f"GPU {', '.join(map(str, gpus))} in clique {clique} of {uuid[:8]}"
            for (uuid, clique), gpus in sorted(seen.items())
        )
        yield Problem(text, "one clique")


_NVLSM_GPUS = ("B200", "B300")
"""HGX boards whose NVSwitches are of the fourth generation. GB200 and GB300 run both in the switch trays."""


def _switched_with_manager(node: Node) -> str:
    """The Fabric Manager's version where this node's GPUs sit on NVSwitches."""
    manager = node.fabric_manager
    if not manager.asked:
        raise NotApplicable("not in this recording, which is older than this check")
    if not manager.version:
        raise NotApplicable("no Fabric Manager on this node")
    if all(require(gpu.fabric).state == "not supported" for gpu in node.gpu.gpus):
        raise NotApplicable("these GPUs report no NVLink fabric")
    return manager.version


@node_rule
def fabric_manager_matches(node: Node) -> Iterator[Problem]:
    """nv-fabricmanager refuses a driver of any other version."""
    version, driver = _switched_with_manager(node), require(node.modules.nvidia_version)
    if version != driver:
        package = node.fabric_manager.package
        yield Problem(
            f"{package} {version}, driver {driver}",
            f"{package} {driver}",
            now=(f"sudo apt-get install '{package}={driver}*' || sudo dnf install '{package}-{driver}'",),
        )


@node_rule
def nvlsm_installed(node: Node) -> Iterator[Problem]:
    """The NVLink subnet manager, beside Fabric Manager on fourth-generation NVSwitches."""
    if not any(name in str(require(gpu.name)).split() for gpu in node.gpu.gpus for name in _NVLSM_GPUS):
        raise NotApplicable(f"NVSwitches of these GPUs need none: {' and '.join(_NVLSM_GPUS)} do")
    _switched_with_manager(node)
    if not node.fabric_manager.nvlsm:
        yield Problem("Fabric Manager without nvlsm", f"the package nvlsm ({NVLSM})")
