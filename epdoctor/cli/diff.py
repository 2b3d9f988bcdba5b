"""`epdoctor diff`: what changed between two recordings or reports, or since it worked."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from epdoctor.cli.options import choose_checks, goal_from, judge_options
from epdoctor.compare.side import Side, recorded_side, saved_side
from epdoctor.config import load_config
from epdoctor.exceptions import UsageError
from epdoctor.model import Check, Report, Severity
from epdoctor.report.summary import exit_code

if TYPE_CHECKING:
    from epdoctor.cli.outputs import Output
    from epdoctor.compare.difference import Difference

FORMATS = ("text", "json")


@click.command("diff")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[A] [B]")
@click.option(
    "--last-good",
    is_flag=True,
    help="Against the latest kept recording that was green. Without B: the newest one.",
)
@judge_options
@click.option("--format", "format_", metavar="FORMAT", default="", help="text or json.")
@click.option("-o", "--output", "files", multiple=True, metavar="[FORMAT=]FILE", help="Write it to a file.")
@click.option("-v", "--verbose", is_flag=True, help="Every change.")
def diff_command(paths: tuple[Path, ...], last_good: bool, **values: Any) -> int:
    """What changed? Findings and facts that appeared, went or changed, folded over the nodes.

    \b
    epdoctor diff good.tar.gz bad.tar.gz        recordings (epdoctor collect)
    epdoctor diff monday.json today.json        reports (check --format json): findings only
    epdoctor diff --last-good                   what changed since it worked

    Recordings are judged now, by the same checks. Times, counters and process ids are no difference.
    Exit code: 0 the same, 1 different, 2 usage.
    """  # fmt: skip
    from epdoctor.cli.outputs import parse_outputs

    outputs = parse_outputs(values["format_"], values["files"], FORMATS)
    if last_good:
        if len(paths) > 1:
            raise UsageError("--last-good takes one recording at most", hint="epdoctor diff --last-good")
        before, after, notes = _last_good(paths, values)
    else:
        if len(paths) != 2:
            raise UsageError(
                f"diff compares two recordings or reports; {len(paths)} given",
                hint="epdoctor diff good.tar.gz bad.tar.gz   # or: epdoctor diff --last-good",
            )
        before, after = _sides(paths[0], paths[1], values)
        notes = []
    from epdoctor.compare.difference import difference

    found = difference(before, after)
    found.notes[:0] = notes
    failed = 0
    for output in outputs:
        failed += _write(
            output, before, after, found, values["verbose"], "last good" if last_good else "before"
        )
    return (0 if found.same else 1) if not failed else 2


# ---------------------------------------------------------------- sides


def _sides(a: Path, b: Path, values: dict[str, Any]) -> tuple[Side, Side]:
    from epdoctor.report.saved import is_report

    reports = {path: is_report(path) for path in (a, b)}
    asked = [name for name in ("backend", "vllm_version", "multinode", "profile") if values[name]]
    asked += [name for name in ("select", "ignore") if values[name]]
    if all(reports.values()) and asked:
        raise UsageError(
            "both are reports, judged already: --backend, --select and their like are for recordings",
            hint=f"epdoctor diff {a} {b}",
        )
    saved = {path: saved_side(str(path), path) for path, is_one in reports.items() if is_one}
    # A recording beside a report is judged for what the report was.
    like = next(iter(saved.values())).report if saved and not asked else None
    judge = _Judge(values, like)
    first, second = (saved[path] if reports[path] else judge.side(path) for path in (a, b))
    return first, second


class _Judge:
    """Judges recordings by one choice of checks and one goal."""

    def __init__(self, values: dict[str, Any], like: Report | None = None) -> None:
        from epdoctor.cli.check import chosen_waivers

        config = load_config()
        chosen = choose_checks(values, config)
        self.checks: dict[str, Check] = chosen.checks
        self.goal, _ = goal_from(values, config, chosen.backend)
        self.multinode = values["multinode"]
        self.waivers = chosen_waivers(values, config, chosen.known)
        self.fail_on = Severity(values["fail_on"])
        self.selected = chosen.selected
        if like is not None:
            self.goal = replace(
                self.goal,
                backend=like.goal.backend,
                requested_backend=like.goal.requested_backend,
                vllm_version=like.goal.vllm_version,
            )
            self.multinode = like.goal.multinode
            known = {name: check for name, check in chosen.known.items() if name in like.checks}
            self.checks = known or self.checks
            self.selected = like.selected

    def side(self, path: Path) -> Side:
        side = recorded_side(
            str(path), path, self.checks, self.goal, self.multinode, self.fail_on, self.waivers
        )
        side.report.selected = self.selected
        return side


def _last_good(paths: tuple[Path, ...], values: dict[str, Any]) -> tuple[Side, Side, list[str]]:
    from epdoctor.compare.last_good import asked_of, kept, last_good, newest
    from epdoctor.report.saved import is_report

    if paths and is_report(paths[0]):
        raise UsageError(
            f"{paths[0]} is a report; --last-good compares recordings", hint="epdoctor diff --last-good"
        )
    of = kept(paths[0]) if paths else newest()
    own = asked_of(values)
    defaults = asked_of({**dict.fromkeys(own), "select": (), "ignore": (), "profile": "", "fail_on": "error"})
    asked = own if own != defaults or not of.asked else asked_of(of.asked)
    judge = _Judge({**values, **{k: tuple(v) if isinstance(v, list) else v for k, v in asked.items()}})

    def is_green(path: Path) -> bool:
        return exit_code(judge.side(path).report) == 0

    good, notes = last_good(of, asked, is_green)
    before, after = judge.side(good.path), judge.side(of.path)
    if exit_code(before.report) != 0:
        notes.append("it was good when it was made; today's catalogue or waivers judge it otherwise")
    if exit_code(after.report) == 0:
        notes.append("the newest recording is good, too")
    return before, after, notes


# ---------------------------------------------------------------- writing


def _write(output: Output, a: Side, b: Side, found: Difference, verbose: bool, first: str) -> int:
    """0, or 1 where a file could not be written: then the old one is whole."""
    from epdoctor.cli import terminal
    from epdoctor.report.diff_json import render_diff_json
    from epdoctor.report.diff_text import DiffText, judge_command

    path = output.path
    text = DiffText(
        a,
        b,
        found,
        width=100 if path else terminal.columns(sys.stdout),
        unicode=bool(path) or terminal.speaks_unicode(sys.stdout),
        verbose=verbose,
        judge=judge_command(b),
        first=first,
    )
    if path:
        from epdoctor.cli.output_file import failure, write_output
        from epdoctor.report.sanitize import sanitize

        try:
            write_output(path, [render_diff_json(a, b, found) if output.format == "json" else text.plain()])
        except OSError as error:
            click.echo(f"epdoctor: {sanitize(failure(path, error))}", err=True)
            return 1
        return 0
    if output.format == "json":
        click.echo(render_diff_json(a, b, found), nl=False)
    else:
        terminal.print_lines(text)
    return 0
