"""The `vllm serve` command and the variables of each node of a group. Pure."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from epdoctor.plan.choose import PORTABLE, Group, Request

API_PORT = 8000
RPC_PORT = 13345
"""As in vLLM's guide; vLLM's own default, 29550, is as good."""
ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


@dataclass(frozen=True)
class Server:
    """What one node starts."""

    name: str
    """The node's."""
    group: Group
    index: int
    """Of the node in its group; 0: the head."""
    options: tuple[tuple[str, str], ...]
    """(flag, value); an empty value: a switch."""
    environment: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    """What was left out of the environment, and why."""


def options(request: Request, group: Group, index: int, address: str) -> tuple[tuple[str, str], ...]:
    """Of the group's node number `index`. `address`: of its head."""
    found: list[tuple[str, str]] = [("--enable-expert-parallel", "")]
    if group.backend != PORTABLE:
        found.append(("--all2all-backend", group.backend))
    found += [("--tensor-parallel-size", str(group.tensor)), ("--data-parallel-size", str(group.data))]
    if len(group.nodes) > 1:
        found.append(("--data-parallel-size-local", str(group.local)))
        if index:
            found.append(("--data-parallel-start-rank", str(index * group.local)))
        found += [("--data-parallel-address", address), ("--data-parallel-rpc-port", str(RPC_PORT))]
    if group.tokens is not None:
        found.append(("--max-num-batched-tokens", str(group.tokens)))
    if group.redundant:
        config = json.dumps({"num_redundant_experts": group.redundant})
        found += [("--enable-eplb", ""), ("--eplb-config", config)]
    if group.role in ROLES:
        transfer = {"kv_connector": "NixlConnector", "kv_role": ROLES[group.role]}
        found.append(("--kv-transfer-config", json.dumps(transfer)))
    if index:
        found.append(("--headless", ""))
    else:
        found.append(("--port", str(API_PORT)))
        if len(group.nodes) > 1 and group.local > 1:
            # The guide scales the API servers to the ranks of a node.
            found.append(("--api-server-count", str(min(group.local, 8))))
    return tuple(found)


def servers(request: Request, groups: tuple[Group, ...]) -> tuple[Server, ...]:
    """One server a node, heads first in their group."""
    found: list[Server] = []
    for group in groups:
        address = group.nodes[0].address
        for index, node in enumerate(group.nodes):
            values, notes = node.environment(group.backend, group.tokens)
            if group.role in ROLES:
                values.setdefault("VLLM_NIXL_SIDE_CHANNEL_HOST", node.address)
            else:
                values.pop("VLLM_NIXL_SIDE_CHANNEL_HOST", None)
            if len(group.nodes) == 1:
                for name in ("GLOO_SOCKET_IFNAME", "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"):
                    values.pop(name, None)
            values |= dict(group.variables)
            found.append(
                Server(
                    node.name, group, index, options(request, group, index, address),
                    tuple(sorted(values.items())), notes,
                )
            )  # fmt: skip
    return tuple(found)


def command_lines(model: str, found: tuple[tuple[str, str], ...], indent: str = "  ") -> str:
    """`vllm serve` over several lines, every word quoted for a shell."""
    lines = [f"vllm serve {shlex.quote(model)}"]
    lines += [f"{flag} {shlex.quote(value)}" if value else flag for flag, value in found]
    return f" \\\n{indent}".join(lines)


def words(model: str, found: tuple[tuple[str, str], ...]) -> list[str]:
    """The same as an argument list."""
    return [
        "vllm",
        "serve",
        model,
        *(word for flag, value in found for word in ((flag, value) if value else (flag,))),
    ]
