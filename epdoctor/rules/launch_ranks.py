"""Rules on the ranks of a launch: sizes that fit each other, every rank once, one head, one address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.launch.experts import attention_heads
from epdoctor.launch.judge import fleet_rule, names_of, ranks_text, server_rule
from epdoctor.launch.layout import (
    Layout,
    across_nodes,
    first_option,
    layout_of,
    number_of,
    require_known,
    text_of,
)
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Location, Problem, Severity
from epdoctor.rules import need

LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")  # noqa: S104 - texts to find, nothing is bound


_ONE_NODE = 8
"""Up to so many GPUs, several processes may well share a node, and the loopback is right."""


@need("launch-several")
def launches_several(launch: LaunchSet) -> bool:
    """Only one server is given"""
    return len(launch.servers) > 1


@need("launch-parts")
def launches_parts(launch: LaunchSet) -> bool:
    """No launch is one part of a larger one"""
    for server in launch.servers:
        try:
            if layout_of(server).part or layout_of(server).mode == "external":
                return True
        except Unmeasured:
            return True
    return False


def place_of(server: Server, *names: str) -> Location:
    """Where the first of these options stands, else the server."""
    option = first_option(server, *names)
    return server.location if option is None else option.location


@server_rule
def launch_sizes_valid(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Parallel sizes that vLLM refuses at start, in the order of engine/arg_utils.py."""
    layout = layout_of(server)
    for name, value in (
        ("tensor-parallel-size", layout.tensor),
        ("pipeline-parallel-size", layout.pipeline),
        ("data-parallel-size", layout.data),
    ):
        if value < 1:
            yield Problem(
                found=f"--{name} {value}",
                expected="1 or more",
                location=place_of(server, name),
            )
            return
    heads = attention_heads(launch, server)
    if heads and heads % layout.tensor:
        yield Problem(
            found=f"--tensor-parallel-size {layout.tensor} does not divide the {heads} attention heads of the model",
            expected=f"one of {', '.join(str(n) for n in range(1, min(heads, 64) + 1) if not heads % n)}",
            location=place_of(server, "tensor-parallel-size"),
        )
    given = number_of(server, "data-parallel-size-local", -1)
    if given > layout.data:
        yield Problem(
            found=f"--data-parallel-size-local {given} is more than --data-parallel-size {layout.data}",
            expected="the ranks of this node: at most all ranks",
            location=place_of(server, "data-parallel-size-local"),
        )
    elif layout.start < 0 or layout.start >= layout.data or layout.ranks.stop > layout.data:
        yield Problem(
            found=f"data-parallel ranks {layout.start} to {layout.ranks.stop - 1} of {layout.data}",
            expected=f"ranks from 0 to {layout.data - 1}: the start rank is the sum of the local sizes of the nodes "
            "before",
            location=place_of(server, "data-parallel-start-rank", "data-parallel-rank", "data-parallel-size"),
        )
    if layout.nnodes > 1:
        total = layout.world * layout.data
        if total % layout.nnodes:
            yield Problem(
                found=f"--nnodes {layout.nnodes} does not divide the {total} ranks of TP x PP x DP",
                expected="a number of nodes that divides TP x PP x DP",
                location=place_of(server, "nnodes"),
            )
        if not 0 <= layout.node_rank < layout.nnodes:
            yield Problem(
                found=f"--node-rank {layout.node_rank} with --nnodes {layout.nnodes}",
                expected=f"0 to {layout.nnodes - 1}",
                location=place_of(server, "node-rank"),
            )
    elif server.option("node-rank") is not None and layout.node_rank > 0:
        yield Problem(
            found=f"--node-rank {layout.node_rank} without --nnodes",
            expected="--nnodes with the number of nodes",
            location=place_of(server, "node-rank"),
        )


def _layouts(servers: tuple[Server, ...]) -> list[Layout]:
    return [layout_of(server) for server in servers]


@fleet_rule
def launch_ranks_covered(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """Every data-parallel rank of a deployment is started exactly once."""
    layouts = _layouts(servers)
    if not any(layout.part or layout.mode == "external" for layout in layouts):
        return
    if any(layout.nnodes > 1 for layout in layouts):
        yield from _node_ranks_covered(servers, layouts)
        return
    size = max(layout.data for layout in layouts)
    counts = Counter(rank for layout in layouts for rank in layout.ranks)
    for rank, count in sorted(counts.items()):
        if count > 1:
            twice = [layout for layout in layouts if rank in layout.ranks]
            late = twice[1].server
            yield Problem(
                found=f"data-parallel rank {rank} is started {count} times: by {names_of(x.server for x in twice)}",
                expected=f"each of the {size} ranks once: --data-parallel-start-rank is the sum of the local sizes of "
                "the nodes before",
                evidence=tuple(f"{x.server.location}: ranks {x.start}-{x.ranks.stop - 1}" for x in layouts),
                location=place_of(
                    late, "data-parallel-start-rank", "data-parallel-rank", "data-parallel-size-local"
                ),
            )
            break
    missing = [rank for rank in range(min(size, 1 << 16)) if rank not in counts]
    if missing and counts:
        alone = len(servers) == 1 and not servers[0].group
        yield Problem(
            found=f"{sum(1 for rank in counts if rank < size)} of {size} data-parallel ranks are started; not started: "
            f"{ranks_text(missing)}",
            expected=f"servers for all {size} ranks"
            + ("; give the other nodes' files too, or all in one file" if alone else ""),
            severity=Severity.WARNING if alone else None,
            evidence=tuple(
                f"{x.server.location}: ranks {x.start}-{x.ranks.stop - 1}" for x in layouts if x.local
            ),
            location=place_of(
                servers[-1], "data-parallel-size-local", "data-parallel-rank", "data-parallel-size"
            ),
        )


def _node_ranks_covered(servers: tuple[Server, ...], layouts: list[Layout]) -> Iterator[Problem]:
    size = max(layout.nnodes for layout in layouts)
    counts = Counter(layout.node_rank for layout in layouts)
    for rank, count in sorted(counts.items()):
        if count > 1:
            twice = [layout.server for layout in layouts if layout.node_rank == rank]
            yield Problem(
                found=f"--node-rank {rank} is given {count} times: by {names_of(twice)}",
                expected=f"each of the {size} node ranks once",
                location=place_of(twice[1], "node-rank", "nnodes"),
            )
            break
    missing = [rank for rank in range(size) if rank not in counts]
    if missing:
        alone = len(servers) == 1 and not servers[0].group
        yield Problem(
            found=f"{len(counts)} of --nnodes {size} are started; no server has --node-rank {ranks_text(missing)}",
            expected=f"one server for each of the {size} node ranks"
            + ("; give the other nodes' files too, or all in one file" if alone else ""),
            severity=Severity.WARNING if alone else None,
            location=place_of(servers[-1], "nnodes"),
        )


@fleet_rule
def launch_one_head(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """Internal load balancing: exactly one API server, all others --headless; the head has rank 0."""
    layouts = _layouts(servers)
    internal = [layout for layout in layouts if layout.mode == "internal" and layout.part]
    if not internal or len(servers) < 2:
        return
    mixed = [layout for layout in layouts if layout.mode == "hybrid"]
    heads = [layout for layout in layouts if not layout.headless]
    if mixed and any(layout.headless for layout in layouts):
        odd = next((x for x in mixed if x.start > 0), mixed[0])
        yield Problem(
            found=f"{names_of(x.server for x in mixed)} has --data-parallel-start-rank and no --headless, others are "
            "headless: vLLM takes it for hybrid load balancing, a server of its own ranks",
            expected="--headless on every node but the first"
            if odd.start > 0
            else "no --data-parallel-start-rank on the head: its first rank is 0",
            location=place_of(odd.server, "data-parallel-start-rank", "data-parallel-hybrid-lb"),
        )
        return
    if len(heads) > 1:
        yield Problem(
            found=f"{len(heads)} servers without --headless: {names_of(x.server for x in heads)}",
            expected="one head; --headless on every other node (or --data-parallel-hybrid-lb on all)",
            location=heads[1].server.location,
        )
    elif not heads:
        yield Problem(
            found=f"all {len(layouts)} servers are --headless",
            expected="one server without --headless: it takes the requests",
            location=place_of(servers[0], "headless"),
        )
    elif heads[0].local and heads[0].start != 0:
        yield Problem(
            found=f"the head starts at data-parallel rank {heads[0].start}",
            expected="the head has rank 0 (vLLM asserts it)",
            location=place_of(heads[0].server, "data-parallel-start-rank"),
        )


_SAME = (
    ("data-parallel-address", "--data-parallel-address", "127.0.0.1"),
    ("data-parallel-rpc-port", "--data-parallel-rpc-port", "29550"),
    ("master-addr", "--master-addr", "127.0.0.1"),
    ("master-port", "--master-port", "29501"),
)


@fleet_rule
def launch_same_address(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """All servers of a deployment meet at one address and port."""
    if len(servers) < 2 or not any(layout.part or layout.mode == "external" for layout in _layouts(servers)):
        return
    for name, flag, default in _SAME:
        values: dict[str, list[Server]] = {}
        for server in servers:
            option = server.option(name)
            if option is not None and option.value.runtime:
                # Runtime values of one group come from one place: the leader's name.
                values.setdefault(option.value.text, []).append(server)
            else:
                values.setdefault(text_of(server, name, default), []).append(server)
        if len(values) > 1:
            common = max(values, key=lambda text: len(values[text]))
            odd = [server for text, some in values.items() if text != common for server in some]
            others = ", ".join(
                f"{text} ({names_of(some, 2)})" for text, some in values.items() if text != common
            )
            yield Problem(
                found=f"{flag} differs: {common} ({len(values[common])} servers), {others}",
                expected=f"the same {flag} on every node",
                evidence=tuple(
                    f"{server.location}: {text}" for text, some in values.items() for server in some
                ),
                odd_nodes=tuple(server.node for server in odd if server.node),
                location=place_of(odd[0], name),
            )


@fleet_rule
def launch_address_reachable(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """The data-parallel (or master) address is not the loopback where ranks run on several nodes."""
    if not across_nodes(servers):
        return
    for server in servers:
        layout = layout_of(server)
        names = ("master-addr",) if layout.nnodes > 1 else ("data-parallel-address", "master-addr")
        if text_of(server, "data-parallel-backend") == "ray":
            continue
        option = first_option(server, *names)
        if option is None:
            yield Problem(
                found=f"no --{names[0]}: vLLM takes 127.0.0.1, which other nodes do not reach",
                expected=f"--{names[0]} with the head node's address, on every node",
                location=server.location,
            )
        elif not option.value.runtime and require_known(option.value, option.written) in LOOPBACK:
            ranks = sum(other.gpus for other in map(layout_of, servers))
            yield Problem(
                found=f"{option.written} {option.value.text} with ranks in several processes"
                if ranks <= _ONE_NODE
                else f"{option.written} {option.value.text} with ranks on several nodes",
                expected="the head node's address in the network between the nodes",
                severity=Severity.INFO if ranks <= _ONE_NODE else None,
                location=option.location,
            )


@fleet_rule
def launch_executor_fits(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """Executor, data-parallel back end and number of nodes go together."""
    for server in servers:
        executor = text_of(server, "distributed-executor-backend")
        data = text_of(server, "data-parallel-backend", "mp")
        layout = layout_of(server)
        where = place_of(server, "distributed-executor-backend", "data-parallel-backend")
        if layout.nnodes > 1 and (executor == "ray" or data == "ray"):
            which = (
                "--distributed-executor-backend ray" if executor == "ray" else "--data-parallel-backend ray"
            )
            yield Problem(
                found=f"--nnodes {layout.nnodes} with {which}",
                expected="mp for both (or no --nnodes: Ray places the ranks)",
                location=where,
            )
        elif executor == "ray" and data != "ray" and layout.data > 1:
            yield Problem(
                found=f"--distributed-executor-backend ray with --data-parallel-backend {data} and "
                f"--data-parallel-size {layout.data}",
                expected="--data-parallel-backend ray, or no Ray executor",
                severity=Severity.WARNING,
                location=where,
            )
        elif data == "ray" and layout.headless:
            yield Problem(
                found="--headless with --data-parallel-backend ray",
                expected="one command on one node: Ray starts the ranks of the others",
                location=place_of(server, "headless"),
            )
