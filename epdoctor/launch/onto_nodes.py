"""Which server of a launch runs on which node, and what the node's record adds to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.launch.model import LaunchSet, Server


def _named(server: Server, nodes: Mapping[str, Any]) -> str:
    """The node that the launch or its file's name says; empty: none."""
    short = {name.partition(".")[0]: name for name in nodes}
    if server.node in nodes:
        return server.node
    if server.node and server.node.partition(".")[0] in short:
        return short[server.node.partition(".")[0]]
    stem = PurePath(server.location.path).name
    words = stem.replace("_", "-").replace(".", "-").split("-")
    fitting = [
        name
        for name in nodes
        if name in stem.split(".") or stem.startswith(f"{name}.") or name.partition(".")[0] in words
    ]
    return fitting[0] if len(fitting) == 1 else ""


def _version(node: Any) -> str:
    try:
        found = node.python_env.version("vllm")
    except Unmeasured:
        return ""
    return found if isinstance(found, str) else ""


def place_servers(launch: LaunchSet, nodes: Mapping[str, Any]) -> tuple[LaunchSet, list[str]]:
    """The launch with nodes, and sentences about how servers were matched.

    By the name that the launch gives, else by the file's name, else in order where there are as many servers as
    nodes. Where none fits, servers stay without a node."""
    names = [_named(server, nodes) for server in launch.servers]
    notes: list[str] = []
    if not any(names) and len(launch.servers) == len(nodes) and launch.servers:
        names = list(nodes)
        if len(names) > 1:
            notes.append(
                f"servers and nodes matched in order: {launch.servers[0].name} on {names[0]}, and so on"
            )
    elif any(not name for name in names) and nodes:
        lost = [server.name for server, name in zip(launch.servers, names, strict=True) if not name]
        notes.append(
            f"no node is known for {', '.join(lost[:3])}"
            + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        )
    servers = tuple(
        replace(server, node=name or server.node, vllm_version=server.vllm_version or _version(nodes[name]))
        if name
        else server
        for server, name in zip(launch.servers, names, strict=True)
    )
    return replace(launch, servers=servers, nodes=dict(nodes)), notes
