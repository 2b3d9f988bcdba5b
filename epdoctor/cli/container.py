"""`epdoctor container`: what the host has and the container lacks, as one table."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from epdoctor.cli.options import node_choice, node_options
from epdoctor.collect.record import Record
from epdoctor.container_table import Row, compare, run_options, same_machine
from epdoctor.exceptions import UsageError
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions
from epdoctor.model import Goal


@dataclass(frozen=True)
class Pair:
    """One host and its container; `error` where one of them was not reached or they do not belong together."""

    host: str
    container: str
    runtime: str
    rows: list[Row]
    error: str = ""


@click.command("container")
@node_options
@click.option(
    "--from",
    "from_",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A recording of the host instead.",
)
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="FILE", help="With --from: one of the container."
)
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
def container_command(from_: Path | None, against: Path | None, format_: str, **values: Any) -> int:
    """What does the container lack that its host has?

    Looks twice, on the host and through --via, and prints one table.

    \b
    epdoctor container --via 'podman exec -i vllm'                       on this machine
    epdoctor container -i inventory.ini --via 'ssh {node} docker exec -i vllm'
    epdoctor container --from host.tar.gz --against container.tar.gz     recordings
    """
    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    if (from_ is None) != (against is None):
        raise UsageError("--from and --against go together: the host's recording and the container's")
    if from_ is not None and against is not None:
        if values["via"] or values["inventory"] or values["all_nodes"]:
            raise UsageError(
                "--from and --against judge recordings; they do not go with --via, -i or --all-nodes"
            )
        pairs = _recorded(from_, against)
        again = "epdoctor check --from " + shlex.quote(str(against))
    else:
        if not values["via"]:
            raise UsageError(
                "--via says how to reach the container", hint="epdoctor container --via 'podman exec -i NAME'"
            )
        pairs = _live(values)
        again = "epdoctor check --via " + shlex.quote(values["via"])
        for inventory in values["inventory"]:
            again += " -i " + shlex.quote(inventory)
    if format_ == "json":
        sys.stdout.write(
            json.dumps({"schema": 1, "pairs": [asdict(pair) for pair in pairs]}, indent=1) + "\n"
        )
    else:
        sys.stdout.write(_text(pairs, again))
    rows = [row for pair in pairs for row in pair.rows]
    if any(row.state == "lacks" and row.severity == "error" for row in rows):
        return 1
    return 3 if any(pair.error for pair in pairs) or any(row.state == "unknown" for row in rows) else 0


def _live(values: dict[str, Any]) -> list[Pair]:
    from epdoctor.cli.gather import gather

    choice = node_choice(values)
    named = bool(values["all_nodes"] or values["inventory"] or values["limit"])
    if not named and ("{node}" in choice.via or "{host}" in choice.via):
        raise UsageError("--via has a {node} in it: -i says which nodes", hint="-i 'gpu[01-08]'")
    hosts = gather(replace(choice, via="", all_nodes=named), values)
    inside = gather(choice, values)
    return _pairs(hosts.records, inside.records, hosts.recording.options)


def _recorded(host: Path, container: Path) -> list[Pair]:
    from epdoctor.collect.store import load

    recording, ours = load(host)
    _, theirs = load(container)
    return _pairs([item.read() for item in ours], [item.read() for item in theirs], recording.options)


def _pairs(hosts: list[Record], inside: list[Record], options: CollectOptions) -> list[Pair]:
    """By name where there are several, else the one with the one."""
    if len(hosts) == len(inside) == 1:
        return [_pair(hosts[0], inside[0], options)]
    by_name = {record.node: record for record in inside}
    missing = [record.node for record in hosts if record.node not in by_name]
    if missing:
        raise UsageError(
            f"no container is recorded for {missing[0]}: names of hosts and containers must be the same"
        )
    return [_pair(record, by_name[record.node], options) for record in hosts]


def _pair(host: Record, container: Record, options: CollectOptions) -> Pair:
    for what, record in (("host", host), ("container", container)):
        if record.outcome.error:
            return Pair(host.node, container.node, "", [], f"{what}: {record.outcome.error}")
    ours, theirs = (Node(record.node, record.source(), Goal(), options) for record in (host, container))
    error = same_machine(ours, theirs)
    if error:
        return Pair(host.node, container.node, "", [], error)
    return Pair(host.node, container.node, theirs.container.runtime, compare(ours, theirs))


_MARKS = {"lacks": ("✗", "x"), "unknown": ("?", "?"), "host-lacks": ("-", "-"), "ok": ("✓", "+")}
_ORDER = {"error": 0, "warning": 1, "info": 2, "": 3}


def _text(pairs: list[Pair], again: str) -> str:
    import textwrap

    from epdoctor.cli.terminal import columns, speaks_unicode
    from epdoctor.report.sanitize import sanitize

    width = min(columns(sys.stdout), 100)
    mark = {state: marks[not speaks_unicode(sys.stdout)] for state, marks in _MARKS.items()}
    mark["warning"], mark["info"] = "!", "i"
    lines: list[str] = []
    for pair in pairs:
        title = f"{sanitize(pair.container)} against its host {sanitize(pair.host)}"
        lines.append(title + (f" ({sanitize(pair.runtime)})" if pair.runtime else ""))
        if pair.error:
            lines += [f"{mark['unknown']} {sanitize(pair.error)}", ""]
            continue
        rows = sorted(pair.rows, key=lambda row: (list(_MARKS).index(row.state), _ORDER[row.severity]))
        left = max(len(row.name) for row in rows) + 2
        middle = max(4, *(min(len(row.host), 22) for row in rows)) + 2
        lines.append(f"  {''.ljust(left)}{'host'.ljust(middle)}container")
        for row in rows:
            sign = mark.get(row.severity, mark[row.state])
            host = sanitize(row.host, 20) if len(row.host) > 22 else sanitize(row.host)
            lines.append(
                f"{sign} {row.name.ljust(left)}{host.ljust(middle)}{sanitize(row.container, 60)}"[:width]
            )
        lines.append("")
        for row in rows:
            if row.state == "lacks":
                lines.append(f"{mark.get(row.severity, mark['lacks'])} {row.name}")
                lines += textwrap.wrap(
                    row.so, width, initial_indent="    so        ", subsequent_indent=" " * 14
                )
                give = row.pod if pair.runtime == "kubernetes" else " ".join(row.flags)
                lines.append(f"    give it   {give}")
        options = run_options(pair.rows, pair.runtime)
        if options:
            lines.append("")
            if pair.runtime == "kubernetes":
                lines += ["in the pod:", *(f"    {option}" for option in options)]
            else:
                tool = pair.runtime if pair.runtime in ("docker", "podman") else "docker"
                command = f"{tool} run {' '.join(options)} ..."
                lines += textwrap.wrap(
                    command,
                    width,
                    initial_indent="start it   ",
                    subsequent_indent=" " * 15,
                    break_on_hyphens=False,
                )
        if any(row.state == "host-lacks" for row in rows):
            lines.append(f"{mark['host-lacks']} not on the host either: epdoctor check")
    lines.append(f"next       {again}")
    return "\n".join(lines) + "\n"
