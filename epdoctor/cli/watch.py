"""`epdoctor check --watch`: look again and again, say what changed, end when green."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import click

from epdoctor.cli.check import Look
from epdoctor.cli.outputs import Outputs
from epdoctor.exceptions import UsageError
from epdoctor.model import Report
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import exit_code
from epdoctor.report.verdict import headline, sentence, tally

_CLEAR = "\x1b[H\x1b[2J"
_SHOWN = 8


def refuse_watch(outputs: Outputs) -> None:
    """Raises UsageError for forms that cannot be drawn again and again."""
    for output in outputs.reports:
        if not output.path and output.format != "text":
            raise UsageError(
                f"--watch draws text; --format {output.format} does not go with it",
                hint=f"epdoctor check --watch 30s -o {output.format}=FILE   # written anew at each look",
            )
        if output.format == "github":
            raise UsageError("--watch does not go with github: each look would add to the job's summary")


def watch(look: Callable[[], Look], outputs: Outputs, every_s: float, *, until_pass: bool) -> int:
    """Look, draw, wait, until Ctrl-C (130) or, with `until_pass`, until nothing is left to mend (0).

    Every look makes new connections: limits and groups that were changed count for new sessions only. Only the
    last report is held."""
    live = sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"
    last: Report | None = None
    while True:
        try:
            seen = look()
        except KeyboardInterrupt:
            return _interrupted(live)
        report = seen.report
        if report.interrupted and last is not None:
            # What is on the screen is whole; what was cut off is not drawn over it.
            return _interrupted(live)
        changes = _changes(last, report) if last is not None else []
        if last is None or changes:
            seen.keep()
        code = _draw(report, outputs, changes, live=live, first=last is None)
        if report.interrupted:
            return 130
        if until_pass and exit_code(report) == 0:
            click.echo(f"\n{_clock()}  nothing is left to mend" if code == 0 else "")
            return code
        last = report
        try:
            if live:
                ends = " until it passes" if until_pass else ""
                click.echo(f"\nnext look in {every_s:g} s{ends}, Ctrl-C ends")
            time.sleep(every_s)
        except KeyboardInterrupt:
            return _interrupted(live)


def _draw(report: Report, outputs: Outputs, changes: list[str], *, live: bool, first: bool) -> int:
    """On a terminal over the last one; elsewhere a block, or a line where nothing changed."""
    if not first and not changes and not live:
        counts = tally(report)
        click.echo(f"{_clock()}  no change: {headline(report, counts)}, {sentence(counts)}")
        return exit_code(report)
    if live:
        sys.stdout.write(_CLEAR)
    elif not first:
        click.echo(f"\n{_clock()}  changed")
    sys.stdout.flush()
    code = outputs.write(report, last=False)
    if not first:
        click.echo(f"\n{_clock()}  since the last look: " + ("" if changes else "no change"))
        for line in changes[:_SHOWN]:
            click.echo(f"  {line}")
        if len(changes) > _SHOWN:
            click.echo(f"  and {len(changes) - _SHOWN} more")
    return code


def _changes(before: Report, after: Report) -> list[str]:
    """One line each, the worst first."""
    from epdoctor.compare.difference import difference
    from epdoctor.compare.side import Side
    from epdoctor.nodenames import fold

    found = difference(Side("", before, has_facts=False), Side("", after, has_facts=False))
    words = {
        "appeared": "new",
        "went": "gone",
        "changed": "changed",
        "unknown": "unknown now",
        "known": "known now",
    }
    lines = [f"not reached now: {node}: {error}" for node, error in found.now_unreached.items()]
    lines += [f"reached again: {fold(found.now_reached)}"] if found.now_reached else []
    lines += [f"new node: {fold(found.nodes_new)}"] if found.nodes_new else []
    lines += [f"gone: {fold(found.nodes_gone)}"] if found.nodes_gone else []
    for change in found.findings:
        where = f" on {fold(change.nodes)}" if change.nodes else ""
        lines.append(f"{words[change.kind]}: {change.check}{where}")
    return [sanitize(line, 200) for line in lines]


def _interrupted(live: bool) -> int:
    click.echo("" if live else "interrupted", err=True)
    return 130


def _clock() -> str:
    return time.strftime("%H:%M:%S")
