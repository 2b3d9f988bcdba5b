"""Rules on the all2all back end of a launch: does it exist, does it fit the nodes and the work."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from epdoctor import compat
from epdoctor.backends import available, backends, canonical_backends
from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import require
from epdoctor.facts.launch import parse_number
from epdoctor.launch import flags
from epdoctor.launch.arguments import NO_VALUE
from epdoctor.launch.json_options import merged
from epdoctor.launch.judge import (
    backend_of,
    backend_option,
    fleet_rule,
    newest_version,
    server_rule,
    table,
    version_of,
)
from epdoctor.launch.layout import across_nodes, layout_of, number_of, require_known, switch_of
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Location, Problem, Severity
from epdoctor.rules import need
from epdoctor.rules.launch_deepep import comm_sms_fit

DISAGGREGATED = ("deepep_high_throughput", "deepep_low_latency")
"""Back ends whose kernels are made for one side of disaggregated serving (vLLM's EP guide)."""


@need("launch-all2all")
def launch_names_backend(launch: LaunchSet) -> bool:
    """No launch names an all2all back end"""
    return any(
        server.option("all2all-backend") is not None or "VLLM_ALL2ALL_BACKEND" in server.environment
        for server in launch.servers
    )


@need("launch-nodes")
def launch_has_nodes(launch: LaunchSet) -> bool:
    """Judged without the nodes' facts (-i inventory.ini or --from RECORDING)"""
    return bool(launch.nodes)


def place(server: Server) -> Location:
    """Where the back end is chosen."""
    option = server.option("all2all-backend")
    variable = server.environment.get("VLLM_ALL2ALL_BACKEND")
    return option.location if option else variable.location if variable else server.location


@server_rule
def launch_backend_exists(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """The back end is one that this vLLM has; a removed one is replaced in silence."""
    text, option = backend_option(launch, server)
    if not text:
        return
    version = version_of(launch, server)
    known = backends().get(text)
    where = option.location if option is not None else place(server)
    if known is None:
        near = difflib.get_close_matches(text.lower().replace("-", "_"), [*backends()], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "one of " + ", ".join(canonical_backends())
        yield Problem(
            found=f"no all2all back end is called {text[:60]!r}",
            expected=hint,
            location=where,
        )
    elif known.status == "internal":
        yield Problem(
            found=f"--all2all-backend {text} is not accepted on the command line",
            expected=known.note,
            location=where,
        )
    elif known.status == "removed":
        if compat.release(version) >= compat.release(known.removed_in):
            yield Problem(
                found=f"--all2all-backend {text}: removed in vLLM {known.removed_in}; it warns and runs "
                f"{known.falls_back_to}",
                expected="allgather_reducescatter on one node, deepep_* or nixl_ep across nodes",
                location=where,
            )
    elif missing := available(known.alias_of or known.name, version):
        yield Problem(found=f"--all2all-backend {text}: {missing}", expected="a newer vLLM", location=where)


@server_rule
def launch_expert_parallel_on(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """An all2all back end does something only with --enable-expert-parallel and more than one rank."""
    text, option = backend_option(launch, server)
    if not text or option is None:
        return
    if not switch_of(server, "enable-expert-parallel"):
        yield Problem(
            found=f"--all2all-backend {text} without --enable-expert-parallel: the experts are split by TP, and no "
            "all2all kernel runs",
            expected="--enable-expert-parallel",
            location=option.location,
        )
    elif (layout := layout_of(server)).data * layout.context < 2:
        yield Problem(
            found=f"--all2all-backend {text} with --data-parallel-size 1: vLLM uses all2all kernels only with data "
            "parallelism",
            expected="--data-parallel-size of 2 or more (EP = TP x DP)",
            location=option.location,
            severity=Severity.INFO,
        )


@fleet_rule
def launch_backend_fits_nodes(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """A back end that stays inside a node, or inside NVLink, is not started across nodes."""
    if not across_nodes(servers):
        return
    for server in servers:
        known = backends().get(backend_of(launch, server))
        if known is None or known.across_nodes == "yes":
            continue
        if known.across_nodes == "no":
            yield Problem(
                found=f"{known.name} across nodes: it works in one node only",
                expected="deepep_low_latency, deepep_high_throughput, deepep_v2, nixl_ep or allgather_reducescatter",
                location=place(server),
            )
        elif not _nvlink_spans(launch, servers):
            yield Problem(
                found=f"{known.name} across nodes: it crosses only where NVLink does (GB200/GB300 NVL72)",
                expected="nodes of one NVLink domain with IMEX, or a back end that uses the network",
                severity=Severity.WARNING,
                location=place(server),
            )


def _nvlink_spans(launch: LaunchSet, servers: tuple[Server, ...]) -> bool:
    """Whether the launch itself says that NVLink spans the nodes."""
    for server in servers:
        if (
            server.variable("NCCL_MNNVL_ENABLE") == "1"
            or server.variable("VLLM_DEEPEP_LOW_LATENCY_USE_MNNVL") == "1"
        ):
            return True
        if server.pod is not None and "computedomain" in str(server.pod.raw)[:200_000].lower():
            return True
    return False


def role_of(server: Server) -> str:
    """kv_role of --kv-transfer-config; empty: none, or no JSON. Raises Unmeasured where it is not resolved."""
    config = merged(server, "kv-transfer-config")
    if config is None or config.values is None:
        return ""
    role = config.values.get("kv_role")
    return role if isinstance(role, str) else ""


def connector_of(server: Server) -> str:
    """kv_connector of --kv-transfer-config; empty: none, or no JSON. Raises Unmeasured where it is not resolved."""
    config = merged(server, "kv-transfer-config")
    if config is None or config.values is None:
        return ""
    connector = config.values.get("kv_connector")
    return connector if isinstance(connector, str) else ""


def side_of(server: Server) -> str:
    """prefill | decode | "" (neither is said): by kv_role, for kv_both by the name that people give it."""
    role = role_of(server)
    if role == "kv_both":
        pod = server.pod
        name = f"{server.name} {server.group} {pod.name if pod else ''} {server.location.path}".lower()
        named = [side for side in ("prefill", "decode") if side in name]
        return named[0] if len(named) == 1 else ""
    return {"kv_producer": "prefill", "kv_consumer": "decode"}.get(role, "")


def moves_cache(server: Server) -> bool:
    """Whether its connector carries the cache between prefill and decode servers."""
    connector = connector_of(server)
    if connector in table("kv_transfer_connectors"):
        return True
    config = merged(server, "kv-transfer-config")
    return bool(
        connector == "MultiConnector"
        and config is not None
        and any(name in str(config.values) for name in table("kv_transfer_connectors"))
    )


@fleet_rule
def launch_backend_fits_workload(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """deepep_high_throughput and deepep_low_latency are made for prefill and decode apart."""
    server = servers[0]
    backend = backend_of(launch, server)
    if backend not in DISAGGREGATED or not switch_of(server, "enable-expert-parallel"):
        return
    if (
        layout_of(server).data < 2
        or moves_cache(server)
        or connector_of(server) in table("benchmark_connectors")
    ):
        return
    if merged(server, "kv-transfer-config") is not None and connector_of(server) == "":
        return
    side = "prefill" if backend == "deepep_high_throughput" else "decode"
    yield Problem(
        found=f"{backend} serves prefill and decode in one engine; its kernels are made for {side} only",
        expected="disaggregated serving (--kv-transfer-config), or deepep_v2 or allgather_reducescatter for a mix",
        location=place(server),
    )


@server_rule
def launch_backend_fits_role(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Prefill on high-throughput kernels, decode on low-latency ones."""
    side, backend = side_of(server), backend_of(launch, server)
    if not moves_cache(server):
        return
    if side == "prefill" and backend in ("deepep_low_latency", "nixl_ep", "mori_low_latency"):
        yield Problem(
            found=f"the prefill server ({role_of(server)}) runs {backend}",
            expected="deepep_high_throughput or deepep_v2 for prefill",
            location=place(server),
        )
    elif side == "decode" and backend in ("deepep_high_throughput", "mori_high_throughput"):
        yield Problem(
            found=f"the decode server ({role_of(server)}) runs {backend}",
            expected="deepep_low_latency for decode",
            location=place(server),
        )


@server_rule
def launch_dbo_supported(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """--enable-dbo (and --ubatch-size) work with few back ends; vLLM asserts it (config/vllm.py:2180)."""
    dbo = switch_of(server, "enable-dbo")
    micro = number_of(server, "ubatch-size", 0)
    if not dbo and micro <= 1:
        return
    backend = backend_of(launch, server)
    option = server.option("enable-dbo") or server.option("ubatch-size")
    where = option.location if option is not None else server.location
    if backend not in table("dbo_backends"):
        rocm = any("rocm" in text.lower() for text in (server.pod.image if server.pod else "",))
        if rocm and backend == "allgather_reducescatter":
            return
        yield Problem(
            found=f"{'--enable-dbo' if dbo else '--ubatch-size'} with {backend}",
            expected="--all2all-backend " + ", ".join(table("dbo_backends")),
            location=where,
        )
    if backend == "deepep_high_throughput":
        yield from comm_sms_fit(server)
    ubatches = 2 if dbo else micro
    for name, default in (("dbo-decode-token-threshold", 32), ("dbo-prefill-token-threshold", 512)):
        threshold = number_of(server, name, default)
        if threshold < ubatches:
            yield Problem(
                found=f"--{name} {threshold} with {ubatches} microbatches",
                expected=f"{ubatches} or more",
                location=where,
            )


_WITH_VALUE = ("int", "float", "str", "choice")
_HIGH = "NVIDIA GPUs of compute capability 9.0 or later"


@fleet_rule
def launch_backend_fits_hardware(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """GPU generation and NICs of the nodes carry the back end."""
    multinode = across_nodes(servers)
    for backend in dict.fromkeys(backend_of(launch, server) for server in servers):
        known = backends().get(backend)
        if known is None or backend == "allgather_reducescatter":
            continue
        server = next(server for server in servers if backend_of(launch, server) == backend)
        nodes = [launch.nodes[s.node] for s in servers if s.node in launch.nodes] or list(
            launch.nodes.values()
        )
        for node in nodes:
            old = [gpu for gpu in node.gpu.gpus if require(gpu.compute_capability) < (9, 0)]
            if known.vendor == "nvidia" and old and (multinode or backend != "deepep_high_throughput"):
                yield Problem(
                    found=f"{backend} on {node.name} with {old[0].name}",
                    expected=_HIGH,
                    odd_nodes=(node.name,),
                    location=place(server),
                )
            if multinode and known.transport in ("nvshmem", "ucx-gda") and not _has_mlx5(node):
                yield Problem(
                    found=f"{backend} across nodes; {node.name} has no mlx5 HCA",
                    expected="ConnectX or BlueField HCAs (IBGDA is mlx5 only), or allgather_reducescatter",
                    odd_nodes=(node.name,),
                    location=place(server),
                )


def _has_mlx5(node: Any) -> bool:
    return any(device.kind == "mlx5" for device in node.rdma.devices)


@server_rule
def launch_values_chosen(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Options with a closed list of values hold one of them, and numbers are numbers."""
    known = flags.load()
    newest = version_of(launch, server) == newest_version()
    closed = compat.field("launch", "choices", dict)
    optional = table("optional_numbers")
    unseen = ""
    for name, option in server.options.items():
        flag = known.get(name)
        if flag is None or "." in name:
            continue
        if option.value.source == NO_VALUE and flag.kind in _WITH_VALUE and not option.negated:
            yield Problem(
                found=f"{option.written} has no value",
                expected=f"{option.written} and its value in the same command",
                location=option.location,
            )
            continue
        if name == "all2all-backend":
            continue
        allowed = closed.get(name) or (flag.choices if newest and flag.kind == "choice" else ())
        if (not allowed and flag.kind not in ("int", "float")) or option.value.runtime:
            continue
        try:
            text = require_known(option.value, option.written)
        except Unmeasured as error:
            unseen = unseen or str(error)
            continue
        # An executor may also be a class path.
        if allowed and text not in allowed and "." not in text:
            near = difflib.get_close_matches(text, allowed, n=1, cutoff=0.5)
            yield Problem(
                found=f"{option.written} {text[:40]}",
                expected=(f"did you mean {near[0]}? " if near else "") + "one of " + ", ".join(allowed),
                location=option.location,
            )
        elif not allowed and not _is_number(text, flag.kind) and not (name in optional and text == ""):
            yield Problem(
                found=f"{option.written} {text[:40]!r}",
                expected="a number",
                location=option.location,
            )
    if unseen:
        raise Unmeasured(unseen)


def _is_number(text: str, kind: str) -> bool:
    if parse_number(text) is not None or text.strip().lower() in ("none", "auto", "-1"):
        return True
    try:
        return kind == "float" and float(text) == float(text)
    except ValueError:
        return False


def _round_robin(server: Server) -> Location | None:
    option = server.option("expert-placement-strategy")
    if option is None or require_known(option.value, option.written) != "round_robin":
        return None
    return option.location


@server_rule
def launch_expert_placement_effective(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """round_robin is dropped for linear with EPLB, redundant experts, or a model without expert groups."""
    where = _round_robin(server)
    if where is None:
        return
    groups = (launch.model_config or {}).get("n_group")
    eplb = switch_of(server, "enable-eplb")
    if eplb or (launch.model_config is not None and (not isinstance(groups, int) or groups < 2)):
        why = "--enable-eplb" if eplb else "a model without expert groups (n_group)"
        yield Problem(
            found=f"--expert-placement-strategy round_robin with {why}: vLLM falls back to linear",
            expected="linear",
            location=where,
        )
    if backend_of(launch, server) == "moonep":
        yield Problem(
            found="--expert-placement-strategy round_robin with moonep",
            expected="linear: vLLM refuses to start otherwise",
            severity=Severity.ERROR,
            location=where,
        )
