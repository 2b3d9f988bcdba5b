"""Typed facts of a node, parsed lazily from its record and kept.

`Node` has one property a facts module. A property raises `Unmeasured` where the whole fact could not be
measured; parsing happens once, also when it failed. Pure: the same record gives the same facts anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Source
from epdoctor.model import Goal

if TYPE_CHECKING:
    from epdoctor.facts.accelerators import Accelerators
    from epdoctor.facts.compute_hcas import ComputeHcas
    from epdoctor.facts.container import Container
    from epdoctor.facts.cuda import CudaFacts
    from epdoctor.facts.devices import Devices
    from epdoctor.facts.devx import Devx
    from epdoctor.facts.environment import Environment
    from epdoctor.facts.fabric_manager import FabricManager
    from epdoctor.facts.gpu import GpuFacts
    from epdoctor.facts.imex import Imex
    from epdoctor.facts.kernel_log import KernelLog
    from epdoctor.facts.libraries import Libraries
    from epdoctor.facts.limits import Limits
    from epdoctor.facts.modules import Modules
    from epdoctor.facts.network import Network
    from epdoctor.facts.pci import Pci
    from epdoctor.facts.processes import Processes
    from epdoctor.facts.python_env import PythonEnv
    from epdoctor.facts.qos import Qos
    from epdoctor.facts.rdma import Rdma
    from epdoctor.facts.sample import Sample
    from epdoctor.facts.shm import SharedMemory
    from epdoctor.facts.slurm import Slurm
    from epdoctor.facts.system import System
    from epdoctor.facts.topology import Topology

F = TypeVar("F")


class Node:
    """One node as the rules see it: its name, what it is judged for, and its facts."""

    def __init__(self, name: str, source: Source, goal: Goal, options: CollectOptions) -> None:
        self.name = name
        self.source = source
        """Raw probe results; rules use the typed facts instead."""
        self.goal = goal
        self.options = options
        self._facts: dict[str, Any] = {}

    def _fact(self, name: str, parse: Callable[[], F]) -> F:
        if name not in self._facts:
            try:
                self._facts[name] = parse()
            except Unmeasured as reason:
                self._facts[name] = reason
        value = self._facts[name]
        if isinstance(value, Unmeasured):
            raise Unmeasured(*value.args)
        return cast("F", value)

    @property
    def root(self) -> bool:
        """Whether the agent ran as root there."""
        return self.source.root

    @property
    def system(self) -> System:
        """OS, kernel, boot command line, virtualization, clock."""
        from epdoctor.facts import system

        return self._fact("system", lambda: system.parse(self.source))

    @property
    def limits(self) -> Limits:
        """Resource limits of this context and of the launching contexts."""
        from epdoctor.facts import limits

        return self._fact("limits", lambda: limits.parse(self.source))

    @property
    def shm(self) -> SharedMemory:
        """Shared memory: size, space, leftovers."""
        from epdoctor.facts import shm

        return self._fact("shm", lambda: shm.parse(self.source))

    @property
    def modules(self) -> Modules:
        """Kernel modules, their parameters, modprobe.d, NVIDIA driver parameters and flavour."""
        from epdoctor.facts import modules

        return self._fact("modules", lambda: modules.parse(self.source))

    @property
    def gpu(self) -> GpuFacts:
        """NVIDIA GPUs by NVML, or by nvidia-smi where NVML is not there."""
        from epdoctor.facts import gpu

        return self._fact("gpu", lambda: gpu.parse(self.source))

    @property
    def topology(self) -> Topology:
        """The matrix of nvidia-smi topo -m, with NICs."""
        from epdoctor.facts import topology

        return self._fact("topology", lambda: topology.parse(self.source))

    @property
    def pci(self) -> Pci:
        """PCI devices: speed, width, NUMA node, bridges, ACS, IOMMU."""
        from epdoctor.facts import pci

        return self._fact("pci", lambda: pci.parse(self.source))

    @property
    def devices(self) -> Devices:
        """Device nodes under /dev."""
        from epdoctor.facts import devices

        return self._fact("devices", lambda: devices.parse(self.source))

    @property
    def cuda(self) -> CudaFacts:
        """CUDA toolkits and nvcc."""
        from epdoctor.facts import cuda

        return self._fact("cuda", lambda: cuda.parse(self.source))

    @property
    def rdma(self) -> Rdma:
        """RDMA devices and ports from sysfs."""
        from epdoctor.facts import rdma

        return self._fact("rdma", lambda: rdma.parse(self.source))

    @property
    def sample(self) -> Sample | None:
        """What counters did during --sample; None where it was not asked for."""
        from epdoctor.facts import sample

        return self._fact("sample", lambda: sample.parse(self.source))

    @property
    def network(self) -> Network:
        """Netdevs, addresses, routes, names, firewall."""
        from epdoctor.facts import network

        return self._fact("network", lambda: network.parse(self.source))

    @property
    def processes(self) -> Processes:
        """VLLM workers, their launchers, and who holds the GPUs."""
        from epdoctor.facts import processes

        return self._fact("processes", lambda: processes.parse(self.source))

    @property
    def python_env(self) -> PythonEnv:
        """The target interpreter's packages."""
        from epdoctor.facts import python_env

        return self._fact("python_env", lambda: python_env.parse(self.source))

    @property
    def libraries(self) -> Libraries:
        """Copies of libnccl, libnvshmem_host, libucp... that the loader would take."""
        from epdoctor.facts import libraries

        return self._fact("libraries", lambda: libraries.parse(self.source))

    @property
    def container(self) -> Container:
        """Cgroup, capabilities, seccomp, runtime."""
        from epdoctor.facts import container

        return self._fact("container", lambda: container.parse(self.source))

    @property
    def kernel_log(self) -> KernelLog:
        """Xid, mlx5 and AER lines of the kernel log."""
        from epdoctor.facts import kernel_log

        return self._fact("kernel_log", lambda: kernel_log.parse(self.source))

    @property
    def accelerators(self) -> Accelerators:
        """AMD and Intel GPUs."""
        from epdoctor.facts import accelerators

        return self._fact("accelerators", lambda: accelerators.parse(self.source))

    @property
    def fabric_manager(self) -> FabricManager:
        """Fabric Manager and NVLSM as installed."""
        from epdoctor.facts import fabric_manager

        return self._fact("fabric_manager", lambda: fabric_manager.parse(self.source))

    @property
    def devx(self) -> Devx:
        """What the mlx5 HCAs grant a program that opens them with DEVX."""
        from epdoctor.facts import devx

        return self._fact("devx", lambda: devx.parse(self.source))

    @property
    def qos(self) -> Qos:
        """ECN and traffic class of the RoCE ports, where sysfs shows them."""
        from epdoctor.facts import qos

        return self._fact("qos", lambda: qos.parse(self.source))

    @property
    def imex(self) -> Imex:
        """The IMEX domain as this node is told it."""
        from epdoctor.facts import imex

        return self._fact("imex", lambda: imex.parse(self.source))

    @property
    def slurm(self) -> Slurm:
        """Slurm.conf and the job's allocation."""
        from epdoctor.facts import slurm

        return self._fact("slurm", lambda: slurm.parse(self.source))

    @property
    def environment(self) -> Environment:
        """EP-related environment variables, each with the source it comes from, strongest first."""
        from epdoctor.facts import environment

        return self._fact("environment", lambda: environment.resolve(self))

    @property
    def compute_hcas(self) -> ComputeHcas:
        """The HCAs that EP traffic uses (docs/design.md section 3) and how they were chosen."""
        from epdoctor.facts import compute_hcas

        return self._fact("compute_hcas", lambda: compute_hcas.select(self))
