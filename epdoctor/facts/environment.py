"""EP-related environment variables, each with where it comes from.

Strongest first: running vLLM processes, --env-file, /etc/epdoctor/ep.env, nccl.conf, the agent's session.
Where workers run and their environment was read, ep.env and the session are left out: a variable that a
running worker does not have is not set, whatever a file says. nccl.conf stays, since NCCL reads it by itself
(NVIDIA/nccl src/misc/param.cc: NCCL_CONF_FILE, ~/.nccl.conf, /etc/nccl.conf; the environment wins).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, Probe
from epdoctor.facts.launch import parse_number, parse_options
from epdoctor.facts.processes import Process

if TYPE_CHECKING:
    from epdoctor.facts import Node

EP_ENV = "/etc/epdoctor/ep.env"
NCCL_CONF = "/etc/nccl.conf"
PER_NODE = frozenset(
    ("VLLM_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_DP_RANK", "VLLM_DP_RANK_LOCAL", "VLLM_NODE_RANK",
     "VLLM_LOOPBACK_IP", "NVSHMEM_HCA_PE_MAPPING", "VLLM_GPU_NIC_PCIE_MAPPING", "CUDA_VISIBLE_DEVICES")
)  # fmt: skip
"""Differ between nodes or ranks by design."""
PER_RANK = frozenset(("NCCL_IB_HCA", "UCX_NET_DEVICES", "NVSHMEM_HCA_LIST"))
"""May name each rank's own NIC."""
FAMILIES = {"nccl": ("NCCL_",), "nvshmem": ("NVSHMEM_",), "ucx": ("UCX_",), "vllm": ("VLLM_", "EP_")}


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    conf = parse_env_text(options.env_file_text).get("NCCL_CONF_FILE", "")
    globs = (EP_ENV, NCCL_CONF, *((conf,) if conf.startswith("/") and "*" not in conf else ()))
    return (Files(name="environment.files", globs=globs),)


@dataclass(frozen=True)
class Sourced:
    """A value and the sentence part that says where it comes from: "vllm serve (pid 4711)"."""

    value: str
    source: str

    def __str__(self) -> str:
        return f"{self.value} ({self.source})"


@dataclass(frozen=True)
class Difference:
    """A variable that two vLLM processes of one node disagree on."""

    name: str
    values: tuple[tuple[str, str], ...]
    """(value or "not set", process) pairs."""


class Environment:
    """Merged view. `get` returns the strongest value; `all` keeps every one."""

    def __init__(
        self, values: Mapping[str, tuple[Sourced, ...]], differences: tuple[Difference, ...], described: str
    ) -> None:
        self._values = values
        self._differences = differences
        self.described = described
        """Where variables were looked for: "vllm serve (pid 4711), /etc/nccl.conf"."""

    def get(self, name: str) -> Sourced | None:
        """The strongest value, or None where no source sets it."""
        found = self._values.get(name)
        return found[0] if found else None

    def text(self, name: str, default: str = "") -> str:
        """The strongest value's text."""
        found = self.get(name)
        return found.value if found is not None else default

    def enabled(self, name: str, *, default: bool = False) -> bool:
        """Whether a switch is on, as NCCL, NVSHMEM and vLLM read them: 0, false, no, off, empty are off."""
        found = self.get(name)
        return (
            default
            if found is None
            else found.value.strip().lower() not in ("", "0", "false", "no", "off", "n")
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._values))

    def all(self, name: str) -> tuple[Sourced, ...]:
        """Every source's value, strongest first."""
        return self._values.get(name, ())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def differing(self) -> tuple[Difference, ...]:
        """EP variables on which the launchers of one deployment disagree (per-rank ones left out)."""
        return self._differences


def parse_env_text(text: str) -> dict[str, str]:
    """KEY=VALUE lines as systemd, docker and nccl.conf take them; also `export`, quotes and # lines."""
    found: dict[str, str] = {}
    for line in text.splitlines()[:5000]:
        stripped = line.strip().removeprefix("export ").lstrip()
        name, equals, value = stripped.partition("=")
        name = name.strip()
        if not equals or stripped.startswith("#") or not name.replace("_", "a").isalnum() or len(name) > 120:
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        else:
            value = value.partition(" #")[0].rstrip()
        found[name] = value[:8192]
    return found


def _deployment(options: Mapping[str, str]) -> tuple[str, ...]:
    """What the launchers of one data-parallel deployment share; () for a server on its own."""
    if (parse_number(options.get("data-parallel-size", "")) or 1) < 2:
        return ()
    names = ("data-parallel-size", "data-parallel-address", "data-parallel-rpc-port", "kv-transfer-config")
    return tuple(options.get(name, "") for name in names)


def _differences(processes: Iterable[Process]) -> tuple[Difference, ...]:
    prefixes = tuple(prefix for group in FAMILIES.values() for prefix in group)
    groups: dict[tuple[str, ...], list[tuple[Process, Mapping[str, str]]]] = {}
    for process in processes:
        # Prefill and decode, or two models, on one node differ on purpose: only one deployment is compared.
        if process.role == "serve" and not isinstance(process.environ, Unmeasured):
            key = _deployment(parse_options(process.cmdline))
            if key:
                groups.setdefault(key, []).append((process, process.environ))
    found: list[Difference] = []
    for members in groups.values():
        for name in sorted({name for _, environ in members for name in environ if name.startswith(prefixes)}):
            values = tuple((environ.get(name, "not set"), process.name) for process, environ in members)
            own = name in PER_NODE or name in PER_RANK or "RANK" in name or "PORT" in name
            if not own and len({value for value, _ in values}) > 1:
                found.append(Difference(name, values))
    return tuple(found)


def _files(node: Node) -> Mapping[str, str]:
    try:
        return node.source.files("environment.files")
    except Unmeasured:
        return {}


def resolve(node: Node) -> Environment:
    """Merge all sources of a node.

    Raises Unmeasured where neither vLLM's processes could be looked at nor an --env-file says what they would
    get, and where workers run whose environment may not be read (not root)."""
    from_file = parse_env_text(node.options.env_file_text)
    layers: list[tuple[str, Mapping[str, str]]] = []
    differences: tuple[Difference, ...] = ()
    running = False
    session: Mapping[str, str] = {}
    try:
        processes = node.processes
        session = processes.session
        readable = [p for p in processes.workers if not isinstance(p.environ, Unmeasured)]
        seen: set[int] = set()
        for process in readable:
            if process.environ_pid not in seen and not isinstance(process.environ, Unmeasured):
                seen.add(process.environ_pid)
                layers.append((process.name, process.environ))
        running = bool(readable)
        differences = _differences(readable)
        if processes.workers and not readable and not from_file:
            reason = processes.workers[0].environ
            raise (
                reason
                if isinstance(reason, Unmeasured)
                else Unmeasured("environment of vLLM's processes: not read")
            )
    except Unmeasured:
        if not from_file:
            raise
    if from_file:
        layers.append(("--env-file", from_file))
    files = _files(node)
    if not running:
        layers.append((EP_ENV, parse_env_text(files.get(EP_ENV, ""))))
    layers += [(path, parse_env_text(files[path])) for path in files if path != EP_ENV]
    if not running:
        layers.append(("this session", session))
    merged: dict[str, list[Sourced]] = {}
    for source, values in layers:
        for name, value in values.items():
            merged.setdefault(name, []).append(Sourced(value, source))
    described = (
        ", ".join(source for source, values in layers if values) or "no vLLM process, no ep.env, this session"
    )
    return Environment({name: tuple(values) for name, values in merged.items()}, differences, described)


def _family(prefixes: tuple[str, ...]) -> Callable[[Node], str]:
    def value(node: Node) -> str:
        environment = node.environment
        pairs = [
            f"{name}={environment.text(name)}"
            for name in environment.names
            if name.startswith(prefixes) and name not in PER_NODE
        ]
        return " ".join(pairs) or "none set"

    return value


DIGEST: dict[str, Callable[[Node], Any]] = {
    f"env.{family}": _family(prefixes) for family, prefixes in FAMILIES.items()
}
