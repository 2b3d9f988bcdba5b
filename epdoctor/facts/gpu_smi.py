"""`nvidia-smi -q` and `nvidia-smi nvlink -s` into GPUs, where NVML could not be used.

Sources: recorded outputs of driver 580.159.04 (tests/records/raw/gpu/); field names moved between drivers
("Clocks Throttle Reasons" became "Clocks Event Reasons" with 535), so several are known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.gpu_model import REASON_IDLE, Fabric, Gpu, GpuProcess, NvLink
from epdoctor.facts.pci import normalise_bus_id

_LINK = re.compile(r"Link ([0-9]{1,3}): (?:([0-9]{1,6}(?:\.[0-9]{1,6})?) GB/s|<inactive>)")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_MODES = {"Default": "default", "Exclusive_Process": "exclusive process", "Prohibited": "prohibited",
          "Exclusive_Thread": "exclusive thread"}  # fmt: skip
_CAPABILITIES: dict[str, tuple[int, int]] = {
    "Volta": (7, 0),
    "Turing": (7, 5),
    "Ada Lovelace": (8, 9),
    "Hopper": (9, 0),
}
_REASONS = (
    ("Idle", REASON_IDLE),
    ("HW Slowdown", 0x08),
    ("HW Thermal Slowdown", 0x40),
    ("HW Power Brake Slowdown", 0x80),
)


@dataclass
class Section:
    """One indented block of nvidia-smi -q: values and blocks by name."""

    values: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, Section] = field(default_factory=dict)
    processes: list[dict[str, str]] = field(default_factory=list)

    def at(self, *path: str) -> Section:
        found = self
        for name in path:
            found = found.blocks.get(name, Section())
        return found


def sections(text: str) -> tuple[Section, list[tuple[str, Section]]]:
    """(head, [(bus id as printed, section)]) of nvidia-smi -q. Raises nothing."""
    head = Section()
    gpus: list[tuple[str, Section]] = []
    stack: list[tuple[int, Section]] = [(-1, head)]
    for line in text.splitlines()[:100000]:
        stripped = line.strip()
        if not stripped:
            continue
        depth = len(line) - len(line.lstrip(" "))
        name, colon, value = stripped.partition(" : ")
        if depth == 0 and stripped.startswith("GPU ") and not colon:
            section = Section()
            gpus.append((stripped[4:], section))
            stack = [(-1, head), (0, section)]
            continue
        while stack[-1][0] >= depth:
            stack.pop()
        here = stack[-1][1]
        if colon:
            if name.strip() == "Process ID":
                here.processes.append({})
                block = Section(values=here.processes[-1])
                block.values["Process ID"] = value.strip()
                # What is indented below a process belongs to it.
                stack.append((depth, block))
            else:
                here.values.setdefault(name.strip(), value.strip())
        elif len(stack) < 16:
            block = Section()
            here.blocks[stripped] = block
            stack.append((depth, block))
    return head, gpus


def _missing(name: str) -> Unmeasured:
    return Unmeasured(f"nvidia-smi -q: no {name}")


def _text(section: Section, name: str) -> str | Unmeasured:
    value = section.values.get(name, "")
    return _missing(name) if value in ("", "N/A", "[N/A]") else value[:128]


def _number(section: Section, name: str) -> int | Unmeasured:
    words = section.values.get(name, "").rstrip("x").split()
    return int(words[0]) if words and words[0].isdigit() and len(words[0]) < 19 else _missing(name)


def _bytes(section: Section, name: str) -> int | Unmeasured:
    words = section.values.get(name, "").split()
    if len(words) == 2 and words[0].isdigit() and len(words[0]) < 13 and words[1] in _UNITS:
        return int(words[0]) * _UNITS[words[1]]
    return _missing(name)


def _flag(section: Section, name: str, yes: tuple[str, ...] = ("Enabled", "Yes")) -> bool | Unmeasured:
    value = _text(section, name)
    return value if isinstance(value, Unmeasured) else value in yes


def _sum(section: Section, what: str) -> int | Unmeasured:
    """Sum of the uncorrectable counters of one ECC block; SRAM and DRAM."""
    counts = [_number(section, name) for name in section.values if "Uncorrectable" in name]
    known = [count for count in counts if not isinstance(count, Unmeasured)]
    return sum(known) if known and len(known) == len(counts) else _missing(what)


def _fabric(section: Section) -> Fabric | Unmeasured:
    block = section.at("Fabric")
    if not block.values:
        return _missing("Fabric")
    state = _text(block, "State")
    if isinstance(state, Unmeasured):
        return Fabric("not supported", "", Unmeasured("no fabric"), Unmeasured("no fabric"))
    names = {"Completed": "completed", "In Progress": "in progress", "Not Started": "not started",
             "Not Supported": "not supported"}  # fmt: skip
    uuid = _text(block, "ClusterUUID")
    return Fabric(
        names.get(state, state.lower()),
        str(block.values.get("Status", "")).lower()[:64],
        _number(block, "CliqueId"),
        uuid if isinstance(uuid, Unmeasured) else uuid.replace("-", ""),
    )


def _reasons(section: Section) -> int | Unmeasured:
    for name in ("Clocks Event Reasons", "Clocks Throttle Reasons"):
        block = section.at(name)
        if block.values or block.blocks:
            lines = {**block.values}
            for inner in block.blocks.values():
                lines.update(inner.values)
            return sum(bit for name, bit in _REASONS if lines.get(name) == "Active")
    return _missing("Clocks Event Reasons")


def _capability(section: Section) -> tuple[int, int] | Unmeasured:
    """nvidia-smi -q names the architecture only; most have several capabilities."""
    return _CAPABILITIES.get(section.values.get("Product Architecture", ""), _missing("compute capability"))


def _processes(section: Section) -> tuple[GpuProcess, ...] | Unmeasured:
    block = section.at("Processes")
    if section.values.get("Processes") == "None":
        return ()
    if not block.processes:
        return _missing("Processes")
    found = []
    for values in block.processes:
        one = Section(values=values)
        pid = _number(one, "Process ID")
        if not isinstance(pid, Unmeasured) and one.values.get("Type") != "G":
            found.append(GpuProcess(pid, _bytes(one, "Used GPU Memory")))
    return tuple(found)


def links(text: str) -> dict[int, tuple[NvLink, ...]]:
    """GPU index -> links of nvidia-smi nvlink -s ("Link 3: 26.562 GB/s" or "<inactive>")."""
    found: dict[int, list[NvLink]] = {}
    current: list[NvLink] | None = None
    unknown = Unmeasured("nvidia-smi nvlink -s: not told")
    for line in text.splitlines()[:10000]:
        stripped = line.strip()
        head, colon, _ = stripped.partition(":")
        if head.startswith("GPU ") and colon and head[4:].isdigit() and len(head) < 10:
            current = found.setdefault(int(head[4:]), [])
            continue
        match = _LINK.fullmatch(stripped[:80])
        if match and current is not None:
            speed = int(float(match.group(2)) * 1000) if match.group(2) else unknown
            current.append(NvLink(int(match.group(1)), bool(match.group(2)), speed, unknown, unknown))
    return {index: tuple(rows) for index, rows in found.items()}


def gpu(index: int, printed_bus_id: str, section: Section, nvlinks: tuple[NvLink, ...] | Unmeasured) -> Gpu:
    """One GPU of nvidia-smi -q."""
    link = section.at("PCI", "GPU Link Info")
    generation, width = link.at("PCIe Generation"), link.at("Link Width")
    rows, ecc = section.at("Remapped Rows"), section.at("ECC Errors")
    bus_id: str | Unmeasured
    try:
        bus_id = normalise_bus_id(printed_bus_id)
    except Unmeasured as reason:
        bus_id = reason
    mode = _text(section, "Compute Mode")
    mig = section.at("MIG Mode").values.get("Current", "")
    return Gpu(
        index=index,
        name=_text(section, "Product Name"),
        uuid=_text(section, "GPU UUID"),
        bus_id=bus_id,
        minor=_number(section, "Minor Number"),
        vbios=_text(section, "VBIOS Version"),
        memory_total_bytes=_bytes(section.at("FB Memory Usage"), "Total"),
        bar1_total_bytes=_bytes(section.at("BAR1 Memory Usage"), "Total"),
        compute_capability=_capability(section),
        ecc_enabled=_flag(section.at("ECC Mode"), "Current"),
        ecc_volatile_uncorrected=_sum(ecc.at("Volatile"), "ECC Errors"),
        ecc_aggregate_uncorrected=_sum(ecc.at("Aggregate"), "ECC Errors"),
        remapped_correctable=_number(rows, "Correctable Error"),
        remapped_uncorrectable=_number(rows, "Uncorrectable Error"),
        remap_pending=_flag(rows, "Pending"),
        remap_failed=_flag(rows, "Remapping Failure Occurred"),
        mig_enabled=_missing("MIG Mode") if not mig else mig == "Enabled",
        compute_mode=mode if isinstance(mode, Unmeasured) else _MODES.get(mode, mode.lower()),
        persistence=_flag(section, "Persistence Mode"),
        pcie_gen=_number(generation, "Current"),
        pcie_gen_max=_number(generation, "Max"),
        pcie_width=_number(width, "Current"),
        pcie_width_max=_number(width, "Max"),
        event_reasons=_reasons(section),
        processes=_processes(section),
        nvlinks=nvlinks,
        fabric=_fabric(section),
    )


_ANSI = re.compile(r"\x1b\[[0-9;]{0,20}m")
_STATUS = ("OK", "CNS", "GNS", "TNS", "NS", "DR")


def peers(text: str) -> dict[tuple[int, int], str]:
    """Read status by pair (first < second) of `nvidia-smi topo -p2p r`; empty where there is no matrix.

    Its words are those of the legend: OK, CNS, GNS, TNS, NS; U and anything else become "unknown"."""
    found: dict[tuple[int, int], str] = {}
    for line in _ANSI.sub("", text[:262144]).splitlines():
        cells = line.split()
        if (
            len(cells) < 2
            or not cells[0].startswith("GPU")
            or not cells[0][3:].isdigit()
            or cells[1].startswith("GPU")
        ):
            if found and not line.strip():
                break  # the legend follows
            continue
        row = int(cells[0][3:9])
        for column, cell in enumerate(cells[1:257]):
            if cell != "X":
                found[min(row, column), max(row, column)] = cell if cell in _STATUS else "unknown"
    return found
