"""Rules on interfaces, routes, ports and the firewall, of a node and between nodes."""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from epdoctor.cluster import Cluster
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.network import Netdev
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, cluster_rule, node_rule
from epdoctor.rules.rdma import roce_ports

MAX_NAMED = 8
"""Nodes or interfaces that one sentence names."""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _text(node: Node, variable: str) -> str:
    """The variable's value; empty where it is not set or not known."""
    try:
        found = node.environment.get(variable)
    except Unmeasured:
        return ""
    return found.value.strip() if found is not None else ""


@node_rule
def network_address_usable(node: Node) -> Iterator[Problem]:
    if not node.network.candidates:
        netdevs = require(node.network.netdevs)
        yield Problem(
            f"no address for other nodes on {_listed([netdev.name for netdev in netdevs])}",
            "an interface that is up, with an address beyond loopback and link-local",
            tuple(f"{netdev.name}: {netdev.operstate}" for netdev in netdevs[:MAX_NAMED]),
        )


@node_rule
def network_default_route(node: Node) -> Iterator[Problem]:
    if node.network.default_route is None and not _text(node, "VLLM_HOST_IP"):
        candidates = node.network.candidates
        address = str(candidates[0].usable_addresses[0].address) if candidates else ""
        yield Problem(
            "no default route, and VLLM_HOST_IP is not set",
            "a default route, or VLLM_HOST_IP with this node's address",
            now=(f"export VLLM_HOST_IP={address}",) if address else (),
        )


@node_rule
def network_interface_chosen(node: Node, *, variables: list[str]) -> Iterator[Problem]:
    candidates = node.network.candidates
    if len(candidates) < 2:
        raise NotApplicable("one interface only")
    environment = node.environment
    unset = [name for name in variables if environment.get(name) is None]
    if unset:
        route = node.network.default_route
        main = route.interface if route else candidates[0].name
        yield Problem(
            f"{len(candidates)} interfaces could be taken ({_listed([n.name for n in candidates])}); "
            f"{' and '.join(unset)} not set",
            "the interface that all nodes share, named",
            now=tuple(f"export {name}={main}" for name in unset),
        )


@node_rule
def network_ports_open(node: Node, *, ports: list[int]) -> Iterator[Problem]:
    """Looks at the input chains only; what a switch or a cloud's security group drops is not seen here."""
    if require(node.network.legacy_iptables):
        raise Unmeasured("legacy iptables rules are loaded and not read: sudo iptables-legacy -S INPUT")
    firewall = require(node.network.firewall)
    candidates = node.network.candidates
    route = node.network.default_route
    if not candidates:
        raise Unmeasured("no interface with an address")
    interface = route.interface if route else candidates[0].name
    low, high = require(node.network.ephemeral_ports)
    verdicts = {port: firewall.admits(port, interface) for port in (*ports, (low + high) // 2)}
    blocked = [port for port in ports if verdicts[port] is False]
    others = verdicts[(low + high) // 2] is False
    if blocked or others:
        text = [f"TCP {', '.join(map(str, blocked))}"] if blocked else []
        text += [f"TCP {low}-{high} (ephemeral)"] if others else []
        yield Problem(
            f"the input firewall drops {' and '.join(text)} on {interface}",
            "all TCP ports open between the cluster's nodes",
            tuple(
                f"{table} {chain} policy {policy or 'accept'}"
                for table, chain, policy in firewall.input_chains
            ),
            now=_opening(node, interface),
        )
    elif None in verdicts.values():
        raise Unmeasured(
            "the firewall's rules hold matches that cannot be decided here: sudo nft list ruleset"
        )


def _opening(node: Node, interface: str) -> tuple[str, ...]:
    netdev = node.network.netdev(interface)
    networks = [a.network for a in netdev.usable_addresses if a.address.version == 4] if netdev else []
    if not networks:
        return ()
    if node.network.ufw_enabled:
        return (f"sudo ufw allow from {networks[0]}",)
    firewall = require(node.network.firewall)
    if any(table.endswith(" firewalld") for table, _, _ in firewall.input_chains):
        return (f"sudo firewall-cmd --zone=trusted --add-source={networks[0]}",)
    closed = [(table, chain) for table, chain, policy in firewall.input_chains if policy == "drop"]
    places = closed or [(table, chain) for table, chain, _ in firewall.input_chains]
    return tuple(
        f"sudo nft insert rule {table} {chain} ip saddr {networks[0]} accept" for table, chain in places
    )


@node_rule
def network_ports_free(node: Node, *, ports: list[int]) -> Iterator[Problem]:
    if node.processes.workers:
        raise NotApplicable("vLLM runs on this node")
    listeners = require(node.network.listeners)
    for port in ports:
        if port in listeners:
            yield Problem(
                f"something listens on TCP {port} ({_listed(listeners[port])})",
                "free for vLLM",
                ("/proc/net/tcp",),
                now=(f"sudo ss -ltnp 'sport = :{port}'",),
                subject=f"port {port}",
            )


@node_rule
def network_ports_reserved(node: Node, *, ports: list[int]) -> Iterator[Problem]:
    low, high = require(node.network.ephemeral_ports)
    reserved = node.network.reserved_ports
    inside = [
        p for p in ports if low <= p <= high and not any(first <= p <= last for first, last in reserved)
    ]
    if inside:
        listed = ",".join(map(str, inside))
        yield Problem(
            f"net.ipv4.ip_local_port_range {low} {high} takes in {listed}",
            "a range above vLLM's ports, or the ports in net.ipv4.ip_local_reserved_ports",
            now=(f"sudo sysctl -w net.ipv4.ip_local_reserved_ports={listed}",) if not reserved else (),
        )


def _rails(node: Node) -> list[Netdev]:
    """Netdevs of the RoCE compute ports."""
    names: list[str] = []
    for port in roce_ports(node):
        device = node.rdma.device(port.device)
        names += [gid.netdev for gid in port.gids if gid.netdev] or (list(device.netdevs) if device else [])
    rails = [node.network.netdev(name) for name in dict.fromkeys(names)]
    return [netdev for netdev in rails if netdev is not None]


@node_rule
def network_rails_answer_for_themselves(node: Node) -> Iterator[Problem]:
    subnets: dict[str, list[Netdev]] = defaultdict(list)
    for netdev in _rails(node):
        for address in netdev.addresses:
            if address.address.version == 4 and netdev not in subnets[str(address.network)]:
                subnets[str(address.network)].append(netdev)
    shared = {network: rails for network, rails in subnets.items() if len(rails) > 1}
    if not shared:
        raise NotApplicable("no two RoCE rails in one subnet")
    network = node.network
    for subnet, rails in shared.items():
        faults = []
        for netdev in rails:
            if netdev.arp_ignore is None or netdev.rp_filter is None:
                raise Unmeasured(f"/proc/sys/net/ipv4/conf/{netdev.name}: not read")
            # The kernel takes the larger of conf/all and conf/<interface> for these (ip-sysctl.rst).
            if not max(netdev.arp_ignore, network.arp_ignore_all or 0) and not max(
                netdev.arp_filter or 0, network.arp_filter_all or 0
            ):
                faults.append(f"{netdev.name}: arp_ignore 0")
            if max(netdev.rp_filter, network.rp_filter_all or 0) == 1:
                faults.append(f"{netdev.name}: rp_filter 1")
        if faults:
            yield Problem(
                f"{len(rails)} RoCE rails share {subnet}: {_listed(faults)}",
                "arp_ignore 1 or more, rp_filter 2 or 0",
                now=(
                    "sudo sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2",
                    *(f"sudo sysctl -w net.ipv4.conf.{netdev.name}.rp_filter=2" for netdev in rails),
                ),
                subject=subnet,
            )


@node_rule
def network_rails_same_mtu(node: Node) -> Iterator[Problem]:
    rails = _rails(node)
    if len(rails) < 2:
        raise NotApplicable("fewer than two RoCE rails")
    largest = max(netdev.mtu for netdev in rails)
    odd = [netdev for netdev in rails if netdev.mtu != largest]
    if odd:
        yield Problem(
            ", ".join(f"{netdev.name} MTU {netdev.mtu}" for netdev in odd[:MAX_NAMED]),
            f"{largest}, as on the other rails",
            now=tuple(f"sudo ip link set {netdev.name} mtu {largest}" for netdev in odd),
        )


@cluster_rule
def network_addresses_unique(cluster: Cluster) -> Iterator[Problem]:
    owners: dict[str, list[str]] = defaultdict(list)
    hostnames = cluster.measured("network.hostname")
    measured = cluster.measured("network.addresses")
    if len(measured) < 2:
        raise Unmeasured("addresses of fewer than two nodes are known")
    for node, interfaces in measured.items():
        for address in sorted({text.partition("/")[0] for texts in interfaces.values() for text in texts}):
            owners[address].append(node)
    for address, nodes in owners.items():
        if len(nodes) > 1:
            same = len({hostnames.get(node) for node in nodes}) == 1 and hostnames.get(nodes[0])
            note = f"; all call themselves {hostnames[nodes[0]]}: the same machine twice?" if same else ""
            yield Problem(
                f"{address} is on {_listed(nodes)}{note}",
                "each address on one node",
                subject=address,
                odd_nodes=tuple(nodes),
            )


@cluster_rule
def network_nodes_reach_each_other(cluster: Cluster) -> Iterator[Problem]:
    """From each node's addresses and routing table; packets are not sent."""
    addresses = cluster.measured("network.addresses")
    routes = cluster.measured("network.routes")
    nodes = [node for node in cluster.nodes if node in addresses and node in routes]
    if len(nodes) < 2:
        raise Unmeasured("addresses and routes of fewer than two nodes are known")
    own = {
        node: [ipaddress.ip_address(t.partition("/")[0]) for texts in addresses[node].values() for t in texts]
        for node in nodes
    }
    tables = {node: [ipaddress.ip_network(text) for text in routes[node]] for node in nodes}
    for node in nodes:
        default = {table.version for table in tables[node] if table.prefixlen == 0}
        lost = [
            other
            for other in nodes
            if other != node
            and not any(a.version in default or any(a in table for table in tables[node]) for a in own[other])
        ]
        if lost:
            yield Problem(
                f"{node} has no route to any address of {_listed(lost)}",
                "a shared subnet or a route",
                subject=node,
                odd_nodes=(node,),
            )


@cluster_rule
def network_rails_in_line(cluster: Cluster) -> Iterator[Problem]:
    """An HCA is in the subnet that, on most nodes, is the same HCA's. A subnet that no other node has is no fault:
    it is routed. Where all HCAs of a node share one subnet there are no rails to mix up."""
    measured = cluster.measured("network.rail-subnets")
    if len(measured) < 3:
        raise NotApplicable("fewer than three nodes with two or more RoCE rails")
    holders: dict[str, Counter[str]] = defaultdict(Counter)
    for rails in measured.values():
        for hca, subnets in rails.items():
            for subnet in subnets:
                holders[subnet][hca] += 1
    home = {
        subnet: hca
        for subnet, counts in holders.items()
        for hca, count in counts.most_common(1)
        if count > 1 and count * 2 > sum(counts.values())
    }
    if not home:
        raise NotApplicable("no subnet belongs to one rail")
    faults = 0
    for node, rails in measured.items():
        wrong = [
            f"{hca} is in {subnet}, {home[subnet]}'s on the others"
            for hca, subnets in rails.items()
            for subnet in subnets
            if home.get(subnet, hca) != hca and hca in home.values()
        ]
        if wrong:
            faults += 1
            yield Problem(
                "; ".join(wrong[:MAX_NAMED]),
                "each HCA in its rail's subnet, as on the other nodes",
                subject=node,
                odd_nodes=(node,),
            )
    if (unmeasured := cluster.unmeasured("network.rail-subnets")) and not faults:
        node = min(unmeasured)
        raise Unmeasured(f"rails are in line where measured; {node}: {unmeasured[node]}")
