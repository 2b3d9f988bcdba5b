"""Which nodes wait for a boot, and what a rolling reboot came to. Pure, but for the ids of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from epdoctor.provision.result import Change, Failure, RunResult

COMPONENT = "reboot"
BACK_TASK = "Reboot the node"
DEFAULT_TIMEOUT_S = 1200
"""As in playbooks/roles/reboot/defaults/main.yml."""


def waiting_nodes(result: RunResult) -> tuple[str, ...]:
    """Nodes that a boot would put in order: something waits for it, and nothing failed there."""
    out = {failure.node for failure in result.failures} | result.unreachable.keys()
    waiting = {remark.node for remark in result.remarks if remark.kind == "reboot"} - out
    return tuple(node for node in result.nodes if node in waiting)


def refused(result: RunResult) -> dict[str, str]:
    """Node -> why the role does not reboot it."""
    return {remark.node: remark.text for remark in result.remarks if remark.kind == "refused"}


def rebooted_nodes(result: RunResult) -> tuple[str, ...]:
    """Nodes that came back with another boot id (in check mode: that would be rebooted)."""
    out = {failure.node for failure in result.failures} | result.unreachable.keys()
    done = {change.node for change in result.changes if change.what == BACK_TASK} - out
    return tuple(node for node in result.nodes if node in done)


def add_reboots(done: RunResult, reboots: RunResult) -> None:
    """Put the outcome of the reboots into the run that made them necessary.

    A node that came back waits for nothing: its services were started anew, too."""
    back = set(rebooted_nodes(reboots))
    done.remarks = [
        remark
        for remark in done.remarks
        if remark.node not in back or remark.kind not in ("reboot", "restart")
    ]
    done.remarks += [remark for remark in reboots.remarks if remark.kind == "refused"]
    done.changes += [Change(node, COMPONENT, BACK_TASK) for node in reboots.nodes if node in back]
    done.failures += [
        Failure(failure.node, COMPONENT, failure.task, failure.error, failure.where)
        for failure in reboots.failures
    ]
    done.unreachable.update(reboots.unreachable)
    done.seconds += reboots.seconds
    done.stopped = done.stopped or reboots.stopped
    done.crashed = done.crashed or reboots.crashed


def controller_variables() -> dict[str, Any]:
    """What the role knows this machine by; empty texts where it cannot be read."""
    return {
        "reboot_controller_boot": _text("/proc/sys/kernel/random/boot_id"),
        "reboot_controller_machine": _text("/etc/machine-id"),
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
