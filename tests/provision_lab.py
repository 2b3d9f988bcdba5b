"""Container nodes made to look like GPU machines for provisioning, and the command run beside them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.containers import ContainerNode, PodmanFleet
from tests.lab.vm import VmFleet

ROOT = Path(__file__).parents[1]
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb 24 22:53:42 UTC 2024"
"""First line of /proc/driver/nvidia/version; by hand, in the form that epdoctor/facts/modules.py documents."""
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build"

# A container cannot load modules and has no initramfs: the two programs note how they were called. `modprobe`
# shows the module in /sys/module, as the kernel would.
_SETUP = r"""
set -e
mount -t tmpfs none /proc/driver && mkdir /proc/driver/nvidia
printf '%s\n' "$1" > /proc/driver/nvidia/version
printf 'EnableStreamMemOPs: 0\nRegistryDwords: ""\n' > /proc/driver/nvidia/params
mount -t tmpfs none /sys/class && mkdir -p /sys/class/infiniband/mlx5_0/device
mount -t tmpfs none /sys/module
printf '#!/bin/sh\necho "$@" >> /root/modprobe.log\nmkdir -p "/sys/module/$1"\n' > /usr/sbin/modprobe
printf '#!/bin/sh\necho "$@" >> /root/initramfs.log\n' > /usr/sbin/update-initramfs
chmod +x /usr/sbin/modprobe /usr/sbin/update-initramfs
"""


def make_gpu_node(node: ContainerNode, version: str = PROPRIETARY) -> None:
    """A driver, an RDMA device, and programs that note their calls."""
    node.run(["rm", "-f", "/usr/sbin/modprobe", "/usr/sbin/update-initramfs"])
    node.run(["sh", "-c", _SETUP, "sh", version])


def snapshot(node: ContainerNode) -> str:
    """Every file and folder under /etc: path, type, mode, owner, and the bytes' sum. Times are left out."""
    script = (
        "cd /etc && find . -xdev \\( -type f -o -type d -o -type l \\) -printf '%p %y %m %U:%G %l\\n' | sort"
        " && find . -xdev -type f -print0 | sort -z | xargs -0 sha256sum"
    )
    return node.run(["sh", "-c", script]).stdout


@dataclass(frozen=True)
class Outcome:
    """One run of epdoctor."""

    rc: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def epdoctor(
    fleet: PodmanFleet | VmFleet,
    state: Path,
    *words: str,
    env: dict[str, str] | None = None,
    timeout_s: float = 280,
) -> Outcome:
    """Run `epdoctor WORDS` where the nodes can be reached, with state folders of its own."""
    own = {"XDG_STATE_HOME": str(state / "state"), "XDG_CACHE_HOME": str(state / "cache"), "HOME": str(state)}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    own |= {"PYTHONPATH": path, "PATH": os.environ["PATH"], **(env or {})}
    argv = [*fleet.exec_prefix, "env", *(f"{key}={value}" for key, value in own.items())]
    argv += [sys.executable, "-m", "epdoctor", *words]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=fleet.env if isinstance(fleet, PodmanFleet) else None,
        stdin=subprocess.DEVNULL,
        cwd=state,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
