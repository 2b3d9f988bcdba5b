"""Rules on load-balancing modes and API servers: combinations that vLLM refuses."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.launch.judge import server_rule
from epdoctor.launch.layout import number_of, switch_of, text_of
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Problem
from epdoctor.rules.launch_ranks import place_of


@server_rule
def launch_balancing_valid(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Combinations of load-balancing modes that vLLM refuses (entrypoints/cli/serve.py, engine/arg_utils.py)."""
    if server.front_end:
        # It adds ranks and sizes of its own.
        return
    headless = switch_of(server, "headless")
    hybrid = switch_of(server, "data-parallel-hybrid-lb")
    external = switch_of(server, "data-parallel-external-lb")
    multi_port = switch_of(server, "data-parallel-multi-port-external-lb")
    rank = server.option("data-parallel-rank")
    start = server.option("data-parallel-start-rank")
    local = server.option("data-parallel-size-local")
    chosen = [
        name
        for name, on in (
            ("--data-parallel-external-lb", external),
            ("--data-parallel-hybrid-lb", hybrid),
            ("--data-parallel-multi-port-external-lb", multi_port),
        )
        if on
    ]
    if rank is not None and not external:
        chosen.append("--data-parallel-rank (external)")
    if start is not None and rank is not None:
        chosen = chosen or ["--data-parallel-rank (external)"]
        chosen.append("--data-parallel-start-rank (hybrid)")
    if len(chosen) > 1:
        yield Problem(
            found=" with ".join(chosen),
            expected="one load-balancing mode: internal (none of them), hybrid or external",
            location=place_of(
                server, "data-parallel-hybrid-lb", "data-parallel-external-lb", "data-parallel-rank"
            ),
        )
        return
    if headless and hybrid:
        yield Problem(
            found="--data-parallel-hybrid-lb with --headless",
            expected="hybrid: an API server on every node, none headless",
            location=place_of(server, "data-parallel-hybrid-lb"),
        )
    if hybrid and local is None and number_of(server, "nnodes", 1) < 2:
        yield Problem(
            found="--data-parallel-hybrid-lb without --data-parallel-size-local",
            expected="--data-parallel-size-local with the ranks of this node",
            location=place_of(server, "data-parallel-hybrid-lb"),
        )
    data = number_of(server, "data-parallel-size", 1)
    if external and rank is None and number_of(server, "nnodes", 1) < 2:
        yield Problem(
            found="--data-parallel-external-lb without a rank",
            expected="--data-parallel-rank N, or --nnodes with --node-rank",
            location=place_of(server, "data-parallel-external-lb"),
        )
    if (external or rank is not None) and data < 2:
        yield Problem(
            found=f"external load balancing with --data-parallel-size {data}",
            expected="--data-parallel-size of 2 or more",
            location=place_of(server, "data-parallel-external-lb", "data-parallel-rank"),
        )
    if (external or rank is not None) and number_of(server, "data-parallel-size-local", 1) != 1:
        yield Problem(
            found=f"--data-parallel-size-local {text_of(server, 'data-parallel-size-local')} with an external rank",
            expected="1, or leave it out",
            location=place_of(server, "data-parallel-size-local"),
        )


@server_rule
def launch_api_servers_on_head(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """--api-server-count on a headless node stops it (entrypoints/cli/serve.py:76)."""
    count = number_of(server, "api-server-count", 0)
    if switch_of(server, "headless") and count > 0:
        yield Problem(
            found=f"--api-server-count {count} with --headless",
            expected="--api-server-count on the head only",
            location=place_of(server, "api-server-count"),
        )
