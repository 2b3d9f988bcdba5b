"""`epdoctor provision --bundle DIR`: download what nodes without network need."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from epdoctor import __version__
from epdoctor.cli.provision_nodes import say
from epdoctor.cli.provision_order import Wish, make_wish
from epdoctor.exceptions import EpdoctorError, UsageError
from epdoctor.provision import checksums, download
from epdoctor.provision.bundle import MANIFEST, SCHEMA, Contents, contents
from epdoctor.provision.pins import pins
from epdoctor.provision.sources import Sources, parse_sources
from epdoctor.report.sanitize import sanitize


def make_bundle(values: dict[str, Any]) -> int:
    """Raises UsageError before anything is downloaded, EpdoctorError with the client's own words after."""
    from epdoctor.config import load_config

    folder: Path = values["bundle"].expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--bundle {values['bundle']}: not an empty folder", hint="name a new one")
    python = values["bundle_python"]
    if python and not re.fullmatch(r"3\.[0-9]{1,2}", python):
        raise UsageError(f"--bundle-python {python}: a version such as 3.12")
    own = download.this_machine()
    machine = download.Machine(python or own.python, values["bundle_arch"] or own.arch)
    sources = parse_sources(values["source"])
    local = [name for name in sources.variables if name in ("source_wheelhouse", "source_packages")]
    if local:
        raise UsageError("--bundle downloads; of --source it takes index and git only")
    # Nothing named: what the newest vLLM needs.
    wish = make_wish(values, load_config(), vllm=values["vllm_version"] or str(pins()["versions_vllm"]))
    for warning in wish.warnings:
        click.echo(f"! {sanitize(warning)}", err=True)
    given = {**pins(wish.pins["versions_vllm"]), **wish.pins, **_of_inventory(values), **wish.extra}
    wanted = contents(wish.choice.components, given)
    with _scratch(folder) as part:
        shown = [line for one in wanted if not one.empty for line in _fill(part, one, machine, sources)]
        _finish(part, wish, wanted, given, machine)
    return _say(folder, wanted, shown, given, machine, quiet=values["format_"] == "json")


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside the bundle that takes its name when all is in it, and is gone where something failed."""
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        part.chmod(0o755)
        for name in ("wheels", "packages", "epdoctor"):
            (part / name).mkdir()
        yield part
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        raise EpdoctorError(
            f"--bundle {folder}: {error.filename or folder}: {error.strerror or error}",
            hint=f"df -h {folder.parent}",
        ) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _of_inventory(values: dict[str, Any]) -> dict[str, Any]:
    """Role variables that the inventory, if one is given, sets for its first node: a site's own pins."""
    if values["inventory"] is None:
        return {}
    import os

    from epdoctor.cli.provision_nodes import place_of
    from epdoctor.inventory import ansible
    from epdoctor.provision.arguments import roles

    place_of(values["inventory"], values["limit"], values["forks"])
    hosts, _ = ansible.read(
        [str(values["inventory"])],
        limit=values["limit"],
        env=os.environ,
        dynamic=False,
        shown=str(values["inventory"]),
    )
    known = {option.name for role in roles() for option in role.options}
    return {name: value for name, value in hosts[0][2].items() if name in known} if hosts else {}


def _fill(part: Path, one: Contents, machine: download.Machine, sources: Sources) -> list[str]:
    """Download one component's part; lines for the screen."""
    click.echo(f"downloading {one.component} ...", err=True)
    before, started = _size(part), time.monotonic()
    index = sources.variables.get("source_pip_index_url", "")
    download.wheels(one.wheels, part / "wheels", machine, dependencies=one.dependencies, index=index)
    for source in one.sources:
        download.git_archive(source, part / "packages", sources.variables.get("source_git_prefix", ""))
    download.debs(one.debs, part / "packages")
    what = [*one.wheels, *(f"{source.name}.tar.gz" for source in one.sources), *one.debs]
    megabytes = (_size(part) - before) / 1e6
    return [
        f"{one.component:<12} {megabytes:7.1f} MB  {', '.join(what)}  ({time.monotonic() - started:.0f} s)"
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _finish(
    part: Path, wish: Wish, wanted: tuple[Contents, ...], given: dict[str, Any], machine: download.Machine
) -> None:
    click.echo("downloading epdoctor itself ...", err=True)
    wheel = download.epdoctor_wheel(part / "epdoctor")
    download.wheels([str(wheel)], part / "epdoctor", machine, dependencies=True)
    if any((part / "packages").iterdir()):
        checksums.write(part / "packages")
    manifest = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "made_at": int(time.time()),
        "vllm": given["versions_vllm"],
        "backend": wish.goal.backend,
        "components": [one.component for one in wanted],
        "python": machine.python,
        "arch": machine.arch,
        "pins": {name: value for name, value in sorted(given.items()) if name.startswith("versions_")},
        "variables": {name: value for one in wanted for name, value in one.variables.items()},
    }
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", "utf-8")
    checksums.write(part)


def _say(
    folder: Path,
    wanted: tuple[Contents, ...],
    shown: list[str],
    given: dict[str, Any],
    machine: download.Machine,
    *,
    quiet: bool,
) -> int:
    files = len(checksums.read(folder))
    if quiet:
        say(json.dumps({"bundle": str(folder), "files": files, "bytes": _size(folder), "exit_code": 0}))
        return 0
    say(
        f"BUNDLE  {folder}: {files} files, {_size(folder) / 1e6:.0f} MB, for vLLM {given['versions_vllm']}, "
        f"Python {machine.python}, {machine.arch}"
    )
    say()
    for line in shown:
        say(sanitize(line))
    nothing = [one.component for one in wanted if one.empty]
    if nothing:
        say(f"nothing to download for {', '.join(nothing)}")
    say()
    say(f"there     pip install --no-index --find-links {folder}/epdoctor epdoctor")
    say(f"next      epdoctor provision inventory.ini --source bundle={folder} --plan")
    return 0
