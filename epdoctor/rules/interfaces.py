"""Rules on environment variables that name interfaces, HCAs or addresses: they must resolve on the node."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.network import Netdev
from epdoctor.facts.selectors import (
    Selection,
    exact_interfaces,
    hca_prefix,
    nccl_hcas,
    nccl_interfaces,
    nvshmem_hcas,
    ucx_devices,
)
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.rdma import compute_devices

_INTERFACE_SYNTAX: dict[str, Callable[[str, list[str]], Selection]] = {
    "nccl": nccl_interfaces,
    "exact": exact_interfaces,
}


def _value(node: Node, variable: str) -> tuple[str, str]:
    """(value, "NAME=value from source"); NotApplicable where it is not set."""
    found = node.environment.get(variable)
    if found is None or not found.value.strip():
        raise NotApplicable(f"{variable} is not set")
    return found.value.strip(), f"{variable}={found.value} from {found.source}"


def _flaw(node: Node, netdev: Netdev) -> str:
    """Why peers cannot reach it, or ""."""
    if netdev.is_loopback:
        return "is the loopback" if node.goal.multinode else ""
    if not netdev.is_up:
        return f"is {netdev.operstate}"
    if not netdev.addresses:
        return "has no address"
    if node.goal.multinode and not netdev.usable_addresses:
        return "has a link-local address only"
    if node.goal.multinode and netdev not in node.network.candidates:
        return "is a container network of this node"
    return ""


@node_rule
def interface_variable_resolves(node: Node, *, variable: str, syntax: str) -> Iterator[Problem]:
    value, said = _value(node, variable)
    netdevs = require(node.network.netdevs)
    selection = _INTERFACE_SYNTAX[syntax](value, [netdev.name for netdev in netdevs])
    good = ", ".join(netdev.name for netdev in node.network.candidates[:8]) or "none"
    now = tuple(f"export {variable}={netdev.name}" for netdev in _suggested(node))
    if not selection.names or (syntax == "exact" and selection.missing):
        missing = ", ".join(selection.missing) or "anything"
        yield Problem(f"{said} does not name an interface here ({missing})", f"one of: {good}", now=now)
        return
    chosen = [netdev for netdev in netdevs if netdev.name in selection.names]
    flaws = {netdev.name: _flaw(node, netdev) for netdev in chosen}
    # A prefix or an exclusion needs one interface that works; an exact list uses each.
    if all(flaws.values()) or (syntax == "exact" and any(flaws.values())):
        text = ", ".join(f"{name} {flaw}" for name, flaw in flaws.items() if flaw)
        yield Problem(f"{said}: {text}", f"one of: {good}", now=now)


def _suggested(node: Node) -> list[Netdev]:
    candidates = node.network.candidates
    route = node.network.default_route
    main = [netdev for netdev in candidates if route is not None and netdev.name == route.interface]
    return (main or list(candidates))[:1]


@node_rule
def nccl_hca_variable_resolves(node: Node) -> Iterator[Problem]:
    value, said = _value(node, "NCCL_IB_HCA")
    selection = nccl_hcas(value, [(port.device, port.number) for port in node.rdma.ports])
    yield from _judged(node, said, selection, "NCCL_IB_HCA")


@node_rule
def nvshmem_hca_list_resolves(node: Node) -> Iterator[Problem]:
    value, said = _value(node, "NVSHMEM_HCA_LIST")
    if not node.environment.enabled("NVSHMEM_ENABLE_NIC_PE_MAPPING"):
        raise NotApplicable("NVSHMEM_ENABLE_NIC_PE_MAPPING is not 1: NVSHMEM does not read the list")
    selection = nvshmem_hcas(value, [(port.device, port.number) for port in node.rdma.ports])
    yield from _judged(node, said, selection, "NVSHMEM_HCA_LIST")


def _judged(node: Node, said: str, selection: Selection, variable: str) -> Iterator[Problem]:
    here = ", ".join(port.name for port in node.rdma.ports[:16]) or "none"
    if not selection.ports:
        yield Problem(f"{said} names no HCA port here", f"some of: {here}", now=(f"unset {variable}",))
    elif selection.missing:
        yield Problem(
            f"{said}: {', '.join(selection.missing[:8])} not here",
            f"some of: {here}",
            severity=Severity.WARNING,
        )


@node_rule
def nvshmem_hca_prefix_matches(node: Node) -> Iterator[Problem]:
    found = node.environment.get("NVSHMEM_HCA_PREFIX")
    prefix = found.value.strip() if found is not None else "mlx5"
    said = (
        f"NVSHMEM_HCA_PREFIX={prefix} from {found.source}"
        if found is not None
        else "NVSHMEM's default prefix mlx5"
    )
    names = [device.name for device in compute_devices(node)]
    selection = hca_prefix(prefix, names)
    left = [name for name in names if name not in selection.names]
    if left:
        common = left[0].rstrip("0123456789").partition("_")[0]
        shared = next(
            (common[:n] for n in range(len(common), 0, -1) if all(x.startswith(common[:n]) for x in left)), ""
        )
        yield Problem(
            f"{said} leaves out {', '.join(left[:8])}",
            "a prefix of every compute HCA's name",
            (node.compute_hcas.how,),
            now=(f"export NVSHMEM_HCA_PREFIX={shared}",) if shared else (),
        )


@node_rule
def ucx_devices_resolve(node: Node) -> Iterator[Problem]:
    value, said = _value(node, "UCX_NET_DEVICES")
    ports = [(port.device, port.number) for port in node.rdma.ports]
    netdevs = [netdev.name for netdev in require(node.network.netdevs)]
    selection = ucx_devices(value, ports, netdevs)
    if selection.missing:
        hint = [f"{device}:{port}" for device, port in ports if device in selection.missing]
        expected = (
            f"with the port: {', '.join(hint)}"
            if hint
            else f"some of: {', '.join([p.name for p in node.rdma.ports][:16])}"
        )
        yield Problem(
            f"{said}: {', '.join(selection.missing[:8])} is no device here",
            expected,
            severity=Severity.WARNING if selection.names else None,
        )
    elif not selection.names:
        yield Problem(f"{said} leaves no device", "at least one device")


@node_rule
def address_variable_local(node: Node, *, variable: str) -> Iterator[Problem]:
    value, said = _value(node, variable)
    own = {address.address for netdev in require(node.network.netdevs) for address in netdev.addresses}
    try:
        addresses = [ipaddress.ip_address(value)]
    except ValueError:
        resolution = require(node.network.resolved).get(value)
        if resolution is None or resolution.temporary:
            raise Unmeasured(f"{variable}: the name {value[:80]} was not resolved") from None
        addresses = list(resolution.addresses)
    if not addresses:
        yield Problem(f"{said} does not resolve", "an address of this node")
    elif node.goal.multinode and all(address.is_loopback for address in addresses):
        yield Problem(f"{said} is a loopback address", "an address that the other nodes reach")
    elif not any(address in own or address.is_loopback or address.is_unspecified for address in addresses):
        usable = [str(a.address) for netdev in node.network.candidates for a in netdev.usable_addresses]
        yield Problem(
            f"{said} is on no interface of this node",
            f"one of: {', '.join(usable[:8]) or 'none'}",
            now=(f"export {variable}={usable[0]}",) if usable else (),
        )
