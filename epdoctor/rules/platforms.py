"""Rules for what is not an NVIDIA GPU beside a ConnectX: AWS EFA, GB200 with IMEX, AMD with MORI, Intel."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.accelerators import KFD
from epdoctor.facts.base import require
from epdoctor.facts.imex import NODES_CONFIG
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, need, node_rule
from epdoctor.rules.driver import gdrdrv_usable
from epdoctor.rules.environment import unset_command

MNNVL_GPUS = ("GB200", "GB300", "GH200 144G HBM3e NVL", "VR200")
"""In the product's name: GPUs whose NVLink can reach other nodes."""


@need("efa")
def has_efa(node: Node) -> bool:
    """No EFA device on this node"""
    return any(device.kind == "efa" for device in node.rdma.devices)


@need("mnnvl")
def has_multi_node_nvlink(node: Node) -> bool:
    """No GPU here whose NVLink reaches other nodes"""
    return any(name in str(require(gpu.name)) for gpu in node.gpu.gpus for name in MNNVL_GPUS)


@need("amd")
def has_amd_gpu(node: Node) -> bool:
    """No AMD GPU on this node"""
    return bool(node.accelerators.amd)


@need("xpu")
def has_intel_gpu(node: Node) -> bool:
    """No Intel data-centre GPU on this node"""
    return bool(node.accelerators.intel)


@need("no-other-gpu")
def has_no_other_gpu(node: Node) -> bool:
    """AMD or Intel GPUs, which have libraries of their own"""
    return not node.accelerators.amd and not node.accelerators.intel


# ------------------------------------------------------------------------------------------------- EFA


@node_rule
def efa_nvshmem_variable(node: Node, *, name: str, value: str) -> Iterator[Problem]:
    """With NVSHMEM_REMOTE_TRANSPORT=libfabric, another variable must have a value that is not its default."""
    environment = node.environment
    transport = environment.get("NVSHMEM_REMOTE_TRANSPORT")
    if transport is None or transport.value.strip().lower() != "libfabric":
        raise NotApplicable("NVSHMEM_REMOTE_TRANSPORT is not libfabric")
    given = environment.get(name)
    if given is None or given.value.strip().lower() != value:
        yield Problem(
            f"{name}={given.value} in {given.source}" if given else f"{name} not set",
            f"{name}={value}, with NVSHMEM_REMOTE_TRANSPORT=libfabric",
            now=(f"export {name}={value}",),
            subject=name,
        )


@node_rule
def efa_nvshmem_gdrcopy(node: Node) -> Iterator[Problem]:
    """NVSHMEM's libfabric transport on EFA stops without GDRCopy: gdrdrv is usable, and no variable turns it off."""
    environment = node.environment
    transport = environment.get("NVSHMEM_REMOTE_TRANSPORT")
    if transport is None or transport.value.strip().lower() != "libfabric":
        raise NotApplicable("NVSHMEM_REMOTE_TRANSPORT is not libfabric")
    off = environment.get("NVSHMEM_DISABLE_GDRCOPY")
    if off is not None and off.value.strip().lower() in ("1", "true", "yes", "on"):
        yield Problem(
            f"NVSHMEM_DISABLE_GDRCOPY={off.value} in {off.source}, with NVSHMEM_REMOTE_TRANSPORT=libfabric",
            "NVSHMEM_DISABLE_GDRCOPY not set",
            now=(unset_command("NVSHMEM_DISABLE_GDRCOPY", off),),
        )
    elif not gdrdrv_usable(node):
        loaded = node.modules.has("gdrdrv")
        yield Problem(
            "gdrdrv is loaded, but /dev/gdrdrv cannot be opened" if loaded else "gdrdrv is not loaded",
            "GDRCopy, with NVSHMEM_REMOTE_TRANSPORT=libfabric",
            now=("sudo chmod 666 /dev/gdrdrv",) if loaded else ("sudo modprobe gdrdrv",),
        )


# ------------------------------------------------------------------------------------------------- IMEX


@node_rule
def imex_channel_usable(node: Node) -> Iterator[Problem]:
    """At least one IMEX channel that this user may open."""
    channels = node.devices.imex_channels
    if not channels:
        yield Problem(
            "no /dev/nvidia-caps-imex-channels/channel*",
            "channel0, readable and writable",
        )
    elif not any(stat.readable and stat.writable for stat in channels.values()):
        first = min(channels)
        yield Problem(
            f"{first}: no read and write permission", "readable and writable", now=(f"ls -l {first}",)
        )


@node_rule
def imex_nodes_listed(node: Node) -> Iterator[Problem]:
    """nodes_config.cfg lists this node."""
    listed = node.imex.nodes
    if listed is None:
        raise NotApplicable(f"no {NODES_CONFIG}: a ComputeDomain or another service makes the domain")
    if not listed:
        yield Problem(f"{NODES_CONFIG} lists no node", "one address a line, this node's among them")
        return
    own = {str(address.address) for netdev in require(node.network.netdevs) for address in netdev.addresses}
    hostname = node.network.hostname
    names = set() if isinstance(hostname, Unmeasured) else {hostname, hostname.partition(".")[0]}
    if not own & set(listed) and not names & set(listed):
        yield Problem(
            f"{NODES_CONFIG} lists {len(listed)} nodes, none of them with an address of this one",
            "an address of this node in the list",
            (f"{NODES_CONFIG}: {', '.join(listed[:6])}", f"addresses here: {', '.join(sorted(own)[:8])}"),
        )


@node_rule
def imex_domain_up(node: Node) -> Iterator[Problem]:
    """The IMEX service of this node says that its domain is up and every node of it ready."""
    if node.imex.domain is None:
        raise NotApplicable("no nvidia-imex-ctl here to ask (a ComputeDomain's service runs in a pod)")
    domain = require(node.imex.domain)
    if domain.state != "UP" or domain.not_ready:
        waiting = domain.not_ready
        listed = f"; not ready: {', '.join(waiting[:6])}" if waiting else ""
        more = f" and {len(waiting) - 6} more" if len(waiting) > 6 else ""
        yield Problem(f"domain state {domain.state}{listed}{more}", "UP, every node READY")


# ------------------------------------------------------------------------------------------------- AMD


@node_rule
def amd_devices_accessible(node: Node) -> Iterator[Problem]:
    """/dev/kfd and each GPU's render node."""
    nodes = require(node.accelerators.nodes)
    wanted = [KFD, *(f"/dev/dri/renderD{gpu.render_minor}" for gpu in node.accelerators.amd)]
    for path in wanted:
        stat = nodes.get(path)
        if stat is None:
            yield Problem(f"no {path}", "there, readable and writable", subject=path)
        elif not (stat.readable and stat.writable):
            yield Problem(
                f"{path}: no read and write permission",
                "readable and writable (group render)",
                now=("sudo usermod -aG render,video $USER",),
                subject=path,
            )


@node_rule
def amd_gfx_supported(node: Node, *, targets: list[str]) -> Iterator[Problem]:
    """Every AMD GPU is of a target that MORI is built for."""
    found = sorted({gpu.gfx for gpu in node.accelerators.amd} - set(targets))
    if found:
        yield Problem(f"{', '.join(found)}", f"{' or '.join(targets)}")


@node_rule
def rocm_at_least(node: Node, *, minimum: str) -> Iterator[Problem]:
    """ROCm's release."""
    from epdoctor import compat

    version = node.accelerators.rocm_version
    if not version:
        raise Unmeasured("/opt/rocm/.info/version: not there")
    if compat.release(version, "ROCm's version") < compat.release(minimum):
        yield Problem(f"ROCm {version}", f"{minimum} or newer", now=("cat /opt/rocm/.info/version",))


@node_rule
def package_installed(node: Node, *, name: str, version: str = "") -> Iterator[Problem]:
    """A Python package in vLLM's environment."""
    environment = node.python_env
    if name not in environment.packages:
        yield Problem(
            f"no {name} in {environment.prefix} ({environment.chosen_by})",
            name,
            now=(f"{environment.python} -m pip install {name}{f'=={version}' if version else ''}",),
        )


@node_rule
def mori_nic_supported(node: Node, *, kinds: list[str]) -> Iterator[Problem]:
    """MORI drives these RDMA devices."""
    found = sorted({device.kind or device.name for device in node.rdma.devices if not device.is_software})
    if not found:
        yield Problem("no RDMA device", f"one of {', '.join(kinds)}")
    elif not set(found) & set(kinds):
        yield Problem(", ".join(found), f"one of {', '.join(kinds)}")


# ------------------------------------------------------------------------------------------------- Intel


@node_rule
def xpu_devices_accessible(node: Node) -> Iterator[Problem]:
    """Each Intel GPU's render node."""
    nodes = require(node.accelerators.nodes)
    for name in node.accelerators.intel:
        stat = nodes.get(f"/dev/dri/{name}")
        if stat is None or not (stat.readable and stat.writable):
            yield Problem(
                f"/dev/dri/{name}: {'no read and write permission' if stat else 'not there'}",
                "readable and writable (group render)",
                now=("sudo usermod -aG render,video $USER",),
                subject=name,
            )


@node_rule
def xpu_level_zero(node: Node) -> Iterator[Problem]:
    """The Level Zero loader, by which PyTorch and oneCCL reach the GPUs."""
    there = node.accelerators.level_zero
    if there is None:
        raise Unmeasured("library folders: not read")
    if not there:
        yield Problem("no libze_loader.so.1 in the system's library folders", "the Level Zero loader")


@node_rule
def mnnvl_variable_allows(node: Node, *, name: str) -> Iterator[Problem]:
    """A switch that turns multi-node NVLink off where the GPUs have it."""
    given = node.environment.get(name)
    if given is not None and given.value.strip() == "0":
        yield Problem(
            f"{name}=0 in {given.source}", f"{name} not set", now=(unset_command(name, given),), subject=name
        )
