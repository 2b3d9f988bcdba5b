"""The environment that a node's workers should get, from that node's own facts. Pure.

Interfaces and HCAs have other names on other nodes, so no list for the whole cluster can be right. Only what
the facts settle is named; what they leave open is left out, with the reason.
Sources: vLLM 0.33.0 docs/serving/expert_parallel_deployment.md (GLOO_SOCKET_IFNAME), vllm/envs.py
(VLLM_HOST_IP, VLLM_NIXL_SIDE_CHANNEL_HOST); NCCL 2.30.7 env.rst (`=` is an exact name); NVSHMEM 3.5.1
env_defs.h; DeepEP d4f41e4 deep_ep/buffers/legacy.py:609 (queue depth).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.launch import token_limit
from epdoctor.facts.network import Netdev

NVSHMEM_BACKENDS = ("deepep_high_throughput", "deepep_low_latency")
_SAFE = re.compile(r"[A-Za-z0-9_./:,=^+@%-]{1,1000}\Z")


@dataclass(frozen=True)
class NodeEnvironment:
    values: Mapping[str, str]
    """Variable -> value; every value is safe in env files of systemd, docker and shells."""
    notes: tuple[str, ...]
    """What was left out, and why."""


def _interface(node: Node, address: str) -> tuple[Netdev, str]:
    """The interface that other nodes reach this one by, and its address there. Raises Unmeasured."""
    candidates = node.network.candidates
    wanted: list[str] = []
    try:
        wanted = [str(ipaddress.ip_address(address))]
    except ValueError:
        resolved = node.network.resolved
        if not isinstance(resolved, Unmeasured) and address in resolved:
            wanted = [str(found) for found in resolved[address].addresses]
    for netdev in candidates:
        for own in netdev.usable_addresses:
            if str(own.address) in wanted:
                return netdev, str(own.address)
    route = node.network.default_route
    for netdev in candidates:
        if (route is not None and netdev.name == route.interface) or len(candidates) == 1:
            usable = sorted(netdev.usable_addresses, key=lambda own: own.address.version)
            return netdev, str(usable[0].address)
    names = ", ".join(netdev.name for netdev in candidates[:8]) or "none"
    raise Unmeasured(f"which interface other nodes reach is open (no default route; candidates: {names})")


def _hcas(node: Node, backend: str) -> dict[str, str]:
    """HCAs are named only where some must be left out: NCCL finds all of them by itself.

    NVSHMEM is told nothing: it takes each GPU's nearest HCA, and a list (which counts only together with
    NVSHMEM_ENABLE_NIC_PE_MAPPING) would deal HCAs out by rank instead."""
    del backend
    chosen = node.compute_hcas
    return {"NCCL_IB_HCA": "=" + ",".join(chosen.names)} if chosen.names and chosen.others else {}


def _queue_depth(node: Node, backend: str) -> dict[str, str]:
    if backend not in ("", *NVSHMEM_BACKENDS):
        return {}
    limits = compat.field("nvshmem", "qp_depth", dict)
    limit = token_limit(node)
    needed = 2 * (limit.tokens + 1)
    if needed > int(limits["max"]):
        raise Unmeasured(
            f"{limit.tokens} tokens ({limit.source}) need NVSHMEM_QP_DEPTH={needed}, more than "
            f"{limits['max']}: lower --max-num-batched-tokens"
        )
    # Where the default is enough, a variable would only have to be kept up to date.
    return {"NVSHMEM_QP_DEPTH": str(needed)} if needed > int(limits["default"]) else {}


def compute(node: Node, address: str, backend: str) -> NodeEnvironment:
    """`address`: what the inventory connects to; `backend`: canonical name, or "" for all."""
    values: dict[str, str] = {}
    notes: list[str] = []
    try:
        require(node.network.netdevs)
        netdev, own = _interface(node, address)
        values["GLOO_SOCKET_IFNAME"] = netdev.name
        values["NCCL_SOCKET_IFNAME"] = f"={netdev.name}"
        if backend in ("", *NVSHMEM_BACKENDS):
            values["NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"] = f"={netdev.name}"
        values["VLLM_HOST_IP"] = own
        values["VLLM_NIXL_SIDE_CHANNEL_HOST"] = own
    except Unmeasured as reason:
        notes.append(f"no interface named: {reason}")
    for part, what in ((_hcas, "no HCA named"), (_queue_depth, "NVSHMEM_QP_DEPTH left out")):
        try:
            values.update(part(node, backend))
        except Unmeasured as reason:
            notes.append(f"{what}: {reason}")
    # A name from a node is hostile text; it ends up in a file that shells read.
    unsafe = [name for name, value in values.items() if not _SAFE.match(value)]
    for name in unsafe:
        notes.append(f"{name} left out: its value has characters that an environment file cannot hold")
        del values[name]
    return NodeEnvironment(values, tuple(notes))
