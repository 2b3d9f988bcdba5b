"""Texts of files: those named on the command line, and those that a launch names."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.shell.text import Script, Text, base_name, file_script, text_script

MAX_BYTES = 16 << 20
MAX_FOLLOWED_BYTES = 4 << 20
"""Of a file that another one names."""


def read_text(path: str, limit: int = MAX_BYTES) -> str:
    """A file's text. Raises OSError; a file that is no regular one or too large is one of its kinds."""
    # O_NONBLOCK: a named pipe in place of a file must not hold the run.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        info = os.fstat(stream.fileno())
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(21, "is a folder")
        if not stat.S_ISREG(info.st_mode):
            given = path == "/dev/stdin" or path.startswith("/dev/fd/")
            if not given or not (stat.S_ISFIFO(info.st_mode) or stat.S_ISCHR(info.st_mode)):
                raise OSError(22, "is not a regular file")
            os.set_blocking(stream.fileno(), True)
            data = stream.read(limit + 1)
        else:
            if info.st_size > limit:
                raise OSError(27, f"is larger than {limit >> 20} MiB")
            data = stream.read(limit + 1)
    return data.decode("utf-8-sig", "replace")


def beside(reading: Reading, setting: Setting, name: Text) -> Script | None:
    """The file that a launch names, where it exists beside it or was written by it; None: not there."""
    if not name.known or not name.text or len(name.text) > 1024 or "\0" in name.text:
        return None
    path = name.text
    for key in (path, base_name(path)):
        written = reading.written.get(key)
        if written is not None:
            reading.used.add("written:" + key)
            return text_script(written)
    if setting.in_image:
        return None
    if path.startswith("/"):
        # Absolute names are of the machine that it will run on; the file may be among those given.
        given = [known for known in reading.files if base_name(known) == base_name(path)]
        candidates = given[:1]
    else:
        folders = (Path(name.location.path).parent, Path(setting.folder))
        candidates = [str(folder / path) for folder in folders]
    for candidate in candidates:
        try:
            text = read_text(candidate, MAX_FOLLOWED_BYTES)
        except (OSError, ValueError):
            continue
        reading.used.add(os.path.realpath(candidate))
        return file_script(os.path.normpath(candidate), text)
    return None
