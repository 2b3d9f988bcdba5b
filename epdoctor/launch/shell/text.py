"""Text that remembers where each of its parts was written."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from epdoctor.launch.model import Value
from epdoctor.launch.shell.scan import closing
from epdoctor.model import Location

_CONTROL = re.compile(r"\{\{-?[ \t]*(?:if|else|end|range|with|define|block)\b")
MAX_TEXT = 1 << 18
"""Characters that one expansion may grow to: X=$X$X in a loop must end."""
SPACES = " \t\n"
"""bash's default IFS."""


@dataclass(frozen=True, slots=True)
class Text:
    """A word or a value after expansion."""

    text: str
    anchors: tuple[tuple[int, Location], ...]
    """(offset in `text`, where that offset was written); at least one, sorted; one after each newline."""
    unresolved: tuple[str, ...] = ()
    runtime: str = ""
    separable: bool = False
    """A list that is known only when it runs, but whose words are: the job's node names."""

    @property
    def location(self) -> Location:
        return self.anchors[0][1]

    @property
    def known(self) -> bool:
        return not self.unresolved and not self.runtime

    def locate(self, offset: int) -> Location:
        index = max(bisect_right(self.anchors, offset, key=lambda anchor: anchor[0]) - 1, 0)
        start, location = self.anchors[index]
        if not location.column or "\n" in self.text[start:offset]:
            return location
        return Location(location.path, location.line, location.column + offset - start)

    def part(self, start: int, end: int) -> Text:
        """A piece of it, with its own places."""
        later = tuple((at - start, place) for at, place in self.anchors if start < at < end)
        return replace(self, text=self.text[start:end], anchors=((0, self.locate(start)), *later))

    def split(self) -> list[Text]:
        """Words as bash splits an unquoted expansion; what is not expanded, "$(a b)", stays in one word."""
        found: list[Text] = []
        position, length = 0, len(self.text)
        while position < length:
            while position < length and self.text[position] in SPACES:
                position += 1
            start = position
            while position < length and self.text[position] not in SPACES:
                if not self.known and self.text.startswith(("$(", "${"), position):
                    closed = closing(
                        self.text, position + 2, length, ")" if self.text[position + 1] == "(" else "}"
                    )
                    position = length if closed < 0 else closed
                position += 1
            if position > start:
                part = self.part(start, min(position, length))
                if not self.known and not self.separable and not any(char in part.text for char in "$<`"):
                    part = replace(part, unresolved=(), runtime="")
                found.append(part)
        return found

    def at(self, location: Location) -> Text:
        """The same text, as written at its place of use."""
        return replace(self, anchors=((0, location),))

    def value(self, source: str = "") -> Value:
        return Value(self.text, self.location, self.unresolved, source, self.runtime)


def plain(text: str, location: Location) -> Text:
    return Text(text, ((0, location),))


@dataclass(frozen=True, slots=True)
class Script:
    """A shell text and the places of its characters."""

    text: str
    locate: Callable[[int], Location]
    path: str
    """For `source` beside it."""


class FileLines:
    """Places in a file that was read whole."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._starts = [0]
        position = text.find("\n")
        while position >= 0:
            self._starts.append(position + 1)
            position = text.find("\n", position + 1)

    def __call__(self, offset: int) -> Location:
        line = bisect_right(self._starts, offset)
        return Location(self._path, line, offset - self._starts[line - 1] + 1)


def file_script(path: str, text: str) -> Script:
    return Script(text, FileLines(path, text), path)


def text_script(text: Text) -> Script:
    """A script inside a word: `bash -c '...'`, a here-document, a manifest's argument.

    What stands for a template in YAML would be a here-document for the shell: it becomes a word that is not filled
    in, of the same length."""
    content = text.text
    for name in text.unresolved:
        if name.startswith("{{"):
            content = content.replace(f"<<{name[2:-2]}>>", placeholder(name))
    return Script(content, text.locate, text.location.path)


def placeholder(template: str) -> str:
    """<name___> of the same length as {{ name }}; blanks for {{ if ... }} and its like."""
    if _CONTROL.match(template):
        return " " * len(template)
    name = re.sub(r"[^A-Za-z0-9.]+", "_", template[2:-2]).strip("_.")
    name = name if name[:1].isalpha() else "x" + name
    return f"<{name[:57].ljust(len(template) - 2, '_')[: len(template) - 2]}>"


class Builder:
    """Puts a Text together from pieces."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._anchors: list[tuple[int, Location]] = []
        self._unresolved: list[str] = []
        self._runtime = ""
        self._length = 0
        self.started = False
        """Whether the word exists, be it empty: "" is a word, an empty unquoted expansion is none."""

    def add(self, text: str, location: Location) -> None:
        room = MAX_TEXT - self._length
        if len(text) > room:
            text = text[: max(room, 0)]
            self._note("text of more than 256 KiB")
        self.started = True
        if text or not self._anchors:
            self._anchors.append((self._length, location))
            self._pieces.append(text)
            self._length += len(text)

    def add_text(self, text: Text) -> None:
        base = self._length
        self.add(text.text, text.location)
        if self._length - base == len(text.text):
            self._anchors.extend((base + at, place) for at, place in text.anchors[1:])
        for name in text.unresolved:
            self._note(name)
        self._runtime = self._runtime or text.runtime

    def _note(self, name: str) -> None:
        if name not in self._unresolved:
            self._unresolved.append(name)

    def build(self, location: Location) -> Text:
        return Text(
            "".join(self._pieces),
            tuple(self._anchors) or ((0, location),),
            tuple(self._unresolved),
            self._runtime,
        )


@dataclass(slots=True)
class Variable:
    """A shell variable: a scalar is the element "0" of an array, as in bash."""

    values: dict[str, Text] = field(default_factory=dict)
    array: bool = False
    exported: bool = False
    source: str = "export"

    @property
    def scalar(self) -> Text | None:
        return self.values.get("0")


class Budget(Exception):  # noqa: N818 - not an error of the user's: reading stops here
    """The text asks for more steps than any launch needs."""


class Leave(Exception):  # noqa: N818 - control flow of the script that is followed
    """exit, exec, return, break or continue."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


def base_name(path: str) -> str:
    """Last part of a path on the machine that it is for."""
    return path.rpartition("/")[2]
