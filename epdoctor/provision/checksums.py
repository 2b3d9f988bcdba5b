"""SHA256SUMS of a folder, in the form of sha256sum(1): written, read, and compared with what is there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

from epdoctor.exceptions import UsageError

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.{1,1000})\Z")


def digest(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """Every file below, by its path in the folder; links are not followed out of it."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }


def write(folder: Path) -> dict[str, str]:
    """Write SHA256SUMS over all files of the folder; path -> checksum."""
    sums = {name: digest(path) for name, path in _files(folder).items()}
    text = "".join(f"{value}  {name}\n" for name, value in sums.items())
    part = folder / f"{NAME}.part"
    part.write_text(text, "utf-8")
    part.rename(folder / NAME)
    return sums


def read(folder: Path) -> dict[str, str]:
    """Path -> checksum. Raises UsageError for a missing or malformed file, or a path that leaves the folder."""
    path = folder / NAME
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error})", hint=f"cd {folder} && sha256sum * > {NAME}"
        ) from error
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.match(line)
        if match is None:
            raise UsageError(f"{path}:{number}: not a line of sha256sum")
        name = match[2].removeprefix("./")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UsageError(f"{path}:{number}: {name} leaves the folder")
        sums[name] = match[1]
    return sums


def verify(folder: Path) -> int:
    """Number of files, each with its right checksum. Raises UsageError that names the first that is wrong,
    missing, or not listed."""
    sums, there = read(folder), _files(folder)
    for name in sums:
        if name not in there:
            raise UsageError(f"{folder / name} is missing; {NAME} lists it")
    for name, path in there.items():
        if name not in sums and path.name != NAME:
            raise UsageError(f"{path} is not in {folder / NAME}: nobody vouches for it")
        try:
            right = name not in sums or digest(path) == sums[name]
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        if not right:
            raise UsageError(
                f"{path} has a wrong checksum: it is damaged or was changed",
                hint="copy it from its origin again",
            )
    return len(sums)
