"""What the host has and the container lacks. Pure: two nodes' facts in, rows of one table out.

A container starts with less than its host: no locked memory, no RDMA devices, 64 MiB of /dev/shm, its own network.
Each row says what both have, whether the container lacks something that expert-parallel serving needs, and the
option that gives it. What the host has not itself is the host's fault, and `epdoctor check` is for that.
Sources: docker-run(1), podman-run(1), capabilities(7), moby's profiles/seccomp/default.json, NVIDIA Container
Toolkit documentation; vLLM 0.33.0 docs/serving/expert_parallel_deployment.md (memlock, privileged, hostNetwork).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.container import (
    CAP_IPC_LOCK,
    CAP_SYS_NICE,
    CAP_SYS_PTRACE,
    has_capability,
)
from epdoctor.facts.limits import limit_text, session_limit

SHM_MINIMUM_BYTES = 1 << 30
"""As checks/host/shm-large-enough.yaml."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    host: str
    container: str
    state: str
    """ok | lacks | host-lacks | unknown"""
    severity: str = ""
    """Of what is lacking: error | warning | info; "" where nothing is."""
    so: str = ""
    flags: tuple[str, ...] = ()
    """Options of docker run and podman run."""
    pod: str = ""
    """The same in a pod's manifest."""


@dataclass(frozen=True)
class _Fact:
    name: str
    read: Callable[[Node], Any]
    show: Callable[[Any], str]
    enough: Callable[[Any, Any], bool]
    """(container's value, host's value): whether the container lacks nothing."""
    host_has: Callable[[Any], bool]
    """Whether the host has it to give; a container that lacks it otherwise is not at fault."""
    severity: str
    so: str
    flags: tuple[str, ...]
    pod: str
    applies: Callable[[Node], bool] = lambda host: True


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _capability(bit: int) -> Callable[[Node], bool]:
    return lambda node: has_capability(require(node.container.cap_eff), bit)


def _locks(node: Node) -> tuple[int | None, bool]:
    return session_limit(node.limits, "memlock")[0], _capability(CAP_IPC_LOCK)(node)


def _devices(prefix: str) -> Callable[[Node], int]:
    return lambda node: sum(path.startswith(prefix) for path in node.devices.nodes)


def _usable(path: str) -> Callable[[Node], str]:
    def read(node: Node) -> str:
        found = node.devices.node(path)
        if found is None:
            return "not there"
        return "there" if found.readable and found.writable else "no permission"

    return read


def _pidfd(node: Node) -> bool:
    """Whether the runtimes' default filter lets pidfd_getfd through."""
    return require(node.container.seccomp) != 2 or _capability(CAP_SYS_PTRACE)(node)


def _driver(node: Node) -> str:
    return require(node.gpu.driver_version) if node.gpu.gpus else ""


def _netdevs(node: Node) -> frozenset[str]:
    return frozenset(netdev.name for netdev in require(node.network.netdevs) if netdev.kind != "loopback")


def _gids(node: Node) -> int:
    return sum(len(port.gids) for port in node.rdma.ports)


def _has_rdma(host: Node) -> bool:
    return bool(host.rdma.devices)


def _has_gpu(host: Node) -> bool:
    return bool(host.devices.gpu_minors)


def _all(value: Any) -> bool:
    return True


FACTS: tuple[_Fact, ...] = (
    _Fact(
        "locked memory",
        _locks,
        lambda v: limit_text(v[0]) + (" (CAP_IPC_LOCK)" if v[0] is not None and v[1] else ""),
        lambda c, h: c[0] is None or c[1],
        _all,
        "error",
        'RDMA cannot pin its queues: "cannot register cq buf", "ibv_reg_mr failed".',
        ("--ulimit memlock=-1:-1",),
        "securityContext.capabilities.add: [IPC_LOCK]",
        _has_rdma,
    ),
    _Fact(
        "/dev/infiniband/uverbs*",
        _devices("/dev/infiniband/uverbs"),
        str,
        lambda c, h: c >= h,
        bool,
        "error",
        "No HCA can be opened: NCCL falls back to TCP, DeepEP across nodes does not start.",
        ("--device /dev/infiniband",),
        "an RDMA device plug-in's resource, or privileged: true",
        _has_rdma,
    ),
    _Fact(
        "RoCE and IB addresses (GIDs)",
        _gids,
        str,
        lambda c, h: c >= h,
        bool,
        "error",
        "A port's GIDs belong to the network namespace of its netdev: without them no RoCE connection.",
        ("--network host",),
        "hostNetwork: true, or the HCAs' netdevs moved into the pod",
        _has_rdma,
    ),
    _Fact(
        "GPUs (/dev/nvidia0...)",
        lambda node: len(node.devices.gpu_minors),
        str,
        lambda c, h: c >= h,
        bool,
        "error",
        "vLLM sees fewer GPUs than the host has; DeepEP wants all eight of a node.",
        ("--gpus all",),
        "resources.limits: nvidia.com/gpu",
        _has_gpu,
    ),
    _Fact(
        "NVIDIA driver library",
        _driver,
        lambda v: v or "none",
        lambda c, h: c == h,
        bool,
        "error",
        "The NVIDIA runtime did not put libcuda and NVML of the host's driver into the container.",
        ("--gpus all",),
        "runtimeClassName: nvidia",
        _has_gpu,
    ),
    _Fact(
        "/dev/gdrdrv",
        _usable("/dev/gdrdrv"),
        str,
        lambda c, h: c == "there",
        lambda h: h != "not there",
        "warning",
        "GDRCopy is off: NVSHMEM older than 3.4.5 without the driver options has no IBGDA.",
        ("--device /dev/gdrdrv",),
        "privileged: true, or a device plug-in for /dev/gdrdrv",
        _has_gpu,
    ),
    _Fact(
        "/dev/shm",  # noqa: S108 - its name, not a file of ours
        lambda node: require(node.shm.total_bytes),
        limit_text,
        lambda c, h: c >= min(SHM_MINIMUM_BYTES, h),
        _all,
        "error",
        '"failed to extend /dev/shm/nccl-...", or a worker dies with a bus error.',
        ("--shm-size 16g",),
        "an emptyDir of medium Memory at /dev/shm",
    ),
    _Fact(
        "CAP_SYS_PTRACE or no seccomp",
        _pidfd,
        _yes,
        lambda c, h: c,
        bool,
        "warning",
        "DeepEP 2.x (deepep_v2) shares memory by pidfd_getfd, which the default filter refuses.",
        ("--cap-add SYS_PTRACE",),
        "securityContext.capabilities.add: [SYS_PTRACE]",
    ),
    _Fact(
        "host's user namespace",
        lambda node: (
            "user" not in require(node.container.own_namespaces) or require(node.container.identity_uid_map)
        ),
        _yes,
        lambda c, h: c,
        bool,
        "warning",
        "UCX and CUDA IPC compare user ids between processes; others than the host's break them.",
        ("--userns host",),
        "hostUsers: true",
    ),
    _Fact(
        "CAP_SYS_NICE",
        _capability(CAP_SYS_NICE),
        _yes,
        lambda c, h: c,
        bool,
        "info",
        "NUMA binding (--numa-bind, NCCL's affinity) is refused.",
        ("--cap-add SYS_NICE",),
        "securityContext.capabilities.add: [SYS_NICE]",
    ),
    _Fact(
        "open files",
        lambda node: session_limit(node.limits, "nofile")[0],
        lambda v: "unlimited" if v is None else str(v),
        lambda c, h: c is None or c >= 65536 or (h is not None and c >= h),
        _all,
        "info",
        "GIN over many ranks takes tens of thousands of descriptors (NCCL: 131072 at 144 ranks).",
        ("--ulimit nofile=1048576:1048576",),
        "LimitNOFILE of the container runtime's service",
    ),
    _Fact(
        "network interfaces",
        _netdevs,
        lambda v: str(len(v)),
        lambda c, h: h <= c,
        bool,
        "info",
        "Its own network namespace: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME must name its interfaces.",
        ("--network host",),
        "hostNetwork: true",
    ),
)


def _value(fact: _Fact, node: Node) -> Any:
    try:
        return fact.read(node)
    except Unmeasured as reason:
        return reason


def same_machine(host: Node, container: Node) -> str:
    """Empty, or why the two cannot be a host and its container. Unmeasured values say nothing."""
    pairs: dict[str, Callable[[Node], Any]] = {
        "kernel": lambda node: require(node.system.kernel_release),
        "GPU": lambda node: tuple(sorted(str(require(gpu.uuid)) for gpu in node.gpu.gpus)) or None,
    }
    for what, read in pairs.items():
        try:
            ours, theirs = read(host), read(container)
        except Unmeasured:
            continue
        if what == "GPU" and ours and theirs and not set(theirs) <= set(ours):
            return "the container has a GPU that the host has not"
        if what == "kernel" and ours != theirs:
            return f"the host runs {what} {ours}, the container {theirs}"
    return ""


def compare(host: Node, container: Node) -> list[Row]:
    """Rows in the order of FACTS; those that do not apply to the host are left out."""
    rows: list[Row] = []
    for fact in FACTS:
        try:
            if not fact.applies(host):
                continue
        except Unmeasured as reason:
            rows.append(Row(fact.name, f"? ({reason})", "?", "unknown"))
            continue
        ours, theirs = _value(fact, host), _value(fact, container)
        shown = [
            f"? ({value})" if isinstance(value, Unmeasured) else fact.show(value) for value in (ours, theirs)
        ]
        if isinstance(theirs, Unmeasured) or (
            isinstance(ours, Unmeasured) and not fact.enough(theirs, theirs)
        ):
            rows.append(Row(fact.name, shown[0], shown[1], "unknown", so=fact.so))
        elif isinstance(ours, Unmeasured) or fact.enough(theirs, ours):
            rows.append(Row(fact.name, shown[0], shown[1], "ok"))
        elif not fact.host_has(ours):
            rows.append(Row(fact.name, shown[0], shown[1], "host-lacks"))
        else:
            rows.append(
                Row(fact.name, shown[0], shown[1], "lacks", fact.severity, fact.so, fact.flags, fact.pod)
            )
    return rows


def run_options(rows: list[Row], runtime: str) -> list[str]:
    """The options of docker run or podman run, or the lines of a manifest, that give all that is lacking."""
    lacking = [row for row in rows if row.state == "lacks"]
    if runtime == "kubernetes":
        return list(dict.fromkeys(row.pod for row in lacking))
    flags = [flag for row in lacking for flag in row.flags]
    if runtime == "podman":
        # podman takes GPUs by the Container Device Interface (nvidia-ctk cdi generate).
        flags = ["--device nvidia.com/gpu=all" if flag == "--gpus all" else flag for flag in flags]
    return list(dict.fromkeys(flags))
