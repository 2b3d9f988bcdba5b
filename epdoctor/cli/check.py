"""`epdoctor check`: this machine, every node of an inventory, a recording, or the demo."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from epdoctor.cli.options import (
    ChosenChecks,
    NodeChoice,
    choose_checks,
    goal_from,
    judge_options,
    node_choice,
    node_options,
    seconds,
    split_words,
)
from epdoctor.cli.outputs import ReportCommand, chosen_outputs, output_options
from epdoctor.config import Config
from epdoctor.exceptions import UsageError
from epdoctor.model import Check, Goal, Report, Severity, Waiver

if TYPE_CHECKING:
    from epdoctor.cli.gather import Gathered
    from epdoctor.compare.baseline import Baseline
    from epdoctor.compare.side import Told
    from epdoctor.judge import JudgedNode


@click.command("check", cls=ReportCommand)
@node_options
@judge_options
@click.option(
    "--from",
    "from_",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Judge a recording instead (epdoctor collect), or the text of vllm collect-env.",
)
@click.option(
    "--demo", is_flag=True, help="Judge a recorded cluster with planted faults, shipped with epdoctor."
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also say what has moved since then (epdoctor baseline save).",
)
@click.option(
    "--watch",
    "watch_s",
    callback=seconds(1, 600),
    metavar="30s",
    help="Look again and again; say what changed.",
)
@click.option("--until-pass", is_flag=True, help="With --watch: end when nothing is left to mend.")
@output_options
def check_command(**values: Any) -> int:
    """Is this machine, or the whole cluster, ready for the back end you want?

    \b
    epdoctor check                                     this machine
    epdoctor check --all-nodes -i inventory.ini        every node, over SSH
    epdoctor check --watch 30s --until-pass            while you mend it
    epdoctor check --baseline good.json                what has moved since it worked
    epdoctor check --demo                              see it work
    """
    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    outputs = chosen_outputs(values)
    choice = node_choice(values)
    chosen, baseline = _with_baseline(values, choice.config)
    waivers = chosen_waivers(values, choice.config, chosen.known)
    timeout_given = values["timeout_s"] or (choice.config.timeout_s if not values["profile"] else None)
    if chosen.timeout_s is not None and not timeout_given:
        choice = replace(choice, timeout_s=chosen.timeout_s + (values["sample_s"] or 0.0))
    goal, warnings = goal_from(values, choice.config, chosen.backend)
    offline = values["from_"] is not None or values["demo"]
    if offline and (choice.all_nodes or (values["demo"] and values["from_"] is not None)):
        raise UsageError(
            "--from and --demo judge a recording; they do not go with --all-nodes, -i, --limit, --via or each other"
        )
    if values["until_pass"] and not values["watch_s"]:
        raise UsageError("--until-pass goes with --watch", hint="epdoctor check --watch 30s --until-pass")
    if offline and values["watch_s"]:
        raise UsageError("--watch looks at nodes again and again; a recording stays as it is")

    def look() -> Look:
        return _look(values, choice, chosen, goal, waivers, baseline, warnings, topology=outputs.draws)

    if values["watch_s"]:
        from epdoctor.cli.watch import refuse_watch, watch

        refuse_watch(outputs)
        return watch(look, outputs, values["watch_s"], until_pass=values["until_pass"])
    seen = look()
    seen.keep()
    return outputs.write(seen.report)


@dataclass
class Look:
    """One run of all checks."""

    report: Report
    keep: Callable[[], None]
    """Keeps its recording for `epdoctor diff --last-good`."""


def _look(
    values: dict[str, Any],
    choice: NodeChoice,
    chosen: ChosenChecks,
    goal: Goal,
    waivers: list[Waiver],
    baseline: Baseline | None,
    warnings: list[str],
    *,
    topology: bool,
) -> Look:
    """Ask the nodes, or read the recording, and judge."""
    started = time.monotonic()
    gathered: Gathered | None = None
    if values["from_"] is not None or values["demo"]:
        report, judged = _offline(
            values, chosen.checks, goal, waivers, topology=topology, with_facts=baseline is not None
        )
    else:
        report, judged, gathered = _live(
            values, choice, chosen.checks, goal, waivers, topology=topology, with_facts=baseline is not None
        )
    if baseline is not None:
        _add_baseline(report, baseline, [node.told for node in judged if node.told is not None], waivers)
    report.warnings[:0] = warnings
    report.selected = chosen.selected
    if chosen.profile:
        report.source += f", profile {chosen.profile}"
    if not values["demo"]:
        report.warnings += stale_tables(report.collected_at)
    report.seconds = time.monotonic() - started
    if waivers:
        from epdoctor.waivers import expiry_warnings, stray_warnings

        report.warnings += expiry_warnings(report.expired_waivers)
        report.warnings += stray_warnings(waivers, report.findings, [o.node for o in report.outcomes])
    report.fail_on_expired_waiver = values["fail_on_expired_waiver"]

    def keep() -> None:
        if gathered is not None:
            _keep(gathered, report, values)

    return Look(report, keep)


def _keep(gathered: Gathered, report: Report, values: dict[str, Any]) -> None:
    from epdoctor.compiled import state_allowed

    if not state_allowed() or not any(record.probes for record in gathered.records):
        return
    from epdoctor.collect.history import keep_recording
    from epdoctor.compare.last_good import asked_of
    from epdoctor.report.summary import exit_code

    verdict = {
        "exit_code": exit_code(report),
        "asked": asked_of(values),
        "nodes": [record.node for record in gathered.records],
    }
    keep_recording(gathered.recording, gathered.records, verdict)


def _with_baseline(values: dict[str, Any], config: Config) -> tuple[ChosenChecks, Baseline | None]:
    """The checks of the run, and the baseline that is held against it. Raises UsageError."""
    if values["baseline"] is None:
        return choose_checks(values, config), None
    from epdoctor.compare.baseline import load_baseline
    from epdoctor.compare.baseline_check import CHECK_ID

    words = {name: split_words(values[name]) for name in ("select", "ignore")}
    rest = {name: tuple(word for word in found if word != CHECK_ID) for name, found in words.items()}
    chosen = choose_checks({**values, **rest}, config)
    if words["select"] and not rest["select"]:
        chosen = replace(chosen, checks={}, selected=True)
    if CHECK_ID in words["ignore"]:
        return chosen, None
    return chosen, load_baseline(values["baseline"])


def _add_baseline(
    report: Report,
    baseline: Baseline,
    nodes: list[Told],
    waivers: list[Waiver],
) -> None:
    from epdoctor.compare.baseline import moved
    from epdoctor.compare.baseline_check import CHECK_ID, check_of
    from epdoctor.waivers import apply_waivers

    facts = {node.node: node.facts for node in nodes}
    roots = frozenset(node.node for node in nodes if node.as_root)
    findings, notes = moved(baseline, facts, report.outcomes, roots=roots)
    report.checks[CHECK_ID] = check_of(baseline.path)
    report.findings = [*report.findings, *apply_waivers(findings, waivers)]
    report.warnings += notes
    report.source += f", baseline {Path(baseline.path).name}"


def stale_tables(collected_at: str) -> list[str]:
    """At most one warning, by the day that the nodes were looked at: a recording is judged alike for ever."""
    from epdoctor.compat import stale_warning, table_dates

    try:
        warning = stale_warning(table_dates(), date.fromisoformat(collected_at[:10]))
    except ValueError:
        return []
    return [warning] if warning else []


def chosen_waivers(values: dict[str, Any], config: Config, known: Mapping[str, Check]) -> list[Waiver]:
    """The waivers of the run. Raises UsageError with file:line."""
    from epdoctor.waivers import load_waivers, waiver_file

    path = waiver_file(values["waiver_file"], config.waivers)
    if path is None:
        return []
    from epdoctor.compare.baseline_check import CHECK_ID, check_of

    return load_waivers(path, {**known, CHECK_ID: check_of()}, today())


def today() -> date:
    """By this machine's clock and zone: a waiver counts until the end of its last day here."""
    return datetime.now().astimezone().date()


def _offline(
    values: dict[str, Any], checks: dict[str, Check], goal: Goal, waivers: list[Waiver], *, topology: bool,
    with_facts: bool,
) -> tuple[Report, list[JudgedNode]]:  # fmt: skip
    from epdoctor.compare.side import told
    from epdoctor.compat import catalogue_date
    from epdoctor.judge import build_report, judge_recording

    path = values["from_"] or Path(__file__).resolve().parent.parent / "demo" / "demo.tar.gz"
    overrides: dict[str, object] = {}
    if values["env_file"] is not None:
        from epdoctor.cli.options import collect_options

        overrides["env_file_text"] = collect_options(values, Config(), ()).env_file_text
    if values["max_num_batched_tokens"]:
        overrides["max_num_batched_tokens"] = values["max_num_batched_tokens"]
        overrides["token_limit_source"] = "--max-num-batched-tokens"  # noqa: S105 - vLLM's tokens, not a password
    if values["demo"] and not goal.backend and not goal.requested_backend:
        goal = replace(goal, backend="deepep_low_latency", requested_backend="deepep_low_latency")
    engine, recording, judged = judge_recording(
        path,
        checks,
        goal,
        values["multinode"],
        overrides,
        topology=topology,
        also=told if with_facts else None,
    )
    nodes = list(judged)
    source = "recorded demo cluster" if values["demo"] else f"recording {path.name}"
    report = build_report(
        nodes,
        engine,
        checks,
        source=source,
        fail_on=Severity(values["fail_on"]),
        collected_at=recording.collected_at,
        catalogue_date=catalogue_date(),
        waivers=waivers,
    )
    report.warnings += [recording.note] if recording.note else []
    return report, nodes


def _live(
    values: dict[str, Any], choice: NodeChoice, checks: dict[str, Check], goal: Goal, waivers: list[Waiver],
    *, topology: bool, with_facts: bool,
) -> tuple[Report, list[JudgedNode], Gathered]:  # fmt: skip
    from epdoctor.cli.gather import gather
    from epdoctor.collect.record import Record, Recording
    from epdoctor.collect.targets import Inventory
    from epdoctor.compare.side import told
    from epdoctor.compat import catalogue_date
    from epdoctor.engine import Engine
    from epdoctor.judge import build_report, decide_multinode, has_rdma, judge_record

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
        judged[record.node] = judge_record(
            record, engines[0], frame[0].options, topology=topology, also=told if with_facts else None
        )

    gathered = gather(choice, values, before=before, on_record=on_record)
    if not engines:
        engines.append(Engine(checks, decide_multinode(goal, values["multinode"], 1, rdma=False)))
    nodes = [
        judged.get(record.node) or judge_record(record, engines[0], frame[0].options)
        for record in gathered.records
    ]
    report = build_report(
        nodes,
        engines[0],
        checks,
        source=gathered.recording.source,
        fail_on=Severity(values["fail_on"]),
        collected_at=gathered.recording.collected_at,
        catalogue_date=catalogue_date(),
        waivers=waivers,
    )
    report.interrupted = gathered.interrupted
    report.warnings.extend(gathered.warnings)
    return report, nodes, gathered
