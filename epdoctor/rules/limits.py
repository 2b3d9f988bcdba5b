"""Who may lock how much memory, open how many files, use how large a stack: each context by itself.

RDMA pins queues and buffers against RLIMIT_MEMLOCK. The kernel does not count for a process with
CAP_IPC_LOCK (drivers/infiniband/core/umem.c; mlock(2)).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from epdoctor.cluster import digest_functions
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.container import CAP_IPC_LOCK, has_capability
from epdoctor.facts.limits import LimitValue, limit_text, session_limit
from epdoctor.facts.processes import Process
from epdoctor.facts.system import version_numbers
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, node_rule

PENDING = "the unit sets LimitMEMLOCK=infinity: this process is older, or not started by it"
_NOT_COUNTED = "; not counted, it has CAP_IPC_LOCK"


def memlock_of(process: Process) -> int | None:
    """Soft locked-memory limit of a process in bytes, None = unlimited. Unmeasured where it is not there."""
    limit = process.limits.get("memlock")
    if limit is None:
        raise Unmeasured(f"/proc/{process.pid}/limits: not readable")
    return limit.soft


def unit_of(process: Process, default: str) -> str:
    """The systemd unit that a daemon runs in, from its cgroup: "k3s.service"."""
    words = [part for part in process.cgroup.replace("\n", "/").split("/") if part.endswith(".service")]
    name = words[-1] if words else f"{default}.service"
    # The name goes into commands that are pasted as root.
    plain = name.replace("-", "").replace(".", "").replace("_", "").replace("@", "")
    return name if plain.isalnum() and plain.isascii() else f"{default}.service"


def memlock_drop_in(unit: str) -> tuple[str, ...]:
    """Commands that give a unit an unlimited locked-memory limit, now and after a reboot."""
    folder = f"/etc/systemd/system/{unit}.d"
    return (
        f"sudo mkdir -p {folder}",
        f"printf '[Service]\\nLimitMEMLOCK=infinity\\n' | sudo tee {folder}/zz-epdoctor-memlock.conf",
        f"sudo systemctl daemon-reload && sudo systemctl restart {unit}",
    )


def _session_holds(node: Node, bit: int) -> bool:
    return has_capability(require(node.container.cap_eff), bit)


def workers_of(node: Node) -> tuple[Process, ...]:
    """vLLM's processes on the node."""
    return node.processes.workers


@node_rule
def memlock_session(node: Node) -> Iterator[Problem]:
    """This session (a login, or a Slurm step) may lock all memory. Skipped where better evidence exists."""
    if workers_of(node):
        raise NotApplicable("vLLM runs here: its own limits are judged by host.memlock-workers")
    if require(node.container.in_container):
        raise NotApplicable("In a container: judged by container.ipc-lock")
    soft, hard = session_limit(node.limits, "memlock")
    if soft is None:
        return
    counted = not _session_holds(node, CAP_IPC_LOCK)
    job = node.system.session_env.get("SLURM_JOB_ID", "")
    where = f"step of Slurm job {job}" if job else "login session"
    root = "" if counted else "; not counted for this user, who has CAP_IPC_LOCK"
    yield Problem(
        f"{limit_text(soft)} in this {where}{root}",
        "unlimited",
        (
            f"/proc/self/limits: Max locked memory {soft} {'unlimited' if hard is None else hard}",
            *node.limits.pam_lines[:5],
        ),
        severity=None if counted else Severity.INFO,
        now=() if hard is not None else ("ulimit -l unlimited",),
        subject=where,
    )


@node_rule
def memlock_workers(node: Node) -> Iterator[Problem]:
    """Every running vLLM process may lock all memory."""
    workers = workers_of(node)
    if not workers:
        raise NotApplicable("No vLLM process runs here")
    low: dict[tuple[int, bool], list[Process]] = {}
    unread = []
    for worker in workers:
        try:
            soft = memlock_of(worker)
        except Unmeasured as reason:
            unread.append(reason)
            continue
        if soft is not None:
            free = worker.cap_eff is not None and has_capability(worker.cap_eff, CAP_IPC_LOCK)
            low.setdefault((soft, free), []).append(worker)
    for (soft, free), group in sorted(low.items()):
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        yield Problem(
            f"{limit_text(soft)} in {group[0].name}{more}" + (_NOT_COUNTED if free else ""),
            "unlimited, or CAP_IPC_LOCK",
            tuple(f"/proc/{worker.pid}/limits: Max locked memory {soft}" for worker in group[:8]),
            severity=Severity.INFO if free else None,
            now=() if free else tuple(f"sudo prlimit --memlock=unlimited --pid {w.pid}" for w in group[:8]),
            subject=group[0].name,
        )
    if unread and not low:
        raise unread[0]


def _runtimes(node: Node) -> dict[str, Process]:
    """Unit name -> the process whose limit a container inherits.

    limits do not reach it. The default-ulimits of Docker and CRI-O come before what is inherited."""
    daemons, limits = node.processes.daemons, node.limits
    found = {}
    if "containerd" in daemons:
        for_docker_only = "dockerd" in daemons and "kubelet" not in daemons
        default = limits.docker_default_memlock
        if not (for_docker_only and default is not None and default.pair[0] is None):
            found["containerd"] = daemons["containerd"]
    elif "dockerd" in daemons:
        found["docker"] = daemons["dockerd"]
    if "crio" in daemons:
        default = limits.crio_default_memlock
        if default is None or default.pair[0] is not None:
            found["crio"] = daemons["crio"]
    return found


def low_memlock(process: Process, soft: int, unit: str, written: LimitValue | None) -> Problem:
    """A daemon hands a limit of `soft` bytes on; `written` is what its unit's files say."""
    pending = written is not None and written.pair[0] is None
    note = f" ({PENDING})" if pending else ""
    return Problem(
        f"{limit_text(soft)} in {unit}{note}",
        "unlimited",
        (
            f"/proc/{process.pid}/limits of {process.comm}: Max locked memory {soft}",
            written.source if written else f"{unit}: no LimitMEMLOCK",
        ),
        now=memlock_drop_in(unit)[-1:] if pending else memlock_drop_in(unit),
        permanent=memlock_drop_in(unit)[:-1],
        subject=unit,
    )


@node_rule
def memlock_runtimes(node: Node) -> Iterator[Problem]:
    """Container runtimes hand an unlimited locked-memory limit to the containers that ask for none."""
    if not {"containerd", "dockerd", "crio"} & set(node.processes.daemons):
        raise NotApplicable("No container runtime runs here")
    for name, process in sorted(_runtimes(node).items()):
        soft = memlock_of(process)
        if soft is None:
            continue
        unit = unit_of(process, name)
        written = node.limits.units.get(unit.removesuffix(".service"))
        yield low_memlock(process, soft, unit, written)


@node_rule
def memlock_daemon(node: Node, *, comm: str) -> Iterator[Problem]:
    """A daemon that starts vLLM's workers as its children (raylet) has an unlimited limit to hand down."""
    process = node.processes.daemons.get(comm)
    if process is None:
        raise NotApplicable(f"{comm} does not run here")
    soft = memlock_of(process)
    if soft is None:
        return
    free = process.cap_eff is not None and has_capability(process.cap_eff, CAP_IPC_LOCK)
    yield Problem(
        f"{limit_text(soft)} in {comm} (pid {process.pid})" + (_NOT_COUNTED if free else ""),
        "unlimited",
        (f"/proc/{process.pid}/limits: Max locked memory {soft}",),
        severity=Severity.INFO if free else None,
        now=(f"sudo prlimit --memlock=unlimited --pid {process.pid}",),
        subject=comm,
    )


def _own_limits(node: Node, name: str) -> Mapping[str, tuple[int | None, int | None]]:
    """Context -> (soft, hard): the running vLLM processes, else this session."""
    workers = workers_of(node)
    if not workers:
        return {"this session": session_limit(node.limits, name)}
    found = {}
    for worker in workers:
        limit = worker.limits.get(name)
        if limit is not None:
            found[worker.name] = (limit.soft, limit.hard)
    if not found:
        raise Unmeasured(f"/proc/{workers[0].pid}/limits: not readable")
    return found


@node_rule
def nofile_at_least(node: Node, *, minimum: int) -> Iterator[Problem]:
    """Processes may open enough files (soft limit)."""
    low: dict[tuple[int, int | None], list[str]] = {}
    for where, (soft, hard) in _own_limits(node, "nofile").items():
        if soft is not None and soft < minimum:
            low.setdefault((soft, hard), []).append(where)
    for (soft, hard), places in low.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        most = "unlimited" if hard is None else str(hard)
        raisable = places == ["this session"] and (hard is None or hard >= minimum)
        yield Problem(
            f"{soft} open files in {places[0]}{more} (hard limit {most})",
            f"at least {minimum}",
            tuple(f"{where}: Max open files {soft} {most}" for where in places[:8]),
            now=(f"ulimit -n {minimum}",) if raisable else (),
            subject=places[0],
        )


@node_rule
def stack_is_limited(node: Node, *, nccl_below: str) -> Iterator[Problem]:
    """The stack limit is finite where NCCL is too old to bear an unlimited one."""
    unlimited = [where for where, (soft, _) in _own_limits(node, "stack").items() if soft is None]
    if not unlimited:
        return
    version = digest_functions()["lib.nccl"](node)
    numbers = version_numbers(str(version or ""), 2)
    if not numbers:
        raise Unmeasured("NCCL's version is not known, and the stack limit is unlimited")
    if numbers < version_numbers(nccl_below, 2):
        yield Problem(
            f"stack unlimited in {unlimited[0]} with NCCL {version}",
            f"a finite stack limit (8 MiB is usual), or NCCL {nccl_below}",
            tuple(f"Max stack size unlimited: {where}" for where in unlimited[:8]),
            subject=unlimited[0],
        )
