"""Kernel modules: loaded ones, their parameters and versions, modprobe.d, modules-load.d, the NVIDIA driver.

Sources: proc(5), modprobe.d(5), modules-load.d(5); /proc/driver/nvidia/params and version as recorded on
driver 580.159.04 (tests/records/raw/gpu/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, FileSet, Probe, Source, Stat, require
from epdoctor.facts.dkms import BUILT, KERNELS, built_drivers
from epdoctor.facts.modprobe import ModuleOptions, parse_load, parse_options, registry_dwords

if TYPE_CHECKING:
    from epdoctor.facts import Node

VERSION = "/proc/driver/nvidia/version"
PARAMS = "/proc/driver/nvidia/params"

_WATCHED = (
    "nvidia", "nvidia_uvm", "nvidia_peermem", "nv_peer_mem", "gdrdrv", "ib_core", "ib_uverbs", "ib_umad",
    "mlx5_core", "mlx5_ib", "rdma_cm", "nouveau",
)  # fmt: skip


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    """Files of /proc, /sys and /etc; no lsmod, no modinfo, no modprobe."""
    del options
    return (
        Files(name="modules.loaded", globs=("/proc/modules",), max_file_bytes=262144),
        Files(
            name="modules.sysfs",
            globs=(
                "/sys/module/nvidia*/version",
                "/sys/module/gdrdrv/version",
                "/sys/module/nv_peer_mem/version",
                "/sys/module/ib_*/version",
                "/sys/module/mlx5_*/version",
                *(f"/sys/module/{name}/initstate" for name in _WATCHED),
                *(f"/sys/module/{name}/refcnt" for name in _WATCHED),
                # A built-in module has no initstate, but its parameters stand in sysfs.
                "/sys/module/mlx5_core/parameters/*",
                "/sys/module/ib_core/parameters/*",
                "/sys/module/gdrdrv/parameters/*",
                "/sys/module/nvidia_peermem/parameters/*",
                "/sys/kernel/mm/memory_peers/*/version",
            ),
            max_file_bytes=4096,
        ),
        Files(
            name="modules.modprobe",
            globs=(
                "/etc/modprobe.d/*.conf",
                "/run/modprobe.d/*.conf",
                "/usr/local/lib/modprobe.d/*.conf",
                "/usr/lib/modprobe.d/*.conf",
                "/lib/modprobe.d/*.conf",
            ),
        ),
        Files(
            name="modules.load",
            globs=(
                "/etc/modules",
                "/etc/modules-load.d/*.conf",
                "/run/modules-load.d/*.conf",
                "/usr/local/lib/modules-load.d/*.conf",
                "/usr/lib/modules-load.d/*.conf",
            ),
        ),
        Stat(name="modules.dkms", globs=(BUILT, KERNELS)),
        Files(name="modules.nvidia", globs=(VERSION, PARAMS, "/proc/driver/gdrdrv/params")),
    )


@dataclass(frozen=True)
class Modules:
    """What the kernel has loaded and what the next boot will load."""

    loaded: Mapping[str, int]
    """Names in /proc/modules (underscores, as the kernel has them) -> size in bytes."""
    present: frozenset[str]
    """Loaded or built in, as far as /sys/module tells of the names that epdoctor watches."""
    versions: Mapping[str, str]
    """/sys/module/<name>/version; a module without a version is not in here."""
    parameters: Mapping[str, Mapping[str, str]]
    """/sys/module/<name>/parameters: module -> parameter -> value."""
    memory_peers: tuple[str, ...]
    """Directories of /sys/kernel/mm/memory_peers that have a version (nv_mem, nvidia-peermem)."""
    options: tuple[ModuleOptions, ...] | Unmeasured
    """`options` lines of modprobe.d in the order in which modprobe reads them."""
    load_at_boot: Mapping[str, str] | Unmeasured
    """Module -> the modules-load.d file that names it."""
    nvidia_version: str | Unmeasured
    """Version of the loaded kernel module, "580.159.04"."""
    nvidia_flavour: str | Unmeasured
    """open | proprietary, from /proc/driver/nvidia/version ("Open Kernel Module")."""
    nvidia_params: Mapping[str, str] | Unmeasured
    """/proc/driver/nvidia/params: what is live."""
    driver_loaded: bool
    """/proc/driver/nvidia/version exists."""
    dkms: Mapping[str, frozenset[str]] | Unmeasured
    """Kernel release -> NVIDIA driver versions that DKMS has built for it; empty without DKMS."""
    kernels: tuple[str, ...] = ()
    """Releases of the kernels in /boot."""

    def has(self, name: str) -> bool:
        """Whether a module is loaded or built in. `nvidia-peermem` and `nvidia_peermem` are the same."""
        return name.replace("-", "_") in self.present

    @property
    def nvidia_version_tuple(self) -> tuple[int, ...]:
        """(580, 159, 4). Unmeasured where the driver is not loaded or the text is not a version."""
        words = require(self.nvidia_version).split(".")
        if not words or not all(word.isdigit() and len(word) < 9 for word in words):
            raise Unmeasured(f"{VERSION}: no version in it")
        return tuple(int(word) for word in words)

    @property
    def stream_mem_ops(self) -> bool:
        """EnableStreamMemOPs is live."""
        return require(self.nvidia_params).get("EnableStreamMemOPs", "0").strip() == "1"

    @property
    def peer_mapping_override(self) -> bool:
        """PeerMappingOverride=1 is live (an entry of RegistryDwords, or of RegistryDwordsPerDevice)."""
        params = require(self.nvidia_params)
        texts = (params.get("RegistryDwords", ""), params.get("RegistryDwordsPerDevice", ""))
        return any(registry_dwords(text).get("peermappingoverride") == "1" for text in texts)

    def options_of(self, module: str) -> tuple[ModuleOptions, ...]:
        """The `options` lines of one module. Unmeasured where modprobe.d was not read."""
        wanted = module.replace("-", "_")
        return tuple(line for line in require(self.options) if line.module == wanted)

    def written_parameters(self, module: str) -> dict[str, str]:
        """Parameters as modprobe merges them: a later line wins for the same parameter."""
        merged: dict[str, str] = {}
        for line in self.options_of(module):
            merged.update(line.parameters)
        return merged


def _loaded(texts: FileSet) -> dict[str, int]:
    found = {}
    for line in texts.require("/proc/modules").splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit() and len(words[1]) < 19:
            found[words[0]] = int(words[1])
    return found


def parse_nvidia_version(text: str) -> tuple[str, str]:
    """(version, flavour) of /proc/driver/nvidia/version.

    Open: "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build". Proprietary:
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb ..." Raises Unmeasured otherwise.
    """
    first = next((line for line in text.splitlines() if line.startswith("NVRM version:")), "")
    for word in first.split():
        parts = word.split(".")
        if len(parts) >= 2 and all(part.isdigit() and len(part) < 9 for part in parts):
            return word, "open" if "Open Kernel Module" in first else "proprietary"
    raise Unmeasured(f"{VERSION}: not in a known form")


def parse_params(text: str) -> dict[str, str]:
    """Name: value lines; quotes around a value are taken off."""
    found = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip():
            found[name.strip()] = value.strip().strip('"')
    return found


def _or_unmeasured(source: Source, name: str, read: Callable[[FileSet], Any]) -> Any:
    try:
        return read(source.files(name))
    except Unmeasured as reason:
        return reason


def parse(source: Source) -> Modules:
    """Unmeasured where /proc/modules could not be read; everything else may be missing by itself.

    A kernel built without module support has no /proc/modules at all: then nothing is loaded, and what is
    built in stands in /sys/module."""
    texts = source.files("modules.loaded")
    loaded = _loaded(texts) if "/proc/modules" in texts or texts.errors else {}
    try:
        sysfs: Mapping[str, str] = source.files("modules.sysfs")
    except Unmeasured:
        if "/proc/modules" not in texts:
            raise
        sysfs = {}
    versions: dict[str, str] = {}
    parameters: dict[str, dict[str, str]] = {}
    present = set(loaded)
    peers = []
    for path, text in sysfs.items():
        words = path.split("/")
        if path.startswith("/sys/module/") and len(words) >= 5:
            present.add(words[3])
            if words[4] == "version":
                versions[words[3]] = text.strip()[:64]
            elif words[4] == "parameters" and len(words) == 6:
                parameters.setdefault(words[3], {})[words[5]] = text.strip()[:256]
        elif path.startswith("/sys/kernel/mm/memory_peers/") and len(words) == 7:
            peers.append(words[5])
    driver = source.files("modules.nvidia")
    version: str | Unmeasured
    flavour: str | Unmeasured
    try:
        version, flavour = parse_nvidia_version(driver.require(VERSION))
    except Unmeasured as reason:
        version = flavour = reason
    params: Mapping[str, str] | Unmeasured
    try:
        params = parse_params(driver.require(PARAMS))
    except Unmeasured as reason:
        params = reason
    dkms: Mapping[str, frozenset[str]] | Unmeasured
    kernels: tuple[str, ...] = ()
    try:
        there = source.stats("modules.dkms")
        dkms = built_drivers(there)
        prefix = KERNELS.rstrip("*")
        kernels = tuple(sorted(path[len(prefix) :][:100] for path in there if path.startswith(prefix)))
    except Unmeasured as reason:
        dkms = reason
    return Modules(
        loaded=loaded,
        present=frozenset(present),
        versions=versions,
        parameters=parameters,
        memory_peers=tuple(sorted(peers)),
        options=_or_unmeasured(source, "modules.modprobe", parse_options),
        load_at_boot=_or_unmeasured(source, "modules.load", parse_load),
        nvidia_version=version,
        nvidia_flavour=flavour,
        nvidia_params=params,
        driver_loaded=VERSION in driver or VERSION in driver.errors,
        dkms=dkms,
        kernels=kernels,
    )


def _flavour(node: Node) -> str | None:
    return require(node.modules.nvidia_flavour) if node.modules.driver_loaded else None


def _ibgda_options(node: Node) -> str | None:
    modules = node.modules
    if not modules.driver_loaded:
        return None
    override = int(modules.peer_mapping_override)
    return f"EnableStreamMemOPs={int(modules.stream_mem_ops)} PeerMappingOverride={override}"


DIGEST: dict[str, Callable[[Node], Any]] = {
    "modules.nvidia-flavour": _flavour,
    "modules.parameters": _ibgda_options,
}
