"""Rules on the quality of service of RoCE: ECN, traffic class, PFC, as far as the drivers show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.qos import Dcb
from epdoctor.facts.rdma import RdmaDevice
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.rdma import compute_devices, roce_ports

ECT = 2
"""The lower two bits of a traffic class: capable of ECN (RFC 3168). 106, as published guides set it, is DSCP 26."""
OLDER = "not in this recording, which is older than this check"


def _roce_devices(node: Node) -> list[RdmaDevice]:
    names = {port.device for port in roce_ports(node)}
    return [device for device in compute_devices(node) if device.name in names]


def _different(node: Node, groups: Mapping[str, list[str]]) -> Iterator[Problem]:
    """A problem per group of HCAs that is not the largest one."""
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


@node_rule
def rdma_ecn_same_on_rails(node: Node) -> Iterator[Problem]:
    """ECN and traffic class of the RoCE compute HCAs are one setting. Which one is right, the fabric says."""
    qos = node.qos
    if qos.ecn is None:
        raise NotApplicable(OLDER)
    devices = _roce_devices(node)
    if len(devices) < 2:
        raise NotApplicable("fewer than two RoCE HCAs to compare")
    groups: dict[str, list[str]] = {}
    for device in devices:
        ecn = next((qos.ecn[name] for name in device.netdevs if name in qos.ecn), "")
        traffic = qos.traffic_class.get(device.name, "")
        if not ecn and not traffic:
            raise Unmeasured(f"{device.name}: its driver shows neither ECN nor traffic class in sysfs")
        text = "; ".join(filter(None, (f"ECN {ecn}" if ecn else "", traffic)))
        groups.setdefault(text, []).append(device.name)
    yield from _different(node, groups)


def _dcb_of(node: Node, device: RdmaDevice) -> Dcb:
    qos = node.qos
    for name in device.netdevs:
        if qos.dcb and name in qos.dcb:
            return qos.dcb[name]
    why = next((qos.dcb_unread[name] for name in device.netdevs if name in qos.dcb_unread), "")
    raise Unmeasured(f"PFC of {device.name}: {why or 'its netdev is not known, or is in another namespace'}")


@node_rule
def rdma_pfc_same_on_rails(node: Node) -> Iterator[Problem]:
    """The RoCE compute HCAs have PFC on the same priorities, and one DSCP table. Which ones, the fabric says."""
    if node.qos.dcb is None:
        raise NotApplicable(OLDER)
    devices = [device for device in _roce_devices(node) if not device.is_software]
    if len(devices) < 2:
        raise NotApplicable("fewer than two RoCE HCAs with PFC to compare")
    groups: dict[str, list[str]] = {}
    for device in devices:
        groups.setdefault(str(_dcb_of(node, device)), []).append(device.name)
    yield from _different(node, groups)


def _forced_class(node: Node, device: RdmaDevice) -> int | None:
    """What the driver puts in the place of every traffic class; None: nothing is forced, or not shown."""
    number = node.qos.traffic_class.get(device.name, "").rpartition("=")[2].strip()
    return int(number) if number.isdecimal() and len(number) < 4 and int(number) else None


@node_rule
def rdma_traffic_class_lossless(node: Node, *, variables: list[str]) -> Iterator[Problem]:
    """The traffic class of EP's packets leads, by DSCP, into a priority that PFC makes lossless.

    Says nothing where PFC is off everywhere or the port does not go by DSCP: such a fabric is a choice."""
    if node.qos.dcb is None:
        raise NotApplicable(OLDER)
    devices = [device for device in _roce_devices(node) if not device.is_software]
    tables = {device.name: _dcb_of(node, device) for device in devices}
    lossless = [device for device in devices if tables[device.name].pfc and tables[device.name].dscp]
    if not lossless:
        raise NotApplicable("no RoCE HCA has both PFC and a DSCP table")
    environment = node.environment
    given = {
        name: found.value.strip()
        for name in variables
        if (found := environment.get(name)) is not None and found.value.strip() not in ("", "auto", "-1")
    }
    if not given and all(_forced_class(node, device) is None for device in lossless):
        raise NotApplicable(f"neither {' nor '.join(variables)} is set")
    groups: dict[tuple[str, str, str], list[str]] = {}
    for device in lossless:
        forced, dcb = _forced_class(node, device), tables[device.name]
        classes = {"the driver's traffic_class": str(forced)} if forced is not None else {}
        for name, text in (classes or given).items():
            if not text.isdecimal() or len(text) > 3 or int(text) > 255:
                raise Unmeasured(f"{name}={text[:20]}: not a traffic class")
            dscp = int(text) >> 2
            priority = dcb.dscp.get(dscp, 0)
            if priority not in dcb.pfc:
                on = "+".join(map(str, sorted(dcb.pfc)))
                key = (name, f"{name}={text} is DSCP {dscp}, priority {priority}", on)
                groups.setdefault(key, []).append(device.name)
    for (name, text, on), names in groups.items():
        yield Problem(
            f"{text}, where PFC is off ({', '.join(names)})",
            f"a traffic class whose priority has PFC: {on}",
            (node.compute_hcas.how,),
            now=_class_command(name, names, tables[names[0]]),
            subject=name,
        )


def _class_command(name: str, hcas: list[str], dcb: Dcb) -> tuple[str, ...]:
    """Sets the lowest DSCP that leads into a lossless priority: 26 of the usual ones, if it does."""
    good = [dscp for dscp, priority in sorted(dcb.dscp.items()) if priority in dcb.pfc]
    if not good:
        return ()
    value = (26 if 26 in good else good[0]) << 2 | ECT
    if not name.isidentifier():
        return tuple(
            f"echo {value} | sudo tee /sys/class/infiniband/{hca}/tc/1/traffic_class" for hca in hcas
        )
    return (f"export {name}={value}",)
