"""`epdoctor provision inventory.ini`: check, plan, ask, apply, check again."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from epdoctor.cli.options import goal_from, split_words
from epdoctor.cli.provision_nodes import Place, ask, host_vars, log_file, look, place_of, say
from epdoctor.cli.provision_progress import RunProgress
from epdoctor.exceptions import EpdoctorError
from epdoctor.model import Check, Finding, Goal
from epdoctor.provision import screen
from epdoctor.provision.arguments import parse_extra
from epdoctor.provision.components import COMPONENTS, Component, choose
from epdoctor.provision.journal import new_run_name
from epdoctor.provision.judging import Judged, checks_of, environments, judge
from epdoctor.provision.result import Remark, RunResult, exit_code, wrong_after
from epdoctor.provision.runner import RUN_TIMEOUT_S, Job, run
from epdoctor.report.sanitize import sanitize


@dataclass
class Order:
    """What one call of the command is to do."""

    place: Place
    components: tuple[Component, ...]
    checks: dict[str, Check]
    goal: Goal
    values: dict[str, Any]
    extra: dict[str, Any]
    name: str
    """Of the run, in the journals and the log."""

    @property
    def quiet(self) -> bool:
        """Standard output carries JSON only."""
        return bool(self.values["format_"] == "json")


@click.command("provision")
@click.argument("inventory", type=click.Path(path_type=Path))
@click.option("--plan", "plan_only", is_flag=True, help="Show what would change, and change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before the change.")
@click.option(
    "--tags",
    multiple=True,
    metavar="NAME",
    help=f"Only these components: {', '.join(c.name for c in COMPONENTS)}. Repeatable, commas too.",
)
@click.option("--skip-tags", multiple=True, metavar="NAME", help="All but these components.")
@click.option("-l", "--limit", default="", metavar="PATTERN", help="Only these nodes.")
@click.option(
    "--backend", metavar="NAME", help="vLLM's --all2all-backend; it decides which components are needed."
)
@click.option("--vllm", "vllm_version", metavar="VERSION", help="vLLM version to prepare for.")
@click.option(
    "--max-num-batched-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="vLLM's token limit, for the queue depth.",
)
@click.option(
    "--restart-services",
    is_flag=True,
    help="Restart services that keep an old limit; refused on a node whose GPUs are in use.",
)
@click.option(
    "-f", "--forks", type=click.IntRange(1, 1024), default=32, show_default=True, help="Nodes at a time."
)
@click.option(
    "-t", "--timeout", "timeout_s", type=click.FloatRange(10), default=RUN_TIMEOUT_S, show_default=True,
    help="Seconds that one playbook run may take.",
)  # fmt: skip
@click.option(
    "-e", "extra", multiple=True, metavar="VAR=VALUE", help="Set a variable of a role (docs/playbooks)."
)
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.option("--no-state", is_flag=True, help="Write no log on this machine.")
def provision_command(**values: Any) -> int:
    """Put the nodes of an inventory in order, prove it, and keep the way back.

    \b
    epdoctor provision inventory.ini --plan            what would change, and why
    epdoctor provision inventory.ini                   the same, then ask and do it
    epdoctor rollback inventory.ini                    undo the last run
    """
    order = _order(values)
    before_run = look(order.place, values)
    before = judge(before_run.records, order.checks, order.goal, before_run.recording.options)
    if before_run.interrupted:
        click.echo("interrupted; nothing was changed", err=True)
        return 130
    nodes = tuple(t.name for t in order.place.targets if t.name not in before.missed)
    if not nodes:
        raise EpdoctorError(
            "no node was reached: " + "; ".join(f"{n}: {why}" for n, why in list(before.missed.items())[:3]),
            hint=f"epdoctor check -i {order.place.inventory}",
        )
    variables = host_vars(order.place.targets)
    notes: list[Remark] = []
    if any(component.name == "env" for component in order.components):
        options = before_run.recording.options
        for node, found in environments(before_run.records, order.place.targets, order.goal, options).items():
            variables[node]["env_computed"] = dict(found.values)
            notes += [Remark(node, "env", "note", note) for note in found.notes]
    with log_file(order.name) as log:
        progress = RunProgress("looking at")
        plan = run(_job(order, nodes, variables, check=True), log=log, watch=progress.watch)
        plan.remarks += notes
        if not order.quiet:
            _show_plan(order, plan, before)
        if values["plan_only"] or plan.stopped or plan.crashed or not _has_work(order, plan):
            return _finish_plan(order, plan, before)
        ask(_question(plan), yes=values["yes"])
        progress = RunProgress("provisioned")
        done = run(_job(order, nodes, variables, check=False), log=log, watch=progress.watch)
        done.remarks += notes
    if done.stopped == "interrupted":
        return _finish(order, done, before, None)
    after_run = look(order.place, values)
    after = judge(after_run.records, order.checks, order.goal, after_run.recording.options)
    return _finish(order, done, before, after)


def _order(values: dict[str, Any]) -> Order:
    """Everything that can be wrong with the command line, before any node is touched."""
    from epdoctor.catalog import load_checks

    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    extra = parse_extra(values["extra"])
    if values["restart_services"]:
        extra["limits_restart_services"] = True
    place = place_of(values["inventory"], values["limit"], values["forks"])
    goal, warnings = goal_from(values, place.choice.config)
    for warning in (*place.warnings, *warnings):
        click.echo(f"! {sanitize(warning)}", err=True)
    components = choose(goal.backend, split_words(values["tags"]), split_words(values["skip_tags"]))
    name = new_run_name()
    extra["journal_run"] = name
    extra["epdoctor_backend"] = goal.backend
    return Order(place, components, checks_of(components, load_checks()), goal, values, extra, name)


def _job(order: Order, nodes: tuple[str, ...], variables: dict[str, dict[str, Any]], *, check: bool) -> Job:
    return Job(
        playbook="site.yml",
        inventory=order.place.inventory,
        nodes=nodes,
        components=tuple(component.name for component in order.components),
        check=check,
        forks=order.values["forks"],
        extra=order.extra,
        host_vars=variables,
        timeout_s=order.values["timeout_s"],
    )


def _has_work(order: Order, plan: RunResult) -> bool:
    """Changes, or a restart that was asked for."""
    return bool(plan.changes)


def _question(plan: RunResult) -> str:
    nodes = {change.node for change in plan.changes}
    count = len(plan.changes)
    return f"Make {count} change{'s' if count != 1 else ''} on {len(nodes)} node{'s' if len(nodes) != 1 else ''}?"


def _show_plan(order: Order, plan: RunResult, before: Judged) -> None:
    nodes = len(order.place.targets)
    what = order.goal.backend or "all back ends"
    names = ", ".join(component.name for component in order.components)
    say(f"PLAN  {names} on {nodes} node{'s' if nodes != 1 else ''}, {what}")
    say()
    _block(screen.table(plan, plan=True))
    why = screen.justification(before.findings, order.checks)
    if why:
        say("mends")
        _block([f"  {line}" for line in why])
    _block(screen.waiting(plan.remarks))
    _block(screen.troubles(plan, before.missed, plan=True))


def _block(lines: Sequence[str]) -> None:
    if lines:
        for line in lines:
            say(line.rstrip())
        say()


def _finish_plan(order: Order, plan: RunResult, before: Judged) -> int:
    work = _has_work(order, plan)
    failing, unknown = wrong_after(before.findings, order.checks) if not work else ([], [])
    # A plan with work to do is a good answer; its pending reboots are of the future.
    code = (
        exit_code(plan, before.missed, failing, unknown)
        if not work or plan.failures or plan.stopped or plan.crashed
        else 3
        if before.missed or plan.unreachable
        else 0
    )
    if order.quiet:
        say(
            json.dumps(
                {"plan": screen.as_json(plan, before.missed), "applied": None, "exit_code": code}, indent=1
            )
        )
        return code
    if not work and not (plan.failures or plan.stopped or plan.crashed):
        say("NOTHING TO DO" + ("" if code == 0 else ", but see above"))
        _still_wrong(failing)
    elif work:
        say("nothing was changed")
        words = [word for word in sys.argv[1:] if word != "--plan"]
        say(f"next      epdoctor {shlex.join(words)}")
    return code


def _still_wrong(failing: Sequence[Finding]) -> None:
    for finding in failing:
        found = finding.problems[0].found if finding.problems else finding.reason
        say(f"still failing  {finding.check}  {finding.node}: {sanitize(found)}")


def _finish(order: Order, done: RunResult, before: Judged, after: Judged | None) -> int:
    """`after`: None where the user wants out and no second look was taken."""
    failing, unknown = wrong_after(after.findings, order.checks) if after else ([], [])
    missed = {**before.missed, **(after.missed if after else {})}
    code = exit_code(done, missed, failing, unknown)
    rows = screen.before_after(before.findings, after.findings, order.checks) if after else []
    if order.quiet:
        report = {
            "plan": None,
            "applied": screen.as_json(done, missed),
            "run": order.name,
            "checks": [{"id": check, "before": old, "after": new} for check, old, new in rows],
            "exit_code": code,
        }
        say(json.dumps(report, indent=1))
        return code
    say(
        f"{_HEADS[code]}  {len({c.node for c in done.changes})} of {len(done.nodes)} nodes changed, {done.seconds:.0f} s"
    )
    say()
    _block(screen.table(done, plan=False))
    _block(screen.troubles(done, missed))
    _block(screen.waiting(done.remarks))
    _block(screen.before_after_lines(rows))
    _still_wrong(failing)
    if any(change.what.startswith("/") for change in done.changes):
        say(f"undo      epdoctor rollback {order.place.inventory} --run {order.name}")
    _say_log(order)
    return code


_HEADS = {0: "DONE", 1: "FAILED", 3: "DONE, NOT ALL IN FORCE", 130: "INTERRUPTED"}


def _say_log(order: Order) -> None:
    from epdoctor.compiled import state_allowed
    from epdoctor.paths import state_dir

    path = state_dir() / "provision" / f"{order.name}.log"
    if state_allowed() and path.exists():
        say(f"log       {path}")
