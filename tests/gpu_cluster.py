"""A lab fleet whose nodes look like eight-GPU machines with vLLM, ready for faults in single nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tests.lab import eight_gpus, stub_gpu
from tests.lab.eight_gpus import EightGpus
from tests.lab.netns import NetnsFleet
from tests.lab.node import Content, NetnsNode, pack_tree

VENV = "/opt/venv"
VERSIONS: Mapping[str, str] = {
    "vllm": "0.12.0",
    "torch": "2.9.0",
    "nvidia_nccl_cu12": "2.28.9",
    "nvidia_nvshmem_cu12": "3.4.5",
    "deep_ep": "1.2.1",
}


def install_venv(node: NetnsNode, versions: Mapping[str, str] = VERSIONS) -> None:
    """A virtual environment that holds metadata and library files alone: nothing in it can be imported.

    source: by hand. Layout of wheels (packaging.python.org, "Recording installed projects") and of the
    nvidia-*-cu12 wheels (nvidia/<name>/lib); deep_ep/__init__.py names the classes of DeepEP 1.2.1.
    """
    site = "lib/python3.12/site-packages"
    files: dict[str, Content] = {
        "pyvenv.cfg": "home = /usr/bin\nversion = 3.12.3\n",
        f"{site}/deep_ep/__init__.py": "from .buffer import Buffer\nfrom .utils import EventOverlap\n",
        f"{site}/nvidia/nccl/lib/libnccl.so.2": "",
        f"{site}/nvidia/nvshmem/lib/libnvshmem_host.so.3": "",
    }
    for name, version in versions.items():
        info = f"{site}/{name}-{version}.dist-info"
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        files[f"{info}/top_level.txt"] = f"{name}\n"
    files[f"{site}/deep_ep-{versions['deep_ep']}.dist-info/RECORD"] = "deep_ep/__init__.py,,\n"
    node.run(["mkdir", "-p", f"{VENV}/bin"])
    node.run(["tar", "-x", "--no-same-owner", "-C", VENV], input=pack_tree(files))
    node.run(["ln", "-sf", "/usr/bin/python3", f"{VENV}/bin/python"])


@dataclass
class Plant:
    """What one node shows; start from ``build()`` and change it."""

    shown: EightGpus
    versions: Mapping[str, str]

    def smi(self, argument: str, old: str, new: str, count: int = -1) -> None:
        """Replace text in what nvidia-smi answers. The old text must be there."""
        answers = dict(self.shown.machine.smi)
        assert old in answers[argument], (argument, old)
        answers[argument] = answers[argument].replace(old, new, count)
        self.shown = replace(self.shown, machine=replace(self.shown.machine, smi=answers))

    def smi_field(self, name: str, value: str) -> None:
        """Set the first line ``name : ...`` of ``nvidia-smi -q``."""
        answers = dict(self.shown.machine.smi)
        text, changed = re.subn(
            rf"(?m)^(\s*{re.escape(name)}\s*: ).*$", rf"\g<1>{value}", answers["-q"], count=1
        )
        assert changed, name
        answers["-q"] = text
        self.shown = replace(self.shown, machine=replace(self.shown.machine, smi=answers))

    def proc(self, path: str, old: str, new: str) -> None:
        """Replace text in a file below /proc/driver/nvidia."""
        files = dict(self.shown.machine.proc)
        assert old in files[path], (path, files[path])
        files[path] = files[path].replace(old, new)
        self.shown = replace(self.shown, machine=replace(self.shown.machine, proc=files))

    def hca(self, name: str, leaf: str, text: str) -> None:
        """Set a file of an HCA, such as ``ports/1/state`` of ``mlx5_3``."""
        devices = dict(self.shown.devices)
        path = next(path for path in devices if path.endswith(f"/infiniband/{name}/{leaf}"))
        devices[path] = text
        self.shown = replace(self.shown, devices=devices)

    def version(self, name: str, version: str) -> None:
        self.versions = {**self.versions, name: version}

    def install(self, node: NetnsNode) -> None:
        eight_gpus.install(node, self.shown)
        install_venv(node, self.versions)


def plants(fleet: NetnsFleet) -> dict[str, Plant]:
    """The same healthy machine for every node, not yet installed."""
    shown = eight_gpus.build()
    return {node.name: Plant(shown, VERSIONS) for node in fleet.nodes}


def install(fleet: NetnsFleet, planted: Mapping[str, Plant]) -> None:
    for name, plant in planted.items():
        plant.install(fleet[name])


def install_two_gpus(node: NetnsNode) -> None:
    """A recorded machine of two GPUs: quicker to install than eight, for tests of one command."""
    stub_gpu.install_gpus(node, stub_gpu.load("h200x2"))
