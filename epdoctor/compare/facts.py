"""The facts of a node that are worth telling when they change.

A fact is a text, or a mapping of what it is about to a text ("mlx5_0" -> "ACTIVE, 400 Gb/sec"); None where it
does not apply, Unmeasured where it was not seen. Nothing here moves by itself: no time, counter, pid, temperature
or free memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from epdoctor.cluster import digest_functions
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.rules.drift import text_of

Value = str | dict[str, str] | None | Unmeasured
Facts = Mapping[str, Value]

_MOVES = frozenset(("time.offset",))
"""Digest values that are never the same twice."""
_SEEN_HERE_WHOLE = frozenset(
    (
        # The families of variables are one mapping here, the driver's options are told whole, and the ports and
        # devices one by one.
        "env.nccl", "env.nvshmem", "env.ucx", "env.vllm", "modules.parameters", "rdma.rates", "rdma.firmware", "rdma.pkey",
        "rdma.hca-count", "network.mtu", "python.vllm", "python.torch", "python.nixl", "pci.gpu-count", "pci.nic-count",
    )
)  # fmt: skip
IDENTITY = frozenset(
    ("network.hostname", "network.addresses", "network.routes", "names.resolved", "gpu.uuids", "rdma.guids")
)
"""What differs between two healthy nodes: compared with the node's own past, never with another node."""
_MODULES = re.compile(
    r"nvidia|nv_peer|gdrdrv|mlx5|mlx4|ib_|rdma|rxe|siw|irdma|bnxt|efa|nouveau|amdgpu|peer|nvme_rdma|vfio|xpmem|i915|xe$"
)
_MAX_TEXT = 2000


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.0f} GiB"


def _limit(pair: tuple[int | None, int | None]) -> str:
    soft, hard = ("unlimited" if value is None else str(value) for value in pair)
    return soft if soft == hard else f"{soft}, hard {hard}"


def _gpus(node: Node, tell: Callable[[Any], str | Unmeasured]) -> dict[str, str] | None:
    """By PCI address: an index moves when a GPU falls off the bus."""
    if not node.gpu.present:
        return None
    return {require(gpu.bus_id): require(tell(gpu)) for gpu in node.gpu.gpus}


def _gpu_settings(gpu: Any) -> str:
    def word(value: bool | Unmeasured) -> str:
        return "?" if isinstance(value, Unmeasured) else "on" if value else "off"

    mode = "?" if isinstance(gpu.compute_mode, Unmeasured) else gpu.compute_mode
    return (
        f"ECC {word(gpu.ecc_enabled)}, MIG {word(gpu.mig_enabled)}, persistence {word(gpu.persistence)}, "
        f"compute mode {mode}"
    )


def _gpu_links(gpu: Any) -> str | Unmeasured:
    """The current PCIe speed sinks when a GPU idles: only what it can do."""
    if isinstance(gpu.pcie_gen_max, Unmeasured) or isinstance(gpu.pcie_width, Unmeasured):
        return gpu.pcie_gen_max if isinstance(gpu.pcie_gen_max, Unmeasured) else gpu.pcie_width
    links = (
        "" if isinstance(gpu.nvlinks, Unmeasured) or not gpu.nvlinks else f", {gpu.active_nvlinks} NVLinks up"
    )
    return f"PCIe gen {gpu.pcie_gen_max} x{gpu.pcie_width}{links}"


def _modules(node: Node) -> dict[str, str]:
    modules = node.modules
    return {name: modules.versions.get(name) or "loaded" for name in modules.loaded if _MODULES.match(name)}


def _module_options(node: Node) -> dict[str, str]:
    """What modprobe.d says, by module and parameter."""
    return {
        f"{line.module} {name}": value
        for line in require(node.modules.options)
        for name, value in node.modules.written_parameters(line.module).items()
    }


def _sysctls(node: Node) -> dict[str, str]:
    moving = ("fs.file-nr", "kernel.random")
    return {k: str(v) for k, v in node.system.sysctls.items() if not k.startswith(moving)}


def _rdma(node: Node, tell: Callable[[Any], str]) -> dict[str, str] | None:
    return {device.name: tell(device) for device in node.rdma.devices} or None


def _ports(node: Node) -> dict[str, str] | None:
    ports = {
        port.name: ", ".join(filter(None, (port.state, port.phys_state, port.rate_text, port.link_layer)))
        for port in node.rdma.ports
    }
    return ports or None


def _pkeys(node: Node) -> dict[str, str] | None:
    return {
        port.name: " ".join(f"0x{key:04x}" for key in port.pkeys) for port in node.rdma.ports if port.pkeys
    } or None


def _netdevs(node: Node) -> dict[str, str]:
    """Physical and bonded interfaces; those of containers come and go with their containers."""
    return {
        netdev.name: f"{netdev.operstate}, MTU {netdev.mtu}"
        for netdev in require(node.network.netdevs)
        if not netdev.is_loopback and not netdev.is_container_bridge and not netdev.name.startswith(("veth", "cali", "lxc"))
    }  # fmt: skip


def _environment(node: Node) -> dict[str, str]:
    environment = node.environment
    return {name: environment.text(name) for name in environment.names}


def _packages(node: Node) -> dict[str, str]:
    return dict(node.python_env.packages)


def _pci(node: Node) -> dict[str, str]:
    pci = node.pci
    return {
        device.bus_id: f"{'GPU' if device.is_gpu else 'NIC'} {device.vendor:04x}:{device.device:04x}"
        for device in (*pci.gpus, *pci.nics)
    }


FACTS: dict[str, Callable[[Node], Any]] = {
    "gpu.uuids": lambda node: _gpus(node, lambda gpu: gpu.uuid),
    "gpu.memory": lambda node: _gpus(
        node,
        lambda gpu: (
            gpu.memory_total_bytes
            if isinstance(gpu.memory_total_bytes, Unmeasured)
            else _gib(gpu.memory_total_bytes)
        ),
    ),
    "gpu.settings": lambda node: _gpus(node, _gpu_settings),
    "gpu.links": lambda node: _gpus(node, _gpu_links),
    "modules.loaded": _modules,
    "modules.driver-options": lambda node: (
        dict(require(node.modules.nvidia_params)) if node.modules.driver_loaded else None
    ),
    "modules.options-written": _module_options,
    "modules.memory-peers": lambda node: ", ".join(node.modules.memory_peers) or None,
    "pci.devices": _pci,
    "rdma.guids": lambda node: _rdma(node, lambda device: device.node_guid),
    "rdma.devices": lambda node: _rdma(
        node, lambda device: f"{device.hca_type or device.kind}, firmware {device.firmware or '?'}"
    ),
    "rdma.ports": _ports,
    "rdma.pkeys": _pkeys,
    "network.interfaces": _netdevs,
    "system.sysctls": _sysctls,
    "system.memory": lambda node: _gib(require(node.system.memory_total_bytes)),
    "system.libc": lambda node: require(node.system.libc_version),
    "system.governors": lambda node: ", ".join(sorted(set(node.system.governors))) or None,
    "system.clock-synchronised": lambda node: "yes" if require(node.system.clock).synchronised else "no",
    "limits.units": lambda node: {
        name: _limit(limit.pair) for name, limit in node.limits.units.items()
    },
    "shm.size": lambda node: _gib(require(node.shm.total_bytes)),
    "env.variables": _environment,
    "python.packages": _packages,
    "python.interpreter": lambda node: node.python_env.python,
}  # fmt: skip


def node_facts(node: Node) -> dict[str, Value]:
    """Every fact of one node. Never raises: garbage is Unmeasured."""
    found: dict[str, Value] = {}
    functions = {
        name: function
        for name, function in digest_functions().items()
        if name not in _MOVES and name not in _SEEN_HERE_WHOLE
    }
    for name, function in {**functions, **FACTS}.items():
        try:
            found[name] = _plain(function(node))
        except Unmeasured as reason:
            found[name] = Unmeasured(str(reason))
    return found


def _plain(value: Any) -> Value:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(key): text_of(item)[:_MAX_TEXT] for key, item in value.items() if item is not None}
    return text_of(value)[:_MAX_TEXT]
