"""NVIDIA Fabric Manager and NVLSM, which bring up NVSwitches: the versions that are installed.

Asked of the package manager, and only where /usr/bin/nv-fabricmanager is there. Sources: NVIDIA Fabric Manager user
guide (Fabric Manager takes the driver's exact version; NVLSM beside it from the fourth NVSwitch generation on),
dpkg-query(1), rpm(8).
"""

from __future__ import annotations

from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Command, Probe, Source

BINARY = "/usr/bin/nv-fabricmanager"
_DPKG, _RPM = "fabric_manager.dpkg", "fabric_manager.rpm"
_MANAGER = ("nvidia-fabricmanager", "nvidia-fabric-manager")


@dataclass(frozen=True)
class FabricManager:
    version: str
    """Of its package, "580.159.04"; "" where Fabric Manager is not installed."""
    package: str
    """ "nvidia-fabricmanager-580"."""
    nvlsm: str
    """Version of the package nvlsm; "" where it is not installed."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    """Both only read the package database."""
    del options
    return (
        Command(
            _DPKG,
            only_if_exists=BINARY,
            argv=(
                "dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\\n",
                "nvidia-fabricmanager*", "nvlsm",
            ),
        ),
        Command(
            _RPM,
            only_if_exists=BINARY,
            argv=("rpm", "-q", "--qf", "ii %{NAME} %{VERSION}\\n", *_MANAGER, "nvlsm"),
        ),
    )  # fmt: skip


def _upstream(version: str) -> str:
    """ "1:580.95.05-0ubuntu1" -> "580.95.05"."""
    return version.rpartition(":")[2].partition("-")[0][:40]


def parse(source: Source) -> FabricManager:
    """Raises Unmeasured where the program is there and no package manager knows it."""
    states = {source.status(_DPKG), source.status(_RPM)}
    if states <= {"skipped", "absent"}:
        return FabricManager("", "", "")
    version = package = nvlsm = ""
    for name in (_DPKG, _RPM):
        if source.status(name) != "ran":
            continue
        for line in source.command(name).stdout.splitlines()[:50]:
            words = line.split()
            if len(words) != 3 or not words[0].startswith("ii"):
                continue
            if words[1] == "nvlsm":
                nvlsm = _upstream(words[2])
            elif words[1].startswith(_MANAGER) and "dev" not in words[1]:
                package, version = words[1][:60], _upstream(words[2])
    if not version:
        for name in (_DPKG, _RPM):
            if source.status(name) in ("timeout", "stuck", "denied"):
                source.command(name)
        raise Unmeasured(f"{BINARY} is there, and no package of it: installed by hand")
    return FabricManager(version, package, nvlsm)
