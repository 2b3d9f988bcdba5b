"""Rules about GPUs: are they there, healthy, alike, and free for expert-parallel serving."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.gpu_model import Gpu
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable, need, node_rule

GIB = 1 << 30


@need("gpu")
def has_gpu(node: Node) -> bool:
    """No NVIDIA GPU on this node"""
    return node.gpu.present


@need("multi-gpu")
def has_several_gpus(node: Node) -> bool:
    """Fewer than two NVIDIA GPUs on this node"""
    return node.gpu.present and len(node.gpu.gpus) > 1


@need("nvlink")
def has_nvlink(node: Node) -> bool:
    """No active NVLink on this node"""
    return any(gpu.active_nvlinks for gpu in node.gpu.gpus)


def each_gpu(judge: Callable[[Gpu], Iterator[Problem]]) -> Callable[[Node], Iterator[Problem]]:
    """Make a node rule of a function that judges one GPU.

    A GPU that could not be measured does not hide what is wrong with another one."""

    @functools.wraps(judge)
    def rule(node: Node) -> Iterator[Problem]:
        found, unmeasured = False, None
        for gpu in node.gpu.gpus:
            try:
                for problem in judge(gpu):
                    found = True
                    yield problem
            except Unmeasured as reason:
                unmeasured = unmeasured or reason
        if unmeasured is not None and not found:
            raise unmeasured

    return node_rule(rule)


@node_rule
def gpus_all_listed(node: Node) -> Iterator[Problem]:
    """Every GPU on the PCI bus that a container or a virtual machine does not hold answers the driver."""
    listed = node.gpu.gpus
    lost = [gpu for gpu in listed if isinstance(gpu.uuid, Unmeasured)]
    if lost:
        # A lost GPU has no bus id to compare by.
        for gpu in lost:
            yield Problem(
                f"the driver lists it but cannot talk to it ({gpu.uuid})", "it answers", subject=gpu.label
            )
        return
    known = {require(gpu.bus_id) for gpu in listed if not isinstance(gpu.bus_id, Unmeasured)}
    devices = node.pci.devices
    held = [
        bus_id
        for bus_id in node.gpu.pci_bus_ids
        if bus_id in devices and devices[bus_id].driver == "vfio-pci"
    ]
    missing = [bus_id for bus_id in node.gpu.pci_bus_ids if bus_id not in known and bus_id not in held]
    if not missing:
        return
    # A container that was given some GPUs sees all of them in sysfs, but only its own device nodes.
    if len(node.devices.gpu_minors) <= len(listed):
        raise NotApplicable(
            f"only {len(listed)} of {len(node.gpu.pci_bus_ids)} GPUs were given to this context"
        )
    for bus_id in missing:
        yield Problem(
            f"on the PCI bus, not listed by the driver ({len(listed)} of {len(node.gpu.pci_bus_ids)} are)",
            "listed by nvidia-smi",
            subject=bus_id,
        )


@each_gpu
def gpu_ecc_clean(gpu: Gpu) -> Iterator[Problem]:
    """No uncorrectable memory error since the driver was loaded."""
    if isinstance(gpu.ecc_enabled, bool) and not gpu.ecc_enabled:
        return
    count = require(gpu.ecc_volatile_uncorrected)
    if count:
        yield Problem(f"{count} uncorrectable ECC errors since the driver was loaded", "0", subject=gpu.label)


@each_gpu
def gpu_ecc_enabled(gpu: Gpu) -> Iterator[Problem]:
    """ECC is on where the GPU has it."""
    if not require(gpu.ecc_enabled):
        yield Problem("ECC off", "ECC on", subject=gpu.label)


@each_gpu
def gpu_rows_remapped(gpu: Gpu) -> Iterator[Problem]:
    """No memory row waits to be remapped, and remapping did not fail."""
    if require(gpu.remap_failed):
        yield Problem("row remapping failed: no spare row left", "no failure", subject=gpu.label)
    elif require(gpu.remap_pending):
        yield Problem(
            "a memory row waits for a GPU reset to be remapped",
            "nothing pending",
            severity=Severity.WARNING,
            now=(f"sudo nvidia-smi --gpu-reset -i {gpu.index}   # with nothing running on it",),
            subject=gpu.label,
        )


@node_rule
def gpu_p2p_available(node: Node) -> Iterator[Problem]:
    """Every pair of GPUs that was asked can read each other's memory."""
    facts = node.gpu
    if not facts.gpus or not facts.p2p_measured:
        raise Unmeasured("neither NVML nor nvidia-smi gave peer-to-peer status")
    bad = {pair: status for pair, status in facts.p2p_read.items() if status not in ("OK", "unknown")}
    if not bad and any(status == "unknown" for status in facts.p2p_read.values()):
        raise Unmeasured("peer-to-peer status unknown")
    names = {
        "CNS": "chipset not supported", "GNS": "GPU not supported", "TNS": "topology not supported",
        "DR": "disabled by a driver option", "NS": "not supported",
    }  # fmt: skip
    for status, count in Counter(bad.values()).items():
        pairs = ", ".join(f"{i}-{j}" for (i, j), found in sorted(bad.items()) if found == status)
        yield Problem(
            f"no peer-to-peer: {names[status]} ({count} of {len(facts.p2p_read)} pairs: GPUs {pairs})",
            "peer-to-peer between all GPUs",
            evidence=tuple(f"P2P read GPU {i} - GPU {j}: {found}" for (i, j), found in sorted(bad.items())),
        )


@each_gpu
def gpu_mig_off(gpu: Gpu) -> Iterator[Problem]:
    """MIG is off: a MIG slice has no NVLink and no peer-to-peer."""
    if require(gpu.mig_enabled):
        now = (f"sudo nvidia-smi -i {gpu.index} -mig 0",)
        yield Problem("MIG on", "MIG off", now=now, subject=gpu.label)


@each_gpu
def gpu_compute_mode_default(gpu: Gpu) -> Iterator[Problem]:
    """Compute mode is Default; Prohibited lets nothing run."""
    mode = require(gpu.compute_mode)
    if mode != "default":
        yield Problem(
            f"compute mode {mode}",
            "compute mode default",
            severity=Severity.ERROR if mode == "prohibited" else None,
            now=(f"sudo nvidia-smi -i {gpu.index} -c DEFAULT",),
            subject=gpu.label,
        )


@node_rule
def gpu_persistence_on(node: Node) -> Iterator[Problem]:
    """Persistence mode is on for all GPUs."""
    off = [str(gpu.index) for gpu in node.gpu.gpus if not require(gpu.persistence)]
    if off:
        yield Problem(f"persistence mode off on GPU {', '.join(off)}", "on")


@each_gpu
def gpu_pcie_full_speed(gpu: Gpu) -> Iterator[Problem]:
    """Link width is full; the generation is judged on a busy GPU only, since idle links are slowed down."""
    width, full = require(gpu.pcie_width), require(gpu.pcie_width_max)
    if width < full:
        yield Problem(f"PCIe x{width}", f"x{full}", subject=gpu.label)
        return
    known = (gpu.event_reasons, gpu.pcie_gen, gpu.pcie_gen_max)
    if any(isinstance(value, Unmeasured) for value in known) or gpu.idle:
        return
    if require(gpu.pcie_gen) < require(gpu.pcie_gen_max):
        found = f"PCIe generation {gpu.pcie_gen} while busy"
        yield Problem(found, f"generation {gpu.pcie_gen_max}", subject=gpu.label)


@node_rule
def gpu_same_model(node: Node) -> Iterator[Problem]:
    """All GPUs of the node are of one model with the same memory."""
    kinds = Counter((require(gpu.name), require(gpu.memory_total_bytes) // GIB) for gpu in node.gpu.gpus)
    if len(kinds) > 1:
        text = ", ".join(f"{count} x {name} ({memory} GiB)" for (name, memory), count in kinds.most_common())
        yield Problem(text, "one model")


@node_rule
def gpu_free_of_strangers(node: Node) -> Iterator[Problem]:
    """Only vLLM holds GPU memory."""
    held = [(gpu, process) for gpu in node.gpu.gpus for process in require(gpu.processes)]
    if not held:
        return
    ours = {process.pid for process in node.processes.workers}
    for gpu, process in held:
        if process.pid in ours:
            continue
        memory = process.memory_bytes
        size = "" if isinstance(memory, Unmeasured) else f" ({memory / GIB:.1f} GiB)"
        yield Problem(
            f"held by process {process.pid}{size}, which is no vLLM worker",
            "free, or held by vLLM",
            now=(f"ps -o pid,user,etime,args -p {process.pid}",),
            subject=gpu.label,
        )


@each_gpu
def gpu_bar1_large_enough(gpu: Gpu) -> Iterator[Problem]:
    """BAR1 covers the GPU's memory, so that a NIC can register any of it."""
    bar1, memory = require(gpu.bar1_total_bytes), require(gpu.memory_total_bytes)
    if bar1 < memory:
        yield Problem(f"BAR1 {bar1 / GIB:.1f} GiB", f"at least {memory / GIB:.0f} GiB", subject=gpu.label)


@each_gpu
def gpu_not_throttled(gpu: Gpu) -> Iterator[Problem]:
    """The hardware does not slow itself down at this moment."""
    reasons = gpu.hardware_slowdowns
    if reasons:
        yield Problem(", ".join(reasons) + " active", "no hardware slowdown", subject=gpu.label)


@node_rule
def gpu_architecture_supported(node: Node, *, internode: str, intranode: str) -> Iterator[Problem]:
    """Compute capability is at least what the back end's kernels are built for ("9.0").

    High-throughput DeepEP inside one node is the only one that runs on SM80."""
    lower = node.goal.backend == "deepep_high_throughput" and not node.goal.multinode
    wanted = intranode if lower else internode
    major, _, minor = wanted.partition(".")
    for gpu in node.gpu.gpus:
        found = require(gpu.compute_capability)
        if found < (int(major), int(minor)):
            name = gpu.name if isinstance(gpu.name, str) else "GPU"
            yield Problem(f"{name}: SM{found[0]}{found[1]}", f"SM{major}{minor} or newer", subject=gpu.label)


@node_rule
def gpu_device_nodes_accessible(node: Node) -> Iterator[Problem]:
    """The device nodes of the GPUs are there and this user may read and write them."""
    nodes = node.devices.nodes
    numbered = node.devices.gpu_minors
    if not numbered or "/dev/nvidiactl" not in nodes:
        yield Problem(
            "no /dev/nvidia0 or /dev/nvidiactl",
            "device nodes of the GPUs",
            now=("sudo nvidia-modprobe -c 0",),
        )
        return
    wanted = ["/dev/nvidiactl", "/dev/nvidia-uvm", *(f"/dev/nvidia{minor}" for minor in sorted(numbered))]
    closed = [
        path for path in wanted if path in nodes and not (nodes[path].readable and nodes[path].writable)
    ]
    if closed:
        modes = tuple(f"{path} mode {nodes[path].mode & 0o777:o} uid {nodes[path].uid}" for path in closed)
        yield Problem(
            f"no read and write access to {', '.join(closed)}", "read and write for the serving user", modes
        )
