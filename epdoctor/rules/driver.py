"""Rules about the NVIDIA kernel driver: loaded, answering, one version, and the options that IBGDA wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.devices import GDRDRV
from epdoctor.facts.dkms import newer_kernels
from epdoctor.facts.modprobe import registry_dwords
from epdoctor.facts.modules import Modules
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, node_rule

CAP_SYS_RAWIO, CAP_SYS_ADMIN = 17, 21


def version_tuple(text: str) -> tuple[int, ...]:
    """Leading numbers of a version: "3.4.5" -> (3, 4, 5). Unmeasured if there is none."""
    numbers = []
    for word in text.split(".")[:6]:
        digits = word[: len(word) - len(word.lstrip("0123456789"))]
        if not digits or len(digits) > 8:
            break
        numbers.append(int(digits))
    if not numbers:
        raise Unmeasured(f"{text[:40]}: not a version")
    return tuple(numbers)


def gdrdrv_usable(node: Node) -> bool:
    """The gdrdrv module is loaded and this user may open its device."""
    device = node.devices.node(GDRDRV)
    return node.modules.has("gdrdrv") and device is not None and device.readable and device.writable


@node_rule
def driver_loaded(node: Node) -> Iterator[Problem]:
    """GPUs on the PCI bus are served by the nvidia kernel module."""
    modules = node.modules
    if modules.driver_loaded:
        return
    drivers = {
        node.pci.devices[bus_id].driver for bus_id in node.gpu.pci_bus_ids if bus_id in node.pci.devices
    }
    if drivers == {"vfio-pci"}:
        raise NotApplicable("the GPUs are held by vfio-pci for virtual machines")
    count = len(node.gpu.pci_bus_ids)
    if modules.has("nouveau"):
        found, now = "nouveau holds the GPUs", ("sudo modprobe -r nouveau", "sudo modprobe nvidia")
        yield Problem(f"{count} GPUs, but {found}", "the nvidia module", now=now)
    else:
        yield Problem(f"{count} GPUs, but no /proc/driver/nvidia/version", "the nvidia module loaded")


@node_rule
def nvml_answers(node: Node) -> Iterator[Problem]:
    """NVML (and so nvidia-smi) answers. A version mismatch is judged by its own check."""
    if not node.modules.driver_loaded:
        raise NotApplicable("the NVIDIA driver is not loaded")
    failure = node.gpu.failure
    if failure and "mismatch" not in failure.lower():
        yield Problem(failure, "NVML lists the GPUs")
    elif not failure:
        require(node.gpu.listed)


@node_rule
def driver_one_version(node: Node) -> Iterator[Problem]:
    """The user-space driver has the version of the loaded kernel module."""
    kernel = require(node.modules.nvidia_version)
    if "mismatch" in node.gpu.failure.lower():
        yield Problem(f"kernel module {kernel}; {node.gpu.failure}", f"user-space driver {kernel}")
        return
    version = require(node.gpu.driver_version)
    if version != kernel:
        yield Problem(f"kernel module {kernel}, user space {version}", "one version")


def _dkms(node: Node) -> Mapping[str, frozenset[str]]:
    """What DKMS has built. NotApplicable without DKMS, and for recordings from before it was looked at."""
    if node.source.status("modules.dkms") == "absent":
        raise NotApplicable("not in this recording, which is older than this check")
    built = require(node.modules.dkms)
    if not built:
        raise NotApplicable("DKMS has built no NVIDIA driver here")
    return built


@node_rule
def driver_next_load_same(node: Node) -> Iterator[Problem]:
    """The module that DKMS has on disk for the running kernel is the one that is loaded."""
    running = require(node.modules.nvidia_version)
    kernel = require(node.system.kernel_release)
    on_disk = _dkms(node).get(kernel)
    if on_disk is None:
        raise NotApplicable(f"DKMS has built no driver for {kernel}: it comes in another package")
    if running not in on_disk:
        yield Problem(
            f"{running} is loaded, {', '.join(sorted(on_disk))} is on disk for {kernel}",
            "the version that is loaded, or a reboot at a time of your choice",
            now=("dkms status | grep nvidia", "head -1 /proc/driver/nvidia/version"),
        )


@node_rule
def driver_built_for_next_kernel(node: Node) -> Iterator[Problem]:
    """A newer kernel in /boot, which the next boot takes, has the driver as well."""
    built, kernel = _dkms(node), require(node.system.kernel_release)
    if kernel not in built:
        raise NotApplicable(f"DKMS has built no driver for {kernel}: it comes in another package")
    for release in newer_kernels(kernel, built, node.modules.kernels)[-1:]:
        yield Problem(
            f"{release} is in /boot, and DKMS has built the NVIDIA driver for {kernel} alone",
            f"the driver for {release} as well",
            now=(
                f"sudo dkms autoinstall -k {release}   # needs its headers: linux-headers-{release}",
                "dkms status | grep nvidia",
            ),
        )


def _workers_are_privileged(node: Node) -> bool:
    """Every running worker is root with the capabilities that map NIC doorbells without the option."""
    try:
        workers = node.processes.workers
        needed = 1 << CAP_SYS_RAWIO | 1 << CAP_SYS_ADMIN
        return bool(workers) and all(
            worker.uid == 0 and worker.cap_eff is not None and worker.cap_eff & needed == needed
            for worker in workers
        )
    except Unmeasured:
        return False


def ibgda_drop_in(modules: Modules) -> tuple[str, ...]:
    """Commands that write both options into a file of ours, keeping RegistryDwords entries that are there:
    the parameter is one string and the last `options` line wins."""
    try:
        written = modules.written_parameters("nvidia").get("NVreg_RegistryDwords", "")
    except Unmeasured:
        return ()
    entries = [entry.strip() for entry in written.strip('"').split(";")]
    kept = [
        e
        for e in entries
        if e.replace("=", "").isalnum() and not e.lower().startswith("peermappingoverride=")
    ]
    dwords = "".join(f"{entry};" for entry in kept)
    line = f'options nvidia NVreg_EnableStreamMemOPs=1 NVreg_RegistryDwords="{dwords}PeerMappingOverride=1;"'
    return (
        f"echo '{line}' | sudo tee /etc/modprobe.d/zz-epdoctor-nvidia.conf",
        "if command -v update-initramfs; then sudo update-initramfs -u; else sudo dracut --force; fi",
        "sudo reboot",
    )


@node_rule
def ibgda_options(node: Node, *, fallback_since: str) -> Iterator[Problem]:
    """EnableStreamMemOPs and PeerMappingOverride are live, or something else carries IBGDA.

    From NVSHMEM `fallback_since` on their absence is silently slower; before, it fails without gdrdrv."""
    modules = node.modules
    missing = [] if modules.stream_mem_ops else ["EnableStreamMemOPs=1"]
    root_note = ""
    if not modules.peer_mapping_override:
        if _workers_are_privileged(node):
            root_note = ""
        else:
            missing.append("PeerMappingOverride=1")
            root_note = " (PeerMappingOverride is not needed if the worker runs as root or privileged)"
    if not missing:
        return
    what = " and ".join(missing) + " not live" + root_note
    expected = "EnableStreamMemOPs: 1 and PeerMappingOverride=1 in /proc/driver/nvidia/params"
    params = require(modules.nvidia_params)
    evidence = tuple(f"{name}: {params.get(name, '')}" for name in ("EnableStreamMemOPs", "RegistryDwords"))
    permanent = ibgda_drop_in(modules)
    try:
        version = node.libraries.version_of("nvshmem")
        old = version_tuple(version) < version_tuple(fallback_since)
    except Unmeasured as reason:
        text = (
            f"{what}; NVSHMEM version unknown ({reason}): older than {fallback_since} fails, newer is slower"
        )
        yield Problem(text, expected, evidence, severity=Severity.WARNING, permanent=permanent)
        return
    if not old:
        text = f"{what}; NVSHMEM {version} falls back to the CPU and is silently slower"
        yield Problem(text, expected, evidence, severity=Severity.WARNING, permanent=permanent)
    elif gdrdrv_usable(node):
        text = f"{what}; NVSHMEM {version} goes through gdrdrv, with the CPU's help"
        yield Problem(text, expected, evidence, severity=Severity.WARNING, permanent=permanent)
    else:
        text = f"{what}; NVSHMEM {version} has no other way (gdrdrv is not usable)"
        yield Problem(text, expected, evidence, permanent=permanent)


def _same(written: str, live: str) -> bool:
    try:
        return int(written, 0) == int(live, 0)
    except ValueError:
        return written == live


@node_rule
def driver_options_live(node: Node) -> Iterator[Problem]:
    """What modprobe.d says for the nvidia module is what the loaded module runs with."""
    modules = node.modules
    written = modules.written_parameters("nvidia")
    params = require(modules.nvidia_params)
    stale = []
    for name, value in sorted(written.items()):
        live = params.get(name.removeprefix("NVreg_"))
        if not name.startswith("NVreg_") or live is None:
            continue
        if name == "NVreg_RegistryDwords":
            now = registry_dwords(live)
            entries = {entry.partition("=")[0].strip().lower(): entry.strip() for entry in value.split(";")}
            lost = [
                entries.get(key, key)
                for key, wanted in registry_dwords(value).items()
                if now.get(key) != wanted
            ]
            stale += [f"RegistryDwords {entry}" for entry in lost]
        elif not _same(value, live):
            stale.append(f"{name.removeprefix('NVreg_')}={value} (live: {live})")
    if stale:
        files = sorted({f"{line.path}:{line.line}" for line in modules.options_of("nvidia")})
        yield Problem(
            f"written but not live: {'; '.join(stale)}", "the options of modprobe.d are live", tuple(files)
        )


def _holds_all(values: list[str]) -> bool:
    """Whether the last RegistryDwords string has every entry of the earlier ones."""
    last = registry_dwords(values[-1])
    return len(values) > 1 and all(registry_dwords(value).items() <= last.items() for value in values[:-1])


@node_rule
def driver_options_written_once(node: Node) -> Iterator[Problem]:
    """No parameter of the nvidia module stands in two `options` lines: the last one wins, silently."""
    seen: dict[str, list[tuple[str, str]]] = {}
    for line in node.modules.options_of("nvidia"):
        for name, value in line.parameters.items():
            seen.setdefault(name, []).append((value, f"{line.path}:{line.line}"))
    for name, places in sorted(seen.items()):
        if len(places) < 2:
            continue
        values = list(dict.fromkeys(value for value, _ in places))
        where = tuple(f"{place} {name}={value}" for value, place in places)
        if name == "NVreg_RegistryDwords" and _holds_all(values):
            continue  # the last line, which wins, was merged from the others
        if len(values) > 1:
            found = f"{len(places)} times with different values; {values[-1]!r} wins"
            yield Problem(found, "once", where, subject=name)
        else:
            found = f"{len(places)} times with the same value"
            yield Problem(found, "once", where, severity=Severity.INFO, subject=name)
