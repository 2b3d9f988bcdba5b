"""`epdoctor bench`: climb the ladder of active tests over SSH, and name the first layer that breaks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from epdoctor.cli.options import NodeChoice, goal_from, node_choice, node_options, seconds
from epdoctor.exceptions import EpdoctorError
from epdoctor.model import Status

if TYPE_CHECKING:
    from epdoctor.bench.results import LayerResult

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
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.option("-v", "--verbose", is_flag=True, help="Every measurement.")
def bench_command(**values: Any) -> int:
    """Prove that the nodes can talk as expert parallelism needs it, layer by layer.

    \b
    epdoctor bench -i inventory.ini                    TCP, verbs and RDMA bandwidth between all nodes
    epdoctor bench -i inventory.ini --gpu              also NCCL, NVSHMEM, DeepEP and NIXL on the GPUs
    epdoctor bench --gpu                               this machine's own GPUs

    Starts programs on the nodes and ends them; installs nothing and changes nothing.
    """  # fmt: skip
    from epdoctor.bench.expect import load_expectations
    from epdoctor.bench.ladder import choose
    from epdoctor.bench.pairs import rounds
    from epdoctor.cli.options import split_words

    chosen = choose(split_words(values["layers"]))
    rounds(["a", "b"], values["pairs"])
    load_expectations(values["expect"])
    choice = node_choice(values)
    return _climb(values, choice, chosen)


def _climb(values: dict[str, Any], choice: NodeChoice, chosen: Any) -> int:
    from epdoctor.bench.expect import load_expectations
    from epdoctor.bench.fleet import Fleet
    from epdoctor.bench.ladder import Bench, climb
    from epdoctor.cli import terminal
    from epdoctor.cli.gather import gather
    from epdoctor.facts import Node
    from epdoctor.judge import decide_multinode, has_rdma
    from epdoctor.report.bench_text import head_line, layer_lines
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
    quiet = values["format_"] == "json"
    unicode = terminal.speaks_unicode(sys.stdout)

    def say(text: str) -> None:
        if not quiet:
            click.echo(text)

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
            say(
                f"ladder on {len(bench.alive)} node{'s' if len(bench.alive) != 1 else ''}, budget {values['budget_s']:.0f} s"
            )
            say("")
            for layer in climb(bench, chosen):
                progress.clear()
                done.append(layer)
                for line in layer_lines(layer, verbose=values["verbose"], unicode=unicode):
                    say(line)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            progress.clear()
    missing = {**{node: outcome.error for node, outcome in missed.items()}, **lost}
    code = _exit_code(done, missing, interrupted)
    seconds = time.monotonic() - began
    if quiet:
        report = {
            "schema_version": 1, "seconds": round(seconds, 2), "exit_code": code, "interrupted": interrupted,
            "nodes": sorted(nodes), "missing": missing,
            "layers": [{**asdict(layer), "status": layer.status.value} for layer in done],
        }  # fmt: skip
        click.echo(json.dumps(report, indent=1))
        return code
    say("")
    for node, why in missing.items():
        say(f"? {sanitize(node)}: {sanitize(why)}")
    say(("INTERRUPTED  " if interrupted else "") + head_line(done) + f"   {seconds:.1f} s")
    following = _next(done)
    if following:
        say(f"next      {sanitize(following)}")
    return code


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


def _next(layers: Sequence[LayerResult]) -> str:
    broken = next((layer for layer in layers if layer.status is Status.FAIL), None)
    if broken is not None:
        pages = [cause for cause, _ in broken.causes] + list(broken.checks)
        return broken.next or (f"epdoctor explain {pages[0]}" if pages else "epdoctor check --all-nodes")
    if any(layer.reason.endswith("--gpu") for layer in layers):
        return "epdoctor bench --gpu   # while no GPU is in use"
    return ""
