"""A compiled form of a folder of YAML files, kept as JSON in the user's cache.

Reading hundreds of YAML files takes longer than judging a node. The cache is keyed by names, sizes and
modification times, is JSON (never pickle: whoever can write the cache must not be able to run code), is
replaced atomically, and is skipped where it cannot be read or written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from epdoctor import __version__

_state_allowed = True


def forbid_state() -> None:
    """--no-state: neither read nor write anything in the user's folders."""
    global _state_allowed
    _state_allowed = False


def state_allowed() -> bool:
    return _state_allowed and os.environ.get("EPDOCTOR_NO_STATE", "") in ("", "0")


def yaml_files(folder: Path, *, below: bool = True) -> Iterator[os.DirEntry[str]]:
    """Every *.yaml under a folder, in name order; not following links to folders."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.endswith(".yaml"):
            yield entry
        elif below and entry.is_dir(follow_symlinks=False):
            yield from yaml_files(Path(entry.path))


def fingerprint(folders: list[Path]) -> str:
    digest = hashlib.sha256(__version__.encode())
    for folder in folders:
        digest.update(str(folder).encode("utf-8", "backslashreplace") + b"\n")
        for entry in yaml_files(folder):
            info = entry.stat()
            digest.update(
                f"{entry.path} {info.st_size} {info.st_mtime_ns}\n".encode("utf-8", "backslashreplace")
            )
    return digest.hexdigest()


def load_compiled(kind: str, folders: list[Path], compile_yaml: Callable[[], Any]) -> Any:
    """The JSON value of `compile_yaml()`, from the cache while the folders are unchanged."""
    if not state_allowed():
        return compile_yaml()
    from epdoctor.paths import cache_dir

    key = fingerprint(folders)
    path = cache_dir() / f"{kind}.json"
    try:
        value = json.loads(path.read_bytes())
        if isinstance(value, dict) and value.get("key") == key:
            return value["value"]
    except (OSError, ValueError, KeyError):
        pass
    fresh = compile_yaml()
    try:
        from epdoctor.atomic_file import replace_file

        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"key": key, "value": fresh}, separators=(",", ":")).encode())
    except OSError:
        pass
    return fresh


def read_yaml(path: Path | str) -> Any:
    """One YAML file, safely and with the C loader where PyYAML has it. Raises CatalogError with file and line."""
    import yaml

    from epdoctor.exceptions import CatalogError

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(Path(path).read_bytes(), Loader=loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise CatalogError(f"{where}: {getattr(error, 'problem', None) or 'not YAML'}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: {error}") from error
