"""What launch rules share: run over servers or deployments, the judged version, the back end of a server. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from epdoctor import compat
from epdoctor.backends import backends
from epdoctor.exceptions import Unmeasured
from epdoctor.launch.layout import fleets, require_known
from epdoctor.launch.model import LaunchSet, Option, Server
from epdoctor.model import Problem
from epdoctor.rules import launch_rule

T = TypeVar("T")
ServerRule = Callable[[LaunchSet, Server], Iterator[Problem]]
FleetRule = Callable[[LaunchSet, tuple[Server, ...]], Iterator[Problem]]

_UNSEEN_SHOWN = 3


def _over(items: Iterable[T], judge: Callable[[T], Iterator[Problem]]) -> Iterator[Problem]:
    """Problems of every item, the same one once with the number of places; Unmeasured comes last."""
    alike: dict[tuple[str, str, object, tuple[str, ...]], list[Problem]] = {}
    unseen: dict[str, None] = {}
    some = list(items)
    if not some:
        raise Unmeasured("no server was read")
    for item in some:
        try:
            for problem in judge(item):
                key = (problem.found, problem.expected, problem.severity, problem.now)
                alike.setdefault(key, []).append(problem)
        except Unmeasured as error:
            unseen[str(error)] = None
    for same in alike.values():
        places = list(
            dict.fromkeys(str(problem.location) for problem in same if problem.location is not None)
        )
        if len(places) < 2:
            yield same[0]
            continue
        yield replace(
            same[0],
            found=f"{same[0].found} (and in {len(places) - 1} more places)",
            evidence=(*same[0].evidence, *places),
            odd_nodes=tuple(dict.fromkeys(node for problem in same for node in problem.odd_nodes)),
        )
    if unseen:
        shown = list(unseen)[:_UNSEEN_SHOWN]
        more = f"; and {len(unseen) - len(shown)} more" if len(unseen) > len(shown) else ""
        raise Unmeasured("; ".join(shown) + more)


def server_rule(function: ServerRule) -> ServerRule:
    """Register a rule that looks at one server after the other. What one cannot say hides no other's problem."""

    def rule(launch: LaunchSet) -> Iterator[Problem]:
        return _over(launch.servers, lambda server: function(launch, server))

    _named(rule, function)
    return function


def fleet_rule(function: FleetRule) -> FleetRule:
    """Register a rule that looks at one deployment after the other (servers that serve together)."""

    def rule(launch: LaunchSet) -> Iterator[Problem]:
        return _over(fleets(launch), lambda servers: function(launch, servers))

    _named(rule, function)
    return function


def _named(rule: Callable[[LaunchSet], Iterator[Problem]], function: Callable[..., Any]) -> None:
    rule.__name__, rule.__doc__, rule.__module__ = function.__name__, function.__doc__, function.__module__
    launch_rule(rule)


def newest_version() -> str:
    """The vLLM that the tables know best: judged where nothing says which one runs."""
    return compat.field("backends", "newest_vllm", str)


def version_of(launch: LaunchSet, server: Server) -> str:
    """vLLM's version for this server: --vllm, else its image or record, else the newest one in the tables."""
    for text in (launch.vllm_version, server.vllm_version):
        try:
            if text:
                return str(compat.release(text))
        except Unmeasured:
            # A nightly tag, a branch: the newest one is nearest.
            continue
    return newest_version()


def at_least(version: str, wanted: str) -> bool:
    return compat.release(version) >= compat.release(wanted)


def backend_option(launch: LaunchSet, server: Server) -> tuple[str, Option | None]:
    """The back end as it was written, and its option; empty: vLLM's default.

    VLLM_ALL2ALL_BACKEND counts only in a vLLM that still reads it. Raises Unmeasured where it is not resolved."""
    option = server.option("all2all-backend")
    if option is not None:
        return require_known(option.value, option.written), option
    variable = server.environment.get("VLLM_ALL2ALL_BACKEND")
    if variable is not None:
        gone = next(row.gone_in for row in compat.removed_variables() if row.name == "VLLM_ALL2ALL_BACKEND")
        if not at_least(version_of(launch, server), gone):
            return require_known(variable, "VLLM_ALL2ALL_BACKEND"), None
    return "", None


def backend_of(launch: LaunchSet, server: Server) -> str:
    """The canonical back end that vLLM will run; the text itself where no version has it."""
    text, _ = backend_option(launch, server)
    if not text:
        return compat.field("backends", "default", str)
    known = backends().get(text)
    if known is None:
        return text
    if known.alias_of:
        return known.alias_of
    return known.falls_back_to if known.status == "removed" else known.name


def names_of(servers: Iterable[Server], limit: int = 4) -> str:
    """Short list of servers for a sentence."""
    names = list(dict.fromkeys(server.name for server in servers))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def ranks_text(ranks: Iterable[int]) -> str:
    """ "0-7, 16" of any integers."""
    parts: list[str] = []
    for rank in sorted(set(ranks)):
        start, _, end = parts[-1].partition("-") if parts else ("", "", "")
        if parts and int(end or start) == rank - 1:
            parts[-1] = f"{start}-{rank}"
        else:
            parts.append(str(rank))
    return ", ".join(parts[:8]) + (f", ... ({len(parts)} pieces)" if len(parts) > 8 else "")


def host_of(server: Server) -> str:
    """The node that a server runs on, by name or by its own address; empty: the files do not say."""
    if server.node or server.pod is not None:
        return server.node
    own = (server.variable("VLLM_HOST_IP"), server.variable("VLLM_NIXL_SIDE_CHANNEL_HOST"))
    told = (text for text in own if text and text not in ("localhost", "127.0.0.1", "0.0.0.0"))  # noqa: S104 - texts to leave out
    return next(told, server.machine)


@functools.cache
def table(key: str) -> tuple[str, ...]:
    """A list of names from checks/compat/launch.yaml."""
    return tuple(str(item) for item in compat.field("launch", key, list))


def fact(key: str) -> int:
    """A number from checks/compat/launch.yaml."""
    return compat.field("launch", key, int)
