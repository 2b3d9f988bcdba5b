"""What the facts say a GPU's links can carry. Pure."""

from __future__ import annotations

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require

PCIE_GB_S_PER_LANE = {3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
"""Payload rate of one lane per direction after line coding: PCI Express base specifications 3.0 to 6.0."""


def nvlink_gb_s(node: Node, index: int) -> float:
    """GB/s per direction over all active NVLinks of one GPU; 0: it has none. Raises Unmeasured."""
    links = require(node.gpu.gpus[index].nvlinks)
    return sum(require(link.speed_mbps) for link in links if link.active) / 1000.0


def pcie_gb_s(node: Node, index: int) -> float:
    """GB/s per direction of one GPU's PCIe link at its best. Raises Unmeasured."""
    gpu = node.gpu.gpus[index]
    generation, width = require(gpu.pcie_gen_max), require(gpu.pcie_width_max)
    if generation not in PCIE_GB_S_PER_LANE:
        raise Unmeasured(f"PCIe generation {generation} is not known")
    return PCIE_GB_S_PER_LANE[generation] * width


def between(node: Node, a: int, b: int) -> tuple[float, str]:
    """(GB/s, how it was found) between two GPUs of a node. Raises Unmeasured."""
    slower = min(nvlink_gb_s(node, a), nvlink_gb_s(node, b))
    if slower > 0:
        links = min(node.gpu.gpus[a].active_nvlinks, node.gpu.gpus[b].active_nvlinks)
        return slower, f"{links} NVLinks, {slower:.0f} GB/s"
    rate = min(pcie_gb_s(node, a), pcie_gb_s(node, b))
    return rate, f"PCIe, {rate:.0f} GB/s"
