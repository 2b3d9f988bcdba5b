"""Rules on the ports of a launch: in range, used once, free on their node, and let in by its firewall."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import require
from epdoctor.facts.launch import parse_number
from epdoctor.launch.judge import fact, fleet_rule, host_of, names_of
from epdoctor.launch.layout import across_nodes, layout_of, require_known
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Location, Problem, Severity
from epdoctor.rules import launch_rule
from epdoctor.rules.launch_kv import side_channel, uses_nixl

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
    if not layout.headless and not server.front_end:
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
    uses: dict[tuple[str, int], list[tuple[str, Server, Location]]] = {}
    unseen: dict[str, None] = {}
    for number, server in enumerate(launch.servers):
        try:
            ports = ports_of(server)
        except Unmeasured as error:
            unseen[str(error)] = None
            continue
        # Without a node's name nothing says that two servers share a host.
        host = host_of(server) or f"of its own {number}"
        if server.pod is not None and server.node not in launch.nodes:
            # "pod 0" of one LeaderWorkerSet is not "pod 0" of another.
            host = f"{server.group or server.pod.location} {host}"
        for what, (port, where) in ports.items():
            if port == _CHOSEN_LATER:
                continue
            if not 1 <= port <= 65535:
                yield Problem(found=f"{what}: port {port}", expected="a port from 1 to 65535", location=where)
            else:
                uses.setdefault((host, port), []).append((what, server, where))
            if server.node in launch.nodes and not launch.live:
                try:
                    yield from _busy(launch, server, what, port, where)
                except Unmeasured as error:
                    unseen[str(error)] = None
    yield from _collisions(uses)
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def _collisions(uses: dict[tuple[str, int], list[tuple[str, Server, Location]]]) -> Iterator[Problem]:
    """One sentence a port, the first host's, however many hosts and servers are in the same way."""
    alike: dict[tuple[int, tuple[str, ...]], list[list[tuple[str, Server, Location]]]] = {}
    for (_, port), users in uses.items():
        if len(users) > 1:
            alike.setdefault((port, tuple(what for what, _, _ in users)), []).append(users)
    for (port, whats), groups in alike.items():
        users = groups[0]
        if len(set(whats)) == 1:
            found = f"port {port} is the {whats[0]} of {names_of(server for _, server, _ in users)}"
        else:
            (what, server, _), (other, owner, _) = users[1], users[0]
            found = f"port {port} is the {what} of {server.name} and the {other} of {owner.name}"
        more = len(groups) - 1
        yield Problem(
            found=found + (f" (and likewise on {more} more node{'s' if more > 1 else ''})" if more else ""),
            expected="a port of its own for each",
            evidence=tuple(f"{where}: {what}" for what, _, where in users[:8]),
            location=users[1][2],
        )


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


@fleet_rule
def launch_ports_reachable(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """What other nodes connect to is let in: the head's ports, and NIXL's side channel of each node.

    The node's own rules are judged, and only what they certainly drop; a switch or a cloud's security group is not
    seen."""
    unseen: dict[str, None] = {}
    several = across_nodes(servers)
    for server in servers:
        node = launch.nodes.get(server.node)
        if node is None or launch.live:
            continue
        ports: dict[str, tuple[int, Location]] = {}
        if several:
            ports = {what: port for what, port in ports_of(server).items() if what != "API server"}
        if uses_nixl(server) and not server.front_end:
            block, where = side_channel(server)
            ports["NIXL's side channel"] = (block.start, where)
        if not ports:
            continue
        try:
            yield from _dropped(node, server, ports)
        except Unmeasured as error:
            unseen[f"{server.node}: {error}"] = None
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def _dropped(node: Any, server: Server, ports: dict[str, tuple[int, Location]]) -> Iterator[Problem]:
    if require(node.network.legacy_iptables):
        raise Unmeasured("legacy iptables rules are loaded and not read: sudo iptables-legacy -S INPUT")
    firewall = require(node.network.firewall)
    interface = _interface(node, server)
    undecided = False
    for what, (port, where) in ports.items():
        if port == _CHOSEN_LATER or not 1 <= port <= 65535:
            continue
        verdict = firewall.admits(port, interface)
        undecided = undecided or verdict is None
        if verdict is False:
            yield Problem(
                found=f"the input firewall of {server.node} drops TCP {port} ({what}) on {interface}",
                expected="open between the nodes of the launch",
                now=(_opening(node, firewall, port),),
                odd_nodes=(server.node,),
                location=where,
            )
    if undecided:
        raise Unmeasured(
            "the firewall's rules hold matches that cannot be decided here: sudo nft list ruleset"
        )


def _interface(node: Any, server: Server) -> str:
    """The interface that the launch names, else the one that leads out of the node."""
    named = server.variable("GLOO_SOCKET_IFNAME")
    if named and any(device.name == named for device in require(node.network.netdevs)):
        return named
    route, candidates = node.network.default_route, node.network.candidates
    if route is None and not candidates:
        raise Unmeasured("no interface with an address")
    return str(route.interface if route else candidates[0].name)


def _opening(node: Any, firewall: Any, port: int) -> str:
    if node.network.ufw_enabled:
        return f"sudo ufw allow {port}/tcp"
    if any(table.endswith(" firewalld") for table, _, _ in firewall.input_chains):
        return f"sudo firewall-cmd --add-port={port}/tcp"
    chains = [(table, chain) for table, chain, policy in firewall.input_chains if policy == "drop"]
    chains = chains or [(table, chain) for table, chain, _ in firewall.input_chains]
    table, chain = chains[0]
    return f"sudo nft insert rule {table} {chain} tcp dport {port} accept"
