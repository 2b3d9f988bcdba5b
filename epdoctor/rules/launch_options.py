"""Rules on the options themselves: unknown ones, unresolved ones, JSON, what readers could not read, ports."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.launch import parse_number
from epdoctor.launch import flags
from epdoctor.launch.json_options import json_options, merged
from epdoctor.launch.judge import fact, fleet_rule, host_of, server_rule, table
from epdoctor.launch.layout import layout_of, require_known, switch_of
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Location, Problem, Severity
from epdoctor.rules import launch_rule, need


@launch_rule
def launch_was_read(launch: LaunchSet) -> Iterator[Problem]:
    """What the readers could not read: unbalanced quotes, broken YAML, templates."""
    yield from launch.trouble
    if not launch.servers and not launch.trouble:
        raise Unmeasured("no `vllm serve` was found")


@server_rule
def launch_options_known(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Options that this vLLM has: it stops at one that it does not know."""
    for option in (*server.options.values(), *server.repeated):
        if option.known_to_vllm or option.name in ("help", "h", "version"):
            continue
        flag = option.written.partition("=")[0]
        near = flags.load().similar(option.name)
        yield Problem(
            found=f"{flag[:80]}: vLLM has no such option",
            expected=f"did you mean {near}?" if near else "an option of `vllm serve --help=all`",
            location=option.location,
        )


@server_rule
def launch_options_once(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """An option that is given twice: the last one counts."""
    # In a template, both branches of a condition are there.
    templates = {p.location.path for p in launch.trouble if p.location is not None and "template" in p.found}
    for option in server.repeated:
        if option.location.path in templates:
            continue
        last = server.option(option.name)
        if last is None or (last.value.text == option.value.text and last.negated == option.negated):
            continue
        yield Problem(
            found=f"{option.written} {option.value.text[:40]} and again {last.written} {last.value.text[:40]}".strip(),
            expected="once: vLLM takes the last one",
            location=option.location,
        )


@server_rule
def launch_values_resolved(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Values that depend on what the files do not say. A note: checks that need one say so."""
    names: dict[str, Location] = {}
    values = [option.value for option in server.options.values()]
    values += [server.model] if server.model is not None else []
    for value in values:
        for name in value.unresolved:
            names.setdefault(name, value.location)
    if names:
        shown = ", ".join(list(names)[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        yield Problem(
            found=f"not resolved: {shown}",
            expected="values for them (--env-file FILE), or the rendered files",
            evidence=tuple(f"{where}: {name}" for name, where in names.items()),
            location=next(iter(names.values())),
        )


@need("launch-json")
def launch_has_json(launch: LaunchSet) -> bool:
    """No launch has --compilation-config or another option with JSON"""
    names = [name for name in table("json_options") if name not in ("eplb-config", "kv-transfer-config")]
    return any(any(True for _ in json_options(server, name)) for server in launch.servers for name in names)


@server_rule
def launch_json_valid(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Options that hold JSON hold an object; --compilation-config has vLLM's keys and a known cudagraph mode."""
    for name in table("json_options"):
        if name in ("eplb-config", "kv-transfer-config"):
            continue
        if any(option.value.runtime for _key, option in json_options(server, name)):
            continue
        if name == "compilation-config" and _level(server):
            continue
        config = merged(server, name)
        if config is None:
            continue
        if config.values is None:
            # hf-overrides and rope-scaling may also be a path or a name in some versions
            yield Problem(
                found=f"--{name} {config.error}",
                expected="a JSON object in single quotes",
                location=config.location,
            )
        elif name == "compilation-config":
            keys, modes = table("compilation_keys"), table("cudagraph_modes")
            for key in config.values:
                if key not in keys:
                    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
                    yield Problem(
                        found=f"--compilation-config: no key {key[:60]!r}",
                        expected=f"did you mean {near[0]}?" if near else "a key of vLLM's CompilationConfig",
                        location=config.place(key),
                    )
            mode = config.values.get("cudagraph_mode")
            if mode is not None and (not isinstance(mode, str) or mode.upper() not in modes):
                near = difflib.get_close_matches(str(mode).upper(), modes, n=1, cutoff=0.4)
                yield Problem(
                    found=f"--compilation-config: cudagraph_mode {str(mode)[:40]!r}",
                    expected=(f"did you mean {near[0]}? " if near else "") + "one of " + ", ".join(modes),
                    location=config.place("cudagraph_mode"),
                )
            level = config.values.get("mode")
            names = table("compilation_modes")
            if level is not None and level not in (0, 1, 2, 3) and str(level).upper() not in names:
                yield Problem(
                    found=f"--compilation-config: mode {str(level)[:40]!r}",
                    expected="0 to 3, or one of " + ", ".join(names),
                    location=config.place("mode"),
                )


def _level(server: Server) -> bool:
    """-O3: a number in place of an object."""
    option = server.option("compilation-config")
    if option is None:
        return False
    return require_known(option.value, option.written).strip() in ("0", "1", "2", "3")


@fleet_rule
def launch_async_scheduling_fits(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """--async-scheduling with what vLLM refuses beside it (config/vllm.py:1640-1690, 3050-3090).

    Only the V1 model runner refuses: where it is asked for, and where a drafter exists for it alone."""
    for server in servers:
        if not switch_of(server, "async-scheduling"):
            continue
        option = server.option("async-scheduling")
        where = server.location if option is None else option.location
        config = merged(server, "speculative-config")
        method = str((config.values or {}).get("method", "")) if config is not None else ""
        runner = server.environment.get("VLLM_USE_V2_MODEL_RUNNER")
        first = runner is not None and require_known(runner, "VLLM_USE_V2_MODEL_RUNNER").lower() in (
            "0",
            "false",
        )
        pipeline = layout_of(server).pipeline
        if first and pipeline > 1:
            yield Problem(
                found=f"--async-scheduling with --pipeline-parallel-size {pipeline} and VLLM_USE_V2_MODEL_RUNNER=0",
                expected="no --async-scheduling, or the V2 model runner",
                location=where,
            )
        elif method in ("suffix", "custom_class") or (first and method == "ngram"):
            yield Problem(
                found=f"--async-scheduling with speculative decoding by {method}",
                expected="no --async-scheduling, or an EAGLE or MTP drafter",
                location=where,
            )


_CHOSEN_LATER = -1
"""A port that a command finds when it runs."""


def _port(server: Server, name: str, default: int) -> tuple[int, Location]:
    option = server.option(name)
    if option is None:
        return default, server.location
    if option.value.runtime:
        return _CHOSEN_LATER, option.location
    number = parse_number(require_known(option.value, option.written))
    if number is None:
        raise Unmeasured(f"{option.location}: {option.written} {option.value.text[:40]!r} is not a port")
    return number, option.location


def ports_of(server: Server) -> dict[str, tuple[int, Location]]:
    """Ports that one server listens on, as its options say. Raises Unmeasured where one is not resolved."""
    layout = layout_of(server)
    found: dict[str, tuple[int, Location]] = {}
    if not layout.headless:
        found["API server"] = _port(server, "port", fact("default_api_port"))
    head = not layout.headless and layout.start == 0
    if head and (layout.part or layout.mode != "internal") and layout.data > 1:
        found["--data-parallel-rpc-port"] = _port(server, "data-parallel-rpc-port", fact("default_rpc_port"))
    if layout.nnodes > 1 and layout.node_rank == 0:
        found["--master-port"] = _port(server, "master-port", fact("default_master_port"))
    return found


@launch_rule
def launch_ports_apart(launch: LaunchSet) -> Iterator[Problem]:
    """Ports in range, and none used twice by one server or by two servers on one node; free where nodes are known."""
    by_node: dict[str, dict[int, tuple[str, Server]]] = {}
    unseen: dict[str, None] = {}
    for server in launch.servers:
        try:
            ports = ports_of(server)
        except Unmeasured as error:
            unseen[str(error)] = None
            continue
        # Without a node's name nothing says that two servers share a host.
        host = host_of(server)
        if host and server.pod is not None and server.node not in launch.nodes:
            # "pod 0" of one LeaderWorkerSet is not "pod 0" of another.
            host = f"{server.pod.kind}/{server.pod.name} {host}"
        taken = by_node.setdefault(host, {}) if host else {}
        for what, (port, where) in ports.items():
            if port == _CHOSEN_LATER:
                continue
            if not 1 <= port <= 65535:
                yield Problem(found=f"{what}: port {port}", expected="a port from 1 to 65535", location=where)
            elif port in taken:
                other, owner = taken[port]
                yield Problem(
                    found=f"port {port} is the {what} of {server.name} and the {other} of {owner.name}",
                    expected="a port of its own for each",
                    location=where,
                )
            else:
                taken[port] = (what, server)
            if server.node in launch.nodes and not launch.live:
                try:
                    yield from _busy(launch, server, what, port, where)
                except Unmeasured as error:
                    unseen[str(error)] = None
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def _busy(launch: LaunchSet, server: Server, what: str, port: int, where: Location) -> Iterator[Problem]:
    listeners = launch.nodes[server.node].network.listeners
    if isinstance(listeners, Unmeasured):
        raise Unmeasured(*listeners.args)
    if port in listeners:
        yield Problem(
            found=f"port {port} ({what}) is taken on {server.node}",
            expected="a free port, or stop what listens there",
            severity=Severity.WARNING,
            odd_nodes=(server.node,),
            location=where,
        )
