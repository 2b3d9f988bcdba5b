"""What a launch is, whatever file it was written in: servers with options and variables, each with its line.

    readers (shell, Kubernetes, compose, systemd, sbatch, argv, live processes) -> LaunchSet -> launch rules

A text that starts several processes becomes several servers: the pods of a LeaderWorkerSet, the tasks of an
sbatch script, the replicas of a compose service. Where a value depends on something that the files do not say,
it stays unresolved; rules skip it or say that they cannot tell, and never guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from epdoctor.facts.launch import parse_number
from epdoctor.model import Location, Problem


@dataclass(frozen=True, slots=True)
class Value:
    """A text from a file, with where it stands."""

    text: str
    """After expansion of what is known; what is not known stays as written ("$MODEL", "$(POD_IP)")."""
    location: Location
    unresolved: tuple[str, ...] = ()
    """Names of variables, or templates ("{{ .Values.x }}"), that the files do not resolve."""
    source: str = ""
    """Variables only: "export", "inline", "env-file", "manifest", "service image", "config file"."""
    runtime: str = ""
    """Known only when it runs, and legitimately so: "pod IP" (downward API), "hostname -I", "field x of the node".
    Such a value is not `unresolved`: it differs per node and is right."""

    @property
    def known(self) -> bool:
        """Whether `text` is what the process will see."""
        return not self.unresolved and not self.runtime

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Option:
    """One option of `vllm serve`, by its canonical long name without dashes ("tensor-parallel-size")."""

    name: str
    value: Value
    """`text` is "" for a switch that stands alone."""
    written: str
    """As the user wrote the flag: "-tp", "--eplb-config.num_redundant_experts", "config.yaml: tensor-parallel-size"."""
    negated: bool = False
    """--no-enable-..."""
    known_to_vllm: bool = True
    """False: no option of the judged vLLM version has this name."""

    @property
    def location(self) -> Location:
        return self.value.location

    @property
    def on(self) -> bool:
        """A switch that is set (alone, or "true")."""
        return not self.negated and self.value.text.lower() in ("", "true", "1")


@dataclass(frozen=True)
class Pod:
    """What a Kubernetes manifest or compose file grants the container that runs a server."""

    kind: str
    """Deployment | LeaderWorkerSet | JobSet | Job | Pod | StatefulSet | compose service | ..."""
    name: str
    container: str
    location: Location
    requests: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    """"nvidia.com/gpu" -> "8", "rdma/ib" -> "1", "memory" -> "512Gi"."""
    gpus: int | None = None
    """GPUs that the container gets; None: not said."""
    capabilities: tuple[str, ...] = ()
    privileged: bool = False
    host_network: bool = False
    host_ipc: bool = False
    shm_bytes: int | None = None
    """Size of what is mounted at /dev/shm; None: not said, so the runtime's 64 MiB; 0: no limit given for memory."""
    shm_mounted: bool = False
    memlock_bytes: int | None = None
    """compose `ulimits.memlock`; -1 unlimited; None: not said."""
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """"startup" | "liveness" | "readiness" -> the probe as written, keys of Kubernetes' API."""
    replicas: int | None = None
    """Groups (LeaderWorkerSet) or copies (Deployment) of it."""
    group_size: int | None = None
    """LeaderWorkerSet size; None: no group."""
    image: str = ""
    places: Mapping[str, Location] = field(default_factory=dict)
    """Where a single field stands: "gpus", "shm", "security", "memlock", "startup", "liveness", "readiness"."""
    partial: bool = False
    """A kustomize patch: it names no image, and what it lacks may stand in what it is merged with."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The pod spec as read."""

    def place(self, name: str) -> Location:
        """Where the field stands, else the container."""
        return self.places.get(name, self.location)


@dataclass(frozen=True)
class Server:
    """One `vllm serve` process (or `python -m vllm.entrypoints...`) as it will be started."""

    name: str
    """For people: "decode-0.sh", "LeaderWorkerSet/wide-ep-decode worker 1", "gpu03 pid 4711"."""
    kind: str
    """shell | kubernetes | compose | systemd | sbatch | argv | running"""
    location: Location
    """Of the word `vllm`."""
    model: Value | None
    options: Mapping[str, Option]
    """Last one wins, as in vLLM's own parser; --config FILE is merged below the command line."""
    repeated: tuple[Option, ...] = ()
    """Options that a later one overrides."""
    environment: Mapping[str, Value] = field(default_factory=dict)
    unexported: Mapping[str, Value] = field(default_factory=dict)
    """Variables that the script sets and does not export, so that the process does not get them."""
    node: str = ""
    """Inventory name, host or pod index where the files say so."""
    index: int | None = None
    """Position in its group (LWS worker index, SLURM_NODEID, one file a node in the order given)."""
    machine: str = ""
    """The same for servers that one shell starts side by side (`&`): they run on one machine; empty: not known."""
    group: str = ""
    """Servers of one group were written as one thing (one LeaderWorkerSet, one sbatch); empty: alone."""
    pod: Pod | None = None
    locked_memory: Value | None = None
    """systemd units: LimitMEMLOCK as written; None: not given."""
    front_end: str = ""
    """A program around vLLM's engine that takes its options and places the ranks itself ("dynamo.vllm"); empty: vLLM's
    own server."""
    vllm_version: str = ""
    """From the image tag, `pip install vllm==`, --vllm or the node's record; empty: not known."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Live processes only: "libnccl.so.2" -> version or path that is mapped."""
    visible_gpus: int | None = None
    """CUDA_VISIBLE_DEVICES, the pod's GPUs, or the node's record; None: not known."""
    stray: tuple[Value, ...] = ()
    """Words of the command line that belong to no option ("true" after a switch, "$EXTRA_ARGS")."""

    def option(self, name: str) -> Option | None:
        return self.options.get(name)

    def text(self, name: str, default: str = "") -> str:
        """The option's text, or the default where it is not given."""
        option = self.options.get(name)
        return default if option is None else option.value.text

    def number(self, name: str) -> int | None:
        """The option as an integer in vLLM's notation; None: not given, not a number, or unresolved."""
        option = self.options.get(name)
        return None if option is None or not option.value.known else parse_number(option.value.text)

    def on(self, name: str) -> bool:
        """A switch that is set."""
        option = self.options.get(name)
        return option is not None and option.on

    def variable(self, name: str) -> str:
        """A known variable's text, else ""."""
        value = self.environment.get(name)
        return value.text if value is not None and value.known else ""


@dataclass(frozen=True)
class Resource:
    """Any other object of the manifests that rules look at: a Service, a ConfigMap."""

    kind: str
    name: str
    namespace: str
    location: Location
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class LaunchSet:
    """All that was read from the files (or live nodes) of one call."""

    servers: tuple[Server, ...]
    resources: tuple[Resource, ...] = ()
    trouble: tuple[Problem, ...] = ()
    """What the readers could not read: unbalanced quotes, broken YAML, unresolved templates; with location."""
    files: tuple[str, ...] = ()
    vllm_version: str = ""
    """--vllm; else "" and each server's own counts."""
    nodes: Mapping[str, Any] = field(default_factory=dict)
    """Node name -> epdoctor.facts.Node, where -i, --from or --running gave records. Empty: judged alone."""
    model_config: Mapping[str, Any] | None = None
    """--model-config FILE (a config.json); None: the built-in table by the model's name."""
    gpu_memory_bytes: int | None = None
    """--gpu-memory: what each GPU has; None: by the node's record, or the machine type that a manifest asks for."""
    live: bool = False
    """--running: servers are processes that run now."""

    def deployments(self) -> Iterator[tuple[Server, ...]]:
        """Servers that serve together: same group, else same data-parallel address and RPC port, else one
        by one. Order as read."""
        together: dict[object, list[Server]] = {}
        for position, server in enumerate(self.servers):
            address = server.option("data-parallel-address") or server.option("master-addr")
            port = server.text("data-parallel-rpc-port") or server.text("master-port")
            # "$LOCAL_IP" is not the same address in a prefill and in a decode script.
            transfer = server.text("kv-transfer-config")
            side = [role for role in ("kv_producer", "kv_consumer") if role in transfer]
            apart = "" if address is None or address.value.known else "".join(side)
            key: object = (
                ("group", server.group) if server.group
                else ("address", address.value.text, port, apart) if address is not None
                else ("alone", position)
            )  # fmt: skip
            together.setdefault(key, []).append(server)
        for servers in together.values():
            yield tuple(servers)
