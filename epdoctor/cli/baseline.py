"""`epdoctor baseline save`: what good nodes look like, in a file for `check --baseline`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from epdoctor.cli.options import node_choice, node_options
from epdoctor.exceptions import EpdoctorError, UsageError
from epdoctor.facts.base import CollectOptions
from epdoctor.model import Goal


@click.group("baseline")
def baseline_command() -> None:
    """Keep what good nodes look like; later, epdoctor check --baseline FILE says what has moved."""


@baseline_command.command("save")
@node_options
@click.option(
    "--from",
    "from_",
    type=click.Path(path_type=Path),
    metavar="RECORDING",
    help="From a recording instead (epdoctor collect).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default="baseline.json",
    show_default=True,
    help="Where to write it.",
)
def save_command(from_: Path | None, output: Path, **values: Any) -> int:
    """Save the facts of this machine, of every node, or of a recording.

    \b
    epdoctor baseline save -o good-node.json                       this machine, for all like it
    epdoctor baseline save --all-nodes -i inventory.ini            each node for itself
    epdoctor baseline save --from monday.tar.gz -o monday.json

    A baseline of one node is what every node is held against. Nothing is judged here: run epdoctor check first.
    """  # fmt: skip
    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    from epdoctor.cli.output_file import failure, is_stream, refuse_unwritable, write_output

    refuse_unwritable(str(output))
    from epdoctor.compare.baseline import baseline_text
    from epdoctor.compare.side import facts_of, record_facts

    choice = node_choice(values)
    if from_ is not None:
        if choice.all_nodes:
            raise UsageError(
                "--from reads a recording; it does not go with --all-nodes, -i, --limit or --via"
            )
        from epdoctor.collect.store import load
        from epdoctor.report.saved import is_report

        if is_report(from_):
            raise UsageError(
                f"{from_} is a report, which holds no facts", hint="epdoctor collect -o recording.tar.gz"
            )
        recording, items = load(from_)
        facts = facts_of(items, recording.options, Goal())
        missed: list[str] = []
        when = recording.collected_at or items[0].read().collected_at
        source = f"recording {from_.name}"
    else:
        from epdoctor.cli.gather import gather

        gathered = gather(choice, values)
        if gathered.interrupted:
            raise EpdoctorError("interrupted: no baseline was written")
        options: CollectOptions = gathered.recording.options
        facts = dict(filter(None, (record_facts(record, options, Goal()) for record in gathered.records)))
        missed = [f"{r.node}: {r.outcome.error}" for r in gathered.records if not r.reached]
        when, source = gathered.recording.collected_at, gathered.recording.source
    if not facts:
        raise EpdoctorError(
            "no node was reached: no baseline was written" + "".join(f"; {m}" for m in missed[:3])
        )
    content = baseline_text(facts, source=source, collected_at=when)
    try:
        write_output(str(output), [content])
    except OSError as error:
        raise EpdoctorError(failure(str(output), error)) from error
    for line in missed:
        click.echo(f"not in it: {_clean(line)}", err=True)
    nodes = "1 node" if len(facts) == 1 else f"{len(facts)} nodes"
    more = " --all-nodes" if len(facts) > 1 or values["inventory"] else ""
    more += "".join(f" -i {shlex.quote(str(item))}" for item in values["inventory"])
    apart = is_stream(str(output))  # what is read from there is the baseline alone
    click.echo(f"{nodes}, {len(content) // 1024 or 1} KiB in {_clean(str(output))}", err=apart)
    click.echo(_clean(f"next       epdoctor check{more} --baseline {shlex.quote(str(output))}"), err=apart)
    return 3 if missed else 0


def _clean(text: str) -> str:
    from epdoctor.report.sanitize import sanitize

    return sanitize(text)
