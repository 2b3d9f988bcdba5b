"""Rules on disaggregated serving: roles, two sides that fit, NIXL's side channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.launch import parse_number
from epdoctor.launch.json_options import merged
from epdoctor.launch.judge import fact, names_of
from epdoctor.launch.layout import across_nodes, fleets, layout_of, number_of, require_known, text_of
from epdoctor.launch.model import LaunchSet, Server, Value
from epdoctor.model import Location, Problem, Severity
from epdoctor.rules import launch_rule
from epdoctor.rules.launch_backends import connector_of, moves_cache, role_of, side_of
from epdoctor.rules.launch_kv_config import NIXL_CONNECTORS, connectors

HOST, PORT = "VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT"


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
    """Every producer and every consumer once, each with the first of the other side (that has its model, where
    several are served)."""
    producers, consumers = _sides(launch)
    compared: set[int] = set()
    for consumer in consumers if producers else ():
        producer = _fitting(consumer, producers)
        compared.add(id(producer))
        yield producer, consumer
    for producer in producers if consumers else ():
        if id(producer) not in compared:
            yield producer, _fitting(producer, consumers)


def _fitting(server: Server, others: list[Server]) -> Server:
    """The one of the other side that it most likely works with: of its model, of its file, of its folder."""

    def nearness(other: Server) -> tuple[bool, bool, bool]:
        one, two = server.location.path, other.location.path
        same_model = (
            other.model is not None and server.model is not None and other.model.text == server.model.text
        )
        return same_model, one == two, one.rpartition("/")[0] == two.rpartition("/")[0]

    return max(others, key=nearness)


def _place(producer: Server, consumer: Server, name: str) -> Location:
    """Where the option stands: on the consumer's side, else on the producer's."""
    option = consumer.option(name) or producer.option(name)
    return consumer.location if option is None else option.location


@launch_rule
def launch_kv_sides_match(launch: LaunchSet) -> Iterator[Problem]:
    """What NIXL's handshake compares: model, cache dtype, block size, connector, vLLM, TP sizes that divide."""
    told: set[tuple[str, Location | None]] = set()
    unseen: dict[str, None] = {}
    for producer, consumer in _pairs(launch):
        try:
            for problem in _differences(producer, consumer):
                key = (problem.expected, problem.location)
                if key not in told:
                    told.add(key)
                    yield problem
        except Unmeasured as error:
            unseen[str(error)] = None
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def _differences(producer: Server, consumer: Server) -> Iterator[Problem]:
    for name in ("kv-cache-dtype", "block-size", "attention-backend", "dtype"):
        one, two = text_of(producer, name, "default"), text_of(consumer, name, "default")
        if one != two:
            yield Problem(
                found=f"--{name}: {one} in {producer.name}, {two} in {consumer.name}",
                expected=f"the same --{name} on both sides",
                severity=Severity.WARNING if name in ("attention-backend", "block-size") else None,
                location=_place(producer, consumer, name),
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
            location=_place(producer, consumer, "kv-transfer-config"),
        )
    first, second = (
        number_of(producer, "tensor-parallel-size", 1),
        number_of(consumer, "tensor-parallel-size", 1),
    )
    if first > 0 and second > 0 and max(first, second) % min(first, second):
        yield Problem(
            found=f"TP {first} in {producer.name}, TP {second} in {consumer.name}",
            expected="TP sizes of which one divides the other",
            location=_place(producer, consumer, "tensor-parallel-size"),
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
    return config is not None and any(
        part.get("kv_connector") in NIXL_CONNECTORS for part in connectors(config)
    )


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
                if (
                    not uses_nixl(server)
                    or server.front_end
                    or (layout_of(server).headless and layout_of(server).local == 0)
                ):
                    continue
                variable = server.environment.get(HOST)
                if variable is None:
                    if server.machine and _beside(launch, server):
                        # Both sides run on one machine: localhost is right.
                        continue
                    if server.pod is not None and server.pod.partial:
                        raise Unmeasured(
                            f"{server.pod.location}: a patch: {HOST} may stand in what it is merged with"
                        )
                    if not reported:
                        several = (
                            across_nodes(servers)
                            or _on_nodes(launch)
                            or server.pod is not None
                            or _others_have_hosts(launch)
                        )
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
                    if _is_the_hosts(server, variable):
                        yield Problem(
                            found=f"{HOST} is the host's address (status.hostIP); the pod has a network of its own",
                            expected="fieldPath: status.podIP, or hostNetwork: true",
                            location=variable.location,
                        )
                    continue
                text = require_known(variable, HOST)
            except Unmeasured as error:
                unseen[str(error)] = None
                continue
            if text in _LOOPBACK and (
                across_nodes(servers) or server.pod is not None or _others_have_hosts(launch)
            ):
                yield Problem(
                    found=f"{HOST}={text}",
                    expected="the node's own address",
                    location=variable.location,
                )
            elif text == "0.0.0.0":  # noqa: S104 - a text to find
                yield Problem(
                    found=f"{HOST}={text}: it is also the address that other nodes are told to connect to",
                    expected="the node's own address (in a pod: status.podIP), unless the router fills it in",
                    severity=Severity.WARNING,
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


_LOOPBACK = ("localhost", "127.0.0.1", "::1", "")


def _others_have_hosts(launch: LaunchSet) -> bool:
    """Whether some server is told an address that other nodes reach."""
    told = (server.environment.get(HOST) for server in launch.servers)
    return any(value is not None and value.known and value.text not in _LOOPBACK for value in told)


def _beside(launch: LaunchSet, server: Server) -> bool:
    """Whether other servers run on its machine."""
    return any(other.machine == server.machine for other in launch.servers if other is not server)


def _is_the_hosts(server: Server, value: Value) -> bool:
    """Whether a pod with a network of its own is given the host's address."""
    pod = server.pod
    own = pod is not None and not pod.host_network and not pod.partial
    return own and value.runtime == "host IP"


def _on_nodes(launch: LaunchSet) -> bool:
    return len({server.node for server in launch.servers if server.node}) > 1


def side_channel(server: Server) -> tuple[range, Location]:
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
    if one.machine and one.machine == two.machine:
        return True
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
                blocks.append((server, *side_channel(server)))
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
