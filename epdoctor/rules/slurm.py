"""Slurm: what a job step inherits on this node, and what it is kept away from."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.limits import limit_text, session_limit
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, need, node_rule
from epdoctor.rules.limits import low_memlock, memlock_of, unit_of


@need("slurm")
def has_slurm(node: Node) -> bool:
    """No Slurm on this node"""
    slurm = node.slurm
    return bool(slurm.config_path or slurm.config_error or slurm.job_id or "slurmd" in node.processes.daemons)


def _config(node: Node) -> dict[str, str]:
    slurm = node.slurm
    if not slurm.config_path:
        raise Unmeasured(slurm.config_error or "slurm.conf: not in the usual places")
    return slurm.config


@node_rule
def slurm_memlock(node: Node) -> Iterator[Problem]:
    """A job step may lock all memory: slurmd may, and no lower limit is carried over from a login shell.

    slurm.conf(5): propagated limits cannot exceed slurmd's hard limits; limits that are not propagated are
    slurmd's own."""
    slurmd = node.processes.daemons.get("slurmd")
    if slurmd is None:
        raise NotApplicable("slurmd does not run here")
    soft = memlock_of(slurmd)
    unit = unit_of(slurmd, "slurmd")
    if soft is not None:
        yield low_memlock(slurmd, soft, unit, node.limits.units.get("slurmd"))
        return
    _config(node)
    if not node.slurm.propagates_memlock():
        return
    here, _ = session_limit(node.limits, "memlock")
    if here is not None and not node.slurm.job_id:
        yield Problem(
            f"jobs take the submitting shell's limit, and a login here has {limit_text(here)}",
            "PropagateResourceLimitsExcept=MEMLOCK, or unlimited logins",
            (f"{node.slurm.config_path}: PropagateResourceLimits is not set to leave MEMLOCK out",),
            severity=Severity.WARNING,
            now=("srun --propagate=NONE -N1 bash -c 'ulimit -l'",),
            subject="PropagateResourceLimits",
        )


@node_rule
def slurm_constrains_devices(node: Node) -> Iterator[Problem]:
    """Jobs see only the GPUs that they were given: ConstrainDevices=yes in cgroup.conf (default no)."""
    config = _config(node)
    if not node.slurm.gpu_gres:
        raise NotApplicable("Slurm hands out no GPUs here")
    cgroup = node.slurm.cgroup
    value = (cgroup or {}).get("constraindevices", "no")
    if value.lower() != "yes":
        yield Problem(
            f"ConstrainDevices={value}" + ("" if cgroup is not None else " (no cgroup.conf)"),
            "ConstrainDevices=yes",
            (f"{node.slurm.config_path}: GresTypes={config.get('grestypes', '')}",),
            subject="cgroup.conf",
        )


@node_rule
def slurm_tracks_by_cgroup(node: Node) -> Iterator[Problem]:
    """ProctrackType=proctrack/cgroup: nothing of a job outlives it on the GPUs."""
    value = _config(node).get("proctracktype", "")
    if not value:
        if node.slurm.includes:
            raise Unmeasured(f"ProctrackType may be set in an included file: {node.slurm.includes[0]}")
        return
    if value.lower() != "proctrack/cgroup":
        yield Problem(
            f"ProctrackType={value}", "proctrack/cgroup", (node.slurm.config_path,), subject="slurm.conf"
        )
