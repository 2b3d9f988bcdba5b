"""Rules on host names: what they resolve to on each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from epdoctor.cluster import Cluster
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.model import Problem, Severity
from epdoctor.rules import cluster_rule, node_rule

MAX_NAMES = 20
"""Names that are reported one by one; more of them have one cause."""


def _gloo_interface(node: Node) -> bool:
    try:
        return bool(node.environment.get("GLOO_SOCKET_IFNAME"))
    except Unmeasured:
        return False


@node_rule
def own_name_resolves(node: Node) -> Iterator[Problem]:
    """Gloo asks for the address of the host name, and takes 127.0.0.1 where it cannot bind to the answer."""
    name = require(node.network.hostname)
    answer = require(node.network.resolved).get(name)
    if answer is None or answer.temporary:
        raise Unmeasured(f"the name service gave no answer for {name} in time")
    # With the interface named, Gloo does not look at the host name.
    severity = Severity.INFO if _gloo_interface(node) else None
    usable = [str(a.address) for netdev in node.network.candidates for a in netdev.usable_addresses]
    route = node.network.default_route
    now = (f"export GLOO_SOCKET_IFNAME={route.interface}",) if route else ()
    expected = f"an address of this node: {', '.join(usable[:4])}" if usable else "an address of this node"
    own = {address.address for netdev in require(node.network.netdevs) for address in netdev.addresses}
    if not answer.addresses:
        yield Problem(
            f"{name} does not resolve ({answer.error or 'no address'})", expected, severity=severity, now=now
        )
    elif all(address.is_loopback for address in answer.addresses):
        found = ", ".join(map(str, answer.addresses))
        yield Problem(f"{name} resolves to {found} on itself", expected, severity=severity, now=now,
                      evidence=("/etc/hosts",))  # fmt: skip
    elif not any(address in own for address in answer.addresses):
        found = ", ".join(map(str, answer.addresses[:4]))
        said = f"{name} resolves to {found}, which is on no interface here"
        yield Problem(said, expected, severity=severity, now=now)


@node_rule
def peers_not_loopback(node: Node) -> Iterator[Problem]:
    own = {node.name, node.name.split(".")[0], "localhost"}
    hostname = require(node.network.hostname)
    own |= {hostname, hostname.split(".")[0]}
    resolved = require(node.network.resolved)
    for name in sorted(resolved):
        answer = resolved[name]
        if name in own or name.split(".")[0] in own or not answer.addresses:
            continue
        if all(address.is_loopback for address in answer.addresses):
            yield Problem(
                f"{name} resolves to {answer.addresses[0]}",
                "the other node's address",
                ("/etc/hosts",),
                subject=name,
            )


@cluster_rule
def names_resolve_alike(cluster: Cluster) -> Iterator[Problem]:
    """A name that resolves nowhere is an alias of the inventory and no fault.

    A node's answer for its own name is left out where it is the loopback: that has a check of its own."""
    resolved = cluster.measured("names.resolved")
    hostnames = cluster.measured("network.hostname")
    if len(resolved) < 2:
        raise Unmeasured("names were resolved on fewer than two nodes")
    answers: dict[str, dict[str, tuple[str, ...]]] = {}
    for node, names in resolved.items():
        for name, addresses in names.items():
            own = name == node or name == hostnames.get(node)
            local = (
                addresses is not None
                and addresses
                and all(a.startswith("127.") or a == "::1" for a in addresses)
            )
            if addresses is not None and not (own and local):
                answers.setdefault(name, {})[node] = _comparable(addresses)
    reported = 0
    for name in sorted(answers):
        by_node = answers[name]
        counted = Counter(by_node.values())
        if len(counted) < 2 or reported == MAX_NAMES:
            continue
        reported += 1
        most, times = max(counted.items(), key=lambda item: (item[1], bool(item[0]), item[0]))
        odd = tuple(node for node, found in by_node.items() if found != most)
        others = "; ".join(f"{_said(found)} ({count} x)" for found, count in counted.items() if found != most)
        yield Problem(
            f"{name}: {others} against {_said(most)} ({times} x)",
            "the same address from every node",
            now=(f"getent ahosts {name}",),
            subject=name,
            odd_nodes=odd,
        )


def _comparable(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """IPv4 addresses where there are any: a node without IPv6 gets no IPv6 answer, which is no fault."""
    return tuple(a for a in addresses if ":" not in a) or tuple(addresses)


def _said(addresses: tuple[str, ...]) -> str:
    return ", ".join(addresses[:3]) or "does not resolve"
