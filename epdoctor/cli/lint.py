"""`epdoctor lint`: the launch itself, from files, from a command, or from what runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from epdoctor.cli.check import chosen_waivers
from epdoctor.cli.model_options import Memory, read_model_config
from epdoctor.cli.options import choose_checks, goal_from, judge_options, node_choice, node_options
from epdoctor.cli.outputs import ReportCommand, chosen_outputs, output_options
from epdoctor.exceptions import Unmeasured, UsageError
from epdoctor.launch.model import LaunchSet
from epdoctor.model import Check, Finding, Goal, NodeOutcome, Report, Severity, Status

_NOT_HERE = ("env_file", "max_num_batched_tokens", "multinode", "sample_s")
"""Options of check that lint has otherwise, or takes from the launch."""


class LintCommand(ReportCommand):
    """What stands behind `--` is a command line of vLLM, options and all."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        command: list[str] = []
        if "--" in args:
            at = args.index("--")
            args, command = args[:at], args[at + 1 :]
            if not command:
                raise UsageError("nothing stands behind --", hint="epdoctor lint -- vllm serve MODEL ...")
        rest = super().parse_args(ctx, args)
        ctx.params["command"] = tuple(command)
        return rest


def _without(names: tuple[str, ...]) -> Callable[[click.Command], click.Command]:
    def drop(command: click.Command) -> click.Command:
        command.params = [
            item for item in command.params if item.name not in names or item.name == "env_files"
        ]
        return command

    return drop


@_without(_NOT_HERE)
@click.command("lint", cls=LintCommand)
@click.argument("launch", nargs=-1, metavar="[LAUNCH]...")
@click.option(
    "--running", is_flag=True, help="The live vLLM processes of the nodes (-i FILE), in place of files."
)
@click.option("--from", "from_", type=click.Path(path_type=Path), metavar="DIR|FILE.tar.gz",
              help="Judge against recorded nodes (epdoctor collect).")  # fmt: skip
@click.option("--env-file", "env_files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Variables that the launch gets (KEY=VALUE lines). Repeatable.")  # fmt: skip
@click.option("--model-config", type=click.Path(path_type=Path), metavar="FILE",
              help="The model's config.json, where the built-in table does not have it.")  # fmt: skip
@click.option("--gpu-memory", type=Memory(), metavar="80GiB|H200",
              help="What each GPU has, where neither a record nor a manifest says it.")  # fmt: skip
@node_options
@judge_options
@output_options
def lint_command(**values: Any) -> int:
    """Will this launch start? Ranks, back end, flags, environment and manifests, before anything runs.

    \b
    epdoctor lint node0.sh node1.sh                     one file a node, or one with all
    epdoctor lint -i inventory.ini manifests/*.yaml     also against what the nodes are
    epdoctor lint -- vllm serve MODEL --enable-expert-parallel ...
    kubectl kustomize DIR | epdoctor lint -             what stands on standard input
    epdoctor lint --running -i inventory.ini            which live rank differs

    Files are told apart by content: shell, sbatch, Kubernetes, compose, systemd, environment files. They are
    parsed, never run.
    """
    started = time.monotonic()
    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    for name in ("env_file", "max_num_batched_tokens", "multinode", "sample_s"):
        values.setdefault(name, None)
    _refuse_contradictions(values)
    outputs = chosen_outputs(values)
    choice = node_choice(values)
    chosen = choose_checks(values, choice.config)
    checks = {name: check for name, check in chosen.checks.items() if check.scope == "launch"}
    if not checks:
        raise UsageError(
            "the choice of checks has none of a launch", hint="epdoctor list checks --select launch"
        )
    waivers = chosen_waivers(values, choice.config, chosen.known)
    goal, warnings = goal_from(values, choice.config, chosen.backend)
    nodes, outcomes, interrupted, where = _nodes(values, choice, goal)
    launch, notes = _launch(values, nodes)
    report = judge(launch, checks, goal, outcomes)
    report.fail_on = Severity(values["fail_on"])
    report.interrupted = interrupted
    report.warnings = [*warnings, *notes, *_other_backend(launch, goal), *report.warnings]
    report.source += f", {where}" if where else ""
    report.selected = bool(values["select"] or values["ignore"])
    from epdoctor.waivers import apply_waivers, expiry_warnings

    report.findings = apply_waivers(report.findings, waivers)
    report.expired_waivers = [waiver for waiver in waivers if waiver.expired]
    report.warnings += expiry_warnings(report.expired_waivers)
    report.fail_on_expired_waiver = values["fail_on_expired_waiver"]
    report.seconds = time.monotonic() - started
    return outputs.write(report)


def _refuse_contradictions(values: dict[str, Any]) -> None:
    given = bool(values["launch"] or values["command"])
    asks = values["all_nodes"] or values["inventory"] or values["limit"] or values["via"]
    if values["running"] and given:
        raise UsageError("--running judges live processes; it goes with no LAUNCH file and no command")
    if values["running"] and values["env_files"]:
        raise UsageError("--running reads the environment of the processes; it does not go with --env-file")
    if values["from_"] is not None and asks:
        raise UsageError(
            "--from judges against a recording; it does not go with --all-nodes, -i, --limit or --via"
        )
    if not values["running"] and not given:
        raise UsageError(
            "no launch: give files, a command behind --, or --running",
            hint="epdoctor lint -- vllm serve MODEL --enable-expert-parallel",
        )


def _nodes(
    values: dict[str, Any], choice: Any, goal: Goal
) -> tuple[dict[str, Any], list[NodeOutcome], bool, str]:
    """Facts of the nodes by name, how they were reached, whether it was interrupted, and where they come from."""
    live = choice.all_nodes or (values["running"] and values["from_"] is None)
    if values["from_"] is None and not live:
        return {}, [], False, ""
    from epdoctor.facts import Node

    if values["from_"] is not None:
        from epdoctor.collect.store import load

        recording, items = load(values["from_"])
        records = [item.read() for item in items]
        options, interrupted, where = recording.options, False, f"recording {values['from_'].name}"
    else:
        from epdoctor.cli.gather import gather

        gathered = gather(choice, values)
        records, options = gathered.records, gathered.recording.options
        interrupted, where = gathered.interrupted, gathered.recording.source
    nodes = {
        record.node: Node(record.node, record.source(), goal, options)
        for record in records
        if record.reached or record.probes
    }
    return nodes, [record.outcome for record in records], interrupted, where


def _launch(values: dict[str, Any], nodes: dict[str, Any]) -> tuple[LaunchSet, list[str]]:
    notes: list[str] = []
    if values["running"]:
        from epdoctor.launch.running import read_running

        launch = read_running(nodes)
        if not launch.servers and not launch.trouble:
            raise UsageError(
                "no vLLM server runs on these nodes",
                hint="epdoctor lint --running -i inventory.ini --become   # other users' processes",
            )
        launch = replace(
            launch, nodes=nodes, live=True, vllm_version=values["vllm_version"] or launch.vllm_version
        )
    else:
        from epdoctor.launch.read import read_launch

        launch = read_launch(
            values["launch"],
            argv=values["command"],
            env_files=[str(path) for path in values["env_files"]],
            vllm_version=values["vllm_version"] or "",
        )
        if nodes:
            from epdoctor.launch.onto_nodes import place_servers

            launch, notes = place_servers(launch, nodes)
    if values["model_config"] is not None:
        launch = replace(launch, model_config=read_model_config(values["model_config"], "--model-config"))
    if values["gpu_memory"] is not None:
        launch = replace(launch, gpu_memory_bytes=values["gpu_memory"])
    return launch, notes


def judge(launch: LaunchSet, checks: dict[str, Check], goal: Goal, outcomes: list[NodeOutcome]) -> Report:
    """Every launch check on what was read."""
    from epdoctor.compat import catalogue_date
    from epdoctor.engine import Engine
    from epdoctor.launch.judge import newest_version
    from epdoctor.launch.layout import across_nodes, fleets

    multinode = any(across_nodes(servers) for servers in fleets(launch))
    goal = replace(goal, multinode=multinode, multinode_reason="the launch")
    findings = [_plain(finding, launch) for finding in Engine(checks, goal).judge_launch(launch)]
    report = Report(goal, outcomes, findings, checks, source=_summary(launch))
    report.catalogue_date = catalogue_date()
    versions = {launch.vllm_version} - {""} or {server.vllm_version for server in launch.servers} - {""}
    for version in sorted(versions):
        report.vllm_versions[version] = [s.name for s in launch.servers if s.vllm_version in (version, "")]
    if not versions and launch.servers:
        report.warnings.append(
            f"no vLLM version is named: judged as {newest_version()} (--vllm VERSION for another one)"
        )
    return report


def _plain(finding: Finding, launch: LaunchSet) -> Finding:
    """Without back ends: a launch has its own. Without servers, one finding says so."""
    if not launch.servers and finding.status is Status.UNKNOWN and finding.check != "launch.was-read":
        return replace(finding, status=Status.SKIP, reason="no server was read")
    return replace(finding, blocks=())


def _summary(launch: LaunchSet) -> str:
    """ "2 servers, EP 16 = TP 1 x DP 16" for the report's first line."""
    from epdoctor.launch.layout import fleets, layout_of, switch_of

    sizes: dict[str, int] = {}
    for servers in fleets(launch):
        try:
            layout = layout_of(servers[0])
            expert = switch_of(servers[0], "enable-expert-parallel")
        except Unmeasured:
            continue
        parts = f"TP {layout.tensor} x DP {layout.data}" + (
            f" x PCP {layout.context}" if layout.context > 1 else ""
        )
        text = f"EP {layout.expert} = {parts}" if expert else parts
        sizes[text] = sizes.get(text, 0) + 1
    number = len(launch.servers)
    what = f"{number} {'live ' if launch.live else ''}server{'s' if number != 1 else ''}"
    shown = [f"{count} x ({text})" if count > 1 else text for text, count in list(sizes.items())[:3]]
    return ", ".join([what, *shown])


def _other_backend(launch: LaunchSet, goal: Goal) -> list[str]:
    """Where --backend names another back end than the launch has."""
    if not goal.backend:
        return []
    from epdoctor.launch.judge import backend_of

    other: dict[str, str] = {}
    for server in launch.servers:
        try:
            found = backend_of(launch, server)
        except Unmeasured:
            continue
        if found != goal.backend:
            other.setdefault(found, str(server.location))
    return [f"--backend {goal.backend}: {where} runs {found}" for found, where in other.items()]
