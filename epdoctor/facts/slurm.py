"""Slurm on this node: slurm.conf, cgroup.conf, gres.conf and the job that this session is in.

Sources: slurm.conf(5), cgroup.conf(5), gres.conf(5) of Slurm 22.05 and later.
"""

from __future__ import annotations

from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, FileSet, Probe, Source

_FOLDERS = ("/etc/slurm-llnl", "/etc/slurm", "/opt/slurm/etc", "/run/slurm/conf")
"""Debian's old place, the usual ones, and where slurmd keeps what it fetched ("configless")."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Files(
            "slurm.files",
            globs=tuple(
                f"{folder}/{name}.conf" for folder in _FOLDERS for name in ("slurm", "cgroup", "gres")
            ),
            timeout_s=5.0,
        ),
    )


@dataclass(frozen=True)
class Slurm:
    config_path: str
    """slurm.conf that was read; empty: none on this node."""
    config: dict[str, str]
    """Settings of slurm.conf by lower-case name; Include lines are not followed."""
    config_error: str
    """Why slurm.conf could not be read though it is there."""
    cgroup: dict[str, str] | None
    """Settings of cgroup.conf by lower-case name; None: no such file."""
    gpu_gres: bool
    """GPUs are declared to Slurm (GresTypes or gres.conf)."""
    includes: tuple[str, ...]
    """Include lines of slurm.conf: their settings are not seen."""
    job_id: str
    """SLURM_JOB_ID of this session; empty: not in a job."""
    job_nodes: str
    """SLURM_JOB_NODELIST."""

    def propagates_memlock(self) -> bool:
        """Whether jobs take the locked-memory limit of the shell that submitted them: all limits are
        propagated unless PropagateResourceLimits or ...Except says otherwise (slurm.conf(5))."""
        if "propagateresourcelimits" in self.config:
            names = self.config["propagateresourcelimits"].upper().split(",")
            return "ALL" in names or "MEMLOCK" in names
        return "MEMLOCK" not in self.config.get("propagateresourcelimitsexcept", "").upper().split(",")


def settings(text: str) -> dict[str, str]:
    """Top-level NAME=VALUE lines by lower-case name; comments and node or partition lines left out."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("#")[0].strip().partition("=")
        if equals and name.strip():
            found[name.strip().lower()] = value.strip()
    return found


def _pick(files: FileSet, name: str) -> str:
    return next(
        (path for path in reversed([f"{folder}/{name}.conf" for folder in _FOLDERS]) if path in files), ""
    )


def parse(source: Source) -> Slurm:
    """Facts of `slurm.files` and of the session's variables; Unmeasured if the files were not looked for."""
    files = source.files("slurm.files")
    path, cgroup, gres = _pick(files, "slurm"), _pick(files, "cgroup"), _pick(files, "gres")
    error = ""
    if not path:
        unread = [name for name in files.errors if name.endswith("/slurm.conf")]
        error = f"{unread[0]}: {files.errors[unread[0]]}" if unread else ""
    config = settings(files.get(path, "")) if path else {}
    try:
        env = source.values("system.session").get("env")
    except Unmeasured:
        env = None
    if not isinstance(env, dict):
        env = {}
    return Slurm(
        config_path=path,
        config=config,
        config_error=error,
        cgroup=settings(files[cgroup]) if cgroup else None,
        gpu_gres="gpu" in config.get("grestypes", "").lower() or "name=gpu" in files.get(gres, "").lower(),
        includes=tuple(
            line.split(None, 1)[1].strip()[:200]
            for line in files.get(path, "").splitlines()
            if line.lower().startswith("include ") and len(line.split(None, 1)) == 2
        ),
        job_id=str(env.get("SLURM_JOB_ID", "")),
        job_nodes=str(env.get("SLURM_JOB_NODELIST", "")),
    )
