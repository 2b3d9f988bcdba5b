"""Rules on disaggregated serving: --kv-transfer-config, roles, two sides that fit, NIXL's side channel."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.launch import parse_number
from epdoctor.launch.json_options import JsonConfig, json_options, merged
from epdoctor.launch.judge import at_least, fact, names_of, server_rule, table, version_of
from epdoctor.launch.layout import across_nodes, fleets, layout_of, number_of, require_known, text_of
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Location, Problem, Severity
from epdoctor.rules import launch_rule, need
from epdoctor.rules.launch_backends import connector_of, moves_cache, role_of, side_of

HOST, PORT = "VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT"
_NIXL = ("NixlConnector", "NixlPullConnector", "NixlPushConnector")


@need("launch-kv-transfer")
def launch_has_kv_transfer(launch: LaunchSet) -> bool:
    """No launch has --kv-transfer-config"""
    return any(any(True for _ in json_options(server, "kv-transfer-config")) for server in launch.servers)


def connectors(config: JsonConfig) -> list[dict[str, Any]]:
    """The connectors of a configuration: itself, or those inside a MultiConnector."""
    values = dict(config.values or {})
    if values.get("kv_connector") != "MultiConnector":
        return [values]
    extra = values.get("kv_connector_extra_config")
    inner = extra.get("connectors") if isinstance(extra, dict) else None
    return [item for item in inner if isinstance(item, dict)] if isinstance(inner, list) else []


@server_rule
def launch_kv_config_valid(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """--kv-transfer-config is an object of vLLM's keys, with a connector and a role that exist."""
    config = merged(server, "kv-transfer-config")
    if config is None:
        return
    if config.values is None:
        yield Problem(
            found=f"--kv-transfer-config {config.error}",
            expected="""a JSON object in single quotes: '{"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}'""",
            location=config.location,
        )
        return
    keys, removed = table("kv_keys"), table("kv_keys_removed")
    for key in config.values:
        if key in removed:
            yield Problem(
                found=f"--kv-transfer-config: key {key!r} is gone from vLLM",
                expected="no such key: vLLM refuses unknown ones",
                location=config.place(key),
            )
        elif key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            yield Problem(
                found=f"--kv-transfer-config: no key {key[:60]!r}",
                expected=f"did you mean {near[0]}?" if near else "one of " + ", ".join(keys),
                location=config.place(key),
            )
    yield from _roles(config)
    for part in connectors(config):
        yield from _connector(part, config)


def _roles(config: JsonConfig) -> Iterator[Problem]:
    values = config.values or {}
    role, roles = values.get("kv_role"), table("kv_roles")
    if role is None and values.get("kv_connector") is not None:
        yield Problem(
            found="--kv-transfer-config: kv_connector without kv_role",
            expected="kv_role: " + ", ".join(roles),
            location=config.location,
        )
    elif role is not None and role not in roles:
        near = difflib.get_close_matches(str(role), roles, n=1, cutoff=0.4)
        yield Problem(
            found=f"--kv-transfer-config: kv_role {str(role)[:60]!r}",
            expected=f"did you mean {near[0]}?" if near else "one of " + ", ".join(roles),
            location=config.place("kv_role"),
        )


def _connector(values: dict[str, Any], config: JsonConfig) -> Iterator[Problem]:
    name = values.get("kv_connector")
    known = table("kv_connectors")
    if isinstance(name, str) and name not in known and "kv_connector_module_path" not in values:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        yield Problem(
            found=f"--kv-transfer-config: vLLM has no connector {name[:60]!r}",
            expected=(f"did you mean {near[0]}?" if near else "one of " + ", ".join(known))
            + " (or kv_connector_module_path)",
            location=config.place("kv_connector"),
        )
    extra = values.get("kv_connector_extra_config")
    if extra is not None and not isinstance(extra, dict):
        yield Problem(
            found=f"--kv-transfer-config: kv_connector_extra_config is {str(extra)[:40]!r}",
            expected="an object",
            location=config.place("kv_connector_extra_config"),
        )
        return
    plugins = (extra or {}).get("backends")
    if name not in _NIXL or plugins is None:
        return
    if not isinstance(plugins, list) or not plugins:
        yield Problem(
            found=f"--kv-transfer-config: backends is {str(plugins)[:40]!r}",
            expected='a list: ["UCX"]',
            location=config.place("kv_connector_extra_config"),
        )
        return
    for plugin in plugins:
        if plugin not in table("nixl_backends"):
            near = difflib.get_close_matches(str(plugin).upper(), table("nixl_backends"), n=1, cutoff=0.4)
            yield Problem(
                found=f"--kv-transfer-config: NIXL has no back end {str(plugin)[:40]!r}",
                expected=f"did you mean {near[0]}?"
                if near
                else "one of " + ", ".join(table("nixl_backends")),
                location=config.place("kv_connector_extra_config"),
            )


@server_rule
def launch_kv_role_current(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """kv_both with NixlConnector: deprecated, a side can no longer be told by its role."""
    if (
        role_of(server) == "kv_both"
        and connector_of(server) in _NIXL
        and at_least(version_of(launch, server), "0.33")
    ):
        config = merged(server, "kv-transfer-config")
        yield Problem(
            found=f"kv_role kv_both with {connector_of(server)}: deprecated, vLLM warns",
            expected="kv_producer on prefill servers, kv_consumer on decode servers",
            location=server.location if config is None else config.place("kv_role"),
        )


def _sides(launch: LaunchSet) -> tuple[list[Server], list[Server]]:
    """Producers and consumers among the servers that move the cache."""
    unseen: list[str] = []
    producers, consumers = [], []
    for server in launch.servers:
        try:
            if moves_cache(server):
                side = side_of(server)
                if side == "prefill":
                    producers.append(server)
                elif side == "decode":
                    consumers.append(server)
        except Unmeasured as error:
            unseen.append(str(error))
    if unseen:
        raise Unmeasured("; ".join(unseen[:3]))
    return producers, consumers


@launch_rule
def launch_kv_roles_paired(launch: LaunchSet) -> Iterator[Problem]:
    """Prefill has a decode side and the other way round. One side alone may be one half of the files: a note."""
    producers, consumers = _sides(launch)
    if bool(producers) == bool(consumers) or role_of((producers or consumers)[0]) == "kv_both":
        return
    alone, other = (producers, "kv_consumer (decode)") if producers else (consumers, "kv_producer (prefill)")
    config = merged(alone[0], "kv-transfer-config")
    yield Problem(
        found=f"only {role_of(alone[0])} servers: {names_of(alone)}",
        expected=f"servers with {other} too; give their files, so that both sides are compared",
        location=alone[0].location if config is None else config.place("kv_role"),
    )


def _pairs(launch: LaunchSet) -> Iterator[tuple[Server, Server]]:
    producers, consumers = _sides(launch)
    for producer in producers[:1]:
        for consumer in consumers[:1]:
            yield producer, consumer


def _place(server: Server, name: str) -> Location:
    option = server.option(name)
    return server.location if option is None else option.location


@launch_rule
def launch_kv_sides_match(launch: LaunchSet) -> Iterator[Problem]:
    """What NIXL's handshake compares: model, cache dtype, block size, connector, vLLM, TP sizes that divide."""
    for producer, consumer in _pairs(launch):
        for name in ("kv-cache-dtype", "block-size", "attention-backend", "dtype"):
            one, two = text_of(producer, name, "default"), text_of(consumer, name, "default")
            if one != two:
                yield Problem(
                    found=f"--{name}: {one} in {producer.name}, {two} in {consumer.name}",
                    expected=f"the same --{name} on both sides",
                    severity=Severity.WARNING if name in ("attention-backend", "block-size") else None,
                    location=_place(consumer, name),
                )
        if producer.model is not None and consumer.model is not None:
            one, two = require_known(producer.model, "the model"), require_known(consumer.model, "the model")
            if one != two:
                yield Problem(
                    found=f"the model: {one[:80]} in {producer.name}, {two[:80]} in {consumer.name}",
                    expected="one model, by the same name or path, on both sides",
                    location=consumer.model.location,
                )
        if connector_of(producer) != connector_of(consumer) and not {"MultiConnector"} & {
            connector_of(producer),
            connector_of(consumer),
        }:
            yield Problem(
                found=f"kv_connector: {connector_of(producer)} in {producer.name}, {connector_of(consumer)} in "
                f"{consumer.name}",
                expected="the same connector on both sides",
                location=_place(consumer, "kv-transfer-config"),
            )
        first, second = (
            number_of(producer, "tensor-parallel-size", 1),
            number_of(consumer, "tensor-parallel-size", 1),
        )
        if first > 0 and second > 0 and max(first, second) % min(first, second):
            yield Problem(
                found=f"TP {first} in {producer.name}, TP {second} in {consumer.name}",
                expected="TP sizes of which one divides the other",
                location=_place(consumer, "tensor-parallel-size"),
            )
        if producer.vllm_version and consumer.vllm_version and producer.vllm_version != consumer.vllm_version:
            yield Problem(
                found=f"vLLM {producer.vllm_version} in {producer.name}, {consumer.vllm_version} in {consumer.name}",
                expected="the same vLLM on both sides: its version is in the handshake",
                location=consumer.pod.location if consumer.pod is not None else consumer.location,
            )


def uses_nixl(server: Server) -> bool:
    """Whether NIXL moves its cache. Raises Unmeasured where the configuration is not resolved."""
    config = merged(server, "kv-transfer-config")
    return config is not None and any(part.get("kv_connector") in _NIXL for part in connectors(config))


@launch_rule
def launch_nixl_host_set(launch: LaunchSet) -> Iterator[Problem]:
    """NIXL's side channel listens on localhost unless told: no other node reaches it."""
    unseen: dict[str, None] = {}
    addresses: dict[str, Server] = {}
    files = {server.location.path for server in launch.servers}
    reported = False
    for servers in fleets(launch):
        for server in servers:
            try:
                if not uses_nixl(server) or (layout_of(server).headless and layout_of(server).local == 0):
                    continue
                variable = server.environment.get(HOST)
                if variable is None:
                    if not reported:
                        several = across_nodes(servers) or _on_nodes(launch) or server.pod is not None
                        if not several and len(files) < 2:
                            continue
                        reported = True
                        yield Problem(
                            found=f"{HOST} is not set in {server.name}: NIXL listens on localhost",
                            expected=f"{HOST} with the node's own address, on each node (in a pod: status.podIP)",
                            severity=None if several else Severity.WARNING,
                            location=server.location,
                        )
                    continue
                if variable.runtime:
                    continue
                text = require_known(variable, HOST)
            except Unmeasured as error:
                unseen[str(error)] = None
                continue
            if text in ("localhost", "127.0.0.1", "::1", "") and (
                across_nodes(servers) or server.pod is not None
            ):
                yield Problem(
                    found=f"{HOST}={text}",
                    expected="the node's own address",
                    location=variable.location,
                )
            elif text == "0.0.0.0":  # noqa: S104 - a text to find
                yield Problem(
                    found=f"{HOST}={text}: it is also the address that other nodes are told to connect to",
                    expected="the node's own address",
                    location=variable.location,
                )
            elif (
                (other := addresses.get(text)) is not None
                and other.node
                and server.node
                and other.node != server.node
            ):
                yield Problem(
                    found=f"{HOST}={text} on {other.node} and on {server.node}",
                    expected="each node's own address",
                    location=variable.location,
                )
            else:
                addresses.setdefault(text, server)
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def _on_nodes(launch: LaunchSet) -> bool:
    return len({server.node for server in launch.servers if server.node}) > 1


def _block(server: Server) -> tuple[range, Location]:
    """Ports of NIXL's side channel: the base plus the data-parallel rank (nixl/base_scheduler.py:77)."""
    variable = server.environment.get(PORT)
    base = fact("nixl_port")
    where = server.location
    if variable is not None:
        text = require_known(variable, PORT)
        number = parse_number(text)
        if number is None:
            raise Unmeasured(f"{variable.location}: {PORT}={text[:40]} is not a port")
        base, where = number, variable.location
    layout = layout_of(server)
    return range(base + layout.start, base + layout.start + max(1, layout.local)), where


def _share_host(one: Server, two: Server) -> bool:
    """Whether the files say that two servers run on one host, or under one network address."""
    if one.pod is not None or two.pod is not None:
        return False
    if one.node or two.node:
        return one.node == two.node
    hosts = [server.environment.get(HOST) for server in (one, two)]
    return all(host is not None and host.known for host in hosts) and hosts[0].text == hosts[1].text  # type: ignore[union-attr]  # all() says that neither is None


@launch_rule
def launch_nixl_ports_apart(launch: LaunchSet) -> Iterator[Problem]:
    """Blocks of side-channel ports on one host do not overlap: each data-parallel rank takes base + rank."""
    blocks: list[tuple[Server, range, Location]] = []
    unseen: dict[str, None] = {}
    for server in launch.servers:
        try:
            if uses_nixl(server):
                blocks.append((server, *_block(server)))
        except Unmeasured as error:
            unseen[str(error)] = None
    yield from _overlaps(blocks)
    for server, block, where in blocks:
        if block.stop > 65536 or block.start < 1:
            yield Problem(
                found=f"side-channel ports {block.start} to {block.stop - 1} in {server.name}",
                expected="ports from 1 to 65535",
                location=where,
            )
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def _overlaps(blocks: Sequence[tuple[Server, range, Location]]) -> Iterator[Problem]:
    for index, (server, block, where) in enumerate(blocks[:512]):
        for other, taken, _ in blocks[:index]:
            if block.start < taken.stop and taken.start < block.stop and _share_host(server, other):
                yield Problem(
                    found=f"side-channel ports {block.start}-{block.stop - 1} of {server.name} are also those of "
                    f"{other.name} ({taken.start}-{taken.stop - 1}) on one host",
                    expected=f"{PORT} at least {taken.stop - taken.start} apart",
                    location=where,
                )
                break
