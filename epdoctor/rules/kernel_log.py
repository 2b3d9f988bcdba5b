"""What the kernel log says about the hardware since boot."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.facts import Node
from epdoctor.facts.kernel_log import KernelEvent, KernelLog
from epdoctor.model import Problem, Severity
from epdoctor.rules import node_rule

_NVLINK5 = range(144, 151)
_RECOVERY = 154
_NOT_STARTED = "rm-init"
"""A GPU that the driver could not start is not there, whatever the check's severity for an unread log."""


def _when(event: KernelEvent) -> str:
    return f"[{event.seconds_since_boot:.0f} s] " if event.seconds_since_boot is not None else ""


def _lines(events: list[KernelEvent]) -> tuple[str, ...]:
    return tuple(f"{_when(event)}{event.text[:200]}" for event in events[-5:])


def _current_xids(log: KernelLog) -> list[KernelEvent]:
    """Xids since the driver was loaded, and since NVIDIA's own "recovery action changed to None" per GPU."""
    kept: list[KernelEvent] = []
    for event in log.of("xid"):
        if (
            log.driver_loaded_s is not None
            and event.seconds_since_boot is not None
            and event.seconds_since_boot < log.driver_loaded_s
        ):
            continue
        if event.code == _RECOVERY and event.text.rstrip(" .)").endswith("(None"):
            kept = [other for other in kept if other.device != event.device]
            continue
        kept.append(event)
    return kept


def _address(device: str) -> str:
    """ "0000:65:00" of a message as nvidia-smi wants it, 0000:65:00.0; empty if it is anything else."""
    if device.count(":") != 2 or not all(char in "0123456789abcdef:." for char in device):
        return ""
    return device if "." in device else f"{device}.0"


@node_rule
def no_xid(node: Node, *, reset: list[int], reboot: list[int], minor: list[int]) -> Iterator[Problem]:
    """No Xid since the driver was loaded. Codes whose documented immediate action is a reset or a reboot are
    errors, those that need no action on the GPU are information, all others have the check's severity.

    The check itself stays below error: without root the log is often not readable, and that is no verdict."""
    groups: dict[tuple[str, int], list[KernelEvent]] = {}
    for event in _current_xids(node.kernel_log):
        groups.setdefault((event.device, event.code), []).append(event)
    for (device, code), events in sorted(groups.items(), key=lambda item: (item[0][1] in minor, item[0])):
        last = events[-1].text
        severity: Severity | None = None  # the check's own
        address = _address(device)
        now: tuple[str, ...] = (f"nvidia-smi -q -i {address}",) if address else ("nvidia-smi -q",)
        if code in reboot or (code == _RECOVERY and "Reboot" in last.rpartition(" to ")[2]):
            severity, now = Severity.ERROR, ("sudo systemctl reboot",)
        elif code in reset or (code == _RECOVERY and "(None" not in last.rpartition(" to ")[2]):
            severity = Severity.ERROR
            now = (f"sudo nvidia-smi --gpu-reset -i {address}",) if address else now
        elif code in minor:
            severity = Severity.INFO
        elif code in _NVLINK5:
            severity = Severity.INFO if "onfatal" in last or "on-fatal" in last else Severity.ERROR
        count = f", {len(events)} times" if len(events) > 1 else ""
        message = last.partition("): ")[2].partition(",")[2].strip()[:80]
        yield Problem(
            f"Xid {code} on {device or 'a GPU'}{count}" + (f": {message}" if message else ""),
            "no Xid since the driver was loaded",
            _lines(events),
            severity=severity,
            now=now,
            subject=f"GPU {device}" if device else "",
        )


@node_rule
def no_sxid(node: Node) -> Iterator[Problem]:
    """No NVSwitch error; the message itself says Fatal or Non-fatal."""
    groups: dict[tuple[str, int, bool], list[KernelEvent]] = {}
    for event in node.kernel_log.of("sxid"):
        fatal = "Non-fatal" not in event.text and "Fatal" in event.text
        groups.setdefault((event.device, event.code, fatal), []).append(event)
    for (device, code, fatal), events in sorted(groups.items()):
        yield Problem(
            f"SXid {code} ({'fatal' if fatal else 'non-fatal'}) on NVSwitch {device}"
            + (f", {len(events)} times" if len(events) > 1 else ""),
            "no fatal SXid since boot",
            _lines(events),
            severity=Severity.ERROR if fatal else Severity.INFO,
            subject=f"NVSwitch {device}",
        )


def _by_device(events: tuple[KernelEvent, ...]) -> dict[str, list[KernelEvent]]:
    groups: dict[str, list[KernelEvent]] = {}
    for event in events:
        groups.setdefault(event.device, []).append(event)
    return groups


@node_rule
def no_mlx5_errors(node: Node, *, minor: list[str]) -> Iterator[Problem]:
    """No health, firmware, temperature or cable message of mlx5_core. `minor`: texts that only inform."""
    for device, events in sorted(_by_device(node.kernel_log.of("mlx5")).items()):
        serious = [event for event in events if not any(text in event.text for text in minor)]
        shown = serious or events
        yield Problem(
            f"{len(shown)} mlx5 message{'s' if len(shown) > 1 else ''} of {device or 'a NIC'}: "
            + shown[-1].text.rpartition(": ")[2][:90],
            "none since boot",
            _lines(shown),
            severity=None if serious else Severity.INFO,
            subject=device,
        )


@node_rule
def no_kernel_events(node: Node, *, kind: str) -> Iterator[Problem]:
    """No event of a kind ("aer", "oom", "hung-task", "rm-init") since boot."""
    for device, events in sorted(_by_device(node.kernel_log.of(kind)).items()):
        yield Problem(
            f"{events[-1].text[:110]}" + (f" ({len(events)} times)" if len(events) > 1 else ""),
            "none since boot",
            _lines(events),
            severity=Severity.ERROR if kind == _NOT_STARTED else None,
            subject=device,
        )
