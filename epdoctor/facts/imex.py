"""IMEX, by which GPUs of several nodes share memory over NVLink (GB200 NVL72 and the like).

Sources: NVIDIA IMEX service for NVLink networks guide (nodes_config.cfg: one address a line; channels under
/dev/nvidia-caps-imex-channels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, Probe, Source

if TYPE_CHECKING:
    from epdoctor.facts import Node

NODES_CONFIG = "/etc/nvidia-imex/nodes_config.cfg"


@dataclass(frozen=True)
class Imex:
    nodes: tuple[str, ...] | None
    """Addresses of the domain's nodes, in the file's order; None: there is no nodes_config.cfg."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (Files("imex.files", globs=(NODES_CONFIG,)),)


def parse(source: Source) -> Imex:
    """Raises Unmeasured where the file is there and could not be read."""
    if source.status("imex.files") == "absent":
        return Imex(None)
    files = source.files("imex.files")
    if NODES_CONFIG in files.errors:
        raise Unmeasured(f"{NODES_CONFIG}: {files.errors[NODES_CONFIG]}")
    if NODES_CONFIG not in files:
        return Imex(None)
    lines = [line.partition("#")[0].strip() for line in files[NODES_CONFIG].splitlines()[:2000]]
    return Imex(tuple(line[:100] for line in lines if line))


def _nodes(node: Node) -> str | None:
    listed = node.imex.nodes
    return None if listed is None else ", ".join(listed) or "no node"


DIGEST: dict[str, Callable[[Node], Any]] = {"imex.nodes": _nodes}
