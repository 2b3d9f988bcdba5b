"""`epdoctor fix`: from failing findings to the components that mend them, by provision's own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from epdoctor.cli.gather import Gathered
from epdoctor.cli.options import _complete_backend, _complete_check, split_words
from epdoctor.cli.provision_nodes import inventory_or_here, look, say
from epdoctor.cli.provision_order import Order, make_order
from epdoctor.cli.provision_reboot import disruption_options
from epdoctor.cli.provision_secrets import secret_options
from epdoctor.exceptions import EpdoctorError, UsageError
from epdoctor.model import Check, Report, Severity
from epdoctor.nodenames import fold
from epdoctor.provision.components import choose
from epdoctor.provision.mending import ByHand, Mending, as_errors, plan_mending
from epdoctor.provision.result import Remark
from epdoctor.provision.runner import RUN_TIMEOUT_S
from epdoctor.report.sanitize import sanitize

# What provision asks for and a fix has no use for.
_NOT_ASKED: Mapping[str, Any] = {
    "tags": (),
    "skip_tags": (),
    "profile": "",
    "bundle": None,
    "waiver_file": None,
}


@click.command("fix")
@click.argument("check_ids", metavar="[CHECK-ID]...", nargs=-1, shell_complete=_complete_check)
@click.option(
    "-i",
    "--inventory",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ansible inventory; default: this machine.",
)
@click.option("-l", "--limit", default="", metavar="PATTERN", help="Only these nodes.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would change, and change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before the change.")
@click.option(
    "--backend",
    metavar="NAME",
    shell_complete=_complete_backend,
    help="vLLM's --all2all-backend to judge for.",
)
@click.option("--vllm", "vllm_version", metavar="VERSION", help="vLLM version to judge and prepare for.")
@click.option("--max-num-batched-tokens", type=click.IntRange(1), metavar="N", help="vLLM's token limit.")
@disruption_options
@click.option(
    "--source", multiple=True, metavar="KIND=PLACE", help="Where packages come from, as in provision."
)
@click.option(
    "-f", "--forks", type=click.IntRange(1, 1024), default=32, show_default=True, help="Nodes at a time."
)
@click.option("--serial", default="", metavar="N|N%", help="Nodes of a batch, as in provision.")
@secret_options
@click.option(
    "-t",
    "--timeout",
    "timeout_s",
    type=click.FloatRange(10),
    default=RUN_TIMEOUT_S,
    show_default=True,
    help="Seconds that one playbook run may take.",
)
@click.option(
    "-e", "extra", multiple=True, metavar="VAR=VALUE", help="Set a variable of a role (docs/playbooks)."
)
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.option("--no-state", is_flag=True, help="Write no log on this machine.")
def fix_command(check_ids: tuple[str, ...], **values: Any) -> int:  # fmt: skip
    """Mend what the checks find, by the playbooks of provision, and check again.

    \b
    epdoctor fix                                    this machine; never reboots it
    epdoctor fix -i inventory.ini --plan            what would change, and why
    epdoctor fix -i inventory.ini host.memlock-unlimited
    """
    from epdoctor.catalog import load_checks, select_checks

    checks = {
        name: check
        for name, check in select_checks(load_checks(), split_words(check_ids), ()).items()
        if check.scope != "launch"
    }
    if not checks:
        raise UsageError(
            "these checks judge a launch, which no playbook changes", hint="epdoctor lint launch.sh"
        )
    values = {**_NOT_ASKED, **values}
    local = values["inventory"] is None
    if local and (values["limit"] or values["reboot"] != "never"):
        raise UsageError(
            "fix does not reboot the machine it runs on"
            if values["reboot"] != "never"
            else "--limit goes with an inventory",
            hint="epdoctor fix -i inventory.ini",
        )
    with inventory_or_here(values["inventory"]) as inventory:
        order = make_order({**values, "inventory": inventory})
        order.place = replace(order.place, local=local)
        return _fix(order, checks, asked=bool(check_ids))


def _fix(order: Order, checks: dict[str, Check], *, asked: bool) -> int:
    gathered = look(order.place, order.values)
    if gathered.interrupted:
        click.echo("interrupted; nothing was changed", err=True)
        return 130
    report = _judge(gathered, order, checks, asked=asked)
    missed = {outcome.node: outcome.error for outcome in report.outcomes if outcome.error}
    nodes = tuple(target.name for target in order.place.targets if target.name not in missed)
    if not nodes:
        raise EpdoctorError(
            "no node was reached: " + "; ".join(f"{node}: {why}" for node, why in list(missed.items())[:3]),
            hint=f"epdoctor check -i {order.place.words}",
        )
    mending = plan_mending(report.findings, checks, nodes, asked=asked)
    order.also = {"by_hand": [_as_json(one) for one in mending.by_hand]}
    if not order.quiet:
        _show(mending, missed)
    left = 1 if any(one.severity is Severity.ERROR for one in mending.by_hand) else 0
    if not mending.components:
        code = left or (3 if missed or mending.unknown else 0)
        return _nothing(order, mending, nodes, missed, code)
    order.wish = replace(order.wish, choice=choose("", mending.components, ()))
    order.checks = as_errors(checks, mending.checks)
    order.where = mending.where
    order.place = order.place.only(mending.nodes)
    if order.place.local and "limits" in mending.components:
        # The second look runs in the session that the user is in.
        text = "log in anew: this session keeps its old limits"
        order.remarks = [Remark(node, "limits", "by-hand", text) for node in mending.where["limits"]]
    from epdoctor.cli.provision import carry_out

    code = carry_out(order, _only(gathered, mending.nodes))
    if mending.by_hand and not order.quiet and not order.values["plan_only"]:
        _next_by_hand(mending)
    return code or (0 if order.values["plan_only"] else left) or (3 if missed else 0)


def _judge(gathered: Gathered, order: Order, checks: dict[str, Check], *, asked: bool) -> Report:
    """As `epdoctor check` judges the same nodes. Checks that were named count for serving across nodes, too."""
    from epdoctor.catalog import load_checks
    from epdoctor.cli.check import chosen_waivers
    from epdoctor.engine import Engine
    from epdoctor.judge import build_report, decide_multinode, has_rdma, judge_record

    options, records = gathered.recording.options, gathered.records
    rdma = len(order.place.targets) == 1 and any(has_rdma(record, options) for record in records)
    goal = decide_multinode(order.goal, True if asked else None, len(order.place.targets), rdma)
    engine = Engine(checks, goal)
    judged = [judge_record(record, engine, options) for record in records]
    waivers = chosen_waivers(order.values, order.place.choice.config, load_checks())
    return build_report(judged, engine, checks, source="", fail_on=Severity.ERROR, waivers=waivers)


def _only(gathered: Gathered, nodes: tuple[str, ...]) -> Gathered:
    return replace(gathered, records=[record for record in gathered.records if record.node in nodes])


# ---------------------------------------------------------------- what is printed


def _as_json(one: ByHand) -> dict[str, Any]:
    return {
        "check": one.check,
        "nodes": list(one.nodes),
        "found": one.found,
        "commands": list(one.commands),
        "severity": one.severity.value,
    }


def _show(mending: Mending, missed: Mapping[str, str]) -> None:
    for node, why in missed.items():
        say(f"NOT REACHED  {node}: {sanitize(why)}")
    unknown: dict[str, dict[str, None]] = {}
    for check, node, why in mending.unknown:
        unknown.setdefault(f"{check}\0{why}", {})[node or "cluster"] = None
    reasons: dict[tuple[str, str], list[str]] = {}
    for text, nodes in unknown.items():
        check, why = text.split("\0")
        reasons.setdefault((fold(list(nodes)), why), []).append(check)
    for (where, why), checks in reasons.items():
        names = ", ".join(checks[:2]) + (f" and {len(checks) - 2} more" if len(checks) > 2 else "")
        say(f"unknown   {names}  {where}: {sanitize(why)}")
    for one in mending.by_hand:
        say(f"by hand   {one.check}  {fold(list(one.nodes))}: {sanitize(one.found)}")
        for command in one.commands:
            for line in command.splitlines():
                say(f"          {sanitize(line)}")
    if missed or mending.unknown or mending.by_hand:
        say()


def _nothing(
    order: Order, mending: Mending, nodes: tuple[str, ...], missed: Mapping[str, str], code: int
) -> int:
    if order.quiet:
        import json

        say(
            json.dumps(
                {"plan": None, "applied": None, **order.also, "not_reached": missed, "exit_code": code},
                indent=1,
            )
        )
        return code
    what = "no playbook mends these findings" if mending.by_hand else "nothing that a playbook mends fails"
    say(f"NOTHING TO DO  {what} on {fold(list(nodes))}")
    if mending.by_hand:
        _next_by_hand(mending)
    return code


def _next_by_hand(mending: Mending) -> None:
    first = next((one for one in mending.by_hand if one.commands), None)
    if first is None:
        say(f"next      epdoctor explain {mending.by_hand[0].check}")
        return
    say(f"next      on {first.nodes[0]}: {sanitize(first.commands[0].splitlines()[0])}")
