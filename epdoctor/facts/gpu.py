"""NVIDIA GPUs: from the PCI bus whether there are any, from NVML what they are, else from nvidia-smi."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import gpu_nvml, gpu_smi
from epdoctor.facts.base import CollectOptions, Command, Probe, Script, Source, require
from epdoctor.facts.gpu_model import Gpu, GpuFacts
from epdoctor.facts.modules import VERSION
from epdoctor.facts.pci import parse as parse_pci

if TYPE_CHECKING:
    from epdoctor.facts import Node


LANE = "nvidia"
"""What asks the driver; see Probe.lane."""

__all__ = ["DIGEST", "LANE", "Gpu", "GpuFacts", "models_text", "parse", "probes"]


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    """NVML and nvidia-smi can load kernel modules, so only where the driver is loaded already."""
    del options
    return (
        Script(
            name="gpu.nvml",
            script="nvml.py",
            modules=("pynvml",),
            only_if_exists=VERSION,
            lane=LANE,
            timeout_s=15.0,
        ),
        Command(
            name="gpu.smi-q",
            argv=("nvidia-smi", "-q"),
            only_if_exists=VERSION,
            lane=LANE,
            unless_ok="gpu.nvml",
            timeout_s=20.0,
        ),
        Command(
            name="gpu.smi-nvlink",
            argv=("nvidia-smi", "nvlink", "-s"),
            only_if_exists=VERSION,
            lane=LANE,
            unless_ok="gpu.nvml",
            timeout_s=15.0,
        ),
        Command(
            name="gpu.smi-p2p",
            argv=("nvidia-smi", "topo", "-p2p", "r"),
            only_if_exists=VERSION,
            lane=LANE,
            unless_ok="gpu.nvml",
            timeout_s=15.0,
        ),
    )


def _cuda_version(value: Any) -> tuple[int, int] | Unmeasured:
    """NVML's 13000 and nvidia-smi's "13.0" -> (13, 0)."""
    if isinstance(value, int) and 0 < value < 1_000_000:
        return value // 1000, value % 1000 // 10
    major, dot, minor = str(value).partition(".")
    if dot and major.isdigit() and minor.isdigit() and len(major) < 4 and len(minor) < 4:
        return int(major), int(minor)
    return Unmeasured("CUDA version of the driver: not told")


def _by_nvml(source: Source, bus_ids: tuple[str, ...]) -> GpuFacts:
    values = source.values("gpu.nvml")
    error = values.get("error")
    if isinstance(error, dict):
        failure = f"{str(error.get('call', 'NVML'))[:64]}: {str(error.get('text', ''))[:200]}"
        reason = Unmeasured(f"NVML {failure}")
        return GpuFacts(bus_ids, reason, reason, reason, failure=failure, read_by="NVML")
    version = values.get("driver_version")
    pairs, measured = gpu_nvml.p2p(values)
    return GpuFacts(
        pci_bus_ids=bus_ids,
        listed=gpu_nvml.gpus(values),
        driver_version=version[:32] if isinstance(version, str) else Unmeasured("NVML: no driver version"),
        cuda_driver_version=_cuda_version(values.get("cuda_driver_version")),
        p2p_read=pairs,
        p2p_measured=measured,
        read_by="NVML",
    )


def _by_smi(source: Source, bus_ids: tuple[str, ...]) -> GpuFacts:
    output = source.command("gpu.smi-q")
    if output.rc != 0:
        said = (output.stdout.strip() or output.stderr.strip()).splitlines()
        failure = f"nvidia-smi: {said[0][:200]}" if said else f"nvidia-smi: exit {output.rc}"
        reason = Unmeasured(failure)
        return GpuFacts(bus_ids, reason, reason, reason, failure=failure, read_by="nvidia-smi")
    head, sections = gpu_smi.sections(output.stdout)
    if "Attached GPUs" not in head.values:
        raise Unmeasured("nvidia-smi -q: not in a known form")
    nvlinks: dict[int, Any] | Unmeasured
    try:
        nvlinks = gpu_smi.links(source.command("gpu.smi-nvlink", ok=True).stdout)
    except Unmeasured as reason:
        nvlinks = reason
    found = []
    for index, (bus_id, section) in enumerate(sections[:64]):
        found.append(
            gpu_smi.gpu(
                index, bus_id, section, nvlinks if isinstance(nvlinks, Unmeasured) else nvlinks.get(index, ())
            )
        )
    pairs: dict[tuple[int, int], str] = {}
    with contextlib.suppress(Unmeasured):  # p2p_measured says so
        pairs = gpu_smi.peers(source.command("gpu.smi-p2p", ok=True).stdout)
    return GpuFacts(
        pci_bus_ids=bus_ids,
        listed=tuple(found),
        driver_version=head.values.get("Driver Version") or Unmeasured("nvidia-smi -q: no Driver Version"),
        cuda_driver_version=_cuda_version(head.values.get("CUDA Version", "")),
        p2p_read=pairs,
        p2p_measured=bool(pairs),
        read_by="nvidia-smi",
    )


def parse(source: Source) -> GpuFacts:
    """Unmeasured only where neither the PCI bus nor the driver could be asked.

    NVML's failure is kept over that of nvidia-smi, which speaks through the same library."""
    bus_ids: tuple[str, ...] = ()
    pci_reason: Unmeasured | None = None
    try:
        bus_ids = tuple(device.bus_id for device in parse_pci(source).gpus)
    except Unmeasured as reason:
        pci_reason = reason
    failed: GpuFacts | None = None
    last = Unmeasured("gpu.nvml: not in this recording")
    for read in (_by_nvml, _by_smi):
        try:
            facts = read(source, bus_ids)
        except Unmeasured as reason:
            last = reason if source.status("gpu.smi-q") != "absent" or read is _by_nvml else last
            continue
        if not facts.failure:
            return facts
        failed = failed or facts
    if failed is not None and source.status("gpu.smi-q") in ("timeout", "stuck"):
        # NVML is not there, but nvidia-smi hangs: that is the symptom to name.
        both = Unmeasured(f"{last}; {failed.read_by}: {failed.failure}")
        return replace(
            failed,
            listed=both,
            driver_version=both,
            cuda_driver_version=both,
            failure=f"{last}; {failed.failure}",
        )
    if failed is not None:
        return failed
    if pci_reason is not None:
        raise pci_reason
    if source.status("gpu.nvml") == "skipped":
        last = Unmeasured("the NVIDIA driver is not loaded")
    return GpuFacts(bus_ids, last, last, last)


def models_text(gpus: tuple[Gpu, ...]) -> str:
    """ "8 x NVIDIA H100 80GB HBM3". Unmeasured where a name is."""
    counts = Counter(require(gpu.name) for gpu in gpus)
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))


def _driver_version(node: Node) -> str | None:
    return require(node.gpu.driver_version) if node.gpu.present else None


def _models(node: Node) -> str | None:
    return models_text(node.gpu.gpus) if node.gpu.present else None


def _vbios(node: Node) -> str | None:
    if not node.gpu.present:
        return None
    return ", ".join(sorted({f"{require(gpu.name)} {require(gpu.vbios)}" for gpu in node.gpu.gpus}))


def _cuda(node: Node) -> str | None:
    if not node.gpu.present:
        return None
    major, minor = require(node.gpu.cuda_driver_version)
    return f"{major}.{minor}"


DIGEST: dict[str, Callable[[Node], Any]] = {
    "gpu.driver-version": _driver_version,
    "gpu.models": _models,
    "gpu.vbios": _vbios,
    "gpu.cuda-driver-version": _cuda,
}
