"""Resource limits, by the context that hands them down.

A login shell's limits say nothing about a service's: PAM sets the one, systemd the other, and a container or
Slurm step inherits from whatever started it. Each context is kept apart, with the file or process it is from.
Limits of running daemons and vLLM processes are in `facts.processes`. Sources: proc(5), systemd.exec(5),
systemd-system.conf(5), limits.conf(5), dockerd's daemon.json, crio.conf(5).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, FileSet, Probe, Source, require

if TYPE_CHECKING:
    from epdoctor.facts import Node

Pair = tuple["int | None", "int | None"]
"""Soft and hard limit; None = unlimited."""

UNITS = (
    "containerd",
    "docker",
    "crio",
    "kubelet",
    "k3s",
    "k3s-agent",
    "rke2-server",
    "rke2-agent",
    "slurmd",
    "ray",
)
_UNIT_FOLDERS = (
    "/lib/systemd/system",
    "/usr/local/lib/systemd/system",
    "/run/systemd/system",
    "/etc/systemd/system",
)
"""Weakest first; /lib is /usr/lib where the two are merged (systemd.unit(5))."""
_ROWS = {"Max locked memory": "memlock", "Max open files": "nofile", "Max stack size": "stack"}


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    units = tuple(
        path
        for unit in UNITS
        for folder in _UNIT_FOLDERS
        for path in (f"{folder}/{unit}.service", f"{folder}/{unit}.service.d/*.conf")
    )
    return (
        Files(
            "limits.files",
            globs=(
                "/proc/self/limits",
                "/etc/systemd/system.conf",
                "/usr/lib/systemd/system.conf.d/*.conf",
                "/run/systemd/system.conf.d/*.conf",
                "/etc/systemd/system.conf.d/*.conf",
                "/etc/security/limits.conf",
                "/etc/security/limits.d/*.conf",
                "/etc/docker/daemon.json",
                "/etc/crio/crio.conf",
                "/etc/crio/crio.conf.d/*.conf",
                *units,
            ),
            timeout_s=5.0,
        ),
    )


@dataclass(frozen=True)
class LimitValue:
    """One configured limit and where it is written."""

    pair: Pair
    source: str
    """"/etc/systemd/system/slurmd.service.d/memlock.conf: LimitMEMLOCK=infinity"."""


@dataclass(frozen=True)
class Limits:
    session: dict[str, Pair] | Unmeasured
    """memlock (bytes), nofile (files), stack (bytes) of the agent's own session, from /proc/self/limits."""
    units: dict[str, LimitValue]
    """LimitMEMLOCK of each unit file found among UNITS that sets one."""
    installed_units: tuple[str, ...]
    """Units of UNITS that have a unit file, running or not."""
    systemd_default_memlock: LimitValue | None
    """DefaultLimitMEMLOCK where set; else systemd's own 8 MiB holds (64 KiB before v246)."""
    docker_default_memlock: LimitValue | None
    """default-ulimits of /etc/docker/daemon.json: what a container gets without --ulimit."""
    crio_default_memlock: LimitValue | None
    pam_lines: tuple[str, ...]
    """"file: line" of limits.conf and limits.d that name memlock, nofile or stack."""


def limit_text(value: int | None) -> str:
    """ "8 MiB", "64 KiB", "unlimited"."""
    if value is None:
        return "unlimited"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value} B"


def parse_proc_limits(text: str) -> dict[str, Pair]:
    """Rows of /proc/PID/limits that matter here. Rows that cannot be read are left out."""
    found: dict[str, Pair] = {}
    for line in text.splitlines():
        for title, name in _ROWS.items():
            if line.startswith(title):
                words = line[len(title) :].split()[:2]
                if len(words) == 2 and all(word == "unlimited" or word.isdecimal() for word in words):
                    soft, hard = (None if word == "unlimited" else int(word[:20]) for word in words)
                    found[name] = (soft, hard)
    return found


def parse_systemd_size(text: str) -> Pair:
    """ "infinity", "64M", "8M:infinity" as in systemd.exec(5): K, M, G, T are powers of 1024.

    Raises ValueError on anything else.
    """
    values: list[int | None] = []
    for word in text.strip().split(":"):
        word = word.strip()
        if word == "infinity":
            values.append(None)
            continue
        shift = {"K": 10, "M": 20, "G": 30, "T": 40, "P": 50}.get(word[-1:].upper(), 0)
        number = word[:-1] if shift else word
        if not (number.isdecimal() and number.isascii() and len(number) < 20):
            raise ValueError(text)
        values.append(int(number) << shift)
    if len(values) not in (1, 2):
        raise ValueError(text)
    return values[0], values[-1]


def _setting(texts: list[tuple[str, str]], key: str) -> LimitValue | None:
    """The last assignment of `key` in unit or .conf files, given weakest first."""
    found: LimitValue | None = None
    for path, text in texts:
        for line in text.splitlines():
            name, equals, value = line.strip().partition("=")
            if not equals or name.strip() != key:
                continue
            try:
                found = LimitValue(parse_systemd_size(value), f"{path}: {key}={value.strip()}")
            except ValueError:
                # systemd ignores a line that it cannot read, and logs it.
                continue
    return found


def _unit_texts(files: FileSet, unit: str) -> list[tuple[str, str]]:
    main = [f"{folder}/{unit}.service" for folder in _UNIT_FOLDERS if f"{folder}/{unit}.service" in files]
    drop_ins: dict[str, str] = {}
    for folder in _UNIT_FOLDERS:
        prefix = f"{folder}/{unit}.service.d/"
        # A drop-in in a stronger folder hides one of the same name in a weaker one.
        drop_ins.update({name: prefix + name for name in files.under(prefix)})
    return [(path, files[path]) for path in main[-1:] + [drop_ins[name] for name in sorted(drop_ins)]]


def _system_conf(files: FileSet) -> list[tuple[str, str]]:
    drop_ins: dict[str, str] = {}
    for folder in ("/usr/lib", "/run", "/etc"):
        prefix = f"{folder}/systemd/system.conf.d/"
        drop_ins.update({name: prefix + name for name in files.under(prefix)})
    paths = ["/etc/systemd/system.conf", *(drop_ins[name] for name in sorted(drop_ins))]
    return [(path, files[path]) for path in paths if path in files]


def _docker(files: FileSet) -> LimitValue | None:
    path = "/etc/docker/daemon.json"
    try:
        entry = json.loads(files.get(path, "{}"))["default-ulimits"]["memlock"]
        soft, hard = int(entry["Soft"]), int(entry["Hard"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return LimitValue(
        (None if soft < 0 else soft, None if hard < 0 else hard),
        f"{path}: default-ulimits memlock {soft}:{hard}",
    )


def _crio(files: FileSet) -> LimitValue | None:
    found: LimitValue | None = None
    for path in sorted(path for path in files if path.startswith("/etc/crio/")):
        for line in files[path].splitlines():
            if line.strip().startswith("#"):
                continue
            _, name, rest = line.partition("memlock=")
            if not name:
                continue
            words = rest.replace('"', " ").replace("'", " ").replace("]", " ").replace(",", " ").split()
            numbers = (words[0] if words else "").split(":")
            if all(word.lstrip("-").isdecimal() and len(word) < 20 for word in numbers):
                pair = [None if int(word) < 0 else int(word) for word in numbers]
                found = LimitValue((pair[0], pair[-1]), f"{path}: memlock={words[0]}")
    return found


def parse(source: Source) -> Limits:
    """Facts of `limits.files`; Unmeasured if that probe has no result."""
    files = source.files("limits.files")
    session: dict[str, Pair] | Unmeasured
    try:
        session = parse_proc_limits(files.require("/proc/self/limits"))
    except Unmeasured as reason:
        session = reason
    pam = tuple(
        f"{path}: {' '.join(line.split())[:120]}"
        for path in sorted(files)
        if path.startswith("/etc/security/")
        for line in files[path].splitlines()
        if len(line.split()) == 4 and not line.strip().startswith("#") and line.split()[2] in _ROWS.values()
    )
    units: dict[str, LimitValue] = {}
    installed: list[str] = []
    for unit in UNITS:
        texts = _unit_texts(files, unit)
        if texts:
            installed.append(unit)
        value = _setting(texts, "LimitMEMLOCK")
        if value is not None:
            units[unit] = value
    return Limits(
        session=session,
        units=units,
        installed_units=tuple(installed),
        systemd_default_memlock=_setting(_system_conf(files), "DefaultLimitMEMLOCK"),
        docker_default_memlock=_docker(files),
        crio_default_memlock=_crio(files),
        pam_lines=pam,
    )


def session_limit(limits: Limits, name: str) -> Pair:
    """memlock | nofile | stack of the agent's session. Unmeasured where the row is not there."""
    rows = require(limits.session)
    if name not in rows:
        raise Unmeasured(f"/proc/self/limits: no row for {name}")
    return rows[name]


def _memlock(node: Node) -> str:
    return limit_text(session_limit(node.limits, "memlock")[0])


def _nofile(node: Node) -> str:
    soft, hard = session_limit(node.limits, "nofile")
    return f"{'unlimited' if soft is None else soft}:{'unlimited' if hard is None else hard}"


DIGEST: dict[str, Callable[[Node], Any]] = {"limits.memlock": _memlock, "limits.nofile": _nofile}
