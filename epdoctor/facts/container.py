"""Whether this session is in a container, and what it may do there: capabilities, seccomp, namespaces.

Sources: capabilities(7), namespaces(7), proc(5); the inode numbers of the initial namespaces are in the Linux
kernel's include/linux/proc_ns.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, Links, PathStat, Probe, Source, Stat

CAP_IPC_LOCK = 14
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_SYS_NICE = 23

_INITIAL = {"ipc": 0xEFFFFFFF, "uts": 0xEFFFFFFE, "user": 0xEFFFFFFD, "pid": 0xEFFFFFFC, "cgroup": 0xEFFFFFFB}
_MARKERS = {
    "/.dockerenv": "docker",
    "/run/.containerenv": "podman",
    "/var/run/secrets/kubernetes.io": "kubernetes",
    "/.singularity.d": "apptainer",
}


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Files(
            "container.files",
            globs=("/proc/self/status", "/proc/self/uid_map", "/proc/1/cgroup", "/run/systemd/container"),
            timeout_s=5.0,
        ),
        Links(
            "container.namespaces", globs=tuple(f"/proc/self/ns/{name}" for name in _INITIAL), timeout_s=5.0
        ),
        Stat("container.markers", globs=tuple(_MARKERS), timeout_s=5.0),
    )


@dataclass(frozen=True)
class Container:
    in_container: bool | Unmeasured
    """A PID or user namespace of its own, or a runtime's mark plus any namespace of its own. A mark alone is
    not enough: images unpacked on a disk keep /.dockerenv."""
    runtime: str
    """"docker" | "podman" | "kubernetes" | "apptainer" | "lxc" | ...; empty where nothing tells."""
    own_namespaces: tuple[str, ...] | Unmeasured
    """Those of ipc, uts, user, pid, cgroup that are not the machine's initial ones."""
    identity_uid_map: bool | Unmeasured
    """True: user ids mean the same as on the host (uid_map is 0 0 4294967295)."""
    cap_eff: int | Unmeasured
    """Effective capabilities of this session, as a bit mask."""
    cap_bnd: int | Unmeasured
    seccomp: int | Unmeasured
    """0 none, 1 strict, 2 filter."""
    no_new_privs: bool | Unmeasured
    memory_limit_bytes: int | None
    """Tightest cgroup memory limit; None: none seen."""


def has_capability(mask: int, bit: int) -> bool:
    """Whether a mask of /proc/PID/status holds a capability, e.g. CAP_IPC_LOCK."""
    return bool(mask >> bit & 1)


def status_fields(text: str) -> dict[str, str]:
    """/proc/PID/status as name -> value."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found[name] = value.strip()
    return found


def _number(fields: dict[str, str], name: str, base: int) -> int | Unmeasured:
    text = fields.get(name, "")
    try:
        return int(text[:32], base)
    except ValueError:
        return Unmeasured(f"/proc/self/status: no {name}")


def _own_namespaces(links: dict[str, str]) -> tuple[str, ...]:
    own = []
    for name, initial in _INITIAL.items():
        target = links.get(f"/proc/self/ns/{name}", "")
        inode = target.partition("[")[2].partition("]")[0]
        if inode.isdecimal() and inode != str(initial):
            own.append(name)
    return tuple(own)


def _runtime(marks: dict[str, PathStat], cgroup: str, systemd_word: str, kubernetes: bool) -> str:
    if kubernetes or "/var/run/secrets/kubernetes.io" in marks or "kubepods" in cgroup:
        return "kubernetes"
    for path, name in _MARKERS.items():
        if path in marks:
            return name
    if systemd_word:
        return systemd_word[:40]
    return next((name for name in ("docker", "libpod", "lxc", "containerd") if f"/{name}" in cgroup), "")


def parse(source: Source) -> Container:
    """Facts of the container.* probes and of `system.session`; Unmeasured if /proc/self/status is missing."""
    files = source.files("container.files")
    fields = status_fields(files.get("/proc/self/status", ""))
    own: tuple[str, ...] | Unmeasured
    try:
        links = source.links("container.namespaces")
        own = _own_namespaces(links) if links else Unmeasured("/proc/self/ns: not readable")
    except Unmeasured as reason:
        own = reason
    marks: dict[str, PathStat]
    try:
        marks = source.stats("container.markers")
    except Unmeasured:
        marks = {}
    limit: int | None = None
    kubernetes = False
    try:
        for row in source.rows("system.session"):
            if row[0] == "cgroup_memory_bytes" and len(row) > 1 and isinstance(row[1], int):
                limit = row[1] if limit is None else min(limit, row[1])
            if row[0] == "env" and len(row) > 1 and isinstance(row[1], dict):
                kubernetes = "KUBERNETES_SERVICE_HOST" in row[1]
    except Unmeasured:
        limit = None
    runtime = _runtime(
        marks, files.get("/proc/1/cgroup", ""), files.get("/run/systemd/container", "").strip(), kubernetes
    )
    in_container: bool | Unmeasured
    if isinstance(own, Unmeasured):
        in_container = Unmeasured(f"namespaces: {own}") if runtime else False
    else:
        in_container = "pid" in own or "user" in own or bool(runtime and own)
    # Read and empty: a user namespace in which nobody is mapped yet.
    uid_map = files["/proc/self/uid_map"].split() if "/proc/self/uid_map" in files else None
    no_new_privs = _number(fields, "NoNewPrivs", 10)
    return Container(
        in_container=in_container,
        runtime=runtime,
        own_namespaces=own,
        identity_uid_map=Unmeasured("/proc/self/uid_map: not read")
        if uid_map is None
        else uid_map == ["0", "0", "4294967295"],
        cap_eff=_number(fields, "CapEff", 16),
        cap_bnd=_number(fields, "CapBnd", 16),
        seccomp=_number(fields, "Seccomp", 10),
        no_new_privs=no_new_privs if isinstance(no_new_privs, Unmeasured) else no_new_privs == 1,
        memory_limit_bytes=limit,
    )
