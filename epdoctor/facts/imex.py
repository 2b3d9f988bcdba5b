"""IMEX, by which GPUs of several nodes share memory over NVLink (GB200 NVL72 and the like).

Sources: NVIDIA IMEX service for NVLink networks guide (nodes_config.cfg: one address a line; channels under
/dev/nvidia-caps-imex-channels); output of `nvidia-imex-ctl -N` in public logs of GB200 nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Command, Files, Probe, Source

if TYPE_CHECKING:
    from epdoctor.facts import Node

NODES_CONFIG = "/etc/nvidia-imex/nodes_config.cfg"
CTL = "/usr/bin/nvidia-imex-ctl"


@dataclass(frozen=True)
class Domain:
    """What the node's IMEX service says of the domain."""

    state: str
    """UP, DEGRADED, DOWN..."""
    not_ready: tuple[str, ...]
    """Addresses of the nodes that are not READY."""


@dataclass(frozen=True)
class Imex:
    nodes: tuple[str, ...] | None
    """Addresses of the domain's nodes, in the file's order; None: there is no nodes_config.cfg."""
    domain: Domain | Unmeasured | None = None
    """None: no nvidia-imex-ctl on this node, or a recording from before it was asked."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Files("imex.files", globs=(NODES_CONFIG,)),
        # -N prints the nodes and their states; it asks the service of this node alone.
        Command("imex.domain", only_if_exists=CTL, argv=(CTL, "-N"), timeout_s=5.0, max_bytes=65536),
    )


def _domain(source: Source) -> Domain | Unmeasured | None:
    if source.status("imex.domain") in ("absent", "skipped"):
        return None
    try:
        lines = source.command("imex.domain").stdout.splitlines()[:5000]
    except Unmeasured as reason:
        return reason
    state = next(
        (line.partition(":")[2].strip()[:20] for line in lines if line.startswith("Domain State:")), ""
    )
    if not state:
        return Unmeasured("nvidia-imex-ctl -N: no domain state in what it says; is the service running?")
    words = [line.replace("*", " ").split() for line in lines if line.startswith("Node #")]
    waiting = [next((w for w in row[2:] if w != "-"), row[1]) for row in words if "READY" not in row]
    return Domain(state, tuple(address[:60] for address in waiting))


def parse(source: Source) -> Imex:
    """Raises Unmeasured where the file is there and could not be read."""
    domain = _domain(source)
    if source.status("imex.files") == "absent":
        return Imex(None, domain)
    files = source.files("imex.files")
    if NODES_CONFIG in files.errors:
        raise Unmeasured(f"{NODES_CONFIG}: {files.errors[NODES_CONFIG]}")
    if NODES_CONFIG not in files:
        return Imex(None, domain)
    lines = [line.partition("#")[0].strip() for line in files[NODES_CONFIG].splitlines()[:2000]]
    return Imex(tuple(line[:100] for line in lines if line), domain)


def _nodes(node: Node) -> str | None:
    listed = node.imex.nodes
    return None if listed is None else ", ".join(listed) or "no node"


DIGEST: dict[str, Callable[[Node], Any]] = {"imex.nodes": _nodes}
