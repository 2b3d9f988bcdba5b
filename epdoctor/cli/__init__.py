"""The command line: one module a command, each parses, calls, prints and exits. Commands load lazily."""

from __future__ import annotations

import importlib
import os
import sys

import click

from epdoctor import __version__
from epdoctor.exceptions import EpdoctorError, UsageError

COMMANDS = {
    "check": ("epdoctor.cli.check:check_command", "Is this machine, or the whole cluster, ready?"),
    "collect": ("epdoctor.cli.collect:collect_command", "Record nodes, to judge them later or elsewhere."),
    "container": (
        "epdoctor.cli.container:container_command",
        "What does a container lack that its host has?",
    ),
    "lint": ("epdoctor.cli.lint:lint_command", "Will this launch start? Ranks, back end, flags, manifests."),
    "plan": ("epdoctor.cli.plan:plan_command", "From model and nodes to every node's command."),
    "explain": (
        "epdoctor.cli.explain:explain_command",
        "From an error text to the cause, the proof and the fix.",
    ),
    "provision": (
        "epdoctor.cli.provision:provision_command",
        "Put the nodes in order, prove it, and keep the way back.",
    ),
    "fix": ("epdoctor.cli.fix:fix_command", "Mend what the checks find, by the same playbooks."),
    "rollback": ("epdoctor.cli.rollback:rollback_command", "Undo a run of provision."),
    "bench": ("epdoctor.cli.bench:bench_command", "Prove layer by layer that the nodes can talk."),
    "report": ("epdoctor.cli.report:report_command", "Write a saved report or a recording in any format."),
    "diff": ("epdoctor.cli.diff:diff_command", "What changed, between two looks or since it worked?"),
    "baseline": ("epdoctor.cli.baseline:baseline_command", "Keep what a good node or cluster looks like."),
    "waive": ("epdoctor.cli.waive:waive_command", "Accept a finding for a time, with a reason."),
    "list": ("epdoctor.cli.listing:list_command", "List checks, profiles, back ends and version tables."),
}


class LazyGroup(click.Group):
    """Imports a command's module only when it runs, so that help and completion stay quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from epdoctor.catalog import did_you_mean

            ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 fine, 1 findings, 2 usage or files wrong, 3 could not tell, 130 interrupted.",
)
@click.version_option(__version__, prog_name="epdoctor", message="%(prog)s %(version)s")
def cli() -> None:
    """Checks, prepares and explains GPU clusters for vLLM expert-parallel serving."""


def run() -> None:
    """Run the CLI: one sentence for expected failures, a traceback only for our own bugs."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        _leave(2)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        _leave(130)
    except EpdoctorError as error:
        from epdoctor.report.sanitize import sanitize

        click.echo(f"epdoctor: {sanitize(str(error))}", err=True)
        if error.hint:
            click.echo(f"try: {sanitize(error.hint)}", err=True)
        _leave(2 if isinstance(error, UsageError) else 3)
    except BrokenPipeError:
        # `epdoctor check | head`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _leave(0)
    except Exception:  # noqa: BLE001 - the one place that turns our own bugs into a report
        import traceback

        traceback.print_exc()
        click.echo(
            "\nThis is a bug in epdoctor, not in your cluster. Please report it with the lines above and "
            f"`epdoctor --version` ({__version__}).",
            err=True,
        )
        _leave(3)
    else:
        _leave(code if isinstance(code, int) else 0)


def _leave(code: int) -> None:
    """Flush and go, without waiting for a thread that hangs on a node."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(code)
