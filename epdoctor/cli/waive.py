"""`epdoctor waive`: accept a finding for a time, with a reason."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import click

from epdoctor.config import load_config
from epdoctor.exceptions import UsageError


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from epdoctor.catalog import load_checks

    return [check_id for check_id in load_checks() if check_id.startswith(incomplete)]


@click.command("waive")
@click.argument("check", shell_complete=_complete)
@click.option(
    "--nodes",
    "-n",
    metavar="PATTERN",
    default="",
    help="gpu03, gpu[05-07], gpu*, !gpu09; default: every node.",
)
@click.option("--reason", "-r", metavar="TEXT", default="", help="Why it is accepted. Needed.")
@click.option(
    "--expires", metavar="DATE|30d", default="", help="Last day on which it counts; default: for ever."
)
@click.option("--owner", metavar="NAME", default="", help="Whom to ask.")
@click.option(
    "--waivers",
    "waiver_file",
    metavar="FILE",
    default="",
    help="Default: [waivers] file in epdoctor.toml, else ./waivers.yaml.",
)
@click.option(
    "--checks",
    "site_checks",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Your site's own checks, too.",
)
def waive_command(check: str, **values: Any) -> int:
    """Accept a finding: it stays in every report and no longer fails the run.

    \b
    epdoctor waive gpudirect.memory-registrable --nodes gpu03 --reason 'driver swap on the 12th' --expires 30d
    """  # fmt: skip
    from epdoctor.cli.check import today
    from epdoctor.model import Waiver
    from epdoctor.waivers import DEFAULT_FILE, add_waiver, entry_text, load_waivers, parse_waivers

    reason = " ".join(values["reason"].split())
    if not reason:
        raise UsageError(
            "--reason is missing: whoever reads the report wants to know why",
            hint=f"epdoctor waive {check} --reason 'TICKET-311'",
        )
    day = today()
    waiver = Waiver(
        check.rstrip("."),
        reason,
        ",".join(part.strip() for part in values["nodes"].split(",")) if values["nodes"] else "",
        _expiry(values["expires"], day),
        " ".join(values["owner"].split()),
    )
    checks = _checks(values["site_checks"])
    # Refused with the words of the file's own validation, before the file is opened.
    try:
        parse_waivers(entry_text(waiver).encode(), "", checks, day)
    except UsageError as error:
        raise UsageError(re.sub(r"^:\d+: ", "", str(error)), hint="epdoctor list checks") from error
    path = Path(values["waiver_file"] or load_config().waivers or DEFAULT_FILE)
    if any(_same(known, waiver) for known in (load_waivers(path, checks, day) if path.exists() else ())):
        raise UsageError(f"{path} has this waiver already: change its date or reason there")
    add_waiver(path, waiver, checks, day)
    added = load_waivers(path, checks, day)
    line = next(known.location for known in reversed(added) if _same(known, waiver))
    click.echo(f"{line}\n{entry_text(waiver, '  ')}", nl=False)
    click.echo(f"{len(added)} waiver{'s' if len(added) != 1 else ''} in {path}")
    option = "" if path == Path(DEFAULT_FILE) or load_config().waivers else f" --waivers {path}"
    click.echo(f"next: epdoctor check{option}")
    return 0


def _same(known: Any, waiver: Any) -> bool:
    return (known.check, known.nodes) == (waiver.check, waiver.nodes) and not known.expired


def _expiry(text: str, day: datetime.date) -> str:
    """A date, or days, weeks and months from today: 30d, 2w, 6m."""
    text = text.strip()
    if not text:
        return ""
    match = re.fullmatch(r"(\d{1,4})([dwm])", text)
    try:
        if match:
            last = day + datetime.timedelta(days=int(match[1]) * {"d": 1, "w": 7, "m": 30}[match[2]])
        else:
            last = datetime.date.fromisoformat(text)
    except (ValueError, OverflowError):
        last = None
    if last is None or (not match and last.isoformat() != text):
        raise UsageError(
            f"--expires {text[:40]!r} is neither a date such as {day.year + 1}-01-31 nor 30d, 2w or 6m"
        )
    if last < day:
        raise UsageError(f"--expires {last} is past: the waiver would waive nothing")
    return last.isoformat()


def _checks(folder: Path | None) -> dict[str, Any]:
    from epdoctor.catalog import load_checks
    from epdoctor.compare.baseline_check import CHECK_ID, check_of
    from epdoctor.site_checks import installed_checks, load_site_checks

    checks = {**load_checks(), **installed_checks()[0], CHECK_ID: check_of()}
    return {**checks, **load_site_checks(folder)} if folder is not None else checks
