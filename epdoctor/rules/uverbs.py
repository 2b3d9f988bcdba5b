"""Rules on the verbs devices that programs open."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.rdma import RdmaDevice
from epdoctor.model import Problem
from epdoctor.rules import node_rule
from epdoctor.rules.rdma import compute_devices, judged_each

_UVERBS = 'SUBSYSTEM=="infiniband_verbs", KERNEL=="uverbs*", MODE="0666"'
_UVERBS_RULE = (
    f"echo '{_UVERBS}' | sudo tee /etc/udev/rules.d/99-epdoctor-uverbs.rules",
    "sudo udevadm control --reload && sudo udevadm trigger --subsystem-match=infiniband_verbs",
)
"""The last rule that names MODE wins; a rule of 99 comes after a site's own."""


def _refused(node: Node, name: str) -> bool:
    """Whether an mlx5 device was tried and the kernel's device controller said no."""
    try:
        device = node.devx.devices.get(name)
    except Unmeasured:
        return False
    return device is not None and device.closed_errno == "EPERM"


@node_rule
def rdma_uverbs_accessible(node: Node) -> Iterator[Problem]:
    nodes = require(node.rdma.uverbs)
    if not nodes:
        yield Problem("no /dev/infiniband/uverbs*", "one for each HCA", now=("sudo modprobe ib_uverbs",))
        return

    def judge(device: RdmaDevice) -> Iterator[Problem]:
        name = node.rdma.uverbs_of.get(device.name)
        if name is None:
            raise Unmeasured(f"/sys/class/infiniband_verbs: which uverbs is {device.name}'s was not read")
        path = f"/dev/infiniband/{name}"
        if name not in nodes:
            yield Problem(
                f"{path} of {device.name} is not there", "readable and writable", subject=device.name
            )
        elif nodes[name] != (True, True):
            yield Problem(
                f"{path} of {device.name}: no read and write permission",
                "mode 0666, as the kernel makes it",
                subject=device.name,
                now=(f"sudo chmod 0666 {path}",),
                permanent=_UVERBS_RULE,
            )
        elif _refused(node, device.name):
            # Mode and owner would allow it: a device cgroup does not, for root neither.
            yield Problem(
                f"{path} of {device.name}: opening it is refused (EPERM), though its mode allows it",
                "a container that was given the device",
                ("mlx5dv_open_device and ibv_open_device: EPERM",),
                subject=device.name,
                now=("ls -l /dev/infiniband  # start the container with --device /dev/infiniband",),
            )

    yield from judged_each(compute_devices(node), judge)
