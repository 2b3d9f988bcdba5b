"""`epdoctor bench`: climb the ladder of active tests over SSH, and name the first layer that breaks."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from epdoctor.cli.options import NodeChoice, goal_from, node_choice, node_options, seconds
from epdoctor.exceptions import EpdoctorError
from epdoctor.model import Status

if TYPE_CHECKING:
    from epdoctor.bench.results import LadderReport, LayerResult
    from epdoctor.cli.outputs import Output

FORMATS = ("text", "json", "html")
CONNECT_S = 60.0
"""For all nodes together, to log in and start the worker."""


@click.command("bench")
@node_options
@click.option("--backend", metavar="NAME", help="vLLM's --all2all-backend; it decides what must work.")
@click.option("--vllm", "vllm_version", metavar="VERSION", help="vLLM version to judge for.")
@click.option(
    "--layers", multiple=True, metavar="N|NAME|N-M", help="Only these layers. Repeatable, commas too."
)
@click.option(
    "--pairs", default="full", show_default=True, metavar="ring|full|N", help="Who measures with whom."
)
@click.option("--gpu", is_flag=True, help="Also the layers that occupy GPUs; refused where a GPU is in use.")
@click.option(
    "--budget",
    "budget_s",
    default="90s",
    show_default=True,
    metavar="TIME",
    callback=seconds(1, 86400),
    help="Time for all layers together.",
)
@click.option(
    "--expect",
    type=click.Path(exists=True, dir_okay=False),
    metavar="TABLE",
    help="Your own expectations (YAML, as checks/compat/bench.yaml).",
)
@click.option("--keep-going", is_flag=True, help="Climb on above a broken layer.")
@click.option("--format", "format_", type=click.Choice(FORMATS), default=None, help="Default: text.")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="[FORMAT=]FILE",
    help="Write a report to a file, as html=report.html. Repeatable.",
)
@click.option("-v", "--verbose", is_flag=True, help="Every measurement.")
def bench_command(**values: Any) -> int:
    """Prove that the nodes can talk as expert parallelism needs it, layer by layer.

    \b
    epdoctor bench -i inventory.ini                    TCP, verbs and RDMA bandwidth between all nodes
    epdoctor bench -i inventory.ini --gpu              also NCCL, NVSHMEM, DeepEP and NIXL on the GPUs
    epdoctor bench --gpu                               this machine's own GPUs
    epdoctor bench -i inventory.ini -o html=bench.html  also a page with heat maps

    Starts programs on the nodes and ends them; installs nothing and changes nothing.
    """  # fmt: skip
    from epdoctor.bench.expect import load_expectations
    from epdoctor.bench.ladder import choose
    from epdoctor.bench.pairs import rounds
    from epdoctor.cli.options import split_words
    from epdoctor.cli.outputs import parse_outputs

    outputs = parse_outputs(values["format_"] or "", values["outputs"], FORMATS)
    chosen = choose(split_words(values["layers"]))
    rounds(["a", "b"], values["pairs"])
    load_expectations(values["expect"])
    choice = node_choice(values)
    return _climb(values, choice, chosen, outputs)


def _climb(values: dict[str, Any], choice: NodeChoice, chosen: Any, outputs: Sequence[Output]) -> int:
    from epdoctor.bench.expect import load_expectations
    from epdoctor.bench.fleet import Fleet
    from epdoctor.bench.ladder import Bench, climb
    from epdoctor.cli import terminal
    from epdoctor.cli.gather import gather
    from epdoctor.facts import Node
    from epdoctor.judge import decide_multinode, has_rdma
    from epdoctor.report.bench_text import end_lines, layer_lines, not_run_lines, start_lines
    from epdoctor.report.sanitize import sanitize

    goal, warnings = goal_from(values, choice.config)
    gathered = gather(choice, values)
    if gathered.interrupted:
        return 130
    options = gathered.recording.options
    nodes = {r.node: Node(r.node, r.source(), goal, options) for r in gathered.records if r.probes}
    missed = {r.node: r.outcome for r in gathered.records if r.outcome.error and not r.probes}
    targets = [target for target in gathered.targets if target.name in nodes]
    if not targets:
        first = next(iter(missed.values()))
        raise EpdoctorError(f"no node was reached: {first.error}", hint=first.hint)
    rdma = any(has_rdma(record, options) for record in gathered.records if record.probes)
    goal = decide_multinode(goal, None, len(targets), rdma)
    # Text for the screen is printed as it comes.
    live = any(output.format == "text" and not output.path for output in outputs)
    unicode, width = terminal.speaks_unicode(sys.stdout), terminal.columns(sys.stdout)

    def say(lines: Iterable[str]) -> None:
        if live:
            for line in lines:
                click.echo(line)

    for warning in (*warnings, *gathered.warnings):
        click.echo(f"! {sanitize(warning)}", err=True)
    began = time.monotonic()
    done: list[LayerResult] = []
    interrupted = False
    lost: dict[str, str] = {}

    def lose(node: str, why: str) -> None:
        lost.setdefault(node, why)

    fleet = Fleet(
        targets,
        transport=choice.transport,
        become=choice.become,
        via=gathered.via,
        lifetime_s=CONNECT_S + values["budget_s"] * 1.1 + 30,
        on_lost=lose,
    )
    progress = terminal.LiveLine()
    with fleet:
        try:
            fleet.wait_ready(CONNECT_S)
            for target in targets:
                if fleet[target.name].lost:
                    lost.setdefault(target.name, fleet[target.name].lost)
            bench = Bench(
                fleet, nodes, goal, {t.name: t.address for t in targets},
                pairs=values["pairs"], gpu=values["gpu"], keep_going=values["keep_going"],
                deadline=time.monotonic() + values["budget_s"], watch=progress.show,
                expect=load_expectations(values["expect"]),
            )  # fmt: skip
            say(start_lines(len(bench.alive), values["budget_s"]))
            for layer in climb(bench, chosen):
                progress.clear()
                done.append(layer)
                if not layer.not_run:
                    say(layer_lines(layer, verbose=values["verbose"], unicode=unicode, width=width))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            progress.clear()
    from epdoctor.bench.results import LadderReport

    missing = {**{node: outcome.error for node, outcome in missed.items()}, **lost}
    report = LadderReport(
        tuple(sorted(nodes)), done, missing, time.monotonic() - began, values["budget_s"],
        _exit_code(done, missing, interrupted), interrupted, _next(done, missing, choice, values["budget_s"]),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip
    say(not_run_lines(done, unicode=unicode, width=width))
    say(end_lines(report, width=width))
    wrong = sum(
        _write(output, report, values["verbose"])
        for output in outputs
        if output.path or output.format != "text"
    )
    return report.exit_code or (3 if wrong else 0)


def _write(output: Output, report: LadderReport, verbose: bool) -> int:
    """1 where the file could not be written after all."""
    from epdoctor.cli.output_file import failure, write_output
    from epdoctor.report.bench_html import render_bench_html
    from epdoctor.report.bench_json import render_bench_json
    from epdoctor.report.bench_text import text_lines
    from epdoctor.report.sanitize import sanitize

    pieces: Iterable[str]
    if output.format == "json":
        pieces = [render_bench_json(report)]
    elif output.format == "html":
        pieces = render_bench_html(report)
    else:
        pieces = (f"{line}\n" for line in text_lines(report, verbose=verbose))
    if not output.path:
        for piece in pieces:
            click.echo(piece, nl=False)
        return 0
    try:
        write_output(output.path, pieces)
    except OSError as error:
        click.echo(f"epdoctor: {sanitize(failure(output.path, error))}", err=True)
        return 1
    return 0


def _exit_code(layers: Sequence[LayerResult], missing: dict[str, str], interrupted: bool) -> int:
    """As everywhere: 1 broken, 3 nothing broken but something could not be measured."""
    if interrupted:
        return 130
    found = {layer.status for layer in layers}
    if Status.FAIL in found:
        return 1
    if missing or found & {Status.UNKNOWN, Status.ERROR} or Status.PASS not in found:
        return 3
    return 0


def _next(
    layers: Sequence[LayerResult], missing: Mapping[str, str], choice: NodeChoice, budget_s: float
) -> str:
    """Mend what is broken, reach who is missing, measure what was left out."""
    where = "".join(f" -i {shlex.quote(path)}" for path in choice.inventory)
    check = f"epdoctor check{where or (' --all-nodes' if choice.all_nodes else '')}"
    broken = next((layer for layer in layers if layer.status is Status.FAIL), None)
    if broken is not None:
        if broken.next:
            return broken.next.replace("epdoctor check --all-nodes", check, 1)
        pages = [cause for cause, _ in broken.causes] + list(broken.checks)
        return f"epdoctor explain {pages[0]}" if pages else check
    if missing:
        return f"{check} -l {shlex.quote(','.join(list(missing)[:8]))}" if choice.all_nodes else check
    short = [layer for layer in layers if "--budget" in layer.reason and layer.status is Status.UNKNOWN]
    if short:
        numbers = ",".join(layer.number for layer in short)
        gpu = " --gpu" if any(map(_needs_gpu, short)) else ""
        return f"epdoctor bench{where} --layers {numbers}{gpu} --budget {max(60, round(budget_s * 4))}s"
    unknown = next((layer for layer in layers if layer.status is Status.UNKNOWN), None)
    if unknown is not None:
        return unknown.next.replace("epdoctor bench", f"epdoctor bench{where}", 1) or check
    from epdoctor.bench.ladder import GPU_REASON

    if any(layer.reason == GPU_REASON for layer in layers):
        return f"epdoctor bench{where} --gpu   # while no GPU is in use"
    return ""


def _needs_gpu(layer: LayerResult) -> bool:
    from epdoctor.bench.ladder import layers

    return any(known.needs_gpu for known in layers() if known.number == layer.number)
