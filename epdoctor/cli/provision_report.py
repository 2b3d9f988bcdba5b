"""What provision prints: the plan, the result, what to type next."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence, Sized

from epdoctor.cli.provision_nodes import say
from epdoctor.cli.provision_order import Order
from epdoctor.cli.terminal import columns
from epdoctor.model import Finding
from epdoctor.nodenames import fold
from epdoctor.provision import screen
from epdoctor.provision.judging import Judged
from epdoctor.provision.result import RunResult, exit_code, wrong_after
from epdoctor.report.sanitize import sanitize


def question(plan: RunResult, reboots: Sequence[str] = ()) -> str:
    """`reboots`: nodes that will be rebooted."""
    nodes = {change.node for change in plan.changes}
    wishes = [f"make {_count(plan.changes, 'change')} on {_count(nodes, 'node')}"] if nodes else []
    wishes += [f"reboot {fold(reboots)}"] if reboots else []
    return " and ".join(wishes).capitalize() + "?"


def _count(things: Sized, word: str) -> str:
    return f"{len(things)} {word}{'s' if len(things) != 1 else ''}"


def show_plan(order: Order, plan: RunResult, before: Judged) -> None:
    left: dict[str, list[str]] = {}
    nodes = len(order.place.targets)
    what = order.goal.backend or "all back ends"
    names = ", ".join(component.name for component in order.components)
    say(f"PLAN  {names} on {nodes} node{'s' if nodes != 1 else ''}, {what}")
    for component, reason in order.wish.choice.left_out.items():
        left.setdefault(reason, []).append(component)
    reasons = [f"left out  {', '.join(out)}: {reason}" for reason, out in left.items()]
    _block(reasons) if reasons else say()
    _block(screen.table(plan, plan=True))
    why = screen.justification(before.findings, order.checks)
    if why:
        say("mends")
        _block([f"  {line}" for line in why])
    _block(screen.waiting(plan.remarks))
    _block(screen.troubles(plan, before.missed, plan=True))
    kept = sorted({failure.node for failure in plan.failures})
    if kept and plan.changes:
        others = "; the others go on" if set(plan.nodes) - set(kept) else ""
        _block([f"left as it is  {fold(kept)}: the plan already fails there{others}"])


def _block(lines: Sequence[str]) -> None:
    if lines:
        for line in lines:
            say("\n".join(fold_line(line.rstrip())))
        say()


_LABEL = re.compile(r"(\s{0,8}\S{1,30}(?: \S{1,20})?\s{2,})\S")


def fold_line(line: str) -> list[str]:
    """A line of the report in the width of the terminal, hanging under its first words; as it is where there is none.

    Differences and the rows of tables start further right and stay whole."""
    if not (sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()) or line.startswith(" " * 9):
        return [line]
    found = _LABEL.match(line)
    hang = min(len(found.group(1)), 24) if found else 8
    width = columns(sys.stdout)
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
    ) or [line]


def finish_plan(order: Order, plan: RunResult, before: Judged, reboots: Sequence[str] = ()) -> int:
    """`reboots`: nodes that would be rebooted."""
    work = plan.changes or reboots
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
                {
                    "plan": screen.as_json(plan, before.missed),
                    "applied": None,
                    **order.also,
                    "exit_code": code,
                },
                indent=1,
            )
        )
        return code
    if not work and not (plan.failures or plan.stopped or plan.crashed):
        say("NOTHING TO DO" + ("" if code == 0 else ", but see above"))
        _still_wrong(failing)
    else:
        say("nothing was changed")
    if work:
        words = [word for word in sys.argv[1:] if word != "--plan"]
        say(f"next      epdoctor {shlex.join(words)}")
    else:
        say_next(order, plan, before.missed)
    return code


def say_next(order: Order, result: RunResult, missed: Mapping[str, str]) -> None:
    """The command that goes on: the same again, or with leave to do what still waits, and then it asks."""
    again = result.failures or result.stopped or result.crashed or result.unreachable or missed
    waits = {remark.kind for remark in result.pending()}
    leave = ["--restart-services"] if "restart" in waits and not order.values["restart_services"] else []
    leave += ["--reboot", "when-needed"] if "reboot" in waits and order.values["reboot"] == "never" else []
    words = [word for word in sys.argv[1:] if word != "--plan"]
    if again:
        say(f"again     epdoctor {shlex.join(words)}")
    elif leave:
        words = [word for word in words if word not in ("-y", "--yes", "--reboot", "never", "--reboot=never")]
        say(f"next      epdoctor {shlex.join([*words, *leave])}")


def _still_wrong(failing: Sequence[Finding]) -> None:
    for finding in failing:
        found = finding.problems[0].found if finding.problems else finding.reason
        say(f"still failing  {finding.check}  {finding.node}: {sanitize(found)}")


def finish(order: Order, done: RunResult, before: Judged, after: Judged | None) -> int:
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
            **order.also,
            "exit_code": code,
        }
        say(json.dumps(report, indent=1))
        return code
    say(
        f"{_HEADS[code]}  {len({c.node for c in done.changes})} of {len(order.place.targets)} nodes changed, {done.seconds:.0f} s"
    )
    say()
    _block(screen.table(done, plan=False))
    _block(screen.rebooted(done.changes))
    _block(screen.troubles(done, missed))
    _block(screen.waiting(done.remarks))
    _block(screen.before_after_lines(rows))
    _still_wrong(failing)
    if any(change.what.startswith(_JOURNALLED) for change in done.changes):
        words = f"{order.place.words} --run {order.name}".strip()
        say(f"undo      epdoctor rollback {words}")
    _say_log(order)
    say_next(order, done, missed)
    return code


_JOURNALLED = ("/", "Install", "Make the environment", "Take out")
"""Files come back with a rollback; packages are listed there with the version before."""

_HEADS = {0: "DONE", 1: "FAILED", 3: "DONE, NOT ALL IN FORCE", 130: "INTERRUPTED"}


def _say_log(order: Order) -> None:
    from epdoctor.compiled import state_allowed
    from epdoctor.paths import state_dir

    path = state_dir() / "provision" / f"{order.name}.log"
    if state_allowed() and path.exists():
        say(f"log       {path}")
