"""`epdoctor check`: this machine, every node of an inventory, a recording, or the demo."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from epdoctor.cli.options import (
    NodeChoice,
    Output,
    choose_checks,
    goal_from,
    judge_options,
    node_choice,
    node_options,
    parse_outputs,
)
from epdoctor.exceptions import UsageError
from epdoctor.model import Check, Goal, Report, Severity

FORMATS = ("text", "json")


@click.command("check")
@node_options
@judge_options
@click.option(
    "--from",
    "from_",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.tar.gz",
    help="Judge a recording instead (epdoctor collect).",
)
@click.option(
    "--demo", is_flag=True, help="Judge a recorded cluster with planted faults, shipped with epdoctor."
)
@click.option("--format", "format_", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="[FORMAT=]FILE",
    help="Write a report to a file. FORMAT=FILE may be repeated.",
)
@click.option("-v", "--verbose", is_flag=True, help="Evidence, notes, what does not apply and why.")
def check_command(**values: Any) -> int:
    """Is this machine, or the whole cluster, ready for the back end you want?

    \b
    epdoctor check                                     this machine
    epdoctor check --all-nodes -i inventory.ini        every node, over SSH
    epdoctor check --demo                              see it work
    """
    started = time.monotonic()
    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    outputs = parse_outputs(values["format_"], values["outputs"], FORMATS)
    choice = node_choice(values)
    chosen = choose_checks(values, choice.config)
    checks = chosen.checks
    timeout_given = values["timeout_s"] or (choice.config.timeout_s if not values["profile"] else None)
    if chosen.timeout_s is not None and not timeout_given:
        choice = replace(choice, timeout_s=chosen.timeout_s)
    goal, warnings = goal_from(values, choice.config, chosen.backend)
    offline = values["from_"] is not None or values["demo"]
    if offline and (choice.all_nodes or (values["demo"] and values["from_"] is not None)):
        raise UsageError(
            "--from and --demo judge a recording; they do not go with --all-nodes, -i, --limit, --via or each other"
        )
    if offline:
        report = _offline(values, checks, goal)
    else:
        report = _live(values, choice, checks, goal)
    report.warnings[:0] = warnings
    report.selected = chosen.selected
    if chosen.profile:
        report.source += f", profile {chosen.profile}"
    if not values["demo"]:
        report.warnings += stale_tables(report.collected_at)
    report.seconds = time.monotonic() - started
    for output in outputs:
        write_report(report, output, verbose=values["verbose"])
    from epdoctor.report.summary import exit_code

    return exit_code(report)


def stale_tables(collected_at: str) -> list[str]:
    """At most one warning, by the day that the nodes were looked at: a recording is judged alike for ever."""
    from datetime import date

    from epdoctor.compat import stale_warning, table_dates

    try:
        warning = stale_warning(table_dates(), date.fromisoformat(collected_at[:10]))
    except ValueError:
        return []
    return [warning] if warning else []


def _offline(values: dict[str, Any], checks: dict[str, Check], goal: Goal) -> Report:
    from epdoctor.compat import catalogue_date
    from epdoctor.judge import build_report, judge_recording

    path = values["from_"] or Path(__file__).resolve().parent.parent / "demo" / "demo.tar.gz"
    overrides: dict[str, object] = {}
    if values["env_file"] is not None:
        from epdoctor.cli.options import collect_options
        from epdoctor.config import Config

        overrides["env_file_text"] = collect_options(values, Config(), ()).env_file_text
    if values["max_num_batched_tokens"]:
        overrides["max_num_batched_tokens"] = values["max_num_batched_tokens"]
        overrides["token_limit_source"] = "--max-num-batched-tokens"  # noqa: S105 - vLLM's tokens, not a password
    if values["demo"] and not goal.backend and not goal.requested_backend:
        goal = replace(goal, backend="deepep_low_latency", requested_backend="deepep_low_latency")
    engine, recording, judged = judge_recording(path, checks, goal, values["multinode"], overrides)
    source = "recorded demo cluster" if values["demo"] else f"recording {path.name}"
    return build_report(
        judged,
        engine,
        checks,
        source=source,
        fail_on=Severity(values["fail_on"]),
        collected_at=recording.collected_at,
        catalogue_date=catalogue_date(),
    )


def _live(values: dict[str, Any], choice: NodeChoice, checks: dict[str, Check], goal: Goal) -> Report:
    from epdoctor.cli.gather import gather
    from epdoctor.collect.record import Record, Recording
    from epdoctor.collect.targets import Inventory
    from epdoctor.compat import catalogue_date
    from epdoctor.engine import Engine
    from epdoctor.judge import JudgedNode, build_report, decide_multinode, has_rdma, judge_record

    judged: dict[str, JudgedNode] = {}
    frame: list[Recording] = []
    engines: list[Engine] = []

    def before(inventory: Inventory, recording: Recording) -> None:
        frame.append(recording)
        if len(inventory.nodes) > 1:
            engines.append(
                Engine(checks, decide_multinode(goal, values["multinode"], len(inventory.nodes), rdma=False))
            )

    def on_record(record: Record) -> None:
        # Judged while other nodes still answer.
        if not engines:
            rdma = values["multinode"] is None and has_rdma(record, frame[0].options)
            engines.append(Engine(checks, decide_multinode(goal, values["multinode"], 1, rdma)))
        judged[record.node] = judge_record(record, engines[0], frame[0].options)

    gathered = gather(choice, values, before=before, on_record=on_record)
    if not engines:
        engines.append(Engine(checks, decide_multinode(goal, values["multinode"], 1, rdma=False)))
    report = build_report(
        (
            judged.get(record.node) or judge_record(record, engines[0], frame[0].options)
            for record in gathered.records
        ),
        engines[0],
        checks,
        source=gathered.recording.source,
        fail_on=Severity(values["fail_on"]),
        collected_at=gathered.recording.collected_at,
        catalogue_date=catalogue_date(),
    )
    report.interrupted = gathered.interrupted
    report.warnings.extend(gathered.warnings)
    from epdoctor.compiled import state_allowed

    if state_allowed() and any(record.probes for record in gathered.records):
        from epdoctor.collect.history import keep_recording

        keep_recording(gathered.recording, gathered.records)
    return report


def write_report(report: Report, output: Output, *, verbose: bool) -> None:
    """One format to standard output or to a file (replaced at once or not at all)."""
    from epdoctor.cli import terminal
    from epdoctor.report.text import TextReport

    command = "epdoctor " + shlex.join(sys.argv[1:]) if sys.argv[1:] else "epdoctor check"
    if output.format == "json":
        from epdoctor.report.json_report import render_json

        content = render_json(report)
    else:
        if not output.path:
            text = TextReport(
                report,
                width=terminal.columns(sys.stdout),
                unicode=terminal.speaks_unicode(sys.stdout),
                verbose=verbose,
                command=command,
            )
            terminal.print_report(text)
            return
        content = TextReport(report, width=100, verbose=verbose, command=command).plain()
    if not output.path:
        sys.stdout.write(content)
        return
    from epdoctor.collect.record import replace_file

    try:
        replace_file(Path(output.path), content.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"-o {output.path}: {error.strerror or error}") from error
