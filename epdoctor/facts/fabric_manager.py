"""NVIDIA Fabric Manager and NVLSM, which bring up NVSwitches: the versions that are installed.

Asked of dpkg, and only where /usr/bin/nv-fabricmanager is there. rpm is not asked: as root it may write lock and
journal files beside its database. Sources: NVIDIA Fabric Manager user
guide (Fabric Manager takes the driver's exact version; NVLSM beside it from the fourth NVSwitch generation on),
dpkg-query(1).
"""

from __future__ import annotations

from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Command, Probe, Source

BINARY = "/usr/bin/nv-fabricmanager"
_DPKG = "fabric_manager.dpkg"
_MANAGER = ("nvidia-fabricmanager", "nvidia-fabric-manager")


@dataclass(frozen=True)
class FabricManager:
    version: str
    """Of its package, "580.159.04"; "" where Fabric Manager is not installed."""
    package: str
    """ "nvidia-fabricmanager-580"."""
    nvlsm: str
    """Version of the package nvlsm; "" where it is not installed."""
    asked: bool = True
    """Whether there was a dpkg to ask; without one nothing is known, and no check waits for it."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    """It only reads the package database."""
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
    )  # fmt: skip


def _upstream(version: str) -> str:
    """ "1:580.95.05-0ubuntu1" -> "580.95.05"."""
    return version.rpartition(":")[2].partition("-")[0][:40]


def parse(source: Source) -> FabricManager:
    """Raises Unmeasured where the program is there and no package manager knows it."""
    if source.status(_DPKG) in ("skipped", "absent"):
        return FabricManager("", "", "")
    if source.status(_DPKG) == "not-found":
        return FabricManager("", "", "", asked=False)
    version = package = nvlsm = ""
    for line in source.command(_DPKG).stdout.splitlines()[:50]:
        words = line.split()
        if len(words) != 3 or not words[0].startswith("ii"):
            continue
        if words[1] == "nvlsm":
            nvlsm = _upstream(words[2])
        elif words[1].startswith(_MANAGER) and "dev" not in words[1]:
            package, version = words[1][:60], _upstream(words[2])
    if not version:
        raise Unmeasured(f"{BINARY} is there, and dpkg has no package of it: installed by hand")
    return FabricManager(version, package, nvlsm)
