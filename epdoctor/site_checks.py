"""A site's own checks: DIR/<subsystem>/<name>.yaml as under checks/, and Python rules in DIR/rules/*.py.

Python files run with the rights of whoever calls epdoctor, so they are loaded only from a folder that was named
on the command line, never from a configuration file that lies in some working directory. Nothing is cached:
a cached check could name a rule that is gone.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from epdoctor.catalog import checks_from_json, compile_checks, load_checks
from epdoctor.exceptions import CatalogError, UsageError
from epdoctor.model import Check
from epdoctor.rules import all_needs, all_rules

RULES = "rules"


def load_site_checks(folder: Path) -> Mapping[str, Check]:
    """Rules first, then the checks by id. Raises UsageError where there is no check, CatalogError that starts
    with the file's name where a file is wrong or an id or a rule of epdoctor's own is taken."""
    if not folder.is_dir():
        raise UsageError(f"--checks {folder}: not a folder")
    # First epdoctor's own, so that a clash is the site's.
    all_rules()
    for path in sorted((folder / RULES).glob("*.py")):
        _load_rules(path)
    raw = compile_checks(folder)
    if not raw:
        raise UsageError(
            f"--checks {folder}: no check in it (<subsystem>/<name>.yaml)", hint="docs/add-a-check.md"
        )
    own = load_checks()
    for check_id in raw:
        if check_id in own:
            subsystem, _, name = check_id.partition(".")
            raise CatalogError(f"{folder / subsystem / name}.yaml: epdoctor has a check {check_id}")
    return checks_from_json(raw)


def _load_rules(path: Path) -> None:
    name = f"epdoctor_site_rules.{path.stem}"
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
