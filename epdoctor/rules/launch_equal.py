"""Rules on what must be the same on every node of a deployment: options, variables, versions, libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from epdoctor.exceptions import Unmeasured
from epdoctor.launch.json_options import merged
from epdoctor.launch.judge import fleet_rule, names_of, table
from epdoctor.launch.layout import layout_of, require_known
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Location, Problem
from epdoctor.rules import need

ABSENT = "not given"
_SHOWN = 60


@need("launch-live")
def launch_is_live(launch: LaunchSet) -> bool:
    """Judged from files: libraries are seen with --running"""
    return launch.live


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _headless(server: Server) -> bool:
    option = server.option("headless")
    return option is not None and option.on


def _differences(
    servers: Sequence[Server],
    names: Sequence[str],
    value: Callable[[Server, str], str],
    place: Callable[[Server, str], Location],
    shown: Callable[[str], str],
) -> Iterator[tuple[str, Problem]]:
    """(name, problem) for each name whose values differ; the smaller groups are the odd ones."""
    unseen: dict[str, None] = {}
    for name in names:
        values: dict[str, list[Server]] = {}
        try:
            for server in servers:
                values.setdefault(value(server, name), []).append(server)
        except Unmeasured as error:
            unseen[str(error)] = None
            continue
        if len(values) < 2:
            continue
        common = max(values, key=lambda text: len(values[text]))
        odd = {text: some for text, some in values.items() if text != common}
        first = next(iter(odd.values()))[0]
        others = "; ".join(f"{_short(text)} in {names_of(some, 3)}" for text, some in list(odd.items())[:3])
        yield (
            name,
            Problem(
                found=f"{shown(name)} is {_short(common)} in {names_of(values[common], 3)}; {others}",
                expected=f"the same {shown(name)} on every node",
                evidence=tuple(
                    f"{place(server, name)}: {text}" for text, some in values.items() for server in some
                ),
                odd_nodes=tuple(server.node for some in odd.values() for server in some if server.node),
                location=place(first, name),
            ),
        )
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def option_text(server: Server, name: str) -> str:
    """What an option comes to, in a form that can be compared. Raises Unmeasured where it is not resolved."""
    if name in ("eplb-config", "compilation-config", "kv-transfer-config", "speculative-config"):
        config = merged(server, name)
        if config is not None and config.values is not None:
            return json.dumps(config.values, sort_keys=True)
    option = server.option(name)
    if option is None:
        return ABSENT
    if option.value.runtime:
        # It differs from node to node on purpose, e.g. the pod's address.
        return "(set when it runs)"
    text = require_known(option.value, option.written)
    if text.lower() in ("", "true", "1"):
        return "off" if option.negated else "on"
    if text.lower() in ("false", "0") and not option.negated and text.lower() == "false":
        return "off"
    return text.strip()


_DEFAULTS = {
    "tensor-parallel-size": "1",
    "pipeline-parallel-size": "1",
    "data-parallel-backend": "mp",
    "expert-placement-strategy": "linear",
    "all2all-backend": "allgather_reducescatter",
    "enable-eplb": "off",
    "enable-expert-parallel": "off",
    "enable-dbo": "off",
    "enforce-eager": "off",
    "nnodes": "on",
    "enable-elastic-ep": "off",
    "kv-cache-dtype": "auto",
    "dtype": "auto",
}


def _option_or_default(server: Server, name: str) -> str:
    text = option_text(server, name)
    if text == ABSENT:
        return _DEFAULTS.get(name, ABSENT)
    if name in ("tensor-parallel-size", "pipeline-parallel-size") and text == "on":
        return "1"
    return text


def _option_place(server: Server, name: str) -> Location:
    option = server.option(name)
    return server.location if option is None else option.location


def _compared(servers: Sequence[Server]) -> list[str]:
    per_node = set(table("per_node_options"))
    names = dict.fromkeys(name.partition(".")[0] for server in servers for name in server.options)
    return [name for name in names if name not in per_node]


def _external(servers: Sequence[Server]) -> bool:
    return any(server.option("data-parallel-rank") is not None for server in servers)


@fleet_rule
def launch_options_equal(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """Options that decide what ranks compute and send are the same on all of them (vllm-project/vllm#26187)."""
    if len(servers) < 2 or not any(layout_of(server).part or _external(servers) for server in servers):
        return
    collective = set(table("collective_options"))
    names = [name for name in _compared(servers) if name in collective]
    models = {
        server.model.text: server for server in servers if server.model is not None and server.model.known
    }
    if len(models) > 1:
        odd = list(models.values())[1]
        yield Problem(
            found=f"the model differs: {', '.join(_short(text) for text in models)}",
            expected="one model in a deployment",
            location=odd.model.location if odd.model is not None else odd.location,
        )
    for _name, problem in _differences(
        servers, names, _option_or_default, _option_place, lambda name: f"--{name}"
    ):
        yield problem


@fleet_rule
def launch_other_options_equal(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """All other options: a difference is rarely meant. Options of the API server count only where there is one."""
    if len(servers) < 2 or not any(layout_of(server).part or _external(servers) for server in servers):
        return
    collective, front_end = set(table("collective_options")), set(table("front_end_options"))
    names = [name for name in _compared(servers) if name not in collective]
    heads = [server for server in servers if not _headless(server)]
    for some, chosen in (
        (servers, [name for name in names if name not in front_end]),
        (heads, [name for name in names if name in front_end]),
    ):
        if len(some) < 2:
            continue
        for _name, problem in _differences(
            some, chosen, option_text, _option_place, lambda name: f"--{name}"
        ):
            yield problem


@fleet_rule
def launch_variables_equal(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """Variables that decide what ranks compute and send are the same on all of them."""
    if len(servers) < 2 or not any(layout_of(server).part or _external(servers) for server in servers):
        return
    names = [name for name in table("collective_variables") if any(name in s.environment for s in servers)]

    def value(server: Server, name: str) -> str:
        found = server.environment.get(name)
        return ABSENT if found is None else require_known(found, name)

    def place(server: Server, name: str) -> Location:
        found = server.environment.get(name)
        return server.location if found is None else found.location

    for _name, problem in _differences(servers, names, value, place, str):
        yield problem


@fleet_rule
def launch_versions_equal(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """One vLLM in a deployment: from images, or from what runs."""
    if len(servers) < 2:
        return
    known = {server.vllm_version: server for server in servers if server.vllm_version}
    images = {
        server.pod.image: server
        for server in servers
        if server.pod is not None and server.pod.image and "$" not in server.pod.image
    }
    for values, what in ((known, "vLLM"), (images, "image")):
        if len(values) > 1:
            odd = list(values.values())[1]
            yield Problem(
                found=f"{what} differs: {', '.join(_short(text) for text in values)}",
                expected=f"the same {what} on every node",
                odd_nodes=(odd.node,) if odd.node else (),
                location=odd.pod.location if odd.pod is not None else odd.location,
            )
            return
    if launch.live and not all(server.vllm_version for server in servers):
        raise Unmeasured(
            f"vLLM's version is not known for {names_of(s for s in servers if not s.vllm_version)}"
        )


@fleet_rule
def launch_libraries_equal(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """NCCL, NVSHMEM and the like that the live processes have mapped are the same everywhere."""
    if len(servers) < 2:
        return
    names = dict.fromkeys(name for server in servers for name in server.libraries)
    if not names:
        raise Unmeasured("no library of a live process was seen (root sees them: --become)")

    def value(server: Server, name: str) -> str:
        if not server.libraries:
            raise Unmeasured(f"libraries of {server.name} were not seen")
        return server.libraries.get(name, "not mapped")

    for _name, problem in _differences(servers, list(names), value, lambda server, _: server.location, str):
        yield problem
