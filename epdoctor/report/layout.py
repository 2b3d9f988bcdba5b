"""How a report is laid out on a terminal: lines of styled text, labelled fields, commands that are never broken."""

from __future__ import annotations

import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from epdoctor.nodenames import fold, natural_key
from epdoctor.report.sanitize import sanitize

STYLES = {
    "bad": "bold red",
    "warn": "yellow",
    "good": "green",
    "dim": "dim",
    "head": "bold",
    "command": "cyan",
    "": "",
}
MARKS = {
    True: {"fail": "✗", "warn": "!", "pass": "✓", "unknown": "?", "info": "·", "dot": "·"},
    False: {"fail": "x", "warn": "!", "pass": "+", "unknown": "?", "info": "-", "dot": "-"},
}
LABEL = 10
_MAX_COMMANDS = 6
_MAX_WHERE = 60
_AFTER_COMMA = re.compile(r",(?=[A-Za-z_])")


@dataclass(frozen=True)
class Piece:
    """A run of text in one style (a key of STYLES)."""

    text: str
    style: str = ""


Line = tuple[Piece, ...]


class Layout(ABC):
    """`width` in columns; `unicode` False draws with ASCII only; `several`: more than one node is told of."""

    several = False
    break_long_words = True

    def __init__(self, *, width: int = 80, unicode: bool = True, verbose: bool = False) -> None:
        self.width = max(40, width)
        self.marks = MARKS[unicode]
        self.unicode = unicode
        self.verbose = verbose

    @abstractmethod
    def lines(self) -> Iterator[Line]:
        """All of it, from the top."""

    def plain(self) -> str:
        """The report as one text without styles."""
        return "\n".join("".join(piece.text for piece in line).rstrip() for line in self.lines()) + "\n"

    def where(self, nodes: Iterable[str]) -> str:
        """Node names, folded; of many scattered ones the first and how many more (-v shows all)."""
        names = list(nodes)
        text = fold(names)
        if self.verbose or len(text) <= _MAX_WHERE:
            return text
        count = len(set(names))
        return f"{min(names, key=natural_key)} and {count - 1} more"

    def title(self, mark: str, style: str, title: str, nodes: str, check_id: str) -> Iterator[Line]:
        right = "  ".join(
            filter(None, (sanitize(nodes, 4000) if self.several else "", sanitize(check_id, 80)))
        )
        title = sanitize(title)
        room = self.width - 2 - len(right) - 2
        if len(title) <= room:
            yield (Piece(mark + " ", style), Piece(title.ljust(room) + "  ", "head"), Piece(right, "dim"))
            return
        for index, part in enumerate(textwrap.wrap(title, self.width - 2) or [""]):
            yield (Piece((mark if index == 0 else " ") + " ", style), Piece(part, "head"))
        for part in textwrap.wrap(right, self.width - 4) or [""]:
            yield (Piece("    " + part, "dim"),)

    def commands(self, label: str, commands: tuple[str, ...]) -> Iterator[Line]:
        lines = [line for command in commands for line in command.rstrip().splitlines()]
        shown = lines if self.verbose else lines[:_MAX_COMMANDS]
        for index, line in enumerate(shown):
            # A command is never broken: what is copied must run.
            yield (
                Piece("    " + (label if index == 0 else "").ljust(LABEL), "dim"),
                Piece(sanitize(line), "command"),
            )
        if len(lines) > len(shown):
            yield from self.field("", f"... {len(lines) - len(shown)} more lines (-v)", "dim")

    def field(
        self, label: str, text: str, style: str = "", indent: int = 4, label_width: int = LABEL
    ) -> Iterator[Line]:
        text = sanitize(text, limit=20000 if self.verbose else 2000)
        head = " " * indent + label.ljust(label_width)
        if style == "command":
            yield (Piece(head, "dim"), Piece(text, style))
            return
        room = max(20, self.width - len(head))
        # A long list of nodes is one word: it may be broken behind a comma, never inside a name.
        text = " ".join(
            _AFTER_COMMA.sub(", ", word) if len(word) > room else word for word in text.split(" ")
        )
        parts = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=self.break_long_words)
        for index, part in enumerate(parts or [""]):
            yield (Piece(head if index == 0 else " " * len(head), "dim"), Piece(part, style))

    def wrapped(self, parts: list[str], joint: str, style: str) -> Iterator[Line]:
        line = ""
        for part in parts:
            if line and len(line) + len(joint) + len(part) > self.width:
                yield (Piece(line, style),)
                line = part
            else:
                line = f"{line}{joint}{part}" if line else part
        if line:
            yield (Piece(line, style),)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}" if number else ""
