"""NVIDIA Fabric Manager and NVLSM, which bring up NVSwitches: the versions that are installed.

dpkg is asked where /usr/bin/nv-fabricmanager is there; where there is no dpkg (RHEL, SLES) or it has no such package,
the program itself says its version. rpm is not asked: as root it may write lock and journal files beside its database.
Sources: NVIDIA Fabric Manager user guide (Fabric Manager takes the driver's exact version; NVLSM beside it from the
fourth NVSwitch generation on, in /opt/nvidia/nvlsm), dpkg-query(1); output of `nv-fabricmanager --version` as public
logs of drivers 450 to 610 show it.
"""

from __future__ import annotations

from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Command, Probe, Source, Stat

BINARY = "/usr/bin/nv-fabricmanager"
NVLSM = "/opt/nvidia/nvlsm/sbin/nvlsm"
_DPKG, _ASKED, _FILES = "fabric_manager.dpkg", "fabric_manager.version", "fabric_manager.files"
_MANAGER = ("nvidia-fabricmanager", "nvidia-fabric-manager")
_SAYS = "Fabric Manager version is :"


@dataclass(frozen=True)
class FabricManager:
    version: str
    """Of what is installed, "580.159.04"; "" where Fabric Manager is not."""
    package: str
    """ "nvidia-fabricmanager-580"; the upstream name where the program itself told its version."""
    nvlsm: str
    """Version of the package nvlsm, or its program's path; "" where it is not installed."""
    asked: bool = True
    """Whether anybody could be asked; False: a recording from before the program was asked itself."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    """The package database is read; `--version` prints one line and ends."""
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
        Command(_ASKED, only_if_exists=BINARY, unless_ok=_DPKG, argv=(BINARY, "--version"), max_bytes=4096),
        Stat(_FILES, globs=(NVLSM,)),
    )  # fmt: skip


def _upstream(version: str) -> str:
    """ "1:580.95.05-0ubuntu1" -> "580.95.05"."""
    return version.rpartition(":")[2].partition("-")[0][:40]


def _own_word(source: Source) -> str:
    """What the program says of itself. Raises Unmeasured where it says nothing known."""
    for line in source.command(_ASKED).stdout.splitlines()[:20]:
        told = line.strip().partition(_SAYS)[2].split()
        if told and told[0][:1].isdecimal():
            return told[0][:40]
    raise Unmeasured(f"{BINARY} --version: no version in what it says")


def _nvlsm_file(source: Source) -> str:
    if source.status(_FILES) == "absent":
        return ""
    return NVLSM if NVLSM in source.stats(_FILES) else ""


def parse(source: Source) -> FabricManager:
    """Raises Unmeasured where the program is there and neither dpkg nor the program tells its version."""
    if source.status(_DPKG) in ("skipped", "absent"):
        return FabricManager("", "", "")
    version = package = nvlsm = ""
    known = source.status(_DPKG) != "not-found"
    for line in source.command(_DPKG).stdout.splitlines()[:50] if known else ():
        words = line.split()
        if len(words) != 3 or not words[0].startswith("ii"):
            continue
        if words[1] == "nvlsm":
            nvlsm = _upstream(words[2])
        elif words[1].startswith(_MANAGER) and "dev" not in words[1]:
            package, version = words[1][:60], _upstream(words[2])
    if not version and source.status(_ASKED) == "absent":
        if not known:
            return FabricManager("", "", "", asked=False)
        raise Unmeasured(f"{BINARY} is there, and dpkg has no package of it: installed by hand")
    return FabricManager(version or _own_word(source), package or _MANAGER[0], nvlsm or _nvlsm_file(source))
