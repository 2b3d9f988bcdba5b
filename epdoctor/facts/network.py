"""Netdevs, addresses, routes, names, listening ports and the input firewall of a node.

Read over netlink and from /proc: no `ip`, no `ss` (it can load diag modules), no `iptables` (it can load
netfilter modules). Names are asked of getaddrinfo on the node, as torch, Gloo and NIXL ask it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Command, Files, FileSet, Probe, Script, Source, Stat, require
from epdoctor.facts.firewall import Firewall
from epdoctor.facts.firewall import parse as parse_firewall
from epdoctor.facts.ports import number as _int
from epdoctor.facts.ports import parse_listeners, parse_range, parse_ranges

if TYPE_CHECKING:
    from epdoctor.facts import Node

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_UP, _LOOPBACK = 0x1, 0x8  # linux/if.h
_CONTAINER_PREFIXES = (
    "docker", "br-", "virbr", "veth", "cali", "cni", "flannel", "cilium", "lxc", "podman",
    "kube", "tunl", "nodelocaldns",
)  # fmt: skip


@dataclass(frozen=True)
class Address:
    address: IpAddress
    prefix: int
    """Length of the network part in bits."""

    @property
    def network(self) -> IpNetwork:
        return ipaddress.ip_network(f"{self.address}/{self.prefix}", strict=False)

    @property
    def usable(self) -> bool:
        """A peer on another node can be given it."""
        return not (self.address.is_loopback or self.address.is_link_local or self.address.is_unspecified)


@dataclass(frozen=True)
class Netdev:
    name: str
    operstate: str
    """up, down, lowerlayerdown, unknown (loopback, some tunnels)..."""
    flags: int
    mtu: int
    mac: str
    kind: str
    """"" for hardware; bridge, veth, bond, vlan, ..."""
    driver: str
    speed_mbps: int | None
    numa_node: int | None
    pci_address: str
    addresses: tuple[Address, ...]
    rp_filter: int | None
    arp_ignore: int | None
    arp_announce: int | None
    arp_filter: int | None

    @property
    def is_loopback(self) -> bool:
        return bool(self.flags & _LOOPBACK)

    @property
    def is_up(self) -> bool:
        return bool(self.flags & _UP) and self.operstate in ("up", "unknown")

    @property
    def is_container_bridge(self) -> bool:
        """Of a container or VM network on this node: other nodes cannot reach its addresses."""
        return self.kind == "dummy" or self.name.startswith(_CONTAINER_PREFIXES)

    @property
    def usable_addresses(self) -> tuple[Address, ...]:
        return tuple(address for address in self.addresses if address.usable)


@dataclass(frozen=True)
class Route:
    destination: IpNetwork
    via: str
    interface: str
    metric: int


@dataclass(frozen=True)
class Resolution:
    """What getaddrinfo said to a name."""

    addresses: tuple[IpAddress, ...]
    error: str
    code: int
    """EAI_*; -3 is "try again": no verdict."""

    @property
    def temporary(self) -> bool:
        return self.code == -3


@dataclass(frozen=True)
class Network:
    hostname: str | Unmeasured
    netdevs: tuple[Netdev, ...] | Unmeasured
    routes: tuple[Route, ...] | Unmeasured
    resolved: dict[str, Resolution] | Unmeasured
    """Name -> answer, for the run's node names and the node's own. Names not answered in time are absent."""
    resolving_complete: bool
    listeners: dict[int, tuple[str, ...]] | Unmeasured
    """TCP port -> local addresses that listen on it."""
    ephemeral_ports: tuple[int, int] | Unmeasured
    """First and last of net.ipv4.ip_local_port_range."""
    reserved_ports: tuple[tuple[int, int], ...]
    """net.ipv4.ip_local_reserved_ports as ranges."""
    rp_filter_all: int | None
    arp_ignore_all: int | None
    arp_filter_all: int | None
    ufw_enabled: bool
    legacy_iptables: bool | Unmeasured
    """The legacy filter table is loaded; its rules cannot be read without a command that may load modules."""
    firewall: Firewall | Unmeasured

    def netdev(self, name: str) -> Netdev | None:
        return next((netdev for netdev in require(self.netdevs) if netdev.name == name), None)

    @property
    def candidates(self) -> tuple[Netdev, ...]:
        """Interfaces that are up, have an address that peers could reach, and are no container bridge.

        The one with the default route is never taken for a container bridge (OVN's br-ex)."""
        route = None if isinstance(self.routes, Unmeasured) else self.default_route
        main = route.interface if route else ""
        return tuple(
            netdev
            for netdev in require(self.netdevs)
            if netdev.is_up
            and not netdev.is_loopback
            and (netdev.name == main or not netdev.is_container_bridge)
            and netdev.usable_addresses
        )

    @property
    def default_route(self) -> Route | None:
        """The default route with the lowest metric, IPv4 first."""
        defaults = [
            route for route in require(self.routes) if route.destination.prefixlen == 0 and route.interface
        ]
        defaults.sort(key=lambda route: (route.destination.version, route.metric))
        return defaults[0] if defaults else None


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Script("network.addresses", script="addresses.py"),
        Script(
            "network.names",
            timeout_s=15.0,
            script="resolve.py",
            params={"names": list(options.node_names[:256])},
        ),
        Files(
            "network.files",
            globs=(
                "/proc/sys/kernel/hostname",
                "/proc/sys/net/ipv4/ip_local_port_range",
                "/proc/sys/net/ipv4/ip_local_reserved_ports",
                "/proc/sys/net/ipv4/conf/all/rp_filter",
                "/proc/sys/net/ipv4/conf/all/arp_ignore",
                "/proc/sys/net/ipv4/conf/all/arp_filter",
                "/proc/net/ip_tables_names",
                "/etc/ufw/ufw.conf",
            ),
        ),
        # Listening sockets come first in these files (net/ipv4/tcp_ipv4.c, tcp_get_idx): the head is enough.
        Files("network.listeners", globs=("/proc/net/tcp", "/proc/net/tcp6"), max_file_bytes=65536),
        Stat(
            "network.netfilter",
            globs=("/proc/net/netfilter", "/lib/modules/*/kernel/net/netfilter/nf_tables.ko*"),
        ),
        Command(
            "network.nft",
            timeout_s=5.0,
            only_if_exists="/sys/module/nf_tables",
            argv=("nft", "-j", "--terse", "list", "ruleset"),
        ),
    )


def _ip(text: object) -> IpAddress | None:
    try:
        return ipaddress.ip_address(str(text).partition("%")[0])
    except ValueError:
        return None


def _netdevs(rows: list[list[Any]]) -> tuple[Netdev, ...]:
    addresses: dict[str, list[Address]] = {}
    sysctls: dict[str, dict[str, Any]] = {}
    links: dict[str, dict[str, Any]] = {}
    for row in rows:
        if len(row) < 2 or not isinstance(row[1], dict):
            continue
        value = row[1]
        name = str(value.get("name", ""))
        if row[0] == "link" and name:
            links[name] = value
        elif row[0] == "address":
            address, prefix = _ip(value.get("address")), _int(value.get("prefix"))
            if address is not None and prefix is not None and 0 <= prefix <= address.max_prefixlen:
                addresses.setdefault(name, []).append(Address(address, prefix))
        elif row[0] == "sysctl":
            sysctls[name] = value
    found = []
    for name, link in links.items():
        sysctl = sysctls.get(name, {})
        speed = _int(link.get("speed"))
        found.append(
            Netdev(
                name,
                str(link.get("operstate", "unknown")),
                _int(link.get("flags")) or 0,
                _int(link.get("mtu")) or 0,
                str(link.get("mac", "")),
                str(link.get("kind", "")),
                str(link.get("driver", "")),
                speed if speed is not None and speed > 0 else None,
                _int(link.get("numa")),
                str(link.get("pci", "")),
                tuple(addresses.get(name, ())),
                *(_int(sysctl.get(key)) for key in ("rp_filter", "arp_ignore", "arp_announce", "arp_filter")),
            )
        )
    return tuple(found)


def _routes(rows: list[list[Any]]) -> tuple[Route, ...]:
    found = []
    for row in rows:
        if row[0] != "route" or len(row) < 2 or not isinstance(row[1], dict):
            continue
        value = row[1]
        base = str(value.get("to") or ("0.0.0.0" if value.get("family") == 4 else "::"))  # noqa: S104 - any host
        try:
            network = ipaddress.ip_network(f"{base}/{_int(value.get('length'))}", strict=False)
        except ValueError:
            continue
        found.append(
            Route(
                network, str(value.get("via", "")), str(value.get("name", "")), _int(value.get("metric")) or 0
            )
        )
    return tuple(found)


def _resolved(source: Source) -> tuple[dict[str, Resolution] | Unmeasured, str]:
    try:
        rows = source.rows("network.names")
    except Unmeasured as reason:
        return reason, ""
    own = ""
    found: dict[str, Resolution] = {}
    for row in rows:
        if len(row) < 2:
            continue
        name, answer = row[0], row[1]
        if name == "" and isinstance(answer, str):
            own = answer
        elif name and isinstance(answer, dict):
            listed = answer.get("addresses")
            addresses = [_ip(text) for text in listed] if isinstance(listed, list) else []
            found[name] = Resolution(
                tuple(a for a in addresses if a is not None),
                str(answer.get("error", "")),
                _int(answer.get("code")) or 0,
            )
    return found, own


def _legacy_iptables(files: FileSet, unread: Unmeasured | None) -> bool | Unmeasured:
    """The file is there only where ip_tables is loaded, and only root may read it."""
    path = "/proc/net/ip_tables_names"
    if unread is not None:
        return unread
    if path in files.errors:
        return Unmeasured(f"{path}: {files.errors[path]}")
    return "filter" in files.get(path, "").split()


def parse(source: Source) -> Network:
    """Every part stands alone: one that was not measured leaves the others."""
    netdevs: tuple[Netdev, ...] | Unmeasured
    routes: tuple[Route, ...] | Unmeasured
    try:
        rows = source.rows("network.addresses")
        netdevs, routes = _netdevs(rows), _routes(rows)
        if not netdevs:
            netdevs = routes = Unmeasured("network.addresses: no interface in the answer")
    except Unmeasured as reason:
        netdevs = routes = reason
    unread: Unmeasured | None = None
    try:
        files = source.files("network.files")
    except Unmeasured as reason:
        files, unread = FileSet({}, {}), reason
    resolved, own = _resolved(source)
    hostname = own or files.get("/proc/sys/kernel/hostname", "").strip()
    conf = "/proc/sys/net/ipv4/conf/all/"
    ufw = [line.strip() for line in files.get("/etc/ufw/ufw.conf", "").splitlines()]
    return Network(
        hostname or Unmeasured("host name: not read"),
        netdevs,
        routes,
        resolved,
        source.status("network.names") == "ran",
        parse_listeners(source),
        parse_range(files),
        parse_ranges(files.get("/proc/sys/net/ipv4/ip_local_reserved_ports", "")),
        _int(files.get(conf + "rp_filter", "")),
        _int(files.get(conf + "arp_ignore", "")),
        _int(files.get(conf + "arp_filter", "")),
        "ENABLED=yes" in ufw,
        _legacy_iptables(files, unread),
        parse_firewall(source),
    )


def _rail_mtus(node: Node) -> dict[str, int] | None:
    found = {}
    for device in node.rdma.devices:
        if device.name in node.compute_hcas.names:
            for name in device.netdevs:
                if (netdev := node.network.netdev(name)) is not None:
                    found[name] = netdev.mtu
    return found or None


def _mtu(node: Node) -> str | None:
    """MTU of the RoCE rails and of the default route's interface: "rails 9000, main 1500"."""
    rails = sorted({str(mtu) for mtu in (_rail_mtus(node) or {}).values()})
    route = node.network.default_route
    main = node.network.netdev(route.interface) if route else None
    parts = ([f"rails {'/'.join(rails)}"] if rails else []) + ([f"main {main.mtu}"] if main else [])
    return ", ".join(parts) or None


def _addresses(node: Node) -> dict[str, tuple[str, ...]]:
    """Interface -> "address/prefix" that other nodes could use."""
    return {
        n.name: tuple(f"{a.address}/{a.prefix}" for a in n.usable_addresses) for n in node.network.candidates
    }


def _rail_subnets(node: Node) -> dict[str, tuple[str, ...]] | None:
    """RoCE compute HCA -> the subnets of its netdevs; None where there are fewer than two such HCAs."""
    netdevs = {netdev.name: netdev for netdev in require(node.network.netdevs)}
    found: dict[str, tuple[str, ...]] = {}
    for device in node.rdma.devices:
        if device.name in node.compute_hcas.names and any(p.link_layer == "Ethernet" for p in device.ports):
            subnets = {
                str(ipaddress.ip_interface(f"{address.address}/{address.prefix}").network)
                for name in device.netdevs
                if name in netdevs
                for address in netdevs[name].usable_addresses
                if address.prefix < address.address.max_prefixlen
            }
            if subnets:
                found[device.name] = tuple(sorted(subnets))
    return found if len(found) > 1 else None


DIGEST: dict[str, Callable[[Node], Any]] = {
    "network.rail-subnets": _rail_subnets,
    "network.mtu": _mtu,
    "network.hostname": lambda node: require(node.network.hostname),
    "network.addresses": _addresses,
    "network.routes": lambda node: tuple(
        str(route.destination) for route in require(node.network.routes) if route.interface
    ),
    "names.resolved": lambda node: {
        name: None if answer.temporary else tuple(sorted(str(address) for address in answer.addresses))
        for name, answer in require(node.network.resolved).items()
    },
}
