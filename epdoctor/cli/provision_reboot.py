"""`--reboot when-needed`: which nodes, why some are not, and the rolling reboot itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from epdoctor.cli.provision_nodes import say
from epdoctor.cli.provision_progress import RunProgress
from epdoctor.nodenames import fold
from epdoctor.provision.reboot import (
    DEFAULT_TIMEOUT_S,
    add_reboots,
    controller_variables,
    rebooted_nodes,
    waiting_nodes,
)
from epdoctor.provision.result import Remark, RunResult
from epdoctor.provision.runner import Job, run

if TYPE_CHECKING:
    from epdoctor.cli.provision_order import Order

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = [
    click.option("--restart-services", is_flag=True, help="Restart services that keep an old limit; refused on a node whose GPUs are in use."),
    click.option("--reboot", type=click.Choice(("never", "when-needed")), default="never", show_default=True,
                 help="Reboot nodes that wait for it, one at a time (--serial); never this machine, nor a node whose GPUs are in use."),
    click.option("--force", is_flag=True, help="Restart services and reboot also where GPUs are in use."),
]  # fmt: skip


def disruption_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


class Reboots:
    """The reboots of one run: `plan` in check mode, `carry_out` for real. Both do nothing without the option."""

    def __init__(self, order: Order, variables: Mapping[str, Mapping[str, Any]], log: IO[str] | None) -> None:
        self._order, self._variables, self._log = order, variables, log
        self._wanted = order.values["reboot"] == "when-needed"
        self.nodes: tuple[str, ...] = ()
        """That the plan would reboot."""
        self._remarks: list[Remark] = []

    def plan(self, plan: RunResult) -> None:
        """Ask the waiting nodes whether they may be rebooted; changes nothing."""
        waiting = waiting_nodes(plan) if self._wanted and not plan.stopped else ()
        if not waiting:
            return
        found = run(self._job(waiting, check=True), log=self._log, watch=RunProgress("asking").watch)
        self.nodes = rebooted_nodes(found)
        self._remarks = [remark for remark in found.remarks if remark.kind == "refused"]
        plan.remarks += [remark for remark in self._remarks if remark not in plan.remarks]

    def show_plan(self) -> None:
        """What the plan says of it."""
        if self.nodes:
            serial = self._serial
            some = "one at a time" if serial == "1" else f"{serial} at a time"
            say(f"will reboot     {fold(self.nodes)}, {some}")
            say()

    def carry_out(self, done: RunResult) -> None:
        """Reboot what waits for it, and put the outcome into `done`."""
        waiting = waiting_nodes(done) if self._wanted and not done.stopped and not done.crashed else ()
        done.remarks = [remark for remark in done.remarks if remark.kind != "refused"]
        if not waiting:
            return
        job = self._job(waiting, check=False)
        reboots = run(job, log=self._log, watch=RunProgress("rebooting").watch)
        add_reboots(done, reboots)

    @property
    def _serial(self) -> str:
        return self._order.values["serial"] or "1"

    def _job(self, nodes: tuple[str, ...], *, check: bool) -> Job:
        order = self._order
        extra = {**order.extra, **controller_variables(), "reboot_force": order.values["force"]}
        extra["epdoctor_reboot_serial"] = "100%" if check else self._serial
        one = int(extra.get("reboot_timeout_s", DEFAULT_TIMEOUT_S)) + 300
        return Job(
            playbook="reboot.yml",
            inventory=order.place.inventory,
            nodes=nodes,
            check=check,
            forks=order.values["forks"],
            extra=extra,
            host_vars=self._variables,
            pins=order.wish.pins,
            become_password=order.password,
            max_fail_percent=0,
            # Slow servers, one after the other: each may take its own time.
            timeout_s=max(order.values["timeout_s"], one * len(nodes)),
        )
