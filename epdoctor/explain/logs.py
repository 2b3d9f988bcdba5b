"""Open what was named as a log: files, globs, folders, gzip, zstd, UTF-16; read in blocks."""

from __future__ import annotations

import codecs
import glob
import gzip
import os
import shutil
import stat
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from epdoctor.exceptions import UsageError

BLOCK_BYTES = 512 * 1024
_LOG_NAMES = (".log", ".txt", ".out", ".err", ".gz", ".zst", ".log.1")
_MAX_FILES = 20_000
_BOM_BYTES = 4000
"""UTF-16 text has zero bytes here; another file may start with the same two bytes."""


def log_files(names: tuple[str, ...]) -> list[Path]:
    """Files behind names, globs and folders, each once, in natural order (rank2 before rank10).

    Raises UsageError for what does not exist or holds no log."""
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*"), key=_natural) if _looks_like_log(p)]
            if not inside:
                raise UsageError(
                    f"{name}: a folder without logs ({', '.join(_LOG_NAMES[:4])}, .gz, .zst)",
                    hint=f"epdoctor explain -f '{name}/*'",
                )
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        elif glob.has_magic(name):
            matches = sorted((Path(m) for m in glob.glob(name, recursive=True)), key=_natural)  # noqa: PTH207 - a whole path
            files = [p for p in matches if not p.is_dir()]
            if not files:
                raise UsageError(f"{name}: no such file")
            found.update(dict.fromkeys(files))
        else:
            raise UsageError(f"{name}: no such file")
        if len(found) > _MAX_FILES:
            raise UsageError(f"more than {_MAX_FILES} logs")
    return list(found)


def _looks_like_log(path: Path) -> bool:
    name = path.name.lower()
    return path.is_file() and (name.endswith(_LOG_NAMES) or ".log." in name or name in ("stdout", "stderr"))


def _natural(path: Path) -> list[tuple[int, str]]:
    parts: list[tuple[int, str]] = []
    text = str(path)
    start = 0
    for index in range(1, len(text) + 1):
        if index == len(text) or text[index].isdigit() != text[index - 1].isdigit():
            piece = text[start:index]
            digits = piece.isascii() and piece.isdigit()
            parts.append((int(piece[:18]) if digits else -1, piece))
            start = index
    return parts


def read_blocks(path: Path) -> Iterator[bytes]:
    """The log as plain blocks, as far as it goes. Raises UsageError where it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not stat.S_ISFIFO(path.stat().st_mode):
            raise UsageError(f"{path}: not a file")
        with path.open("rb", buffering=0) as stream:
            yield from decoded(stream, str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def decoded(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Blocks of a stream; gzip, zstd and UTF-16 are known by their first bytes."""
    first = stream.read(BLOCK_BYTES) or b""
    if first.startswith(b"\x1f\x8b"):
        yield from _gzip(first, stream)
    elif first.startswith(b"\x28\xb5\x2f\xfd"):
        yield from _zstd(first, stream, name)
    elif first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in first[:_BOM_BYTES]:
        decoder = codecs.getincrementaldecoder("utf-16")("replace")
        for block in _plain(first, stream):
            yield decoder.decode(block).encode("utf-8", "replace")
    else:
        yield from _plain(first, stream)


def _plain(first: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    block = first
    while block:
        yield block
        block = stream.read(BLOCK_BYTES) or b""


class _Joined:
    """A readable stream of what was already read and the rest."""

    def __init__(self, first: bytes, stream: IO[bytes]) -> None:
        self.first = first
        self.stream = stream

    def read(self, size: int = -1) -> bytes:
        if self.first:
            piece, self.first = self.first[:size], self.first[size:]
            return piece
        return self.stream.read(size) or b""


def _gzip(first: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    # GzipFile also takes several members one after the other; a file still being written just ends.
    with gzip.GzipFile(fileobj=_Joined(first, stream)) as unpacked:  # type: ignore[call-overload]  # needs read only
        while True:
            try:
                block = unpacked.read1(BLOCK_BYTES)
            except (EOFError, gzip.BadGzipFile, zlib.error):
                return
            if not block:
                return
            yield block


def _zstd(first: bytes, stream: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14 and later
    except ImportError:
        yield from _zstd_program(first, stream, name)
        return
    with zstd.ZstdFile(_Joined(first, stream)) as unpacked:
        while True:
            try:
                block = unpacked.read(BLOCK_BYTES)
            except (EOFError, zstd.ZstdError):
                return
            if not block:
                return
            yield block


def _zstd_program(first: bytes, stream: IO[bytes], name: str) -> Iterator[bytes]:
    program = shutil.which("zstd")
    if program is None:
        raise UsageError(f"{name}: zstd, but the program zstd is not here", hint="apt-get install zstd")
    import threading

    with subprocess.Popen(
        [program, "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sink = process.stdin

        def feed() -> None:
            try:
                for block in _plain(first, stream):
                    sink.write(block)
                sink.close()
            except (OSError, ValueError):
                pass  # it has stopped reading: a broken archive ends where it breaks

        threading.Thread(target=feed, daemon=True).start()
        try:
            while block := os.read(process.stdout.fileno(), BLOCK_BYTES):
                yield block
        finally:
            process.kill()
