"""Where a report goes: --format, -o FORMAT=FILE, node lists, the exit code. Wrong words are found before the run."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import click

from epdoctor.cli.output_file import (
    STANDARD_OUTPUT,
    descriptor,
    failure,
    identity,
    is_stream,
    refuse_unwritable,
    write_output,
)
from epdoctor.exceptions import EpdoctorError, UsageError
from epdoctor.model import Report
from epdoctor.report.formats import format_names

F = TypeVar("F", bound=Callable[..., Any])

# A suffix that promises another form than text: "-o report.json" alone does not say which is wanted.
_SUFFIXES = {
    ".json": "json", ".sarif": "sarif", ".xml": "junit", ".csv": "csv", ".md": "markdown", ".html": "html",
    ".htm": "html", ".prom": "prometheus",
}  # fmt: skip
_NODE_NAME = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:@/%-]{0,252}")
"""Also user@host, namespace/pod and ::1, as --via takes them. Nothing that a shell or an option parser reads."""
_SUMMARY_BYTES = 1_000_000
"""GitHub takes 1 MiB a step (docs.github.com, job summaries)."""


def _complete_format(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in format_names() if name.startswith(incomplete)]


_FORMAT_HELP = f"How to print it: {', '.join(format_names())}."
_OPTIONS = [
    click.option("--format", "format_", metavar="FORMAT", default="", shell_complete=_complete_format, help=_FORMAT_HELP),
    click.option("-o", "--output", "outputs", multiple=True, metavar="[FORMAT=]FILE", help="Write a report to a file. FORMAT=FILE may be repeated; FILE alone takes --format."),
    click.option("--nodes-pass", metavar="FILE", default="", help="Write the nodes that passed, one a line."),
    click.option("--nodes-fail", metavar="FILE", default="", help="Write the nodes that failed or were not reached, one a line (srun --exclude)."),
    click.option("--exit-code", "exit_code_style", type=click.Choice(["standard", "nagios"]), default=None, help="nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."),
    click.option("-v", "--verbose", is_flag=True, help="Evidence, notes, what does not apply and why."),
]  # fmt: skip


def output_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True)
class Output:
    """One report to write: format, and file ("" = standard output)."""

    format: str
    path: str


@dataclass(frozen=True)
class Outputs:
    """Everything that a run writes, known to be writable when the run began."""

    reports: tuple[Output, ...]
    nodes_pass: str
    nodes_fail: str
    nagios: bool
    verbose: bool

    @property
    def draws(self) -> bool:
        """A form with pictures of the nodes is among them: their topology is kept."""
        return any(output.format == "html" for output in self.reports)

    def write(self, report: Report, *, last: bool = True) -> int:
        """Write all of it, files first; returns the exit code.

        A file that cannot be written after all is said on standard error, and keeps what it held. A reader that has
        left (`| head`) changes no exit code; where more reports would follow, BrokenPipeError is raised."""
        from epdoctor.report.formats import render

        wrong = 0
        files = [output for output in self.reports if output.path]
        screen = [output for output in self.reports if not output.path]
        style = _style(self.verbose)
        for output in files:
            wrong += _to_file(output.path, render(output.format, report, style))
        for path, passed in ((self.nodes_pass, True), (self.nodes_fail, False)):
            if path:
                wrong += _write_nodes(path, report, passed=passed)
        if any(output.format == "github" for output in self.reports):
            wrong += _job_summary(report)
        for output in screen:
            try:
                wrong += _to_screen(output.format, report, self.verbose)
            except BrokenPipeError:
                if not last:
                    raise
                os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
        code = _exit_code(report, nagios=self.nagios)
        return code or (3 if wrong else 0)


def chosen_outputs(values: dict[str, Any]) -> Outputs:
    """From the options. Raises UsageError: unknown format, two on one file, what cannot be written."""
    lists = (values["nodes_pass"], values["nodes_fail"])
    also = dict(zip(("--nodes-pass", "--nodes-fail"), lists, strict=True))
    reports = parse_outputs(values["format_"], values["outputs"], format_names(), also=also)
    style = values["exit_code_style"] or ("nagios" if values["format_"] == "nagios" else "standard")
    return Outputs(tuple(reports), *lists, style == "nagios", values["verbose"])


def parse_outputs(
    format_: str,
    files: tuple[str, ...],
    formats: tuple[str, ...],
    also: Mapping[str, str] = MappingProxyType({}),
) -> list[Output]:
    """`-o FILE` goes with --format; `-o FORMAT=FILE` may be repeated. `also`: further files of the run, by option.

    An empty `format_` is "not given". Raises UsageError for whatever would fail after the run."""
    from epdoctor.catalog import did_you_mean

    if format_ and format_ not in formats:
        raise UsageError(
            f"--format {format_}: no such format{did_you_mean(format_, formats)}; there are {', '.join(formats)}"
        )
    outputs: list[Output] = []
    plain = ""
    for item in files:
        name, equals, path = item.partition("=")
        if equals and name in formats:
            if not path or path == "-":
                raise UsageError(f"-o {item}: no file is named", hint=f"--format {name} prints it")
            outputs.append(Output(name, path))
        elif equals and re.fullmatch(r"[a-z][a-z0-9]{1,12}", name) and not os.path.exists(item):  # noqa: PTH110 - a name, not yet a path
            raise UsageError(
                f"-o {item}: no format {name!r}{did_you_mean(name, formats)}; there are {', '.join(formats)}"
            )
        elif plain:
            raise UsageError("-o FILE was given twice; use -o FORMAT=FILE for more than one")
        elif not item:
            raise UsageError("-o: no file is named")
        else:
            plain = item
    named = [*(("-o", output.path) for output in outputs), ("-o", plain), *also.items()]
    named = [(option, path) for option, path in named if path]
    # What is sent to /dev/stdout takes the place of the text that would be printed there.
    taken = any(descriptor(path) == STANDARD_OUTPUT for _, path in named)
    if plain or format_ or not taken:
        outputs.insert(0, Output(format_ or "text", plain))
    seen: set[Hashable] = {STANDARD_OUTPUT} if any(not output.path for output in outputs) else set()
    for option, path in named:
        key = identity(path)
        if key in seen and (isinstance(key, int) or not is_stream(path)):
            raise UsageError(f"{option} {path}: two formats on one file", hint="give each a file of its own")
        seen.add(key)
        refuse_unwritable(path, option)
    if plain and not format_:
        meant = plain if plain in formats else _SUFFIXES.get(os.path.splitext(plain)[1].lower(), "")  # noqa: PTH122 - a string
        if meant in formats and meant != "text":
            file = _file_name(meant) if plain in formats else plain
            raise UsageError(
                f"-o {plain}: in which format? The name says {meant}, and without --format it would be text",
                hint=f"-o {meant}={shlex.quote(file)}",
            )
    return [
        Output(output.format, "") if descriptor(output.path) == STANDARD_OUTPUT else output
        for output in outputs
    ]


def _file_name(format_: str) -> str:
    return f"report{next((suffix for suffix, name in _SUFFIXES.items() if name == format_), '.txt')}"


# ---------------------------------------------------------------- writing


def _style(verbose: bool) -> Any:
    from epdoctor.report.formats import Style

    words = sys.argv[1:]
    return Style(verbose=verbose, command="epdoctor " + shlex.join(words) if words else "epdoctor check")


def _to_file(path: str, pieces: Iterable[str]) -> int:
    """0, or 1 where it could not be written: then the old file is whole."""
    try:
        write_output(path, pieces)
    except OSError as error:
        click.echo(f"epdoctor: {_shown(failure(path, error))}", err=True)
        return 1
    return 0


def _to_screen(format_: str, report: Report, verbose: bool) -> int:
    from epdoctor.cli import terminal
    from epdoctor.report.formats import render
    from epdoctor.report.text import TextReport

    style = _style(verbose)
    try:
        if format_ == "text":
            terminal.print_report(
                TextReport(
                    report,
                    width=terminal.columns(sys.stdout),
                    unicode=terminal.speaks_unicode(sys.stdout),
                    verbose=verbose,
                    command=style.command,
                )
            )
        else:
            # What is read by programs is UTF-8, whatever the terminal speaks.
            sys.stdout.flush()
            binary = getattr(sys.stdout, "buffer", None)
            for piece in render(format_, report, style):
                if binary is None:
                    sys.stdout.write(piece)
                else:
                    binary.write(piece.encode("utf-8", "backslashreplace"))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        click.echo(f"epdoctor: standard output: {error.strerror or error}", err=True)
        # What is buffered would fail again, and loudly, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
        return 1
    return 0


def _write_nodes(path: str, report: Report, *, passed: bool) -> int:
    """Names as an inventory, Slurm or a pod has them; what a recording calls a node may be anything, and goes into
    nobody's command line."""
    from epdoctor.report.verdict import Mark, node_verdicts

    wanted = Mark.PASSED if passed else Mark.FAILED
    nodes = [node for node, verdict in node_verdicts(report).items() if verdict is wanted]
    names = [node for node in nodes if _NODE_NAME.fullmatch(node)]
    for node in sorted(set(nodes) - set(names))[:3]:
        click.echo(
            f"epdoctor: not in {_shown(path)}, since it is no node's name: {_shown(node)[:80]!r}", err=True
        )
    return _to_file(path, (f"{name}\n" for name in names))


def _job_summary(report: Report) -> int:
    """Append the markdown form to $GITHUB_STEP_SUMMARY, where there is one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY", "")
    if not path:
        return 0
    from epdoctor.report.formats import render

    text = "".join(render("markdown", report, _style(False))).encode("utf-8", "backslashreplace")
    if len(text) > _SUMMARY_BYTES:
        cut = text[:_SUMMARY_BYTES].rpartition(b"\n### ")[0]
        text = cut + b"\n\nCut: GitHub takes 1 MiB. The whole report is in the log.\n"
    try:
        with open(path, "ab") as file:  # noqa: PTH123 - GitHub's own path
            file.write(text)
    except OSError as error:
        click.echo(f"epdoctor: GITHUB_STEP_SUMMARY {_shown(path)}: {error.strerror or error}", err=True)
        return 1
    return 0


def _exit_code(report: Report, *, nagios: bool) -> int:
    if nagios:
        from epdoctor.report.formats.nagios import nagios_code

        return nagios_code(report)
    from epdoctor.report.summary import exit_code

    return exit_code(report)


def _shown(text: str) -> str:
    from epdoctor.report.sanitize import sanitize

    return sanitize(text)


# ---------------------------------------------------------------- monitoring


class ReportCommand(click.Command):
    """A command whose wrong usage is UNKNOWN for monitoring: Nagios reads exit code 2 as CRITICAL."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        words = list(args)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if _asks_nagios(words):
                _say_unknown(error.format_message())
                raise click.exceptions.Exit(3) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EpdoctorError as error:
            style = ctx.params.get("exit_code_style")
            if style == "nagios" or (style is None and ctx.params.get("format_") == "nagios"):
                _say_unknown(str(error))
                return 3
            raise


def _asks_nagios(words: list[str]) -> bool:
    pairs = set(itertools.pairwise(words))
    asked = {("--exit-code", "nagios"), ("--format", "nagios")} & pairs
    return bool(asked or {"--exit-code=nagios", "--format=nagios"} & set(words))


def _say_unknown(text: str) -> None:
    from epdoctor.report.formats.nagios import plain

    click.echo(f"EPDOCTOR UNKNOWN - {plain(text)}")
