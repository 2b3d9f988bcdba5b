"""`epdoctor provision inventory.ini`: check, plan, ask, apply, check again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from epdoctor.cli.gather import Gathered
from epdoctor.cli.provision_nodes import ask, host_vars, log_file, look, wheel_cache
from epdoctor.cli.provision_order import MAX_FAIL_PERCENT, Order, make_order
from epdoctor.cli.provision_progress import RunProgress
from epdoctor.cli.provision_reboot import Reboots, disruption_options
from epdoctor.cli.provision_report import finish, finish_plan, question, show_plan
from epdoctor.cli.provision_secrets import secret_options
from epdoctor.exceptions import EpdoctorError
from epdoctor.provision.judging import environments, judge
from epdoctor.provision.result import Remark, RunResult
from epdoctor.provision.runner import RUN_TIMEOUT_S, Job, run


def _complete_tag(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from epdoctor.provision.components import components

    return [found.name for found in components() if found.name.startswith(incomplete)]


@click.command("provision")
@click.argument("inventory", type=click.Path(path_type=Path), required=False)
@click.option("--plan", "plan_only", is_flag=True, help="Show what would change, and change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before the change.")
@click.option(
    "--tags",
    multiple=True,
    metavar="NAME",
    shell_complete=_complete_tag,
    help="Only these components (the plan names them). Repeatable, commas too.",
)
@click.option("--skip-tags", multiple=True, metavar="NAME", help="All but these components.")
@click.option("-l", "--limit", default="", metavar="PATTERN", help="Only these nodes.")
@click.option(
    "--backend", metavar="NAME", help="vLLM's --all2all-backend; it decides which components are needed."
)
@click.option(
    "--vllm", "vllm_version", metavar="VERSION", help="vLLM version to prepare for; it decides the pins."
)
@click.option(
    "--profile",
    metavar="NAME|FILE",
    default="",
    help="A profile; its provision section chooses components and variables.",
)
@click.option(
    "--source",
    multiple=True,
    metavar="KIND=PLACE",
    help="Where packages come from: wheelhouse=DIR, packages=DIR, bundle=DIR, index=URL, mirror=URL, git=URLPREFIX. Repeatable.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Touch no node: download what the components need into DIR, for --source bundle=DIR.",
)
@click.option(
    "--bundle-python",
    default="",
    metavar="VERSION",
    help="Python of the nodes that the bundle is for; default: this one.",
)
@click.option(
    "--bundle-arch",
    type=click.Choice(("x86_64", "aarch64")),
    default=None,
    help="Machine of the nodes that the bundle is for; default: this one.",
)
@click.option(
    "--max-num-batched-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="vLLM's token limit, for the queue depth.",
)
@disruption_options
@click.option(
    "-f", "--forks", type=click.IntRange(1, 1024), default=32, show_default=True, help="Nodes at a time."
)
@click.option(
    "--serial",
    default="",
    metavar="N|N%",
    help="Nodes of a batch; where more than half of one fails, the next is not begun.",
)
@secret_options
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
    epdoctor provision inventory.ini --backend NAME    vLLM's own packages too
    epdoctor provision --bundle DIR --backend NAME     what nodes without network need
    epdoctor rollback inventory.ini                    undo the last run
    """
    if values["bundle"] is not None:
        from epdoctor.cli.provision_bundle import make_bundle

        return make_bundle(values)
    return carry_out(make_order(values))


def carry_out(order: Order, looked: Gathered | None = None) -> int:
    """Check, plan, ask, apply, check again; `looked`: the nodes were just looked at.

    Raises EpdoctorError where no node is reached."""
    values = order.values
    before_run = looked or look(order.place, values)
    before = judge(before_run.records, order.checks, order.goal, before_run.recording.options)
    if before_run.interrupted:
        click.echo("interrupted; nothing was changed", err=True)
        return 130
    nodes = tuple(t.name for t in order.place.targets if t.name not in before.missed)
    if not nodes:
        raise EpdoctorError(
            "no node was reached: " + "; ".join(f"{n}: {why}" for n, why in list(before.missed.items())[:3]),
            hint=f"epdoctor check -i {order.place.words}",
        )
    variables = host_vars(order.place.targets)
    notes: list[Remark] = []
    if any(component.name == "env" for component in order.components):
        options = before_run.recording.options
        for node, found in environments(before_run.records, order.place.targets, order.goal, options).items():
            variables[node]["env_computed"] = dict(found.values)
            notes += [Remark(node, "env", "note", note) for note in found.notes]
    with log_file(order.name) as log, wheel_cache() as cache:
        order.wish.extra.setdefault("wheel_cache", str(cache))
        progress = RunProgress("looking at")
        plan = run(_job(order, nodes, variables, check=True), log=log, watch=progress.watch)
        plan.remarks += notes
        reboots = Reboots(order, variables, log)
        reboots.plan(plan)
        if not order.quiet:
            show_plan(order, plan, before)
            reboots.show_plan()
        # Where the plan already fails, nothing is changed.
        failed = {failure.node for failure in plan.failures}
        able = tuple(node for node in nodes if node not in failed)
        work = plan.changes or reboots.nodes
        if values["plan_only"] or plan.stopped or plan.crashed or not work or not able:
            return finish_plan(order, plan, before, reboots.nodes)
        ask(question(plan, reboots.nodes), yes=values["yes"])
        done = plan
        if plan.changes:
            progress = RunProgress("provisioned")
            done = run(_job(order, able, variables, check=False), log=log, watch=progress.watch)
            done.remarks += [*notes, *order.remarks]
            _add_failed(done, plan, nodes)
        reboots.carry_out(done)
    if done.stopped == "interrupted":
        return finish(order, done, before, None)
    after_run = look(order.place, values)
    after = judge(after_run.records, order.checks, order.goal, after_run.recording.options)
    return finish(order, done, before, after)


def _job(order: Order, nodes: tuple[str, ...], variables: dict[str, dict[str, Any]], *, check: bool) -> Job:
    return Job(
        playbook="site.yml",
        inventory=order.place.inventory,
        nodes=nodes,
        components=tuple(component.name for component in order.components),
        where=order.where,
        check=check,
        forks=order.values["forks"],
        extra=order.extra,
        host_vars=variables,
        pins=order.wish.pins,
        become_password=order.password,
        max_fail_percent=MAX_FAIL_PERCENT if order.values["serial"] else 100,
        timeout_s=order.values["timeout_s"],
    )


def _add_failed(done: RunResult, plan: RunResult, nodes: tuple[str, ...]) -> None:
    """The nodes that the plan failed on were left out of the run; the report counts them all the same."""
    left = set(nodes) - set(done.nodes)
    done.nodes = nodes
    done.failures = [failure for failure in plan.failures if failure.node in left] + done.failures
    done.remarks += [remark for remark in plan.remarks if remark.node in left and remark not in done.remarks]
    done.visited |= {(component, node) for component, node in plan.visited if node in left}
