"""`epdoctor rollback inventory.ini`: restore what a run of provision changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from epdoctor.cli.provision_nodes import (
    Place,
    ask,
    host_vars,
    inventory_or_here,
    log_file,
    place_of,
    say,
)
from epdoctor.cli.provision_progress import RunProgress
from epdoctor.cli.provision_report import fold_line
from epdoctor.cli.provision_secrets import become_password, secret_options, use_vault
from epdoctor.nodenames import fold
from epdoctor.provision import screen
from epdoctor.provision.journal import (
    NodeRun,
    Restored,
    choose_run,
    new_run_name,
    restored_by_node,
    runs_by_node,
)
from epdoctor.provision.result import RunResult
from epdoctor.provision.runner import RUN_TIMEOUT_S, Job, run
from epdoctor.report.sanitize import sanitize

_WORDS = {
    "restored": "restored",
    "removed": "removed (it was not there before)",
    "already": "is as it was before",
    "changed-since": "KEPT: somebody changed it since (--force restores it anyway)",
    "damaged": "KEPT: the copy in the journal is damaged",
}


@click.command("rollback")
@click.argument("inventory", type=click.Path(path_type=Path), required=False)
@click.option(
    "--run", "run_name", default="", metavar="RUN", help="Run to undo; default: the last one not undone."
)
@click.option("--list", "list_only", is_flag=True, help="Show the runs in the nodes' journals.")
@click.option("--force", is_flag=True, help="Restore files also where somebody changed them since.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-l", "--limit", default="", metavar="PATTERN", help="Only these nodes.")
@click.option(
    "-f", "--forks", type=click.IntRange(1, 1024), default=32, show_default=True, help="Nodes at a time."
)
@secret_options
@click.option(
    "-t", "--timeout", "timeout_s", type=click.FloatRange(10), default=RUN_TIMEOUT_S, show_default=True,
    help="Seconds that one playbook run may take.",
)  # fmt: skip
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.option("--no-state", is_flag=True, help="Write no log on this machine.")
def rollback_command(**values: Any) -> int:
    """Bring the files that a run of provision or fix changed back to what they were, byte for byte.

    Without an inventory: on this machine."""
    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    with inventory_or_here(values["inventory"]) as inventory:
        return _rollback({**values, "inventory": inventory})


def _rollback(values: dict[str, Any]) -> int:
    use_vault(values["vault_password_file"])
    place = place_of(values["inventory"], values["limit"], values["forks"])
    values["become_password"] = become_password(values)
    quiet = values["format_"] == "json"
    with log_file(new_run_name() + "-rollback") as log:
        listed = run(_job(place, values, "journal_runs.yml", {}), log=log, watch=RunProgress("reading").watch)
        by_node = runs_by_node(listed)
        if values["list_only"]:
            return _list(by_node, listed, quiet)
        # A run that is not known here may be one of the nodes that were not reached.
        lost = listed.unreachable or listed.failures or listed.stopped or listed.crashed
        known = {found.run for runs in by_node.values() for found in runs}
        away = bool(values["run_name"] and lost and values["run_name"] not in known)
        name = "" if away else choose_run(by_node, values["run_name"])
        if not name:
            return _nothing(listed, quiet)
        here = {node: found for node, runs in by_node.items() for found in runs if found.run == name}
        if not quiet:
            _show(name, here, by_node)
        ask(f"Restore this on {len(here)} node{'s' if len(here) != 1 else ''}?", yes=values["yes"])
        extra = {"journal_run": name, "journal_force": values["force"]}
        job = _job(place, values, "rollback.yml", extra, tuple(here))
        done = run(job, log=log, watch=RunProgress("rolling back").watch)
    return _finish(name, here, done, listed, quiet)


def _job(
    place: Place, values: dict[str, Any], playbook: str, extra: dict[str, Any], nodes: tuple[str, ...] = ()
) -> Job:
    return Job(
        playbook=playbook,
        inventory=place.inventory,
        nodes=nodes or tuple(target.name for target in place.targets),
        forks=values["forks"],
        extra=extra,
        host_vars=host_vars(place.targets),
        become_password=values["become_password"],
        timeout_s=values["timeout_s"],
    )


def _list(by_node: dict[str, tuple[NodeRun, ...]], listed: RunResult, quiet: bool) -> int:
    code = 1 if listed.failures or listed.crashed else 3 if listed.unreachable else 0
    runs: dict[str, dict[str, NodeRun]] = {}
    for node, found in by_node.items():
        for one in found:
            runs.setdefault(one.run, {})[node] = one
    if quiet:
        shown = {
            name: {node: {"undone": one.undone, "files": list(one.files)} for node, one in nodes.items()}
            for name, nodes in runs.items()
        }
        say(json.dumps({"runs": shown, "not_reached": listed.unreachable, "exit_code": code}, indent=1))
        return code
    for name, nodes in sorted(runs.items(), key=lambda item: max(one.at for one in item[1].values())):
        undone = [node for node, one in nodes.items() if one.undone]
        files = sorted({path for one in nodes.values() for path in one.files})
        tail = f", undone on {fold(undone)}" if undone else ""
        say(f"{name}  {fold(list(nodes))}: {len(files)} file{'s' if len(files) != 1 else ''}{tail}")
    if not runs:
        say("no node's journal has a run")
    for line in screen.troubles(listed, {}):
        say(line)
    return code


def _nothing(listed: RunResult, quiet: bool) -> int:
    code = 1 if listed.failures or listed.crashed or listed.stopped else 3 if listed.unreachable else 0
    if listed.stopped == "interrupted":
        code = 130
    if quiet:
        say(json.dumps({"run": "", "nodes": {}, "not_reached": listed.unreachable, "exit_code": code}))
        return code
    for line in screen.troubles(listed, {}):
        say(line)
    if code != 0:
        say("nothing was changed")
    else:
        say("NOTHING TO UNDO  no run in the journals of these nodes that is not undone already")
    return code


def _show(name: str, here: dict[str, NodeRun], by_node: dict[str, tuple[NodeRun, ...]]) -> None:
    say(f"ROLLBACK  of run {name}")
    say()
    files: dict[str, list[str]] = {}
    for node, found in here.items():
        for path in found.files:
            files.setdefault(path, []).append(node)
    for path, nodes in sorted(files.items()):
        say(f"  {sanitize(path)}  {fold(nodes)}")
    later = {
        one.run: node
        for node, runs in by_node.items()
        for one in runs
        if node in here
        and not one.undone
        and one.at > here[node].at
        and set(one.files) & set(here[node].files)
    }
    for other, node in later.items():
        say(f"! run {other} changed the same files later on {node}; undo it first")
    say()


def _finish(name: str, here: dict[str, NodeRun], done: RunResult, listed: RunResult, quiet: bool) -> int:
    restored = restored_by_node(done)
    missed = {**listed.unreachable, **done.unreachable}
    kept = [
        (node, row)
        for node, rows in restored.items()
        for row in rows
        if row.did in ("changed-since", "damaged")
    ]
    code = 130 if done.stopped == "interrupted" else 0
    if not code and (done.failures or done.crashed or done.stopped or kept):
        code = 1
    if not code and (missed or done.pending()):
        code = 3
    if quiet:
        nodes = {
            node: [{"path": row.path, "did": row.did} for row in rows] for node, rows in restored.items()
        }
        report = {"run": name, "nodes": nodes, "applied": screen.as_json(done, missed), "exit_code": code}
        say(json.dumps(report, indent=1))
        return code
    say(
        {0: "UNDONE", 1: "NOT ALL UNDONE", 3: "UNDONE, NOT EVERYWHERE IN FORCE", 130: "INTERRUPTED"}[code]
        + f"  {name}"
    )
    say()
    _say_files(restored)
    notes: dict[str, list[str]] = {}
    for node, found in here.items():
        for note in found.notes:
            notes.setdefault(note, []).append(node)
    for note, owners in notes.items():
        say("\n".join(fold_line(f"not undone  {fold(owners)}: {sanitize(note)}")))
    for line in (*screen.troubles(done, missed), *screen.waiting(done.remarks)):
        say("\n".join(fold_line(line)))
    return code


def _say_files(restored: dict[str, tuple[Restored, ...]]) -> None:
    folded: dict[tuple[str, str], list[str]] = {}
    for node, rows in restored.items():
        for row in rows:
            folded.setdefault((row.path, row.did), []).append(node)
    for (path, did), nodes in sorted(folded.items()):
        say(f"  {sanitize(path)}  {_WORDS.get(did, sanitize(did))}  {fold(nodes)}")
