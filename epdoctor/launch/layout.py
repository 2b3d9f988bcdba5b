"""Which ranks a server starts: vLLM's own arithmetic, from its options alone. Pure.

The order of decisions is that of vLLM 0.33.0 engine/arg_utils.py:2380-2560 and entrypoints/cli/serve.py:75-150.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.facts.launch import parse_number
from epdoctor.launch.model import LaunchSet, Option, Server, Value


def require_known(value: Value, what: str) -> str:
    """The value's text. Raises Unmeasured, with file and line, where the files do not say it."""
    if value.runtime:
        raise Unmeasured(f"{value.location}: {what} is known only when it runs ({value.runtime})")
    if value.unresolved or "$(" in value.text:
        from epdoctor.launch.templates import as_written

        raise Unmeasured(f"{value.location}: {what} is {as_written(value.text[:80])} (not resolved)")
    return value.text


def text_of(server: Server, name: str, default: str = "") -> str:
    """An option's text, the default where it is not given. Raises Unmeasured where it is not resolved."""
    option = server.option(name)
    return default if option is None else require_known(option.value, option.written)


def number_of(server: Server, name: str, default: int) -> int:
    """An option as an integer, the default where it is not given. Raises Unmeasured where it is none."""
    option = server.option(name)
    if option is None:
        return default
    number = parse_number(require_known(option.value, option.written))
    if number is None:
        raise Unmeasured(f"{option.location}: {option.written} {option.value.text[:40]!r} is not a number")
    return number


def switch_of(server: Server, name: str) -> bool:
    """A switch that is set. Raises Unmeasured where its value is not resolved."""
    option = server.option(name)
    if option is None:
        return False
    require_known(option.value, option.written)
    return option.on


@dataclass(frozen=True)
class Layout:
    """The ranks of one server."""

    server: Server
    tensor: int
    pipeline: int
    context: int
    """Prefill context parallel size."""
    data: int
    local: int
    """Data-parallel ranks that this process starts."""
    start: int
    """Its first data-parallel rank."""
    mode: str
    """internal | hybrid | external | multi-port: who spreads requests over the ranks."""
    headless: bool
    nnodes: int
    node_rank: int
    ray: bool = False
    """Ray starts the other nodes' ranks: one command is the whole deployment."""

    @property
    def expert(self) -> int:
        """EP = TP x PCP x DP (vllm/config/parallel.py: the EP group spans these ranks)."""
        return self.tensor * self.context * self.data

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.context

    @property
    def gpus(self) -> int:
        """GPUs that this process needs on its node."""
        if self.nnodes > 1:
            return max(1, self.world * self.data // self.nnodes)
        return self.world * self.local

    @property
    def ranks(self) -> range:
        if self.ray:
            return range(self.data)
        return range(self.start, self.start + self.local)

    @property
    def part(self) -> bool:
        """Other processes must start the other ranks."""
        return not self.ray and (self.local < self.data or self.headless or self.nnodes > 1)


def _zero_is_unset(version: str) -> bool:
    """Whether this vLLM takes --data-parallel-start-rank 0 for no start rank (before vllm-project/vllm#47692)."""
    if not version:
        return False
    try:
        return compat.release(version) < compat.release(compat.field("launch", "start_rank_zero_since", str))
    except Unmeasured:
        return False


def layout_of(server: Server) -> Layout:
    """Raises Unmeasured where an option that decides is not resolved or no number."""
    tensor = number_of(server, "tensor-parallel-size", 1)
    pipeline = number_of(server, "pipeline-parallel-size", 1)
    context = number_of(server, "prefill-context-parallel-size", 1)
    data = number_of(server, "data-parallel-size", 1)
    nnodes = number_of(server, "nnodes", 1)
    node_rank = number_of(server, "node-rank", 0)
    headless = switch_of(server, "headless")
    ray = text_of(server, "data-parallel-backend") == "ray"
    world = max(1, tensor * pipeline * context)
    rank = number_of(server, "data-parallel-rank", 0) if server.option("data-parallel-rank") else None
    start = number_of(server, "data-parallel-start-rank", 0)
    start_given = server.option("data-parallel-start-rank") is not None and (
        start > 0 or not _zero_is_unset(server.vllm_version)
    )
    inferred = node_rank * (data * world // nnodes) // world if nnodes > 1 else 0
    local_given = server.option("data-parallel-size-local") is not None
    local = number_of(server, "data-parallel-size-local", data)
    if server.front_end and nnodes == 1:
        # It spreads the data-parallel ranks over its nodes; its command is the whole deployment.
        return Layout(server, tensor, pipeline, context, data, data, 0, "internal", False, 1, 0)
    multi_port = switch_of(server, "data-parallel-multi-port-external-lb")
    external = (switch_of(server, "data-parallel-external-lb") or rank is not None) and not multi_port
    hybrid = switch_of(server, "data-parallel-hybrid-lb") or (start_given and not headless and local_given)
    if external:
        mode, local = "external", 1
        start = rank if rank is not None else inferred
    else:
        if nnodes > 1 and not local_given:
            local = max(data * world // nnodes // world, 1)
        if not start_given:
            start = inferred
        mode = "multi-port" if multi_port else "hybrid" if hybrid and local < data else "internal"
    return Layout(
        server, tensor, pipeline, context, data, local, start, mode, headless, nnodes, node_rank, ray
    )  # fmt: skip


def fleets(launch: LaunchSet) -> list[tuple[Server, ...]]:
    """Deployments; those that are incomplete alone and belong together (same model and role) as one.

    Servers that should be one deployment but name different addresses are not told apart from two deployments
    by the address alone: they are one where each lacks ranks that the other has."""
    # Asked for by most rules; kept beside the set, which never changes.
    kept: list[tuple[Server, ...]] | None = launch.__dict__.get("_fleets")
    if kept is None:
        kept = _join(launch)
        launch.__dict__["_fleets"] = kept
    return kept


def _join(launch: LaunchSet) -> list[tuple[Server, ...]]:
    together: list[tuple[Server, ...]] = []
    partial: dict[tuple[str, str], list[tuple[Server, ...]]] = {}
    for servers in launch.deployments():
        try:
            layouts = [layout_of(server) for server in servers]
        except Unmeasured:
            together.append(servers)
            continue
        covered = {rank for layout in layouts for rank in layout.ranks}
        size = max(layout.data for layout in layouts)
        node_ranks = {layout.node_rank for layout in layouts}
        nodes = max(layout.nnodes for layout in layouts)
        complete = (len(covered) >= size and len(node_ranks) >= nodes) or not any(
            layout.part for layout in layouts
        )
        if complete or any(server.group for server in servers):
            together.append(servers)
            continue
        model = servers[0].model.text if servers[0].model is not None else ""
        partial.setdefault((model, servers[0].text("kv-transfer-config")), []).append(servers)
    for groups in partial.values():
        sizes = [max(layout_of(server).data for server in servers) for servers in groups]
        joined = tuple(server for servers in groups for server in servers)
        layouts = [layout_of(server) for server in joined]
        ranks = [rank for layout in layouts for rank in layout.ranks]
        distinct = {layout.node_rank for layout in layouts}
        by_node = all(layout.nnodes > 1 for layout in layouts) and len(distinct) == len(layouts)
        fits = len(layouts) <= layouts[0].nnodes if by_node else len(ranks) <= max(sizes)
        if len(groups) > 1 and fits:
            together.append(joined)
        else:
            together += groups
    order = {id(server): index for index, server in enumerate(launch.servers)}
    return sorted(together, key=lambda servers: min(order[id(server)] for server in servers))


def across_nodes(servers: Sequence[Server]) -> bool:
    """Whether the servers of one deployment run on several nodes, as far as the files say."""
    if len({server.node for server in servers if server.node}) > 1:
        return True
    if any(server.pod is not None and (server.pod.group_size or 1) > 1 for server in servers):
        return True
    for server in servers:
        try:
            layout = layout_of(server)
        except Unmeasured:
            continue
        if layout.nnodes > 1 or layout.headless or (layout.ray and layout.local < layout.data):
            return True
        if layout.part and layout.mode in ("internal", "hybrid", "multi-port"):
            return True
    return False


def first_option(server: Server, *names: str) -> Option | None:
    """The first of these options that is given: where to point at."""
    return next((found for name in names if (found := server.option(name)) is not None), None)
