"""Rules about PCIe: ACS on switches and the IOMMU, which both send peer-to-peer traffic through the CPU, and ordering."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.rdma import compute_devices

RELAXED_ORDERING = 0x10
"""Bit 4 of the device control word: Enable Relaxed Ordering (PCI Express Base Specification)."""


def _bare_metal_only(node: Node, why: str) -> None:
    if require(node.system.virtualization) != "none":
        raise NotApplicable(why)
    if require(node.system.is_grace):
        raise NotApplicable("Grace uses ATS; ACS and the IOMMU stay on")


@node_rule
def acs_off(node: Node) -> Iterator[Problem]:
    """ACS does not redirect on the PCIe switch ports above GPUs and NICs.

    Root ports are left out: traffic that reaches them goes through the CPU anyway."""
    _bare_metal_only(node, "ACS must stay on in a virtual machine")
    facts = node.pci
    ports = {bridge for device in (*facts.gpus, *facts.nics) for bridge in device.upstream[1:]}
    on = [acs for acs in require(facts.acs) if acs.bus_id in ports and acs.redirects]
    if on:
        yield Problem(
            f"ACS on for {len(on)} of {len(ports)} switch ports above GPUs and NICs",
            "ACS off there",
            evidence=tuple(f"{acs.bus_id} ACSCtl 0x{acs.control:04x}" for acs in on),
            now=tuple(f"sudo setpci -s {acs.bus_id} ECAP_ACS+0x6.w=0000" for acs in on),
        )


@node_rule
def iommu_passthrough(node: Node) -> Iterator[Problem]:
    """The IOMMU is off or in pass-through mode for GPUs and NICs."""
    _bare_metal_only(node, "the hypervisor owns the IOMMU")
    facts = node.pci
    if not require(facts.iommu_active):
        return
    words = require(node.system.cmdline_words)
    translated = [
        device.bus_id
        for device in (*facts.gpus, *facts.nics)
        if facts.iommu_types.get(device.bus_id, "").startswith("DMA")
    ]
    known = any(device.bus_id in facts.iommu_types for device in (*facts.gpus, *facts.nics))
    if translated or (not known and "iommu=pt" not in words and "iommu.passthrough=1" not in words):
        which = f" ({len(translated)} GPUs and NICs)" if translated else ""
        flags = tuple(word for word in words if "iommu" in word)
        yield Problem(f"the IOMMU translates DMA{which}", "iommu=pt, or the IOMMU off", flags)


@node_rule
def pci_relaxed_ordering_enabled(node: Node) -> Iterator[Problem]:
    """The compute HCAs may mark their writes as relaxed; the driver asks for it only where this bit is set."""
    _bare_metal_only(node, "the hypervisor owns the NIC's PCIe settings")
    control = node.pci.nic_control
    if control is None:
        raise NotApplicable("not in this recording, which is older than this check")
    devices = [device for device in compute_devices(node) if device.pci_address]
    if not devices:
        raise NotApplicable("no PCI address of an HCA is known")
    judged = [device for device in devices if device.pci_address in control]
    if not judged:
        raise Unmeasured("PCIe device control of the NICs: only root can read it")
    off = [device for device in judged if not control[device.pci_address] & RELAXED_ORDERING]
    if off:
        yield Problem(
            f"relaxed ordering is off in {', '.join(device.name for device in off)}",
            "DevCtl RlxdOrd+ on every compute HCA",
            tuple(f"{d.pci_address} DevCtl 0x{control[d.pci_address]:04x}" for d in off),
            now=tuple(f"sudo lspci -s {d.pci_address} -vv | grep -e DevCtl: -e RlxdOrd" for d in off[:1]),
        )
