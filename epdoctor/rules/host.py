"""Kernel settings, /dev/shm, CPU and login settings of the host."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.container import CAP_SYS_PTRACE, has_capability
from epdoctor.facts.limits import limit_text
from epdoctor.facts.shm import SHM
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.limits import workers_of

_MIB = 1 << 20


@node_rule
def shm_at_least(node: Node, *, minimum_mib: int, stops_up_to_mib: int) -> Iterator[Problem]:
    """The mount is large enough: up to `stops_up_to_mib` nothing starts, below the minimum it is tight."""
    total = require(node.shm.total_bytes)
    if total < minimum_mib * _MIB:
        yield Problem(
            f"{SHM} has {limit_text(total)}",
            f"at least {limit_text(minimum_mib * _MIB)}",
            (f"statvfs {SHM}: total {total} bytes",),
            severity=None if total <= stops_up_to_mib * _MIB else Severity.WARNING,
            subject=SHM,
        )


@node_rule
def shm_has_space(node: Node, *, minimum_mib: int) -> Iterator[Problem]:
    """There is room left in /dev/shm, whatever fills it."""
    total, available = require(node.shm.total_bytes), require(node.shm.available_bytes)
    wanted = min(minimum_mib * _MIB, total // 2)
    if available < wanted:
        segments = node.shm.segments
        listed = () if isinstance(segments, Exception) else segments[:8]
        yield Problem(
            f"{SHM} has {limit_text(available)} free of {limit_text(total)}",
            f"at least {limit_text(wanted)} free",
            tuple(f"{SHM}/{segment.name}: {limit_text(segment.size_bytes)}" for segment in listed),
            subject=SHM,
        )


@node_rule
def shm_without_leftovers(node: Node, *, older_than_s: int) -> Iterator[Problem]:
    """No NCCL or vLLM segment lies in /dev/shm from a process that is gone."""
    if workers_of(node):
        raise NotApplicable("vLLM runs here: its segments are in use")
    old = [
        segment
        for segment in require(node.shm.segments)
        if segment.age_seconds >= older_than_s and segment.name.startswith(("nccl-", "vllm"))
    ]
    if old:
        size = sum(segment.size_bytes for segment in old)
        yield Problem(
            f"{len(old)} segments of NCCL or vLLM, {limit_text(size)}, and no vLLM process",
            "none",
            tuple(
                f"{SHM}/{s.name}: {limit_text(s.size_bytes)}, {s.age_seconds // 60} min old" for s in old[:20]
            ),
            subject=SHM,
        )


@node_rule
def ptrace_between_peers(node: Node) -> Iterator[Problem]:
    """Yama lets one worker take a file descriptor of its sibling (pidfd_getfd needs ptrace access)."""
    scope = node.system.sysctl("kernel.yama.ptrace_scope")
    if scope is None or scope == 0:
        return
    workers = workers_of(node)
    masks = [worker.cap_eff for worker in workers if worker.cap_eff is not None]
    severity = None
    note = ""
    if scope < 3:
        if masks and all(has_capability(mask, CAP_SYS_PTRACE) for mask in masks):
            return
        if not masks and has_capability(require(node.container.cap_eff), CAP_SYS_PTRACE):
            # Whoever serves vLLM may not be whom we came as; root itself is let through.
            severity, note = Severity.INFO, "; root and others with CAP_SYS_PTRACE are let through"
    yield Problem(
        f"kernel.yama.ptrace_scope = {scope}{note}",
        "0, or workers with CAP_SYS_PTRACE",
        (f"/proc/sys/kernel/yama/ptrace_scope: {scope}",),
        severity=severity,
        subject="kernel.yama.ptrace_scope",
    )


@node_rule
def numa_balancing_off(node: Node) -> Iterator[Problem]:
    """Automatic NUMA balancing is off where there is more than one NUMA node."""
    value = node.system.sysctl("kernel.numa_balancing")
    if value is None:
        raise NotApplicable("This kernel has no NUMA balancing")
    if value == 0:
        return
    nodes = require(node.system.numa_nodes)
    if nodes < 2:
        raise NotApplicable("One NUMA node")
    yield Problem(
        f"kernel.numa_balancing = {value} on {nodes} NUMA nodes", "0", subject="kernel.numa_balancing"
    )


@node_rule
def governor_is(node: Node, *, governor: str) -> Iterator[Problem]:
    """The CPU frequency governor; skipped where the kernel scales no frequency (most VMs)."""
    governors = node.system.governors
    if not governors:
        raise NotApplicable("The kernel scales no CPU frequency here")
    others = sorted({name for name in governors if name != governor})
    if others:
        yield Problem(f"governor {', '.join(others)[:60]}", governor, subject="cpufreq")


@node_rule
def remove_ipc_off(node: Node) -> Iterator[Problem]:
    """logind leaves a user's shared memory alone when the last session of that user ends."""
    value = require(node.system.remove_ipc)
    if value is None:
        raise NotApplicable("No logind here")
    if value:
        yield Problem("RemoveIPC=yes", "RemoveIPC=no", subject="logind.conf")
