"""Rules on EPLB: keys and types of its configuration, whether it is on, whether the experts divide."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from epdoctor import compat
from epdoctor.launch.experts import model_numbers, redundant_experts
from epdoctor.launch.json_options import JsonConfig, json_options, merged
from epdoctor.launch.judge import backend_of, server_rule, table
from epdoctor.launch.layout import layout_of, switch_of
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Location, Problem, Severity
from epdoctor.rules import need


@need("launch-eplb")
def launch_sets_eplb(launch: LaunchSet) -> bool:
    """No launch sets an option of EPLB"""
    return any(
        server.option("enable-eplb") is not None or any(True for _ in json_options(server, "eplb-config"))
        for server in launch.servers
    )


def wrong_type(value: Any, wanted: Any) -> str:
    """What a key of a JSON option wants where the value does not fit; empty: it fits."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(wanted, list):
        return "" if value is None or value in wanted else "one of " + ", ".join(str(item) for item in wanted)
    if wanted == "bool":
        # pydantic takes these texts too (lax mode).
        fine = isinstance(value, bool) or value in (0, 1) or str(value).lower() in ("true", "false")
        return "" if fine else "true or false"
    least = 1 if wanted == "positive" else 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
        value, number = int(value), True
    return "" if number and value >= least else f"a whole number of {least} or more"


@server_rule
def launch_eplb_config_valid(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """--eplb-config is an object of vLLM's keys with values of the right type (config/parallel.py EPLBConfig)."""
    config = merged(server, "eplb-config")
    if config is None:
        return
    keys = compat.field("launch", "eplb_keys", dict)
    if config.values is None:
        yield Problem(
            found=f"--eplb-config {config.error}",
            expected="""a JSON object in single quotes: --eplb-config '{"num_redundant_experts": 32}'""",
            location=config.location,
        )
        return
    for key, value in config.values.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            yield Problem(
                found=f"--eplb-config: no key {key[:60]!r}",
                expected=f"did you mean {near[0]}?" if near else "one of " + ", ".join(keys),
                location=config.place(key),
            )
        elif wanted := wrong_type(value, keys[key]):
            yield Problem(
                found=f"--eplb-config: {key} is {str(value)[:60]!r}",
                expected=f"{key}: {wanted}",
                location=config.place(key),
            )


def _eplb_place(server: Server, config: JsonConfig | None) -> Location:
    option = server.option("enable-eplb")
    if option is not None:
        return option.location
    return server.location if config is None else config.location


@server_rule
def launch_eplb_enabled(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """EPLB that is configured is on, and what is on has expert parallelism and more than one rank."""
    config = merged(server, "eplb-config")
    on = switch_of(server, "enable-eplb")
    where = _eplb_place(server, config)
    if not on:
        if config is None or config.values is None:
            return
        redundant = redundant_experts(server)
        yield Problem(
            found="--eplb-config without --enable-eplb"
            + (
                f": num_redundant_experts is {redundant}, and vLLM stops"
                if redundant
                else ": it has no effect"
            ),
            expected="--enable-eplb, or no --eplb-config",
            severity=None if redundant else Severity.WARNING,
            location=config.location,
        )
        return
    layout = layout_of(server)
    if not switch_of(server, "enable-expert-parallel"):
        yield Problem(
            found="--enable-eplb without --enable-expert-parallel",
            expected="--enable-expert-parallel too: vLLM stops with 'enable_expert_parallel must be True to use EPLB.'",
            location=where,
        )
    elif layout.expert < 2:
        yield Problem(
            found=f"--enable-eplb with TP {layout.tensor} and DP {layout.data}: one rank has nothing to balance",
            expected="TP x DP of 2 or more",
            location=where,
        )
    if backend_of(launch, server) == "moonep":
        yield Problem(
            found="--enable-eplb with --all2all-backend moonep",
            expected="another back end: moonep has no EPLB",
            location=where,
        )


@server_rule
def launch_eplb_divides(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """(experts + redundant experts) % EP == 0 (layers/fused_moe/layer.py: "even distribution of experts")."""
    if not switch_of(server, "enable-eplb") or not switch_of(server, "enable-expert-parallel"):
        return
    layout = layout_of(server)
    if layout.expert < 2:
        return
    config = merged(server, "eplb-config")
    if config is not None and config.values is None:
        return
    redundant = redundant_experts(server)
    numbers = model_numbers(launch, server)
    rest = (numbers.experts + redundant) % layout.expert
    if not rest:
        return
    low = redundant - rest
    up = redundant + layout.expert - rest
    fitting = " or ".join(str(item) for item in (low, up) if item >= 0)
    yield Problem(
        found=f"{numbers.experts} experts + {redundant} redundant = {numbers.experts + redundant}, which EP "
        f"{layout.expert} (TP {layout.tensor} x DP {layout.data}) does not divide",
        expected=f"num_redundant_experts {fitting}",
        location=_eplb_place(server, None) if config is None else config.place("num_redundant_experts"),
    )


@server_rule
def launch_eplb_communicator_valid(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """NCCL communicators with asynchronous EPLB: refused, they would share a stream (config/parallel.py)."""
    config = merged(server, "eplb-config")
    if config is None or config.values is None:
        return
    communicator = config.values.get("communicator")
    background = config.values.get("use_async", True)
    background = background is True or str(background).lower() in ("true", "1")
    if communicator in table("eplb_async_refuses") and background:
        yield Problem(
            found=f"communicator {communicator} with asynchronous EPLB (use_async, vLLM's default)",
            expected="torch_gloo or nixl, or no communicator; or use_async false",
            location=config.place("communicator"),
        )
    if communicator == "torch_xccl" and any(
        name.startswith(("NCCL_", "NVSHMEM_")) for name in server.environment
    ):
        yield Problem(
            found="communicator torch_xccl with NCCL or NVSHMEM variables: it is for Intel XPU",
            expected="torch_gloo or nixl, or no communicator",
            location=config.place("communicator"),
        )
    if switch_of(server, "enable-elastic-ep") and not switch_of(server, "enable-eplb"):
        option = server.option("enable-elastic-ep")
        yield Problem(
            found="--enable-elastic-ep without --enable-eplb",
            expected="--enable-eplb too",
            location=server.location if option is None else option.location,
        )
