"""The matrix of `nvidia-smi topo -m`: how GPUs and NICs hang together.

Source: NVIDIA-SMI's own legend (tests/records/raw/gpu/*/topo.txt, driver 580). Cells are tab separated, the
header is underlined by ANSI codes, a GPU's "NUMA Affinity" cell is followed by an empty one, older drivers
have fewer columns, and a legend "NIC0: mlx5_0" follows where there are NICs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Command, Probe, Source

# Nearest first. NV<n> stands before all of them.
ORDER = ("X", "PIX", "PXB", "PHB", "NODE", "SYS")

_ANSI = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]")
_NVLINK = re.compile(r"NV([0-9]{1,3})")
_DEVICE = re.compile(r"(?:GPU|NIC)[0-9]{1,4}|mlx[0-9]_[0-9]{1,4}|mlx[0-9]_bond_[0-9]{1,3}")
_LEGEND = re.compile(r"\s*(NIC[0-9]{1,4}):\s+(\S{1,64})\s*")
_TRAILER = re.compile(r"CPU Affinity|NUMA Affinity|GPU NUMA ID")


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    """nvidia-smi can load kernel modules, so only where the driver is loaded already."""
    del options
    return (
        Command(
            name="topology.matrix",
            argv=("nvidia-smi", "topo", "-m"),
            only_if_exists="/proc/driver/nvidia/version",
            lane="nvidia",
            timeout_s=15.0,
        ),
    )


@dataclass(frozen=True)
class Affinity:
    """What the trailing columns say of a GPU; empty where absent or N/A."""

    cpus: str = ""
    """CPU list, "0-47,96-143"."""
    numa: str = ""
    """NUMA node list, "0"."""


@dataclass(frozen=True)
class Topology:
    """Relations between devices. Names: GPU0.. by NVML index, NICs by RDMA device name."""

    gpus: tuple[str, ...]
    nics: tuple[str, ...]
    relations: Mapping[tuple[str, str], str]
    """(row, column) -> X, NV18, PIX, PXB, PHB, NODE or SYS."""
    affinity: Mapping[str, Affinity]

    def relation(self, one: str, other: str) -> str:
        """Unmeasured where the matrix has no such cell."""
        found = self.relations.get((one, other)) or self.relations.get((other, one))
        if found is None:
            raise Unmeasured(f"nvidia-smi topo -m: no cell for {one} and {other}")
        return found

    def nvlinks(self, one: str, other: str) -> int:
        """Number of bonded NVLinks between two GPUs; 0: none."""
        match = _NVLINK.fullmatch(self.relation(one, other))
        return int(match.group(1)) if match else 0

    def best_nics(self, gpu: str, among: tuple[str, ...] | None = None) -> tuple[str, tuple[str, ...]]:
        """(relation, NICs) of the GPU's nearest NICs, of all or of those in `among`.

        Unmeasured where none of them is in the matrix."""
        wanted = self.nics if among is None else tuple(nic for nic in self.nics if nic in among)
        ranks = {nic: distance(self.relation(gpu, nic)) for nic in wanted}
        if not ranks:
            raise Unmeasured("nvidia-smi topo -m: none of the HCAs is in it")
        best = min(ranks.values())
        return ORDER[best], tuple(nic for nic, rank in ranks.items() if rank == best)


def distance(relation: str) -> int:
    """Place of a relation in ORDER; the farthest for one that is not known."""
    return ORDER.index(relation) if relation in ORDER else len(ORDER) - 1


def _cells(line: str) -> list[str]:
    """Cells of a row, by tabs where there are any and by blanks otherwise (a copied text loses its tabs)."""
    if "\t" in line:
        return [cell.strip() for cell in line.split("\t")]
    return line.split()


def _header(lines: list[str]) -> tuple[int, list[str]]:
    for place, line in enumerate(lines):
        devices = _DEVICE.findall(_TRAILER.sub(" ", line))
        if devices and not line.lstrip().startswith("NIC Legend") and devices[0] == "GPU0":
            first = line.split()
            # The header has no relation in it, a row does: "GPU0  X  NV18".
            if len(first) < 2 or first[1] != "X":
                return place, devices
    raise Unmeasured("nvidia-smi topo -m: no matrix in its output")


def parse_matrix(text: str) -> Topology:
    """Raises Unmeasured where the text holds no matrix."""
    lines = _ANSI.sub("", text[:262144]).splitlines()
    place, columns = _header(lines)
    relations: dict[tuple[str, str], str] = {}
    affinity: dict[str, Affinity] = {}
    rows: list[str] = []
    names: dict[str, str] = {}
    for line in lines[place + 1 :]:
        legend = _LEGEND.fullmatch(line[:200])
        if legend:
            names[legend.group(1)] = legend.group(2)
            continue
        cells = _cells(line)
        if len(cells) < 2 or not _DEVICE.fullmatch(cells[0]) or cells[0] in rows:
            continue
        rows.append(cells[0])
        for column, cell in zip(columns, cells[1:], strict=False):
            if cell in ORDER or _NVLINK.fullmatch(cell):
                relations[cells[0], column] = cell
        rest = [cell for cell in cells[1 + len(columns) :] if cell]
        if rest and cells[0].startswith("GPU"):
            known = [cell if re.fullmatch(r"[0-9][0-9,\-]{0,512}", cell) else "" for cell in (*rest, "", "")]
            affinity[cells[0]] = Affinity(known[0], known[1])
    devices = list(dict.fromkeys([*columns, *rows]))
    renamed = {device: names.get(device, device) for device in devices}
    return Topology(
        gpus=tuple(device for device in devices if device.startswith("GPU")),
        nics=tuple(renamed[device] for device in devices if not device.startswith("GPU")),
        relations={(renamed[one], renamed[other]): value for (one, other), value in relations.items()},
        affinity=affinity,
    )


def parse(source: Source) -> Topology:
    """Unmeasured where nvidia-smi did not answer."""
    return parse_matrix(source.command("topology.matrix", ok=True).stdout)
