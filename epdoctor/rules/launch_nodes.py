"""Rules on a launch against what its nodes are: GPUs, addresses, interfaces, HCAs."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import require
from epdoctor.launch.judge import fleet_rule, host_of, server_rule
from epdoctor.launch.layout import across_nodes, first_option, layout_of, require_known
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Problem
from epdoctor.rules import launch_rule

_DEVICES = "CUDA_VISIBLE_DEVICES"


def _node(launch: LaunchSet, server: Server) -> Any:
    """The node's facts, or None where they are not given."""
    return launch.nodes.get(server.node) if server.node else None


def visible_gpus(launch: LaunchSet, server: Server) -> tuple[int, str] | None:
    """How many GPUs a process sees, and who says so; None: nothing says it. Raises Unmeasured."""
    devices = server.environment.get(_DEVICES)
    option = server.option("device-ids")
    if option is not None:
        text = require_known(option.value, option.written)
        return len([part for part in text.split(",") if part.strip()]), option.written
    if devices is not None and not devices.runtime:
        text = require_known(devices, _DEVICES)
        if text.strip() != "all":
            # CUDA stops at the first -1.
            parts = [part.strip() for part in text.split(",") if part.strip()]
            count = parts.index("-1") if "-1" in parts else len(parts)
            return count, f"{_DEVICES}={text[:40]}"
    node = _node(launch, server)
    if node is not None:
        return len(node.gpu.gpus), server.node
    if server.visible_gpus is not None:
        return server.visible_gpus, server.name
    return None


@server_rule
def launch_gpus_enough(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """TP x local data-parallel ranks fit the GPUs that the process sees."""
    if server.pod is not None:
        return
    layout = layout_of(server)
    if (
        layout.server.text("data-parallel-backend") == "ray"
        or server.text("distributed-executor-backend") == "ray"
    ):
        return
    seen = visible_gpus(launch, server)
    if seen is None or layout.gpus <= seen[0]:
        return
    option = first_option(server, "data-parallel-size-local", "data-parallel-size", "tensor-parallel-size")
    yield Problem(
        found=f"{layout.gpus} ranks (TP {layout.tensor} x {layout.local} data-parallel ranks of this node"
        + (f" x PP {layout.pipeline}" if layout.pipeline > 1 else "")
        + f") on {seen[0]} GPUs ({seen[1]})",
        expected=f"at most {seen[0]} ranks: another --data-parallel-size-local",
        odd_nodes=(server.node,) if server.node else (),
        location=server.location if option is None else option.location,
    )


def _shares_memory(one: Server, two: Server) -> bool:
    """Whether two servers are told to take only a part of a GPU each: an encoder beside a decoder, a test."""
    if any(server.option("kv-cache-memory-bytes") is not None for server in (one, two)):
        return True
    if any(word.unresolved for server in (one, two) for word in server.stray):
        # "$MEMORY_ARGS" may say it.
        return True
    texts = [server.text("gpu-memory-utilization") for server in (one, two)]
    try:
        return sum(float(text) for text in texts) <= 1
    except ValueError:
        # Not given: vLLM takes nearly all of it. Given, but not resolved: not known.
        return all(texts)


@launch_rule
def launch_gpus_apart(launch: LaunchSet) -> Iterator[Problem]:
    """Servers on one node do not share GPUs."""
    unseen: dict[str, None] = {}
    taken: dict[tuple[str, str], Server] = {}
    for server in launch.servers:
        devices = server.environment.get(_DEVICES)
        host = host_of(server)
        if devices is None or not host or server.pod is not None:
            continue
        try:
            text = require_known(devices, _DEVICES)
        except Unmeasured as error:
            unseen[str(error)] = None
            continue
        shared = []
        for part in (part.strip() for part in text.split(",")):
            if not part or part == "-1":
                continue
            other = taken.setdefault((host, part), server)
            if other is not server:
                shared.append((part, other))
        if shared and not all(_shares_memory(server, other) for _, other in shared):
            yield Problem(
                found=f"{server.name} and {shared[0][1].name} share GPU {', '.join(part for part, _ in shared)} on "
                f"{'one machine' if host == server.machine else host}",
                expected="GPUs of its own for each server",
                odd_nodes=(server.node,) if server.node else (),
                location=devices.location,
            )
    if unseen:
        raise Unmeasured("; ".join(list(unseen)[:3]))


def _own_addresses(node: Any) -> list[str]:
    return [
        str(address.address)
        for netdev in require(node.network.netdevs)
        for address in netdev.usable_addresses
    ]


@fleet_rule
def launch_address_of_head(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """The address that all servers connect to is one of the head node's own."""
    if not across_nodes(servers):
        return
    layouts = [layout_of(server) for server in servers]
    heads = [x for x in layouts if not x.headless and x.start == 0 and x.node_rank == 0]
    if len(heads) != 1:
        return
    head = heads[0].server
    option = first_option(head, "data-parallel-address", "master-addr")
    if option is None or option.value.runtime:
        return
    text = require_known(option.value, option.written)
    try:
        address = str(ipaddress.ip_address(text))
    except ValueError:
        # A name: who answers to it is the network's business (names.* checks).
        return
    if address in ("127.0.0.1", "::1"):
        return
    node = _node(launch, head)
    if node is None:
        return
    own = _own_addresses(node)
    if address in own:
        return
    owner = next(
        (name for name, other in launch.nodes.items() if name != head.node and address in _quiet(other)), ""
    )
    yield Problem(
        found=f"{option.written} {address} is not an address of the head {head.node}"
        + (f", but of {owner}" if owner else ""),
        expected="one of " + ", ".join(own[:6]),
        odd_nodes=(head.node,),
        location=option.location,
    )


def _quiet(node: Any) -> list[str]:
    try:
        return _own_addresses(node)
    except Unmeasured:
        return []


@server_rule
def launch_interfaces_exist(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Interfaces that the launch names are there on its node, up and with an address."""
    node = _node(launch, server)
    if node is None:
        return
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"):
        variable = server.environment.get(name)
        if variable is None:
            continue
        text = require_known(variable, name)
        devices = require(node.network.netdevs)
        if text[:1] == "^":
            continue
        exact = name == "GLOO_SOCKET_IFNAME" or text[:1] == "="
        for wanted in (part.strip() for part in text.lstrip("=").split(",")):
            fitting = [d for d in devices if d.name == wanted or (not exact and d.name.startswith(wanted))]
            if fitting and any(d.is_up and d.usable_addresses for d in fitting):
                continue
            others = ", ".join(
                d.name for d in devices if d.is_up and d.usable_addresses and not d.is_loopback
            )
            yield Problem(
                found=f"{name}={text[:60]}: "
                + (
                    f"{wanted} on {server.node} is down or has no address"
                    if fitting
                    else f"no {wanted} on {server.node}"
                ),
                expected=f"one of {others}" if others else "an interface of the node",
                odd_nodes=(server.node,),
                location=variable.location,
            )


@server_rule
def launch_hcas_exist(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """HCAs that the launch names are there on its node, each in the program's own syntax."""
    node = _node(launch, server)
    if node is None:
        return
    for name in ("NCCL_IB_HCA", "NVSHMEM_HCA_LIST", "UCX_NET_DEVICES"):
        variable = server.environment.get(name)
        if variable is None:
            continue
        text = require_known(variable, name).strip()
        names = [device.name for device in node.rdma.devices]
        netdevs = [d.name for d in require(node.network.netdevs)] if name == "UCX_NET_DEVICES" else []
        if text[:1] == "^" or text in ("", "all"):
            continue
        exact = text[:1] == "=" or name != "NCCL_IB_HCA"
        for part in text.lstrip("=").split(","):
            wanted = part.strip().partition(":")[0]
            found = (
                wanted in names
                or wanted in netdevs
                or (not exact and any(n.startswith(wanted) for n in names))
            )
            if wanted and not found:
                yield Problem(
                    found=f"{name}={text[:80]}: no {wanted} on {server.node}",
                    expected="one of " + ", ".join(names)
                    if names
                    else "no such variable: the node has no HCA",
                    odd_nodes=(server.node,),
                    location=variable.location,
                )
