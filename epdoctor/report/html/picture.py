"""A node's shape (epdoctor/node_shape.py) as an SVG picture. Pure.

NUMA nodes are panels, PCIe switches (or host bridges) columns in them, NICs above the GPUs of the same column, and
NVLink runs along the bottom. Colour and a sign say what is in the way of a GPU's traffic; the same is told in words
(`troubles`), for those who do not see it. Relations are those of `nvidia-smi topo -m`, by the check
topology.gpu-nic-affinity: PIX and PXB are near, what goes through the CPU is not, unless the machine is virtual
(its hypervisor hides the host's switches) or a Grace (whose NICs hang on the CPU by design).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree as ET

from epdoctor.report.sanitize import sanitize

Shape = Mapping[str, Any]

BOX, GAP, PAD = 124, 8, 10
NIC_HEIGHT, GPU_HEIGHT, HEAD, CPU = 34, 50, 26, 30
MAX_WIDTH = 1380
"""A row of panels is broken beyond it, in the picture's own units."""

_OK, _WARN, _BAD, _MUTE = "ok", "warn", "bad", "mute"


@dataclass(frozen=True)
class Trouble:
    level: str
    """warn | bad"""
    text: str
    kind: str = "fault"
    """fault | far NIC | slow link | ACS"""


@dataclass
class _Column:
    """Devices below one PCIe switch, or straight below one host bridge."""

    label: str
    told: str
    acs: bool = False
    nics: list[Mapping[str, Any]] = field(default_factory=list)
    gpus: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def across(self) -> int:
        most = max(len(self.nics), len(self.gpus))
        return 1 if most <= 3 else min(4, most)

    @property
    def width(self) -> int:
        return self.across * BOX + (self.across - 1) * GAP + 2 * GAP


def troubles(shape: Shape) -> list[Trouble]:
    """What the colours say, in words; worst first."""
    found = []
    for gpu in shape["gpus"]:
        level = affinity(gpu, shape)
        name = f"GPU {gpu['index']}"
        if level in (_WARN, _BAD):
            found.append(
                Trouble(level, f"{name}: its nearest NIC is {gpu['relation']}, through the CPU", "far NIC")
            )
        if gpu["nvlinks_down"]:
            found.append(Trouble(_BAD, f"{name}: NVLinks down: {', '.join(map(str, gpu['nvlinks_down']))}"))
        if _narrow(gpu):
            found.append(Trouble(_WARN, f"{name}: PCIe x{gpu['pcie'][1]} of x{gpu['pcie'][2]}", "slow link"))
        if gpu["acs"]:
            found.append(Trouble(_WARN, f"{name}: ACS sends its peer traffic through the CPU", "ACS"))
    found += [
        Trouble(_BAD, f"{nic['name']}: {nic['state'] or 'down'}")
        for nic in shape["nics"]
        if nic["up"] is False and nic["compute"]
    ]
    return sorted(found, key=lambda trouble: trouble.level != _BAD)


def affinity(gpu: Mapping[str, Any], shape: Shape) -> str:
    """ok | warn | bad | mute (not known, or no fault)."""
    relation = gpu["relation"]
    if relation in ("PIX", "PXB"):
        return _OK
    if not relation or shape["virtual"] is not False or shape["grace"]:
        return _MUTE
    return _BAD if relation == "SYS" else _WARN


def _cut_off(gpu: Mapping[str, Any], shape: Shape) -> bool:
    """Every NIC nearest to it is down."""
    states = [nic["up"] for nic in shape["nics"] if nic["compute"] and nic["name"] in gpu["nearest"]]
    return bool(states) and all(up is False for up in states)


def _narrow(gpu: Mapping[str, Any]) -> bool:
    _, width, most = gpu["pcie"]
    return bool(width and most and width < most)


def svg(shape: Shape, name: str) -> str:
    """The picture as markup that stands in HTML; empty where there is nothing to draw. `name`: the nodes."""
    panels = _panels(shape)
    if not panels:
        return ""
    body: list[ET.Element] = []
    lines: list[ET.Element] = []
    centres: dict[str, tuple[float, float]] = {}
    x = y = row_height = width = 0.0
    row_gpus: list[tuple[float, float, Mapping[str, Any]]] = []
    heights = _heights([column for _, columns in panels for column in columns])
    for numa, columns in panels:
        panel_width = sum(column.width for column in columns) + GAP * (len(columns) - 1) + 2 * PAD
        if x and x + panel_width > MAX_WIDTH:
            y += row_height + _nvlink(lines, body, row_gpus, shape, x - PAD, y + row_height) + PAD
            x, row_height, row_gpus = 0.0, 0.0, []
        height = _panel(body, lines, centres, row_gpus, (numa, columns), shape, (x, y, panel_width), heights)
        x += panel_width + PAD
        width, row_height = max(width, x - PAD), max(row_height, height)
    y += row_height + _nvlink(lines, body, row_gpus, shape, x - PAD, y + row_height)
    _affinities(lines, centres, shape)
    root = ET.Element(
        "svg",
        {
            "viewBox": f"-2 -2 {width + 4:.0f} {y + 4:.0f}",
            "role": "img",
            "class": "node",
            "width": f"{width + 4:.0f}",
        },
    )
    _titled(root, f"Topology of {sanitize(name, 200)}", tag="title")
    _titled(root, _words(shape), tag="desc")
    root.extend(body)
    root.extend(lines)
    return ET.tostring(root, encoding="unicode")


def _words(shape: Shape) -> str:
    count = f"{len(shape['gpus'])} GPUs and {len(shape['nics'])} NICs. "
    return (
        count
        + ("; ".join(trouble.text for trouble in troubles(shape)) or "Nothing is coloured as a fault")
        + "."
    )


def _panels(shape: Shape) -> list[tuple[str, list[_Column]]]:
    """(NUMA node, its columns) in order; those that no NUMA node is known of come last."""
    numas: dict[int, dict[str, _Column]] = {}
    cpus: dict[int, str] = {}
    for kind in ("gpus", "nics"):
        for device in shape[kind]:
            numa = -1 if device["numa"] is None else device["numa"]
            place = device["switch"] or device["root"]
            column = numas.setdefault(numa, {}).setdefault(place, _Column(*_label(device)))
            (column.gpus if kind == "gpus" else column.nics).append(device)
            column.acs = column.acs or device["acs"]
            if device.get("cpus"):
                cpus.setdefault(numa, device["cpus"])
    panels = []
    for numa in sorted(numas, key=lambda numa: (numa < 0, numa)):
        label = f"NUMA {numa}" if numa >= 0 else "NUMA node not told"
        if numa in cpus:
            label += f" · CPUs {cpus[numa]}"
        # Columns with GPUs first, by the first device's address: as the slots are numbered.
        order = sorted(
            numas[numa].values(), key=lambda c: (not c.gpus, min(d["bus_id"] for d in (*c.gpus, *c.nics)))
        )
        panels.append((label, order))
    return panels


def _label(device: Mapping[str, Any]) -> tuple[str, str]:
    if device["switch"]:
        return (
            f"switch {device['switch'].removeprefix('0000:')}",
            f"PCIe switch {device['switch']}, {device['root']}",
        )
    if device["root"]:
        return f"bridge {device['root'].removeprefix('pci')}", f"host bridge {device['root']}"
    return "PCIe not told", "where it sits on the PCIe bus was not measured"


def _rows(count: int, across: int) -> int:
    return -(-count // across)


def _heights(columns: Iterable[_Column]) -> tuple[float, float]:
    """Of the NICs' zone and of the GPUs', alike in all panels so that they line up."""
    all_ = list(columns)
    nics = max(_rows(len(column.nics), column.across) for column in all_)
    gpus = max(_rows(len(column.gpus), column.across) for column in all_)
    return nics * (NIC_HEIGHT + GAP), gpus * (GPU_HEIGHT + GAP)


def _panel(
    body: list[ET.Element], lines: list[ET.Element], centres: dict[str, tuple[float, float]],
    row_gpus: list[tuple[float, float, Mapping[str, Any]]], panel: tuple[str, list[_Column]], shape: Shape,
    place: tuple[float, float, float], heights: tuple[float, float],
) -> float:  # fmt: skip
    """Draw one NUMA node; returns its height."""
    (label, columns), (x, y, width) = panel, place
    height = PAD + CPU + 14 + HEAD + GAP + heights[0] + heights[1] + PAD
    body.append(_rect(x, y, width, height, "panel"))
    body.append(_rect(x + PAD, y + PAD, width - 2 * PAD, CPU, "cpu"))
    body.append(_text(x + width / 2, y + PAD + 20, _cut(label, int((width - 30) / 7)), "label mid"))
    at = x + PAD
    top = y + PAD + CPU + 14
    for column in columns:
        middle = at + column.width / 2
        lines.append(_line(middle, y + PAD + CPU, middle, top, "wire"))
        group = ET.Element("g", {"class": "switch warn" if column.acs else "switch"})
        _titled(group, column.told + ("; ACS redirects peer traffic to the CPU" if column.acs else ""))
        group.append(_rect(at, top, column.width, HEAD + GAP + heights[0] + heights[1], "column"))
        text = f"! ACS {column.label}" if column.acs else column.label
        group.append(_text(middle, top + 17, _cut(text, column.width // 7), "small mid"))
        body.append(group)
        for kind, start, box in (
            ("nics", top + HEAD, NIC_HEIGHT),
            ("gpus", top + HEAD + heights[0], GPU_HEIGHT),
        ):
            devices = column.nics if kind == "nics" else column.gpus
            for index, device in enumerate(devices):
                left = at + GAP + (index % column.across) * (BOX + GAP)
                upper = start + (index // column.across) * (box + GAP)
                body.append((_nic if kind == "nics" else _gpu)(device, left, upper, shape))
                name = device["name"] if kind == "nics" else f"GPU{device['index']}"
                centres[name] = (left + BOX / 2, upper + (box if kind == "nics" else 0))
                if kind == "gpus":
                    row_gpus.append((left + BOX / 2, upper + box, device))
        at += column.width + GAP
    return float(height)


def _nic(nic: Mapping[str, Any], x: float, y: float, shape: Shape) -> ET.Element:
    level = _MUTE if nic["up"] is None or not nic["compute"] else _OK if nic["up"] else _BAD
    rate = f"{nic['rate_gbps']:g} Gb/s" if nic["rate_gbps"] else nic["state"] or "state not told"
    use = "carries EP traffic" if nic["compute"] else "not for EP traffic"
    group = ET.Element("g", {"class": f"nic {level}"})
    _titled(group, f"{nic['name']} {nic['bus_id']}: {nic['layer']} {rate} {nic['state']}, {use}")
    group.append(_rect(x, y, BOX, NIC_HEIGHT, "box"))
    group.append(_text(x + 8, y + 14, ("! " if level == _BAD else "") + _cut(nic["name"], 14), "name"))
    group.append(_text(x + 8, y + 27, _cut(rate if nic["compute"] else f"{rate}, not EP", 18), "small"))
    return group


def _gpu(gpu: Mapping[str, Any], x: float, y: float, shape: Shape) -> ET.Element:
    level = affinity(gpu, shape)
    bad = bool(gpu["nvlinks_down"])
    alone = _cut_off(gpu, shape)
    if bad or alone:
        level = _BAD
    elif level in (_OK, _MUTE) and (_narrow(gpu) or gpu["acs"]):
        level = _WARN
    near = f"{gpu['relation']} {_some(gpu['nearest'])}" if gpu["relation"] else "no NIC measured near"
    near += ", down" if alone else ""
    links = "NVLinks not told" if gpu["nvlinks"] is None else f"{gpu['nvlinks']} NVLinks"
    if bad:
        links += f", {len(gpu['nvlinks_down'])} down"
    generation, width, _ = gpu["pcie"]
    pcie = f"PCIe {generation or '?'} x{width or '?'}"
    group = ET.Element("g", {"class": f"gpu {level}"})
    _titled(group, f"GPU {gpu['index']} {gpu['name']} {gpu['bus_id']}: {near}; {links}; {pcie}")
    group.append(_rect(x, y, BOX, GPU_HEIGHT, "box"))
    sign = "! " if level in (_WARN, _BAD) else ""
    group.append(_text(x + 8, y + 15, f"{sign}GPU {gpu['index']}", "name"))
    group.append(_text(x + 8, y + 29, _cut(near if gpu["relation"] else pcie, 18), "small"))
    group.append(_text(x + 8, y + 42, _cut(links if gpu["nvlinks"] != 0 else pcie, 18), "small"))
    return group


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} NICs"


def _nvlink(
    lines: list[ET.Element], body: list[ET.Element], gpus: list[tuple[float, float, Mapping[str, Any]]],
    shape: Shape, width: float, bottom: float,
) -> float:  # fmt: skip
    """The NVSwitch below a row of GPUs, or arcs from GPU to GPU; returns the height it took."""
    switched = [(x, y, gpu) for x, y, gpu in gpus if gpu["nvswitch"]]
    if switched:
        top = bottom + 16
        for x, y, gpu in switched:
            lines.append(_line(x, y, x, top, "nvlink bad" if gpu["nvlinks_down"] else "nvlink"))
        counts = sorted({gpu["nvlinks"] for _, _, gpu in switched})
        text = f"NVSwitch · {' or '.join(map(str, counts))} NVLinks a GPU"
        body.append(_rect(0, top, width, 26, "nvswitch"))
        body.append(_text(width / 2, top + 17, _cut(text, int(width / 7)), "label mid"))
        return 16 + 26
    where = {gpu["index"]: (x, y) for x, y, gpu in gpus}
    depth = 0.0
    for one, other, count in shape["pairs"]:
        if one in where and other in where:
            (x1, y1), (x2, y2) = where[one], where[other]
            dip = 18 + abs(x2 - x1) / 24
            depth = max(depth, dip)
            path = ET.Element(
                "path",
                {
                    "class": "nvlink",
                    "d": f"M{x1:.0f} {y1:.0f}Q{(x1 + x2) / 2:.0f} {max(y1, y2) + 2 * dip:.0f} {x2:.0f} {y2:.0f}",
                },
            )
            _titled(path, f"GPU {one} to GPU {other}: {count} NVLinks")
            lines.append(path)
    return depth


def _affinities(lines: list[ET.Element], centres: dict[str, tuple[float, float]], shape: Shape) -> None:
    """A line from a GPU to its nearest NICs where they are in another column."""
    for gpu in shape["gpus"]:
        level = affinity(gpu, shape)
        start = centres.get(f"GPU{gpu['index']}")
        if level == _OK or start is None or len(gpu["nearest"]) > 2:
            continue
        for nic in gpu["nearest"]:
            end = centres.get(nic)
            if end is not None:
                lines.append(_line(*start, *end, f"affinity {level}"))


# ---------------------------------------------------------------- marks


def _rect(x: float, y: float, width: float, height: float, kind: str) -> ET.Element:
    return ET.Element(
        "rect",
        {
            "x": f"{x:.0f}",
            "y": f"{y:.0f}",
            "width": f"{width:.0f}",
            "height": f"{height:.0f}",
            "rx": "5",
            "class": kind,
        },
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> ET.Element:
    return ET.Element(
        "line", {"x1": f"{x1:.0f}", "y1": f"{y1:.0f}", "x2": f"{x2:.0f}", "y2": f"{y2:.0f}", "class": kind}
    )


def _text(x: float, y: float, text: str, kind: str) -> ET.Element:
    element = ET.Element("text", {"x": f"{x:.0f}", "y": f"{y:.0f}", "class": kind})
    element.text = sanitize(text, 200)
    return element


def _titled(parent: ET.Element, text: str, tag: str = "title") -> None:
    child = ET.SubElement(parent, tag)
    child.text = sanitize(text, 600)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - 1, 1)] + "…"
