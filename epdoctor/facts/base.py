"""What facts modules are made of: probe declarations, and typed access to what probes brought back.

A facts module is one noun. It has

    def probes(options: CollectOptions) -> tuple[Probe, ...]    what it needs from the node (data only)
    def parse(source: Source) -> SomeFrozenDataclass            pure: same record, same facts

`parse` never touches a machine. Where a value could not be measured it raises `Unmeasured` (for the whole
fact) or stores an `Unmeasured` instance in the field and lets `require()` raise it on use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from epdoctor.exceptions import Unmeasured

T = TypeVar("T")


@dataclass(frozen=True)
class CollectOptions:
    """What the user chose that changes what is collected. Stored in the recording's cluster.json."""

    python: str = ""
    """Target interpreter (--python); empty: the agent looks for candidates."""
    node_names: tuple[str, ...] = ()
    """Names and addresses of all nodes; every node resolves them."""
    env_file_text: str = ""
    """Text of --env-file, KEY=VALUE lines; judged, never executed."""
    max_num_batched_tokens: int | None = None
    token_limit_source: str = ""
    sample_s: float = 0.0
    """Seconds between two readings of the counters (--sample); 0: none."""


@dataclass(frozen=True)
class Probe:
    """One thing the agent does on a node. Names are `noun.detail` and unique."""

    name: str
    timeout_s: float = 10.0
    max_bytes: int = 1 << 20
    """Output beyond this is cut at its source (RLIMIT_FSIZE) and marked truncated."""
    only_if_exists: str = ""
    """Run only where this path exists; otherwise status `skipped`. For GPU tools:
    /proc/driver/nvidia/version, since nvidia-smi and NVML can load kernel modules."""
    unless_ok: str = ""
    """Skip if the probe of this name ran with rc 0 (a fallback for it)."""
    lane: str = ""
    """Probes of one lane run one after the other, and after one that hung the rest is skipped: a wedged driver
    costs one time limit, and never the places of other probes."""


@dataclass(frozen=True)
class Command(Probe):
    """A command: argv list, no shell. LC_ALL=C, own session, killed hard at its limit."""

    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files(Probe):
    """Text of every file that a glob matches (`*`, `?` within one path component)."""

    globs: tuple[str, ...] = ()
    max_file_bytes: int = 65536


@dataclass(frozen=True)
class Links(Probe):
    """Target (readlink) of every symbolic link that a glob matches."""

    globs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stat(Probe):
    """lstat-like facts of every path that a glob matches; `statvfs` too where asked."""

    globs: tuple[str, ...] = ()
    statvfs: bool = False


@dataclass(frozen=True)
class Script(Probe):
    """A file of `epdoctor/probes/` (standard library only, Python 3.6) run in a child of the agent.

    It prints one JSON array `[key, value]` a line through the `emit(key, value)` it is given, and finds its
    parameters in `PARAMS`. `modules` are further Python files sent along and importable there (pynvml)."""

    script: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class CommandOutput:
    """What a command printed. `rc` is its exit status."""

    rc: int
    stdout: str
    stderr: str
    truncated: bool = False

    @property
    def ok(self) -> bool:
        return self.rc == 0


@dataclass(frozen=True)
class PathStat:
    """mode is the full st_mode; *able as seen by the user the agent ran as."""

    mode: int
    uid: int
    gid: int
    size_bytes: int
    major: int
    minor: int
    readable: bool
    writable: bool
    total_bytes: int | None = None
    """File system size, where statvfs was asked for."""
    available_bytes: int | None = None


class FileSet(Mapping[str, str]):
    """Texts by path. A path that exists but could not be read is in `errors` (errno name), not in here."""

    def __init__(self, texts: Mapping[str, str], errors: Mapping[str, str]) -> None:
        self._texts = texts
        self.errors = errors

    def __getitem__(self, path: str) -> str:
        return self._texts[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def under(self, prefix: str) -> dict[str, str]:
        """Texts of the paths that start with `prefix`, keyed by the rest of the path."""
        return {path[len(prefix) :]: text for path, text in self._texts.items() if path.startswith(prefix)}

    def require(self, path: str) -> str:
        """The text, or Unmeasured with the reason."""
        if path in self._texts:
            return self._texts[path]
        raise Unmeasured(f"{path}: {self.errors.get(path, 'not there')}")


class Source:
    """Typed access to one node's raw probe results (`probes` of a record)."""

    def __init__(self, probes: Mapping[str, Any], *, root: bool = False) -> None:
        self._probes = probes
        self.root = root
        """Whether the agent ran as root."""

    @property
    def probes(self) -> Mapping[str, Any]:
        """The raw results, for whoever reads a record itself (a site's plugin)."""
        return self._probes

    def status(self, name: str) -> str:
        """ran | not-found | denied | timeout | stuck | skipped | absent (no such probe in the record)."""
        entry = self._probes.get(name)
        if not isinstance(entry, dict):
            return "absent"
        return str(entry.get("status", "absent"))

    def _entry(self, name: str) -> Mapping[str, Any]:
        status = self.status(name)
        if status == "absent":
            raise Unmeasured(f"{name}: not in this recording")
        entry: Mapping[str, Any] = self._probes[name]
        if status == "ran":
            return entry
        what = " ".join(str(word) for word in entry.get("argv", ())) or name
        if status == "timeout" or status == "stuck":
            if entry.get("data"):
                return entry
            raise Unmeasured(f"{what}: {status} after {entry.get('seconds', 0):.0f} s")
        why = f" ({entry['reason']})" if isinstance(entry.get("reason"), str) else ""
        raise Unmeasured(f"{what}: {status}{why}"[:300])

    def command(self, name: str, *, ok: bool = False) -> CommandOutput:
        """Output of a command that ran; Unmeasured if it did not (or, with `ok`, if rc is not 0)."""
        entry = self._entry(name)
        try:
            output = CommandOutput(
                int(entry.get("rc", -1)),
                str(entry.get("stdout", "")),
                str(entry.get("stderr", "")),
                bool(entry.get("truncated", False)),
            )
        except (TypeError, ValueError) as error:
            raise Unmeasured(f"{name}: malformed in this recording") from error
        if ok and output.rc != 0:
            said = (output.stderr.strip() or output.stdout.strip()).splitlines()
            argv = " ".join(str(word) for word in entry.get("argv", ())) or name
            raise Unmeasured(f"{argv}: exit {output.rc}" + (f": {said[-1][:200]}" if said else ""))
        return output

    def rows(self, name: str) -> list[list[Any]]:
        """The raw `[key, value, ...]` rows of a files, links, stat or script probe."""
        entry = self._entry(name)
        data = entry.get("data", [])
        if not isinstance(data, list):
            raise Unmeasured(f"{name}: malformed in this recording")
        if not data and entry.get("rc") not in (0, None):
            said = str(entry.get("stderr", "")).strip().splitlines()
            raise Unmeasured(f"{name}: exit {entry.get('rc')}" + (f": {said[-1][:200]}" if said else ""))
        return [row for row in data if isinstance(row, list) and row and isinstance(row[0], str)]

    def files(self, name: str) -> FileSet:
        texts: dict[str, str] = {}
        errors: dict[str, str] = {}
        for row in self.rows(name):
            if len(row) >= 2 and isinstance(row[1], str):
                texts[row[0]] = row[1]
            elif len(row) >= 3:
                errors[row[0]] = str(row[2])
        return FileSet(texts, errors)

    def links(self, name: str) -> dict[str, str]:
        return {row[0]: row[1] for row in self.rows(name) if len(row) >= 2 and isinstance(row[1], str)}

    def stats(self, name: str) -> dict[str, PathStat]:
        found: dict[str, PathStat] = {}
        for row in self.rows(name):
            if len(row) >= 2 and isinstance(row[1], dict):
                value = row[1]
                try:
                    found[row[0]] = PathStat(
                        int(value["mode"]), int(value["uid"]), int(value["gid"]), int(value["size"]),
                        int(value["major"]), int(value["minor"]),
                        bool(value["readable"]), bool(value["writable"]),
                        value.get("total"), value.get("available"),
                    )  # fmt: skip
                except (KeyError, TypeError, ValueError) as error:
                    raise Unmeasured(f"{name}: malformed in this recording") from error
        return found

    def values(self, name: str) -> dict[str, Any]:
        """`emit(key, value)` rows of a script probe as a dict (last one wins)."""
        return {row[0]: row[1] for row in self.rows(name) if len(row) >= 2}


def require(value: T | Unmeasured) -> T:
    """The value, or raise the Unmeasured that stands in its place."""
    if isinstance(value, Unmeasured):
        raise value
    return value
