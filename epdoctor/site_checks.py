"""A site's own checks: DIR/<subsystem>/<name>.yaml as under checks/, Python rules in DIR/rules/*.py, and
executables in DIR/plugins that judge a record in any language (epdoctor/plugins.py).

DIR is named by --checks, or is an installed package that says so by the entry-point group `epdoctor.checks`.
Python files and plugins run with the rights of whoever calls epdoctor, so a folder is never taken from a
configuration file that lies in some working directory; what is installed beside epdoctor was trusted when it was
installed. Nothing is cached: a cached check could name a rule that is gone.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epdoctor.catalog import checks_from_json, compile_checks, did_you_mean, load_checks
from epdoctor.exceptions import CatalogError, UsageError
from epdoctor.model import Check
from epdoctor.plugins import plugin
from epdoctor.rules import all_needs, all_rules, node_rule

RULES = "rules"
PLUGINS = "plugins"
GROUP = "epdoctor.checks"
NO_PACKAGES = "EPDOCTOR_NO_PLUGINS"
"""Set to 1: installed packages of the group are left alone."""


def load_site_checks(folder: Path) -> Mapping[str, Check]:
    """Rules first, then the checks by id. Raises UsageError where there is no check, CatalogError that starts
    with the file's name where a file is wrong or an id or a rule of epdoctor's own is taken."""
    if not folder.is_dir():
        raise UsageError(f"--checks {folder}: not a folder")
    raw = _load_folder(folder)
    if not raw:
        raise UsageError(
            f"--checks {folder}: no check in it (<subsystem>/<name>.yaml)", hint="docs/add-a-check.md"
        )
    return checks_from_json(raw)


def installed_checks() -> tuple[dict[str, Check], tuple[Path, ...]]:
    """Checks of the installed packages of the entry-point group, and their profile folders.

    Raises CatalogError that names the package or its file."""
    found: dict[str, Check] = {}
    folders: list[Path] = []
    for package, folder in installed_folders():
        for check_id, check in checks_from_json(_load_folder(folder)).items():
            if check_id in found:
                raise CatalogError(f"{package}: another installed package has a check {check_id}")
            found[check_id] = check
        folders.append(folder / "profiles")
    return found, tuple(folders)


def installed_folders() -> list[tuple[str, Path]]:
    """(package, folder) of each entry point `name = package` of the group, by name. The package is not imported."""
    if os.environ.get(NO_PACKAGES, "") not in ("", "0") or not _anything_installed():
        return []
    from importlib.metadata import entry_points

    folders: list[tuple[str, Path]] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        owner = f"{point.dist.name if point.dist else point.name} (entry point {point.name})"
        try:
            spec = importlib.util.find_spec(point.value)
        except (ImportError, ValueError):
            spec = None
        locations = list(spec.submodule_search_locations or ()) if spec else []
        if not locations or not Path(locations[0]).is_dir():
            raise CatalogError(
                f"{owner}: {point.value!r} is not a package with a folder; {NO_PACKAGES}=1 leaves it out"
            )
        folders.append((owner, Path(locations[0])))
    return folders


def _anything_installed() -> bool:
    """Whether some entry_points.txt names the group. importlib.metadata takes 30 ms to import, this 2."""
    mark = f"[{GROUP}]"
    for place in sys.path:
        try:
            names = os.listdir(place or ".")  # noqa: PTH208 - as quick as it can be: every start pays for it
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(place, name, "entry_points.txt"), encoding="utf-8") as file:  # noqa: PTH118, PTH123 - as above
                        if mark in file.read():
                            return True
                except (OSError, ValueError):
                    continue
    return False


def _load_folder(folder: Path) -> dict[str, Any]:
    """Rules, plugins and checks of a folder, validated; nothing where it holds no check."""
    # First epdoctor's own, so that a clash is the site's.
    all_rules()
    for path in sorted((folder / RULES).glob("*.py")):
        if path.name != "__init__.py":
            _load_rules(path)
    plugins = _plugins(folder / PLUGINS)
    node_rule(plugin)
    raw = compile_checks(folder)
    own = load_checks()
    used = set()
    for check_id, value in raw.items():
        subsystem, _, name = check_id.partition(".")
        file = folder / subsystem / f"{name}.yaml"
        if check_id in own:
            raise CatalogError(f"{file}: epdoctor has a check {check_id}")
        if value["rule"] == "plugin":
            run = value["with"]["run"]
            if run not in plugins:
                raise CatalogError(f"{file}: no executable {PLUGINS}/{run}{did_you_mean(run, plugins)}")
            used.add(run)
            value["with"]["run"] = str(plugins[run])
    for run in sorted(plugins.keys() - used):
        raise CatalogError(f"{plugins[run]}: no check uses it (rule: plugin, with: {{run: {run}}})")
    return raw


def _plugins(folder: Path) -> dict[str, Path]:
    """Executables by name. Raises CatalogError for a script that is not executable."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith((".", "_")) or not path.is_file():
            continue
        if os.access(path, os.X_OK):
            found[path.name] = path.resolve()
        elif path.read_bytes()[:2] == b"#!":
            raise CatalogError(f"{path}: not executable (chmod +x {path})")
    return found


def _load_rules(path: Path) -> None:
    # Two folders may each have a rules/image.py: the name tells them apart, so that a clash of rules is seen.
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"epdoctor_site_rules_{place}.{path.stem}"
    before = {**all_rules()}, {**all_needs()}
    spec = importlib.util.spec_from_file_location(
        name, path, loader=importlib.machinery.SourceFileLoader(name, str(path))
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    keep = sys.dont_write_bytecode
    # The site's folder stays as it is: no __pycache__.
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise CatalogError(f"{path}:{error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever a site's file raises is the file's fault
        frames = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        where = f"{path}:{frames[-1]}" if frames else str(path)
        raise CatalogError(f"{where}: {str(error) or type(error).__name__}") from error
    finally:
        sys.dont_write_bytecode = keep
    if (all_rules(), all_needs()) == before:
        raise CatalogError(f"{path}: registers no rule (@node_rule, @cluster_rule) and no need")
