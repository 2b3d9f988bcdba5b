"""A file that holds nothing but node names, read without Ansible."""

from __future__ import annotations

import re
from pathlib import Path

from epdoctor.exceptions import InventoryError
from epdoctor.nodenames import NodeNamesError, expand

MAX_BYTES = 4 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(\[[0-9,-]+\][A-Za-z0-9._-]*)*\Z")


def names_in(path: Path) -> list[str] | None:
    """Names, one host or `node[01-64]` a line, `#` comments; None: this is more than a plain list.

    A list beside `group_vars` or `host_vars` is Ansible's to read: those folders change the result.
    Raises InventoryError when the file cannot be read or a bracket is wrong, with the line.
    """
    if path.is_dir() or path.suffix in {".yml", ".yaml", ".json"}:
        return None
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InventoryError(f"inventory {path}: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise InventoryError(f"inventory {path}: larger than {MAX_BYTES // 2**20} MiB, so not an inventory")
    if any((path.parent / name).exists() for name in ("group_vars", "host_vars")):
        return None
    try:
        return parse(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InventoryError(f"inventory {path}: not UTF-8 text") from None
    except _LineError as error:
        raise InventoryError(f"{path}:{error.line}: {error}") from None


class _LineError(ValueError):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def parse(text: str) -> list[str] | None:
    """As `names_in`, for text. Raises ValueError with `.line` for a bracket that is wrong."""
    names: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        word = line.split("#", 1)[0].strip()
        if not word or word.startswith(";"):
            continue
        if not _NAME.match(word):
            return None
        try:
            names.update(dict.fromkeys(expand(word)))
        except NodeNamesError as error:
            raise _LineError(str(error), number) from None
    return list(names)
