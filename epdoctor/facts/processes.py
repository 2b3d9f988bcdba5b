"""Processes that matter for EP: vLLM's own, the daemons that launch it, and who holds the GPUs.

An SSH session has neither vLLM's environment nor its limits; a running worker has both. vLLM titles its
processes with setproctitle, which overwrites /proc/PID/environ (seen with setproctitle 1.3.7), so a worker's
environment is then its launcher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Probe, Script, Source

PREFIXES = (
    "NCCL_", "NVSHMEM_", "UCX_", "GLOO_", "VLLM_", "CUDA_", "NVIDIA_", "DEEPEP_", "DEEP_EP_", "EP_", "NIXL_",
    "FI_", "MC_", "MORI_", "TP_", "TORCH_", "PYTORCH_", "GDRCOPY_", "TRITON_",
)  # fmt: skip
NAMES = (
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
    "VIRTUAL_ENV",
    "WITH_NVIDIA_PEERMEM",
    "SPT_NOENV",
)
DAEMONS = ("sshd", "containerd", "dockerd", "kubelet", "slurmd", "slurmstepd", "crio", "raylet", "k3s-server")
LIBRARIES = (
    "libnccl", "libnvshmem", "libucp", "libcuda.so", "libcudart", "deep_ep", "libnixl", "libibverbs",
    "libmlx5", "libgdrapi",
)  # fmt: skip


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Script(
            name="processes.scan",
            script="processes.py",
            modules=("software.py",),
            params={"prefixes": PREFIXES, "names": NAMES, "daemons": DAEMONS, "libraries": LIBRARIES},
            max_bytes=4 << 20,
        ),
    )


@dataclass(frozen=True)
class ResourceLimit:
    """Soft and hard limit of a process in bytes or files; None: unlimited. Source: /proc/PID/limits."""

    soft: int | None
    hard: int | None


@dataclass(frozen=True)
class MappedLibrary:
    path: str
    """As in /proc/PID/maps: links resolved, in the process's own mount namespace."""
    macros: Mapping[str, str]
    """Version macros of the header that lies beside it."""


@dataclass(frozen=True)
class Process:
    pid: int
    ppid: int
    uid: int | None
    role: str
    """serve (the launcher) | worker | ancestor | daemon"""
    comm: str
    cmdline: tuple[str, ...]
    """Secrets are blanked on the node."""
    environ: Mapping[str, str] | Unmeasured
    """Variables of EP's families only. For a worker whose own was overwritten: its launcher's."""
    environ_pid: int
    """The process that `environ` was read from."""
    limits: Mapping[str, ResourceLimit]
    """memlock (bytes), nofile (files), stack (bytes)."""
    cap_eff: int | None
    """Effective capabilities, bit mask (capabilities(7))."""
    seccomp: int | None
    """0 off, 1 strict, 2 filter (proc(5))."""
    no_new_privs: bool
    cgroup: str
    exe: str
    libraries: tuple[MappedLibrary, ...] | Unmeasured
    started_s: int | None
    """Seconds since 1970."""
    other_namespace: bool
    """Whether it has another mount namespace than the agent: in a container."""

    @property
    def name(self) -> str:
        """How a report calls it: "VLLM::EngineCore_DP0 (pid 4711)"."""
        return f"{self.title} (pid {self.pid})"

    @property
    def title(self) -> str:
        if self.role == "serve":
            return "vllm serve"
        return self.cmdline[0][:40] if self.cmdline and "::" in self.cmdline[0] else self.comm


@dataclass(frozen=True)
class GpuHolder:
    pid: int
    uid: int | None
    comm: str
    gpus: tuple[int, ...]
    """Minor numbers N of the open /dev/nvidiaN."""


@dataclass(frozen=True)
class Processes:
    all: tuple[Process, ...]
    session: Mapping[str, str]
    """The agent's own environment, same families."""
    gpu_holders: tuple[GpuHolder, ...] | Unmeasured
    gpu_holders_unseen: int
    """Processes whose open files the agent was not allowed to list."""

    @property
    def workers(self) -> tuple[Process, ...]:
        """vLLM's processes, launchers first."""
        return tuple(process for process in self.all if process.role in ("serve", "worker"))

    @property
    def daemons(self) -> Mapping[str, Process]:
        """sshd, containerd, dockerd, kubelet, slurmd...: the oldest of each name."""
        found: dict[str, Process] = {}
        for process in self.all:
            if process.comm in DAEMONS and process.role in ("daemon", "ancestor"):
                found.setdefault(process.comm, process)
        return found


def _integer(value: object, base: int = 10) -> int | None:
    try:
        return value if isinstance(value, int) and not isinstance(value, bool) else int(str(value), base)
    except ValueError:
        return None


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(name): str(text) for name, text in value.items() if isinstance(text, str)}


def _limits(value: object) -> dict[str, ResourceLimit]:
    found: dict[str, ResourceLimit] = {}
    for name, pair in value.items() if isinstance(value, dict) else ():
        if isinstance(pair, list) and len(pair) == 2:
            soft, hard = (None if item == "unlimited" else _integer(item) for item in pair)
            if (soft is None) == (pair[0] == "unlimited") and (hard is None) == (pair[1] == "unlimited"):
                found[str(name)] = ResourceLimit(soft, hard)
    return found


def _libraries(entry: Mapping[str, Any]) -> tuple[MappedLibrary, ...] | Unmeasured:
    rows = entry.get("libraries")
    if not isinstance(rows, list):
        return Unmeasured(f"/proc/{entry.get('pid')}/maps: {entry.get('maps_error') or 'not read'}")
    return tuple(
        MappedLibrary(row[0], _texts(row[1]))
        for row in rows
        if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)
    )


def _environ(
    entry: Mapping[str, Any], by_pid: Mapping[int, Mapping[str, Any]]
) -> tuple[Mapping[str, str] | Unmeasured, int]:
    """A process's own environment, else that of its nearest ancestor that still has one."""
    pid = _integer(entry.get("pid")) or 0
    current, seen = entry, {pid}
    while current.get("environ_state") in ("overwritten", "empty"):
        parent = _integer(current.get("ppid")) or 0
        if parent not in by_pid or parent in seen:
            break
        seen.add(parent)
        current = by_pid[parent]
        if current.get("comm") == "raylet":
            # A raylet's environment is not its workers': each gets its own runtime_env.
            return Unmeasured(
                f"environment of Ray's worker {pid}: overwritten by its title (SPT_NOENV=1 keeps it)"
            ), pid
    owner = _integer(current.get("pid")) or 0
    if current.get("environ_state") == "read":
        return _texts(current.get("environ")), owner
    state = str(current.get("environ_state", "not read"))
    return Unmeasured(f"environment of vLLM's process {pid}: {state}"), owner


def _process(
    entry: Mapping[str, Any], by_pid: Mapping[int, Mapping[str, Any]], own_namespace: str
) -> Process | None:
    pid = _integer(entry.get("pid"))
    if pid is None:
        return None
    environ, environ_pid = _environ(entry, by_pid)
    cmdline = entry.get("cmdline")
    namespace = str(entry.get("mount_ns", ""))
    return Process(
        pid=pid,
        ppid=_integer(entry.get("ppid")) or 0,
        uid=_integer(entry.get("uid")),
        role=str(entry.get("role", "")),
        comm=str(entry.get("comm", "")),
        cmdline=tuple(str(word) for word in cmdline) if isinstance(cmdline, list) else (),
        environ=environ,
        environ_pid=environ_pid,
        limits=_limits(entry.get("limits")),
        cap_eff=_integer(entry.get("cap_eff"), 16),
        seccomp=_integer(entry.get("seccomp")),
        no_new_privs=entry.get("no_new_privs") == "1",
        cgroup=str(entry.get("cgroup", "")),
        exe=str(entry.get("exe", "")),
        libraries=_libraries(entry),
        started_s=_integer(entry.get("started_s")),
        other_namespace=bool(namespace and own_namespace and namespace != own_namespace),
    )


def _holders(values: Mapping[str, Any]) -> tuple[GpuHolder, ...] | Unmeasured:
    rows = values.get("gpu_holders")
    if not isinstance(rows, list):
        return Unmeasured("open files of /dev/nvidia*: the scan did not get there")
    if values.get("gpu_holders_stopped"):
        return Unmeasured(f"open files of /dev/nvidia*: {values['gpu_holders_stopped']}")
    found: list[GpuHolder] = []
    for row in rows:
        pid = _integer(row.get("pid")) if isinstance(row, dict) else None
        if pid is not None:
            gpus = row.get("gpus")
            numbers = tuple(item for item in gpus if isinstance(item, int)) if isinstance(gpus, list) else ()
            found.append(GpuHolder(pid, _integer(row.get("uid")), str(row.get("comm", "")), numbers))
    return tuple(found)


def parse(source: Source) -> Processes:
    """Raises Unmeasured where the scan of /proc did not finish."""
    rows = source.rows("processes.scan")
    values = source.values("processes.scan")
    if "vllm_count" not in values:
        raise Unmeasured("processes.scan: /proc was not read to its end")
    entries = [row[1] for row in rows if row[0] == "process" and len(row) > 1 and isinstance(row[1], dict)]
    by_pid = {pid: entry for entry in entries if (pid := _integer(entry.get("pid"))) is not None}
    own = str(values.get("self_mount_ns", ""))
    parsed = [process for entry in entries if (process := _process(entry, by_pid, own)) is not None]
    return Processes(
        all=tuple(parsed),
        session=_texts(values.get("session")),
        gpu_holders=_holders(values),
        gpu_holders_unseen=_integer(values.get("gpu_holders_denied", 0)) or 0,
    )
