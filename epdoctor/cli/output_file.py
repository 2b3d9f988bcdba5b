"""One file that a user names for output: proved writable before the run, replaced as a whole after it.

Pipes, devices, and whatever this process has open already (/dev/stdout, >(gzip)) are written to and never replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import stat
import sys
import tempfile
from collections.abc import Hashable, Iterable
from pathlib import Path

from epdoctor.exceptions import UsageError

STANDARD_OUTPUT = 1


def descriptor(path: str) -> int | None:
    """The open file that the path stands for: /dev/stdout, /dev/fd/63, /proc/self/fd/2, or a link to one; else None.

    Such a path has no name of its own: what it resolves to is a pipe, or a file that the shell writes at a position
    of its own (>> log)."""
    folders = (f"/proc/{os.getpid()}/fd", "/dev/fd")
    for _ in range(8):
        path = os.path.abspath(path)  # noqa: PTH100 - a name, which must not be resolved whole
        folder, name = os.path.split(path)
        try:
            if name.isdecimal() and len(name) < 10 and os.path.realpath(folder) in folders:
                return int(name)
            path = os.path.join(folder, os.readlink(path))  # noqa: PTH115, PTH118 - likewise
        except (OSError, ValueError):
            return None
    return None


def is_stream(path: str) -> bool:
    """Written to as it is, and never replaced."""
    if descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a string
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def identity(path: str) -> Hashable:
    """Equal for two names of one file."""
    number = descriptor(path)
    if number is not None:
        return number
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL byte; refuse_unwritable says so
        return path


def refuse_unwritable(path: str, option: str = "-o") -> None:
    """Raises UsageError for what could not be written after the run.

    Proved by a file that is made beside it and removed: permissions, read-only mounts and full disks alike."""
    try:
        number = descriptor(path)
        if number is not None:
            if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise PermissionError(errno.EACCES, "it is open for reading only")
        elif is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            _prove(path)
    except FileNotFoundError as error:
        folder = os.path.dirname(os.path.realpath(path))  # noqa: PTH120 - a string
        missing = not os.path.isdir(folder) and not folder.startswith("/proc/")  # noqa: PTH112 - likewise
        hint = f"mkdir -p {shlex.quote(folder)}" if missing else ""
        raise UsageError(f"{option} {path}: cannot be written ({error.strerror})", hint=hint) from error
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be written ({error.strerror or error})") from error
    except ValueError as error:
        raise UsageError(f"{option} {path[:80]!r}: cannot be written ({error})") from error


def _prove(path: str) -> None:
    real = os.path.realpath(path)
    folder, name = os.path.split(real)
    if os.path.isdir(real):  # noqa: PTH112 - a string from realpath
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not name or path.endswith("/"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    with contextlib.suppress(FileNotFoundError):
        os.lstat(real)  # a name that is too long
    handle, temporary = tempfile.mkstemp(prefix=".epdoctor-", dir=folder)
    os.close(handle)
    os.unlink(temporary)  # noqa: PTH108 - mkstemp gave a name, not a Path


def write_output(path: str, pieces: Iterable[str]) -> None:
    """Write all of it, or leave the old file whole. Raises OSError."""
    encoded = (piece.encode("utf-8", "backslashreplace") for piece in pieces)
    number = descriptor(path)
    if number is None and not is_stream(path):
        from epdoctor.atomic_file import replace_file

        replace_file(Path(os.path.realpath(path)), encoded)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.dup(number) if number is not None else os.open(path, os.O_WRONLY | os.O_NOCTTY)
    with os.fdopen(target, "wb") as file:
        file.writelines(encoded)


def failure(path: str, error: OSError) -> str:
    """What is said when it could not be written after all."""
    kept = "; the old file is as it was" if os.path.isfile(path) and not is_stream(path) else ""  # noqa: PTH113 - a string
    return f"{path}: {error.strerror or error}{kept}"
