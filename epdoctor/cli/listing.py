"""`epdoctor list`: what the catalogue holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


@click.group("list")
def list_command() -> None:
    """List checks, profiles, back ends and version tables."""


@list_command.command("checks")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--checks", "site", type=click.Path(path_type=Path), metavar="DIR", help="With the checks of a site."
)
@click.argument("words", nargs=-1)
def list_checks(format_: str, site: Path | None, words: tuple[str, ...]) -> int:
    """Every check, or those of an id, prefix or tag."""
    from epdoctor.catalog import load_checks, select_checks
    from epdoctor.site_checks import installed_checks, load_site_checks

    known = {**load_checks(), **installed_checks()[0]}
    if site is not None:
        known |= load_site_checks(site)
    checks = select_checks(known, words, ())
    if format_ == "json":
        data = [
            {
                "id": check.id,
                "title": check.title,
                "scope": check.scope,
                "severity": {name: level.value for name, level in check.severity.items()},
                "backends": list(check.backends),
                "multinode": check.multinode,
                "needs": list(check.needs),
                "tags": list(check.tags),
                "rule": check.rule,
                "since": check.since,
            }
            for check in checks.values()
        ]
        sys.stdout.write(json.dumps(data, indent=1) + "\n")
        return 0
    width = max(len(check_id) for check_id in checks)
    for check in checks.values():
        sys.stdout.write(f"{check.id.ljust(width)}  {check.severity['default'].value:<7}  {check.title}\n")
    sys.stdout.write(f"{len(checks)} checks over {len({check.rule for check in checks.values()})} rules\n")
    sys.stdout.write(
        "next: epdoctor explain CHECK-ID\n" if site is None else f"next: epdoctor check --checks {site}\n"
    )
    return 0


@list_command.command("backends")
@click.option("--vllm", "vllm_version", default="", metavar="VERSION")
def list_backends(vllm_version: str) -> int:
    """vLLM's all2all back ends: which exist, which were removed, and what vLLM falls back to."""
    from epdoctor.backends import backend_table

    for name, text in backend_table(vllm_version):
        sys.stdout.write(f"{name.ljust(28)}  {text}\n")
    return 0


@list_command.command("profiles")
def list_profiles() -> int:
    """Named selections of checks, for `epdoctor check --profile NAME`."""
    from epdoctor.profiles import load_profile, shipped_profiles

    names = shipped_profiles()
    width = max(map(len, names), default=0)
    for name in names:
        sys.stdout.write(f"{name.ljust(width)}  {load_profile(name).title}\n")
    sys.stdout.write("next: epdoctor check --profile NAME\n")
    return 0


@list_command.command("versions")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.argument("words", metavar="[TABLE]...", nargs=-1)
def list_versions(format_: str, words: tuple[str, ...]) -> int:
    """The dated tables of versions that checks judge by: what is known, of which day, from where.

    Name tables to see all that they hold."""
    import datetime
    import textwrap

    from epdoctor.catalog import did_you_mean
    from epdoctor.compat import stale_warning, tables
    from epdoctor.exceptions import UsageError

    known = tables()
    for word in words:
        if word not in known:
            raise UsageError(f"no table {word!r}{did_you_mean(word, known)}", hint="epdoctor list versions")
    chosen = {name: known[name] for name in words or known}
    if format_ == "json":
        sys.stdout.write(json.dumps(chosen, indent=1, default=str) + "\n")
        return 0
    today = datetime.datetime.now(datetime.timezone.utc).date()
    layout: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": "    ", "break_on_hyphens": False}
    for name, content in chosen.items():
        age = max((today - content["as_of"]).days, 0)
        sys.stdout.write(f"{name.ljust(10)}  {content['as_of']}  {age} {'day' if age == 1 else 'days'} old\n")
        lines = _rows(content) if words else [_summary(content)]
        for line in [*lines, f"source: {content['source']}"]:
            sys.stdout.write(textwrap.fill(line, 80, **layout) + "\n")
    warning = stale_warning({name: content["as_of"] for name, content in chosen.items()}, today)
    if warning:
        sys.stdout.write(f"! {warning}\n")
    sys.stdout.write("next: epdoctor check\n" if words else "next: epdoctor list versions TABLE\n")
    return 0


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in ("as_of", "source")}


def _summary(content: Mapping[str, Any]) -> str:
    """ "gin_min 2.30.4, versions 5": a value, or how many there are."""
    return ", ".join(
        f"{key} {len(value) if isinstance(value, (list, dict)) else value}"
        for key, value in _facts(content).items()
    )


def _rows(content: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in _facts(content).items():
        if isinstance(value, list) and any(isinstance(row, dict) for row in value):
            lines += [f"{key}: {', '.join(f'{k} {_one(v)}' for k, v in row.items())}" for row in value]
        else:
            lines.append(f"{key}: {_one(value)}")
    return lines


def _one(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_one(item)}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
