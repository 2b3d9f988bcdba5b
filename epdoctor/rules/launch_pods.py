"""Rules on what a manifest or compose file grants the container: GPUs, RDMA, memory, probes, services."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.launch.judge import backend_of, fact, fleet_rule, ranks_text
from epdoctor.launch.layout import across_nodes, first_option, fleets, layout_of, require_known, text_of
from epdoctor.launch.model import LaunchSet, Pod, Server
from epdoctor.model import Problem, Severity
from epdoctor.rules import launch_rule, need
from epdoctor.rules.launch_kv import uses_nixl

_RDMA = re.compile(r"rdma|roce|infiniband|/ib$|hca|vnic|efa|mlnx|nic", re.IGNORECASE)
_RDMA_BACKENDS = ("deepep_high_throughput", "deepep_low_latency", "deepep_v2", "nixl_ep", "mori_high_throughput",
                  "mori_low_latency")  # fmt: skip


@need("launch-kubernetes")
def launch_has_kubernetes(launch: LaunchSet) -> bool:
    """No Kubernetes manifest is given"""
    return any(server.kind == "kubernetes" for server in launch.servers) or any(launch.resources)


@need("launch-containers")
def launch_has_containers(launch: LaunchSet) -> bool:
    """No pod, compose service or unit with a limit is given"""
    return any(server.pod is not None or server.locked_memory is not None for server in launch.servers)


def _pods(launch: LaunchSet, kubernetes: bool = False) -> Iterator[tuple[Server, Pod]]:
    """The first server of each pod template."""
    seen: set[tuple[str, str, str, str]] = set()
    for server in launch.servers:
        pod = server.pod
        if pod is None or (kubernetes and server.kind != "kubernetes") or pod.kind in ("", "?"):
            # A values file of a chart has no pod: the chart adds what is missing.
            continue
        if server.front_end:
            # Its operator writes the pod.
            continue
        key = (pod.kind, pod.name, pod.container, str(pod.location))
        if key not in seen:
            seen.add(key)
            yield server, pod


def _lacks(pod: Pod, unseen: dict[str, None]) -> bool:
    """Whether what the pod does not have is missing. A patch is merged with what is not here: not known."""
    if pod.partial:
        unseen[
            f"{pod.location}: {pod.kind}/{pod.name} is not given whole (a patch, or an operator adds to it)"
        ] = None
    return not pod.partial


def _fleet_of(launch: LaunchSet, server: Server) -> tuple[Server, ...]:
    return next((servers for servers in fleets(launch) if any(s is server for s in servers)), (server,))


def _uses_rdma(launch: LaunchSet, server: Server) -> bool:
    """Whether ranks on other nodes, or a prefill side, are reached with RDMA."""
    servers = _fleet_of(launch, server)
    return across_nodes(servers) and backend_of(launch, server) in _RDMA_BACKENDS


@launch_rule
def launch_pod_has_rdma(launch: LaunchSet) -> Iterator[Problem]:
    """A pod whose ranks talk RDMA asks for the HCAs, or has the host's network and is privileged."""
    unseen: dict[str, None] = {}
    for server, pod in _pods(launch, kubernetes=True):
        try:
            wanted = _uses_rdma(launch, server)
        except Unmeasured as error:
            unseen[str(error)] = None
            continue
        asked = [name for name in {**pod.requests, **pod.limits} if _RDMA.search(name)]
        claims = pod.raw.get("resourceClaims")
        networks = "networks" in str(pod.raw.get("metadata", ""))[:5000]
        reached = asked or claims or networks or (pod.host_network and pod.privileged)
        if wanted and not reached and _lacks(pod, unseen):
            yield Problem(
                found=f"{pod.kind}/{pod.name} asks for no RDMA device (rdma/...), with {backend_of(launch, server)} "
                "across nodes",
                expected='a limit such as rdma/ib: "1" (the name is the device plugin\'s), or hostNetwork and privileged',
                location=pod.location,
            )
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


_TEMPLATES = ("<<", "{{")
_ACCELERATORS = (
    "tpu",
    "gaudi",
    "habana",
    "hpu",
    "xpu",
    "i915",
    "neuron",
    "npu",
    "ascend",
    "spyre",
    "vllm-cpu",
)


def _other_accelerator(pod: Pod) -> bool:
    """Whether the pod is for another kind of device, or its resources are a template."""
    told = " ".join([*pod.requests, *pod.limits, pod.name, pod.image]).lower()
    raw = str(pod.raw.get("containers"))[:20_000]
    return any(word in told or word in raw for word in _TEMPLATES) or any(
        word in told for word in _ACCELERATORS
    )


def _gpus_needed(server: Server, pod: Pod) -> int:
    """GPUs of one pod. One command for a whole group (Ray, or TP and PP across pods) is spread over its pods."""
    layout = layout_of(server)
    if layout.nnodes == 1 and (pod.group_size or 1) > 1 and not layout.part and layout.mode == "internal":
        return -(-layout.gpus // (pod.group_size or 1))
    return layout.gpus


@launch_rule
def launch_pod_gpus_enough(launch: LaunchSet) -> Iterator[Problem]:
    """A container has a GPU for each rank that its command starts."""
    unseen: dict[str, None] = {}
    for server, pod in _pods(launch):
        if "ray" in (server.text("distributed-executor-backend"), server.text("data-parallel-backend")):
            # Ray spreads the ranks over its pods.
            continue
        try:
            needed = _gpus_needed(server, pod)
        except Unmeasured as error:
            unseen[str(error)] = None
            continue
        claims = pod.raw.get("resourceClaims")
        if pod.gpus is None:
            wanted = server.kind == "kubernetes" and not claims and needed > 1
            if wanted and not _other_accelerator(pod) and _lacks(pod, unseen):
                yield Problem(
                    found=f"{pod.kind}/{pod.name} asks for no GPU; its command starts {needed} ranks",
                    expected=f'nvidia.com/gpu: "{needed}" in limits',
                    severity=Severity.WARNING,
                    location=pod.place("gpus"),
                )
        elif pod.gpus < needed:
            layout = layout_of(server)
            yield Problem(
                found=f"{pod.kind}/{pod.name} has {pod.gpus} GPUs; its command wants {needed} (TP {layout.tensor} x "
                f"{layout.local} local data-parallel ranks"
                + (f" x PP {layout.pipeline}" if layout.pipeline > 1 else "")
                + ")",
                expected=f"{needed} GPUs, or a smaller --data-parallel-size-local",
                location=pod.place("gpus"),
            )
        elif pod.gpus > needed > 0 and (layout_of(server).part or across_nodes(_fleet_of(launch, server))):
            yield Problem(
                found=f"{pod.kind}/{pod.name} has {pod.gpus} GPUs; its command uses {needed}",
                expected=f"{needed} GPUs, or more ranks",
                severity=Severity.INFO,
                location=pod.place("gpus"),
            )
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


_ULIMITS = {
    "compose service": (
        "no ulimits memlock -1, no IPC_LOCK",
        "ulimits: {memlock: -1}, or cap_add: [IPC_LOCK]",
    ),
    "docker run": ("no --ulimit memlock=-1, no IPC_LOCK", "--ulimit memlock=-1, or --cap-add IPC_LOCK"),
}


@launch_rule
def launch_pod_may_lock_memory(launch: LaunchSet) -> Iterator[Problem]:
    """RDMA registers memory: IPC_LOCK or privileged in a pod, memlock -1 in compose."""
    unseen: dict[str, None] = {}
    for server, pod in _pods(launch):
        try:
            rdma = _uses_rdma(launch, server)
            wanted = rdma or (uses_nixl(server) and not _other_accelerator(pod))
        except Unmeasured as error:
            unseen[str(error)] = None
            continue
        capabilities = {name.upper().removeprefix("CAP_") for name in pod.capabilities}
        if not wanted or pod.privileged or capabilities & {"IPC_LOCK", "ALL", "SYS_ADMIN"}:
            continue
        if not _lacks(pod, unseen):
            continue
        if pod.kind in _ULIMITS and pod.memlock_bytes == -1:
            continue
        found, expected = _ULIMITS.get(
            pod.kind, (f"{pod.kind}/{pod.name}: neither IPC_LOCK nor privileged", "")
        )
        yield Problem(
            found=found if not expected else f"{pod.name or pod.kind}: {found}",
            expected=expected or "securityContext: {capabilities: {add: [IPC_LOCK]}}",
            severity=None if rdma else Severity.WARNING,
            location=pod.place("memlock" if "memlock" in pod.places else "security"),
        )
    for server in launch.servers:
        limit = server.locked_memory
        if limit is None or limit.text in ("infinity", "unlimited"):
            continue
        try:
            if _uses_rdma(launch, server) or uses_nixl(server):
                yield Problem(
                    found=f"LimitMEMLOCK={require_known(limit, 'LimitMEMLOCK')[:40]}",
                    expected="LimitMEMLOCK=infinity",
                    location=limit.location,
                )
        except Unmeasured as error:
            unseen[str(error)] = None
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


_OWN_NAMES = ("ClusterFirstWithHostNet", "None")
"""Of dnsPolicy: with hostNetwork, the default ClusterFirst becomes the node's own name servers."""


def _meets_by_name(launch: LaunchSet, server: Server) -> bool:
    """Whether ranks on several nodes meet at a name of the cluster: the leader's, or a Service's."""
    if server.pod is not None and server.pod.partial:
        return False
    option = server.option("data-parallel-address") or server.option("master-addr")
    if option is None or not across_nodes(_fleet_of(launch, server)):
        return False
    if option.value.runtime:
        return "leader" in option.value.runtime
    text = option.value.text
    return (
        option.value.known and not text.replace(".", "").isdigit() and ":" not in text and text != "localhost"
    )


@launch_rule
def launch_pod_host_network(launch: LaunchSet) -> Iterator[Problem]:
    """vLLM's EP guide wants hostNetwork for NVSHMEM across nodes; llm-d serves without it: a note."""
    unseen: dict[str, None] = {}
    for server, pod in _pods(launch, kubernetes=True):
        if pod.host_network and _meets_by_name(launch, server) and pod.raw.get("dnsPolicy") not in _OWN_NAMES:
            yield Problem(
                found=f"{pod.kind}/{pod.name} has hostNetwork without dnsPolicy ClusterFirstWithHostNet: names of "
                "Services do not resolve in it, and the ranks meet by one",
                expected="dnsPolicy: ClusterFirstWithHostNet",
                severity=Severity.WARNING,
                location=pod.location,
            )
        if not pod.host_network and _uses_rdma(launch, server) and _lacks(pod, unseen):
            yield Problem(
                found=f"{pod.kind}/{pod.name} has no hostNetwork",
                expected="hostNetwork: true, or HCAs in the pod by device plugin or Multus",
                location=pod.location,
            )
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


@launch_rule
def launch_pod_shm_enough(launch: LaunchSet) -> Iterator[Problem]:
    """Shared memory holds segments of NCCL and vLLM: the runtime gives 64 MiB, not enough for several ranks."""
    wanted = fact("shm_wanted_bytes")
    unseen: dict[str, None] = {}
    for server, pod in _pods(launch):
        if pod.host_ipc:
            continue
        try:
            ranks = layout_of(server).gpus
            several = ranks > 1
        except Unmeasured as error:
            unseen[str(error)] = None
            continue
        if not several:
            continue
        if pod.shm_bytes is None and not pod.shm_mounted:
            if _other_accelerator(pod) or not _lacks(pod, unseen):
                continue
            yield Problem(
                found=f"{pod.kind}/{pod.name}: nothing is mounted at /dev/shm (64 MiB by default)",
                expected={
                    "compose service": "shm_size: 16gb",
                    "docker run": "--shm-size 16g, or --ipc=host",
                }.get(pod.kind, "an emptyDir of medium Memory with sizeLimit 2Gi or more at /dev/shm"),
                # Two ranks that reach each other over NVLink or PCIe often get by.
                severity=Severity.WARNING if ranks == 2 else None,
                location=pod.place("shm"),
            )
        elif pod.shm_bytes and pod.shm_bytes < wanted:
            yield Problem(
                found=f"{pod.kind}/{pod.name}: {pod.shm_bytes >> 20} MiB at /dev/shm",
                expected=f"{wanted >> 30} GiB or more",
                location=pod.place("shm"),
            )
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def _number(probe: Mapping[str, Any], key: str, default: int) -> int:
    value = probe.get(key, default)
    if isinstance(value, str) and value.strip().isdigit() and len(value) < 9:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unmeasured(f"probe: {key} is {str(value)[:40]!r}")
    return int(value)


def seconds_until_killed(probe: Mapping[str, Any]) -> int:
    """How long a server that does not answer lives under a liveness or startup probe (Kubernetes' defaults)."""
    return _number(probe, "initialDelaySeconds", 0) + _number(probe, "periodSeconds", 10) * _number(
        probe, "failureThreshold", 3
    )


@launch_rule
def launch_pod_probes_patient(launch: LaunchSet) -> Iterator[Problem]:
    """Loading a large MoE model takes minutes: a probe that kills sooner restarts the pod for ever."""
    wanted = fact("load_seconds_wanted")
    unseen: dict[str, None] = {}
    for _server, pod in _pods(launch, kubernetes=True):
        startup, liveness = pod.probes.get("startup"), pod.probes.get("liveness")
        which, probe = ("startupProbe", startup) if startup else ("livenessProbe", liveness)
        if not probe:
            continue
        try:
            seconds = seconds_until_killed(probe)
        except Unmeasured as error:
            unseen[f"{pod.location}: {error}"] = None
            continue
        if seconds < wanted:
            yield Problem(
                found=f"{pod.kind}/{pod.name}: {which} kills after {seconds} s without an answer"
                + ("" if startup else ", and there is no startupProbe"),
                expected=f"a startupProbe of {wanted // 60} minutes or more (failureThreshold x periodSeconds)",
                location=pod.place("startup" if startup else "liveness"),
            )
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


@fleet_rule
def launch_group_covers_ranks(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """LeaderWorkerSet size x local ranks = data-parallel size."""
    server = servers[0]
    pod = server.pod
    if pod is None or pod.group_size is None:
        return
    layout = layout_of(server)
    if layout.mode == "external" or layout.nnodes > 1:
        return
    if not layout.part and (layout.data == 1 or text_of(server, "data-parallel-backend") == "ray"):
        # TP and PP across the pods, or Ray: the leader's command is the only one.
        return
    started = sum(layout_of(s).local for s in servers) if len(servers) == pod.group_size else None
    started = started if started is not None else pod.group_size * layout.local
    if started != layout.data and not (pod.group_size == 1 and layout.local == layout.data):
        option = first_option(server, "data-parallel-size", "data-parallel-size-local")
        yield Problem(
            found=f"{pod.kind}/{pod.name}: size {pod.group_size} x {layout.local} local ranks = {started} of "
            f"--data-parallel-size {layout.data}"
            + (
                f" (ranks {ranks_text(range(started, layout.data))} missing)" if started < layout.data else ""
            ),
            expected=f"size {-(-layout.data // max(1, layout.local))}, or --data-parallel-size {started}",
            location=pod.location if option is None else option.location,
        )
