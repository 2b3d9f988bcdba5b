"""Rules on the quality of service of RoCE, as far as sysfs shows it."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.rdma import compute_devices, roce_ports


@node_rule
def rdma_ecn_same_on_rails(node: Node) -> Iterator[Problem]:
    """ECN and traffic class of the RoCE compute HCAs are one setting. Which one is right, the fabric says."""
    qos = node.qos
    if qos.ecn is None:
        raise NotApplicable("not in this recording, which is older than this check")
    devices = {port.device for port in roce_ports(node)}
    if len(devices) < 2:
        raise NotApplicable("fewer than two RoCE HCAs to compare")
    groups: dict[str, list[str]] = {}
    for device in compute_devices(node):
        if device.name in devices:
            ecn = next((qos.ecn[name] for name in device.netdevs if name in qos.ecn), "")
            traffic = qos.traffic_class.get(device.name, "")
            if not ecn and not traffic:
                raise Unmeasured(f"{device.name}: its driver shows neither ECN nor traffic class in sysfs")
            text = "; ".join(filter(None, (f"ECN {ecn}" if ecn else "", traffic)))
            groups.setdefault(text, []).append(device.name)
    most = max(groups, key=lambda text: len(groups[text]))
    for text, names in groups.items():
        if text != most:
            yield Problem(
                f"{', '.join(names)}: {text}",
                f"{most}, as on {len(groups[most])} other HCAs here",
                (node.compute_hcas.how,),
                now=tuple(
                    f"sudo mlnx_qos -i {netdev}" for name in names for netdev in _own_netdevs(node, name)
                ),
                subject=", ".join(names),
            )


def _own_netdevs(node: Node, name: str) -> tuple[str, ...]:
    device = node.rdma.device(name)
    return device.netdevs if device else ()
