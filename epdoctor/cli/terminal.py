"""What the terminal can show, and printing reports on it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from typing import IO, Protocol

from epdoctor.report.layout import STYLES, Layout, Line


def is_fancy(stream: IO[str]) -> bool:
    """Colour: a terminal, no NO_COLOR (no-color.org: set and not empty), not TERM=dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"


def speaks_unicode(stream: IO[str]) -> bool:
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    return encoding.startswith("utf") and os.environ.get("TERM", "") != "linux"


def columns(stream: IO[str]) -> int:
    """Width to lay out for: the terminal's, between 40 and 120; 100 where there is none ($COLUMNS wins)."""
    if os.environ.get("COLUMNS", "").isdigit() or stream.isatty():
        return max(40, min(120, shutil.get_terminal_size((100, 24)).columns))
    return 100


class Lines(Protocol):
    """What is laid out line by line: a report, a difference."""

    def plain(self) -> str: ...

    def lines(self) -> Iterator[Line]: ...


def print_report(text: Layout, stream: IO[str] | None = None) -> None:
    print_lines(text, stream)


def print_lines(text: Lines, stream: IO[str] | None = None) -> None:
    out = stream or sys.stdout
    if not is_fancy(out):
        plain = text.plain()
        out.write(inert(plain) if os.environ.get("GITHUB_ACTIONS") == "true" else plain)
        return
    from rich.console import Console
    from rich.text import Text

    # markup, highlight and emoji off: "[rank0]" and ":1:" in outside text are text (docs/design.md).
    console = Console(file=out, markup=False, highlight=False, emoji=False, soft_wrap=True)
    for line in text.lines():
        console.print(_rich_line(line, Text))


_RUNNER_COMMAND = re.compile(r"(?m)^(\s*):(?=:)|##(?=\[)")


def inert(text: str) -> str:
    """Nothing in it is a command of GitHub's runner, which reads a job's output line by line: "::" behind blanks, and
    "##[" anywhere (actions/runner, ActionCommand.cs)."""
    return _RUNNER_COMMAND.sub(lambda match: match[0] + " ", text)


def _rich_line(line: Line, text_class: type) -> object:
    text = text_class()
    for piece in line:
        text.append(piece.text, style=STYLES[piece.style])
    return text


class LiveLine:
    """One line on a terminal that is drawn over itself; nothing where the stream is no terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self._shown = ""

    def show(self, text: str) -> None:
        from epdoctor.report.sanitize import sanitize

        text = sanitize(text)[: columns(self.stream) - 1]
        if self.live and text != self._shown:
            self.stream.write("\r\x1b[K" + text)
            self.stream.flush()
            self._shown = text

    def clear(self) -> None:
        if self.live and self._shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._shown = ""


class Progress(LiveLine):
    """Nodes done, running, failed, and the slowest probe so far, on standard error."""

    def __init__(self, total: int, stream: IO[str] | None = None) -> None:
        super().__init__(stream)
        self.total = total
        self.done = 0
        self.failed = 0
        self.running: dict[str, float] = {}
        self.slowest = ("", "", 0.0)

    def draw(self) -> None:
        if not self.live:
            return
        probe, node, seconds = self.slowest
        parts = [f"{self.done}/{self.total} nodes done", f"{len(self.running)} running"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if probe:
            parts.append(f"slowest {probe} on {node} {seconds:.1f} s")
        elif self.running and self.done:
            parts.append("waiting for " + ", ".join(list(self.running)[:3]))
        self.show(", ".join(parts))
