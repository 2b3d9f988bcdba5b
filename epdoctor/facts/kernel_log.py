"""What the kernel said since boot about GPUs, NVSwitches, NICs, PCIe and memory.

Message formats: NVIDIA's Xid document (docs.nvidia.com/deploy/xid-errors), the Fabric Manager user guide for
SXid, and the Linux kernel's drivers/net/ethernet/mellanox/mlx5/core/{health,cmd,events}.c,
drivers/pci/pcie/aer.c, mm/oom_kill.c and kernel/hung_task.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Probe, Script, Source

MLX5_NEEDLES = (
    "health compromised",
    "unrecoverable hardware error",
    "firmware internal error",
    "FW is unable to respond",
    "Will cause a leak of a command resource",
    "High temperature on sensors",
    "Detected insufficient power on the PCIe slot",
    "Port module event[error]",
)
AER_NEEDLES = ("Uncorrectable (Fatal)", "Uncorrectable (Non-Fatal)")
OOM_NEEDLES = ("Out of memory: Killed process", "Memory cgroup out of memory: Killed process")
_NEEDLES = (
    "NVRM: Xid",
    "SXid (PCI",
    "NVRM: loading NVIDIA",
    "NVRM: RmInitAdapter failed",
    *MLX5_NEEDLES,
    *AER_NEEDLES,
    *OOM_NEEDLES,
    "blocked for more than",
)


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Script(
            "kernel_log.lines",
            script="kernel_log.py",
            params={"needles": list(_NEEDLES), "per_needle": 100},
            max_bytes=1 << 19,
            timeout_s=8.0,
        ),
    )


@dataclass(frozen=True)
class KernelEvent:
    kind: str
    """"xid" | "sxid" | "mlx5" | "aer" | "oom" | "hung-task" | "rm-init"."""
    code: int
    """Xid or SXid number; 0 for the other kinds."""
    device: str
    """PCI address as printed ("0000:06:00"), process name for oom and hung-task; may be empty."""
    text: str
    """The message without its time stamp."""
    seconds_since_boot: float | None
    """From the time stamp; None where the line has none."""


@dataclass(frozen=True)
class KernelLog:
    origin: str
    """"kernel ring buffer", or the log file that was read instead."""
    events: tuple[KernelEvent, ...]
    """In the order of the log."""
    driver_loaded_s: float | None
    """When the NVIDIA driver was last loaded, seconds since boot; Xids before that are of an earlier life."""
    first_s: float | None
    """Time stamp of the oldest line that was still there: earlier ones have been overwritten."""
    omitted: int
    """Further matching lines that were not sent."""

    def of(self, kind: str) -> tuple[KernelEvent, ...]:
        """The events of one kind."""
        return tuple(event for event in self.events if event.kind == kind)


def split_stamp(line: str) -> tuple[float | None, str]:
    """(seconds since boot, message) of "<6>[   12.34] text" or of a syslog line, "... kernel: [1.2] text"."""
    head, bracket, rest = line.partition("[")
    stamp, closing, message = rest.partition("]")
    if bracket and closing and len(head) < 120:
        try:
            # With CONFIG_PRINTK_CALLER a second bracket follows: "[   12.3][  T123] text".
            seconds = float(stamp[:24])
        except ValueError:
            return None, line.strip()
        message = message.strip()
        if message.startswith(("[T", "[C", "[ ")):
            message = message.partition("]")[2].strip()
        return (seconds if 0 <= seconds < 1e10 else None), message
    return None, line.strip()


def _first_number(text: str) -> int:
    digits = ""
    for char in text.strip()[:9]:
        if char not in "0123456789":
            break
        digits += char
    return int(digits or "-1")


def _pci_address(text: str) -> str:
    """The first word that looks like a PCI address, without what is around it."""
    for word in text.replace("(", " ").replace(")", " ").split()[:24]:
        word = word.strip(":,.").removeprefix("PCI:")
        shaped = 7 <= len(word) <= 16 and word.count(":") == 2
        if shaped and all(char in "0123456789abcdefABCDEF:." for char in word):
            return word.lower()
    return ""


def _event(line: str) -> KernelEvent | None:
    seconds, text = split_stamp(line)
    text = text[:400]
    if "NVRM: Xid" in text or "SXid (PCI" in text:
        kind = "sxid" if "SXid" in text else "xid"
        inside, closing, rest = text.partition("Xid (")[2].partition(")")
        code = _first_number(rest.lstrip(": ")) if closing else -1
        if code < 0:
            return None
        return KernelEvent(kind, code, inside.strip().removeprefix("PCI:")[:32].lower(), text, seconds)
    if "NVRM: RmInitAdapter failed" in text:
        return KernelEvent("rm-init", 0, _pci_address(text), text, seconds)
    if any(needle in text for needle in OOM_NEEDLES):
        return KernelEvent(
            "oom",
            0,
            text.partition("Killed process")[2].partition("(")[2].partition(")")[0][:64],
            text,
            seconds,
        )
    if "blocked for more than" in text:
        return KernelEvent("hung-task", 0, text.partition("task ")[2].partition(" ")[0][:64], text, seconds)
    if "mlx5" in text and any(needle in text for needle in MLX5_NEEDLES):
        return KernelEvent("mlx5", 0, _pci_address(text), text, seconds)
    if any(needle in text for needle in AER_NEEDLES):
        return KernelEvent("aer", 0, _pci_address(text.rpartition("from ")[2]), text, seconds)
    return None


def parse(source: Source) -> KernelLog:
    """Facts of `kernel_log.lines`. Unmeasured where the log may not be read (kernel.dmesg_restrict)."""
    rows = source.rows("kernel_log.lines")
    values = {row[0]: row[1] for row in rows if len(row) > 1}
    if "source" not in values:
        raise Unmeasured(f"kernel log: {values.get('error', 'not readable')} (needs root)")
    events: list[KernelEvent] = []
    loaded: float | None = None
    omitted = 0
    for row in rows:
        if len(row) < 2:
            continue
        if row[0] == "omitted" and isinstance(row[1], list) and row[1] and isinstance(row[1][-1], int):
            omitted += row[1][-1]
        if row[0] != "line" or not isinstance(row[1], str):
            continue
        if "NVRM: loading NVIDIA" in row[1]:
            loaded = split_stamp(row[1])[0]
            continue
        event = _event(row[1])
        if event is not None:
            events.append(event)
    return KernelLog(
        origin=str(values["source"]),
        events=tuple(events),
        driver_loaded_s=loaded,
        first_s=split_stamp(str(values.get("first_line", "")))[0],
        omitted=omitted,
    )
