"""`epdoctor collect`: record nodes."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import click

from epdoctor.cli.options import node_choice, node_options
from epdoctor.exceptions import UsageError


@click.command("collect")
@node_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.tar.gz",
    help="Default: epdoctor-DATE.tar.gz here.",
)
@click.option(
    "--hash-hosts",
    is_flag=True,
    help="Replace what names machines and people by stand-ins: hosts, addresses, GUIDs, users.",
)
@click.option(
    "--redact",
    type=click.Choice(["default", "strict"]),
    default="default",
    help="strict: --hash-hosts too, for a recording that leaves the house.",
)
@click.option("--show-agent", is_flag=True, help="Print exactly what would run on a node, and stop.")
def collect_command(
    output: Path | None, hash_hosts: bool, redact: str, show_agent: bool, **values: Any
) -> int:
    """Record nodes: a support bundle that `epdoctor check --from` judges anywhere with the same result.

    Secrets are taken out; nothing is changed on the nodes.
    """
    from epdoctor.collect.record import clean
    from epdoctor.collect.store import is_archive_name, save

    if show_agent:
        from epdoctor.collect.plan import build_plan, payload
        from epdoctor.facts.base import CollectOptions

        sys.stdout.write(payload(build_plan(CollectOptions(), node_timeout_s=60.0)).decode("utf-8"))
        return 0
    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    path = output or Path(f"epdoctor-{stamp}.tar.gz")
    if not path.parent.is_dir() or (path.exists() and path.is_dir() == is_archive_name(path)):
        raise UsageError(f"-o {path}: cannot be written; give a folder, or a file that ends in .tar.gz")
    if path.suffix and not path.is_dir() and not is_archive_name(path):
        raise UsageError(f"-o {path}: give a folder, or a file that ends in .tar.gz")
    if is_archive_name(path):
        from epdoctor.cli.output_file import refuse_unwritable

        refuse_unwritable(str(path))
    from epdoctor.cli.gather import gather

    gathered = gather(node_choice(values), values)
    recording, records = clean(
        gathered.recording, gathered.records, hash_hosts=hash_hosts or redact == "strict"
    )
    save(path, recording, records)
    missed = [record for record in records if record.outcome.error]
    from epdoctor.report.sanitize import sanitize

    for record in missed:
        click.echo(f"{sanitize(record.node)}: {sanitize(record.outcome.error)}", err=True)
    click.echo(f"{len(records) - len(missed)} of {len(records)} nodes recorded in {path}")
    click.echo(f"next: epdoctor check --from {path}")
    if gathered.interrupted:
        return 130
    return 3 if missed else 0
