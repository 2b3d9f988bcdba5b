"""Rules on DeepEP's limits: ranks, hidden size, queue depth, buffer size, experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.facts.launch import BATCHED_TOKEN_LIMIT, parse_number
from epdoctor.launch.buffers import low_latency_buffer_bytes
from epdoctor.launch.experts import model_numbers, redundant_experts
from epdoctor.launch.judge import backend_of, fact, fleet_rule, server_rule
from epdoctor.launch.layout import across_nodes, layout_of, require_known, switch_of
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Location, Problem, Severity
from epdoctor.rules import need

_MNNVL = "VLLM_DEEPEP_LOW_LATENCY_USE_MNNVL"
LEGACY = ("deepep_high_throughput", "deepep_low_latency")


def _uses(launch: LaunchSet, names: tuple[str, ...]) -> bool:
    for server in launch.servers:
        try:
            if backend_of(launch, server) in names:
                return True
        except Unmeasured:
            return True
    return False


@need("launch-deepep")
def launch_uses_deepep(launch: LaunchSet) -> bool:
    """No launch uses deepep_high_throughput or deepep_low_latency"""
    return _uses(launch, LEGACY)


@need("launch-low-latency")
def launch_uses_low_latency(launch: LaunchSet) -> bool:
    """No launch uses deepep_low_latency"""
    return _uses(launch, ("deepep_low_latency",))


def _active(launch: LaunchSet, server: Server, names: tuple[str, ...]) -> bool:
    """Whether DeepEP's kernels run: EP and more than one data-parallel rank."""
    return (
        backend_of(launch, server) in names
        and switch_of(server, "enable-expert-parallel")
        and layout_of(server).data > 1
    )


def _backend_place(server: Server) -> Location:
    option = server.option("all2all-backend")
    return server.location if option is None else option.location


@fleet_rule
def launch_deepep_ranks_supported(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """Numbers of EP ranks that legacy DeepEP has a configuration for."""
    server = servers[0]
    if not _active(launch, server, LEGACY):
        return
    ranks = layout_of(server).expert
    allowed = [int(item) for item in compat.field("launch", "deepep_ranks", list)]
    if ranks in allowed:
        return
    backend = backend_of(launch, server)
    if backend == "deepep_low_latency" and ranks % 8 == 0:
        # Only the high-throughput mode looks the configuration up.
        return
    near = [item for item in allowed if item < ranks][-1:] + [item for item in allowed if item > ranks][:1]
    yield Problem(
        found=f"EP {ranks} with {backend}: DeepEP has no configuration for {ranks} ranks",
        expected=f"EP {' or '.join(str(item) for item in near)} (of {', '.join(str(item) for item in allowed)})",
        location=_backend_place(server),
    )


@fleet_rule
def launch_deepep_node_size(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """Across nodes, DeepEP wants 8 ranks in each node; ranks [0,7] on one, [8,15] on the next."""
    if not across_nodes(servers):
        return
    for server in servers:
        if not _active(launch, server, LEGACY):
            continue
        layout = layout_of(server)
        if layout.mode == "external" or layout.gpus in (0, 8) or server.variable(_MNNVL) == "1":
            continue
        option = server.option("data-parallel-size-local")
        yield Problem(
            found=f"{layout.gpus} ranks on a node ({layout.tensor} x {layout.local}) with {backend_of(launch, server)}",
            expected="8 ranks on each node: legacy DeepEP counts on NVLink groups of 8",
            location=_backend_place(server) if option is None else option.location,
        )


@server_rule
def launch_hidden_size_supported(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Hidden sizes that the low-latency kernels are compiled for; smaller ones are rounded up, larger ones refused."""
    if not _active(launch, server, ("deepep_low_latency", "nixl_ep")):
        return
    hidden = model_numbers(launch, server).hidden_size
    sizes = [int(item) for item in compat.field("launch", "deepep_hidden_sizes", list)]
    if hidden in sizes:
        return
    above = [size for size in sizes if size > hidden]
    name = backend_of(launch, server)
    if not above:
        yield Problem(
            found=f"hidden size {hidden} with {name}",
            expected=f"at most {sizes[-1]}; deepep_high_throughput, deepep_v2 or allgather_reducescatter take it",
            location=_backend_place(server),
        )
    else:
        yield Problem(
            found=f"hidden size {hidden} with {name}: vLLM pads it to {above[0]}",
            expected="one of " + ", ".join(str(size) for size in sizes),
            severity=Severity.INFO,
            location=_backend_place(server),
        )


def token_limit(server: Server) -> tuple[int, str, Location]:
    """Most tokens of a rank in one step, who says so, and where. Raises Unmeasured where it is not resolved."""
    option = server.option("max-num-batched-tokens")
    if option is not None:
        number = parse_number(require_known(option.value, option.written))
        if number is not None:
            return number, f"--max-num-batched-tokens {option.value.text}", option.location
        raise Unmeasured(f"{option.location}: {option.written} {option.value.text[:40]!r} is not a number")
    return BATCHED_TOKEN_LIMIT, "vLLM's default for this back end", _backend_place(server)


@server_rule
def launch_queue_depth_fits(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """NVSHMEM_QP_DEPTH >= 2 x (tokens + 1), which DeepEP's low-latency mode asserts without a message."""
    if not _active(launch, server, ("deepep_low_latency",)):
        return
    limits = compat.field("nvshmem", "qp_depth", dict)
    tokens, source, where = token_limit(server)
    variable = server.environment.get("NVSHMEM_QP_DEPTH")
    depth = int(limits["default"])
    shown = f"NVSHMEM_QP_DEPTH is not set ({depth} by default)"
    if variable is not None:
        text = require_known(variable, "NVSHMEM_QP_DEPTH").strip()
        number = parse_number(text)
        if number is None or not int(limits["min"]) <= number <= int(limits["max"]):
            yield Problem(
                found=f"NVSHMEM_QP_DEPTH={text[:40]}",
                expected=f"a number from {limits['min']} to {limits['max']}",
                location=variable.location,
            )
            return
        depth, shown, where = number, f"NVSHMEM_QP_DEPTH={text}", variable.location
    needed = 2 * (tokens + 1)
    if depth >= needed:
        return
    most = int(limits["max"]) // 2 - 1
    fits = needed <= int(limits["max"])
    yield Problem(
        found=f"{shown}: enough for {depth // 2 - 1} tokens; the limit is {tokens} ({source})",
        expected=f"NVSHMEM_QP_DEPTH={needed} or more for {tokens} tokens"
        if fits
        else f"at most {most} tokens, since NVSHMEM_QP_DEPTH ends at {limits['max']}",
        now=(
            f"export NVSHMEM_QP_DEPTH={needed}"
            if fits
            else f"vllm serve ... --max-num-batched-tokens {most}",
        ),
        location=where,
    )


@server_rule
def launch_deepep_buffer_fits(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """The low-latency buffer stays below 32 GiB; redundant experts count."""
    if not _active(launch, server, ("deepep_low_latency",)):
        return
    tokens, source, where = token_limit(server)
    numbers = model_numbers(launch, server)
    redundant = redundant_experts(server)
    experts = numbers.experts + redundant
    limit = fact("deepep_buffer_limit_bytes")
    size = low_latency_buffer_bytes(tokens, numbers.hidden_size, experts)
    if size <= limit:
        return
    most = int(tokens * limit / size)
    while most > 1 and low_latency_buffer_bytes(most, numbers.hidden_size, experts) > limit:
        most -= 1
    yield Problem(
        found=f"RDMA buffer of {size / 2**30:.1f} GiB for {tokens} tokens ({source}), hidden size "
        f"{numbers.hidden_size}, {experts} experts" + (f" ({redundant} redundant)" if redundant else ""),
        expected=f"below 32 GiB: at most {most} tokens",
        now=(f"vllm serve ... --max-num-batched-tokens {most}",),
        location=where,
    )


@server_rule
def launch_experts_divisible(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Legacy DeepEP splits the experts evenly: num_experts % num_ranks == 0."""
    if not _active(launch, server, LEGACY) or switch_of(server, "enable-eplb"):
        return
    layout, numbers = layout_of(server), model_numbers(launch, server)
    if numbers.experts % layout.expert:
        yield Problem(
            found=f"{numbers.experts} experts on EP {layout.expert} with {backend_of(launch, server)}",
            expected=f"EP that divides {numbers.experts}, or --enable-eplb with "
            f"{-numbers.experts % layout.expert} redundant experts",
            location=_backend_place(server),
        )


@server_rule
def launch_topk_supported(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Experts per token that the low-latency kernels take."""
    if not _active(launch, server, ("deepep_low_latency",)):
        return
    top_k = model_numbers(launch, server).top_k
    most = fact("deepep_low_latency_top_k")
    if top_k is None:
        raise Unmeasured("experts per token are not in the model's config.json (--model-config FILE)")
    if top_k > most:
        yield Problem(
            found=f"{top_k} experts per token with deepep_low_latency",
            expected=f"at most {most}; deepep_high_throughput, deepep_v2 or allgather_reducescatter take more",
            location=_backend_place(server),
        )


@server_rule
def launch_overwritten_variables(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """NVSHMEM variables that legacy DeepEP sets itself: a value from outside is lost."""
    if backend_of(launch, server) not in LEGACY:
        return
    rows: Mapping[str, Any] = server.environment
    lost = [name for name in compat.field("nvshmem", "overwritten_by_deepep", list) if name in rows]
    if lost:
        yield Problem(
            found=f"{', '.join(lost)} set",
            expected="not set: DeepEP sets them itself when it starts",
            location=server.environment[lost[0]].location,
        )


def comm_sms_fit(server: Server) -> Iterator[Problem]:
    """VLLM_DBO_COMM_SMS of the high-throughput kernels: even, and not beyond what the buffer's QPs are made for."""
    variable = server.environment.get("VLLM_DBO_COMM_SMS")
    if variable is None:
        return
    number, most = parse_number(require_known(variable, "VLLM_DBO_COMM_SMS")), fact("deepep_num_sms")
    if number is None:
        yield Problem(
            found=f"VLLM_DBO_COMM_SMS={variable.text[:40]}", expected="a number", location=variable.location
        )
    elif number > most:
        yield Problem(
            found=f"VLLM_DBO_COMM_SMS={number}: vLLM makes {most} of it, the buffer has num_qps {most // 2}",
            expected=f"an even number up to {most}",
            severity=Severity.WARNING,
            location=variable.location,
        )
    elif number % 2:
        yield Problem(
            found=f"VLLM_DBO_COMM_SMS={number}: DeepEP stops with 'The SM count must be even'",
            expected=f"an even number up to {most}",
            location=variable.location,
        )
