"""`epdoctor report`: a recording or a saved report in any format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from epdoctor.cli.options import judge_options
from epdoctor.cli.outputs import ReportCommand, chosen_outputs, output_options
from epdoctor.exceptions import UsageError

_JUDGING = (
    "backend",
    "vllm_version",
    "multinode",
    "select",
    "ignore",
    "profile",
    "site_checks",
    "waiver_file",
)


@click.command("report", cls=ReportCommand)
@click.option(
    "--from",
    "from_",
    type=click.Path(path_type=Path),
    metavar="REPORT.json|RECORDING",
    help="What check --format json wrote, a recording, or vLLM's collect_env text.",
)
@judge_options
@output_options
@click.option("--formats", is_flag=True, help="List the formats and stop.")
def report_command(from_: Path | None, formats: bool, **values: Any) -> int:
    """Write a saved report, or a recording, in any format.

    \b
    epdoctor report --from report.json -o markdown=report.md -o junit=report.xml
    epdoctor report --from cluster.tar.gz --format sarif

    A saved report is written as it was judged; a recording is judged now, as check --from does. The exit
    code is that of the check.
    """  # fmt: skip
    if formats:
        from epdoctor.report.formats import format_names, summary

        for name in format_names():
            click.echo(f"{name:<12}{summary(name)}")
        return 0
    if from_ is None:
        raise UsageError("--from is missing", hint="epdoctor report --from report.json --format markdown")
    from epdoctor.report.saved import is_report

    if not is_report(from_):
        from epdoctor.cli.check import check_command

        given = check_command.make_context("check", [], parent=click.get_current_context().parent).params
        assert check_command.callback is not None
        result = check_command.callback(**{**given, **values, "from_": from_})
        assert isinstance(result, int)
        return result
    set_ = [name for name in _JUDGING if values[name] not in (None, (), "")]
    if set_:
        raise UsageError(
            f"{from_} is a report, judged already: --backend, --select and their like are for a recording",
            hint=f"epdoctor report --from {from_} --format text",
        )
    from epdoctor.report.saved import load_report

    outputs = chosen_outputs(values)
    report = load_report(from_)
    report.fail_on_expired_waiver |= values["fail_on_expired_waiver"]
    return outputs.write(report)
