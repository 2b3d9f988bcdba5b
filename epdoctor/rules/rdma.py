"""Rules on the compute HCAs' ports, GIDs, drivers and user space, and the needs of the fabric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import TypeVar

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.rdma import GID_SLOTS, Port, RdmaDevice
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, need, node_rule

T = TypeVar("T")
_IWARP = ("siw", "iw_cxgb4")


@need("rdma")
def has_rdma(node: Node) -> bool:
    """No RDMA device on this node"""
    return bool(node.rdma.devices)


@need("infiniband")
def has_infiniband(node: Node) -> bool:
    """No InfiniBand port among the compute HCAs"""
    return any(port.link_layer == "InfiniBand" for port in compute_ports(node))


@need("roce")
def has_roce(node: Node) -> bool:
    """No RoCE port among the compute HCAs"""
    return bool(roce_ports(node))


@need("mlx5")
def has_mlx5(node: Node) -> bool:
    """No mlx5 (ConnectX-4 or newer) HCA among the compute HCAs"""
    return any(device.kind == "mlx5" for device in compute_devices(node))


def compute_devices(node: Node) -> list[RdmaDevice]:
    """The judged devices, in the node's order."""
    return [device for device in node.rdma.devices if device.name in node.compute_hcas.names]


def compute_ports(node: Node) -> list[Port]:
    """The judged ports, in the node's order."""
    return list(node.compute_hcas.select(node.rdma.devices))


def roce_ports(node: Node) -> list[Port]:
    """The judged ports on Ethernet, without iWARP."""
    kinds = {device.name: device.kind for device in node.rdma.devices}
    return [
        p for p in compute_ports(node) if p.link_layer == "Ethernet" and kinds.get(p.device) not in _IWARP
    ]


def _known(port: Port, value: str, what: str) -> str:
    if not value:
        raise Unmeasured(f"/sys/class/infiniband/{port.device}/ports/{port.number}/{what}: not read")
    return value


def judged_each(items: Iterable[T], judge: Callable[[T], Iterator[Problem]]) -> Iterator[Problem]:
    """Problems of all items. What is not measured hides no fault of another item; alone it is unknown."""
    unmeasured: Unmeasured | None = None
    faults = 0
    for item in items:
        try:
            for problem in judge(item):
                faults += 1
                yield problem
        except Unmeasured as reason:
            unmeasured = unmeasured or reason
    if unmeasured is not None and not faults:
        raise unmeasured


def _folder(port: Port) -> str:
    return f"/sys/class/infiniband/{port.device}/ports/{port.number}"


@node_rule
def rdma_device_present(node: Node) -> Iterator[Problem]:
    if not node.rdma.devices:
        yield Problem(
            "no device under /sys/class/infiniband",
            "at least one HCA with its driver loaded",
            now=("lspci -nn | grep -i -e mellanox -e infiniband -e '\\[02'",),
        )


@node_rule
def rdma_link_up(node: Node) -> Iterator[Problem]:
    def judge(port: Port) -> Iterator[Problem]:
        if _known(port, port.phys_state, "phys_state") != "LinkUp":
            yield Problem(
                f"{port.name} has no link ({port.phys_state})",
                "LinkUp",
                (f"{_folder(port)}/phys_state={port.phys_state}", node.compute_hcas.how),
                worse,
                now=_link_commands(node, port, "-m"),
                subject=port.name,
            )

    worse = _error_if_none(node, [port.phys_state in ("LinkUp", "") for port in compute_ports(node)])
    yield from judged_each(compute_ports(node), judge)


def _error_if_none(node: Node, usable: list[bool]) -> Severity | None:
    """A node with no port at all cannot talk RDMA to nodes that have some: NCCL stops there, it does not slow down.
    With NCCL_IB_DISABLE=1 the ports serve nothing."""
    if not usable or any(usable):
        return None
    try:
        off = node.environment.get("NCCL_IB_DISABLE")
    except Unmeasured:
        off = None
    return None if off is not None and off.value.strip() == "1" else Severity.ERROR


def _link_commands(node: Node, port: Port, flags: str) -> tuple[str, ...]:
    """What shows or mends the port: the netdev's switch on Ethernet and in software, mlxlink where there is a cable."""
    device = node.rdma.device(port.device)
    kind, software = (device.kind, device.is_software) if device else ("", False)
    ethernet = port.link_layer == "Ethernet" or software
    up = tuple(f"sudo ip link set {name} up" for name in _netdevs(node, port)) if ethernet else ()
    if software or kind not in ("mlx5", ""):
        return up or (f"rdma link show {port.device}/{port.number}",)
    return (*up, f"sudo mlxlink -d {port.device} {flags}")


@node_rule
def rdma_port_active(node: Node) -> Iterator[Problem]:
    """A port without a link, and one that waits for a subnet manager, have checks of their own."""

    def judge(port: Port) -> Iterator[Problem]:
        if _known(port, port.state, "state") == "ACTIVE" or port.phys_state not in ("LinkUp", ""):
            return
        if port.state == "INIT" and port.link_layer == "InfiniBand":
            return
        yield Problem(
            f"{port.name} is {port.state}",
            "ACTIVE",
            (f"{_folder(port)}/state={port.state}", node.compute_hcas.how),
            worse,
            now=tuple(f"sudo ip link set {name} up" for name in _netdevs(node, port)),
            subject=port.name,
        )

    worse = _error_if_none(node, [port.active or not port.state for port in compute_ports(node)])
    yield from judged_each(compute_ports(node), judge)


@node_rule
def rdma_subnet_manager(node: Node) -> Iterator[Problem]:
    def judge(port: Port) -> Iterator[Problem]:
        if port.link_layer != "InfiniBand" or port.phys_state != "LinkUp":
            return
        if port.sm_lid is None and _known(port, port.state, "state") != "ACTIVE":
            raise Unmeasured(f"{_folder(port)}/sm_lid: not read")
        # Only a subnet manager takes a port from INIT to ACTIVE.
        if port.sm_lid == 0 or port.state == "INIT":
            yield Problem(
                f"{port.name} has seen no subnet manager (state {port.state}, SM LID {port.sm_lid})",
                "an SM LID, state ACTIVE",
                (f"{_folder(port)}/sm_lid={port.sm_lid}",),
                subject=port.name,
            )

    yield from judged_each(compute_ports(node), judge)


@node_rule
def rdma_rate_full(node: Node) -> Iterator[Problem]:
    active = [port for port in compute_ports(node) if port.active]
    if not active:
        raise NotApplicable("no compute port is up")
    models = {device.name: device.model for device in node.rdma.devices}
    best: dict[tuple[str, str], float] = {}
    for port in active:
        if port.rate_gbps is None:
            raise Unmeasured(f"{_folder(port)}/rate: not read")
        best[models[port.device]] = max(best.get(models[port.device], 0.0), port.rate_gbps)
    for port in active:
        expected = best[models[port.device]]
        if port.rate_gbps is not None and port.rate_gbps < expected:
            yield Problem(
                f"{port.name} runs at {port.rate_text or port.rate_gbps}",
                f"{expected:g} Gb/s, as the other {models[port.device][0] or 'HCAs'} here",
                (f"{_folder(port)}/rate={port.rate_text}",),
                now=_link_commands(node, port, "-m -c"),
                subject=port.name,
            )


@node_rule
def rdma_same_rate_on_rails(node: Node) -> Iterator[Problem]:
    best: dict[tuple[str, str], tuple[float, list[str]]] = {}
    for device in compute_devices(node):
        rates = [p.rate_gbps for p in device.ports if p.active and p.rate_gbps is not None]
        if rates:
            rate, names = best.get(device.model, (0.0, []))
            best[device.model] = (max(rate, *rates), [*names, device.name])
    if not best:
        raise Unmeasured("rate: no compute port is up")
    if len({rate for rate, _ in best.values()}) > 1:
        found = "; ".join(f"{', '.join(names)}: {rate:g} Gb/s" for rate, names in best.values())
        fast = max(best.values(), key=lambda entry: entry[0])[1]
        now = (f"export NCCL_IB_HCA=={','.join(fast)}",)
        yield Problem(found, "one rate on all compute HCAs", (node.compute_hcas.how,), now=now)


@node_rule
def rdma_hcas_match_gpus(node: Node) -> Iterator[Problem]:
    hcas, gpus = len(compute_devices(node)), len(node.gpu.gpus)
    if not hcas or gpus < 2:
        raise NotApplicable("fewer than two GPUs")
    if gpus % hcas and hcas % gpus:
        yield Problem(
            f"{hcas} compute HCAs for {gpus} GPUs ({', '.join(node.compute_hcas.names)})",
            "as many HCAs as GPUs, or a number that divides evenly",
            (node.compute_hcas.how,),
            now=("lspci -nn | grep -i mellanox", "sudo dmesg | grep -i mlx5 | tail -n 20"),
        )


@node_rule
def rdma_guid_assigned(node: Node) -> Iterator[Problem]:
    def judge(device: RdmaDevice) -> Iterator[Problem]:
        if not device.node_guid:
            raise Unmeasured(f"/sys/class/infiniband/{device.name}/node_guid: not read")
        if not device.node_guid.strip("0:"):
            yield Problem(f"{device.name} has node GUID {device.node_guid}", "a GUID", subject=device.name)

    yield from judged_each(compute_devices(node), judge)


@node_rule
def rdma_roce_v2_gid(node: Node) -> Iterator[Problem]:
    """The kernel takes the IPv4 GIDs away with the link, so a port without one is left to its own check."""

    def judge(port: Port) -> Iterator[Problem]:
        if port.gid_slots_read is None:
            raise Unmeasured(f"{_folder(port)}/gids: not read")
        second = [gid for gid in port.gids if gid.is_v2]
        if any(gid.ipv4 for gid in second):
            return
        routed = [gid for gid in second if not gid.gid.lower().startswith("fe80")]
        held = ", ".join(f"{gid.index}: {gid.gid} {gid.type}" for gid in port.gids[:4]) or "no GID at all"
        devices = _netdevs(node, port)
        yield Problem(
            f"{port.name} has no RoCE v2 GID with an IPv4 address ({held})",
            "a RoCE v2 GID with an IPv4 address",
            (f"{_folder(port)}/gids", f"netdev {', '.join(devices) or 'not known'}"),
            # An IPv6 RoCE fabric is a choice: everything then needs *_IB_ADDR_FAMILY=AF_INET6.
            Severity.WARNING if routed else None,
            now=tuple(f"ip -br addr show dev {name}" for name in devices),
            subject=port.name,
        )

    ports = roce_ports(node)
    linked = [port for port in ports if port.phys_state in ("LinkUp", "")]
    if ports and not linked:
        raise Unmeasured(f"no RoCE compute port has a link ({ports[0].name}: {ports[0].phys_state})")
    yield from judged_each(linked, judge)


@node_rule
def rdma_gid_index_valid(node: Node, *, variable: str) -> Iterator[Problem]:
    found = node.environment.get(variable)
    if found is None:
        raise NotApplicable(f"{variable} is not set")
    if found.value.strip() in ("", "-1", "auto"):
        return
    wanted = f"{variable}={found.value} from {found.source}"
    try:
        index = int(found.value)
    except ValueError:
        yield Problem(wanted, "a number", now=(f"unset {variable}",))
        return

    def judge(port: Port) -> Iterator[Problem]:
        gid = next((gid for gid in port.gids if gid.index == index), None)
        if gid is not None and gid.type and not gid.is_v2:
            yield Problem(f"{wanted} is a {gid.type} GID on {port.name}", "a RoCE v2 GID", subject=port.name)
        elif gid is None:
            read = port.gid_slots_read
            # The table ends before the reading limit: no slot there.
            if read is None or GID_SLOTS <= read <= index:
                raise Unmeasured(f"{_folder(port)}/gids/{index}: not read")
            yield Problem(f"{wanted} is an empty slot on {port.name}", "a RoCE v2 GID", subject=port.name)

    yield from judged_each(roce_ports(node), judge)


def _netdevs(node: Node, port: Port) -> tuple[str, ...]:
    device = node.rdma.device(port.device)
    own = tuple(dict.fromkeys(gid.netdev for gid in port.gids if gid.netdev))
    return own or (device.netdevs if device else ())


@node_rule
def rdma_counters_quiet(
    node: Node, *, counters: list[str], at_least: int, times_the_others: int
) -> Iterator[Problem]:
    """Counters run since boot or since they were cleared, so one rail is compared with the node's others."""
    ports = compute_ports(node)
    if len(ports) < 3:
        raise NotApplicable("fewer than three compute ports to compare")
    if not any(name in port.counters for port in ports for name in counters):
        if all(device.kind == "efa" for device in compute_devices(node)):
            raise NotApplicable("EFA has none of these counters")
        raise Unmeasured(f"counters of {ports[0].name}: not read")
    for port in ports:
        odd = []
        for name in counters:
            others = [other.counters[name] for other in ports if other is not port and name in other.counters]
            value = port.counters.get(name, 0)
            if len(others) >= 2 and value >= at_least and value > times_the_others * max(median(others), 1):
                odd.append(f"{name} {value} (other rails: {median(others):g})")
        if odd:
            yield Problem(
                f"{port.name}: {', '.join(odd)}",
                "errors as on the other rails",
                (f"{_folder(port)}/counters and hw_counters, since boot or since they were cleared",),
                now=_link_commands(node, port, "-m -c -e"),
                subject=port.name,
            )


@node_rule
def rdma_core_at_least(node: Node, *, minimum: int) -> Iterator[Problem]:
    version = require(node.rdma.rdma_core_version)
    release = version.split(".")[0]
    if not release.isdecimal():
        raise Unmeasured(f"rdma-core version {version[:40]}: not understood")
    if int(release) < minimum:
        yield Problem(
            f"rdma-core {version}", f"{minimum} or newer", now=("readlink -f /usr/lib*/*/libibverbs.so.1",)
        )


@node_rule
def rdma_pkey_full_member(node: Node) -> Iterator[Problem]:
    """NCCL, NVSHMEM and UCX take entry 0 of the P_Key table. Two limited members cannot talk to each other."""

    ports = [port for port in compute_ports(node) if port.link_layer == "InfiniBand" and port.active]
    if not any(port.pkeys or port.pkeys_unread for port in ports):
        # Every kernel has the table: a recording without it is older than this check.
        raise NotApplicable("no P_Key table was recorded")

    def judge(port: Port) -> Iterator[Problem]:
        if not port.pkeys:
            raise Unmeasured(f"{_folder(port)}/pkeys: {port.pkeys_unread or 'not read'}")
        first = port.pkeys[0]
        if not first & 0x8000:
            yield Problem(
                f"{port.name}: P_Key 0x{first:04x} at index 0, "
                + ("no partition" if not first & 0x7FFF else "a limited member"),
                "a full member, such as 0xffff",
                (f"{_folder(port)}/pkeys/0=0x{first:04x}",),
                subject=port.name,
            )

    yield from judged_each(ports, judge)
