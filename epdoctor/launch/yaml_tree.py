"""YAML as a tree with places, from the parser's events: bounded depth, anchors shared, no objects built.

`yaml.compose` would recurse on nested text and PyYAML's loader has no places for values; the events have both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from epdoctor.launch.shell.text import Text
from epdoctor.model import Location

Locate = Callable[[int], Location]
MAX_DEPTH = 100
MAX_NODES = 400_000
"""Some seconds of reading: a manifest of ten megabytes is a few long texts, not a million short ones."""


class YamlTrouble(Exception):  # noqa: N818 - reported as a finding with its place
    def __init__(self, message: str, location: Location) -> None:
        super().__init__(message)
        self.location = location


@dataclass(slots=True)
class Scalar:
    text: str
    start: int
    """Offset of its first character in `source`."""
    style: str
    """"" plain, ' " | >"""
    source: str
    """The document's text."""
    locate: Locate

    @property
    def location(self) -> Location:
        """Of its first character, inside the quotes or below the block's mark."""
        if self.style in ("|", ">") and self.text.strip():
            return self.as_text().location
        return self.locate(self.start + (1 if self.style in ("'", '"') else 0))

    @property
    def value(self) -> Any:
        """As YAML 1.1 types it: true, 8, 0.5, null; a text in quotes stays one."""
        if self.style:
            return self.text
        return _typed(self.text)

    def as_text(self) -> Text:
        """With the place of each line."""
        if "\n" not in self.text and self.style not in ("|", ">"):
            return Text(self.text, ((0, self.location),))
        anchors = _align(self)
        return Text(self.text, tuple(anchors))

    def plain(self) -> Any:
        return self.value


@dataclass(slots=True)
class Sequence:
    items: list[Node]
    start: int
    locate: Locate

    @property
    def location(self) -> Location:
        return self.locate(self.start)

    def plain(self) -> Any:
        return _plain(self)


@dataclass(slots=True)
class Mapping:
    pairs: dict[str, tuple[Scalar, Node]]
    start: int
    locate: Locate
    defaults: dict[str, tuple[Scalar, Node]] = field(default_factory=dict)
    """<<: *anchor; what stands in the mapping itself wins."""

    @property
    def location(self) -> Location:
        return self.locate(self.start)

    def get(self, name: str) -> Node | None:
        found = self.pairs.get(name) or self.defaults.get(name)
        return found[1] if found is not None else None

    def items(self) -> Iterator[tuple[Scalar, Node]]:
        return iter({**self.defaults, **self.pairs}.values())

    def plain(self) -> Any:
        return _plain(self)


Node = Scalar | Sequence | Mapping
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


MAX_PLAIN = 50_000
"""Values of one object: anchors inside anchors can stand for billions."""


def _plain(node: Node) -> Any:
    """Python's own values; what is beyond the limits is None."""
    left = MAX_PLAIN

    def build(node: Node, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            return None
        if isinstance(node, Scalar):
            return node.value
        if isinstance(node, Sequence):
            return [build(item, depth + 1) for item in node.items if left > 0]
        return {key.text: build(value, depth + 1) for key, value in node.items() if left > 0}

    return build(node, 0)


def _typed(text: str) -> Any:
    lowered = text.lower()
    if lowered in _WORDS:
        return _WORDS[lowered]
    if lowered in ("", "~", "null"):
        return None
    digits = text.lstrip("+-").replace("_", "")
    if digits.isascii() and digits.isdigit() and len(digits) < 30:
        return int(text.replace("_", ""))
    if len(text) < 40 and any(c.isdigit() for c in text) and set(text) <= set("0123456789.eE+-"):
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _align(scalar: Scalar) -> list[tuple[int, Location]]:
    """Places of a text of several lines: its lines stand in the source in the same order."""
    anchors: list[tuple[int, Location]] = []
    source, position = scalar.source, scalar.start
    offset = 0
    newline = source.find("\n", position)
    if scalar.style in ("|", ">"):
        position = newline + 1
    for line in scalar.text.split("\n"):
        stripped = line.strip()
        # A folded line is several of the source: its first word finds the first of them.
        probe = stripped[:40] if scalar.style == "|" else stripped[:24]
        found = source.find(probe, position) if probe else -1
        if found >= 0:
            lead = len(line) - len(line.lstrip())
            anchors.append((offset, scalar.locate(max(found - lead, 0))))
            if scalar.style in (">", ""):
                anchors += _folded(scalar, line, offset, found)
            position = found + len(probe)
        else:
            anchors.append((offset, anchors[-1][1] if anchors else scalar.locate(scalar.start)))
        offset += len(line) + 1
    return anchors or [(0, scalar.locate(scalar.start))]


def _folded(scalar: Scalar, line: str, offset: int, found: int) -> list[tuple[int, Location]]:
    anchors: list[tuple[int, Location]] = []
    at = len(line) - len(line.lstrip())
    position = found
    while at < len(line) and len(anchors) < 10_000:
        newline = scalar.source.find("\n", position)
        piece = scalar.source[position : newline if newline >= 0 else len(scalar.source)].rstrip()
        at += len(piece) + 1
        if newline < 0 or at >= len(line):
            break
        position = newline + 1
        while scalar.source[position : position + 1] in (" ", "\t"):
            position += 1
        if not line.startswith(scalar.source[position : position + 1], at):
            break
        anchors.append((offset + at, scalar.locate(position)))
    return anchors


def documents(text: str, locate: Locate) -> Iterator[Node]:
    """Each document's root, empty ones left out. Raises YamlTrouble with the place."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    starts = [0]
    newline = text.find("\n")
    while newline >= 0:
        starts.append(newline + 1)
        newline = text.find("\n", newline + 1)

    def offset(mark: Any) -> int:
        line: int = min(mark.line, len(starts) - 1)
        return min(starts[line] + int(mark.column), len(text))

    long: list[tuple[Any, Any]] = []

    def watched(events: Iterator[Any]) -> Iterator[Any]:
        """Keeps the last quoted text of several lines: where a quote is missing, the next one closes it."""
        for event in events:
            if type(event) is yaml.ScalarEvent and event.style in ("'", '"'):
                start: Any = event.start_mark
                end: Any = event.end_mark
                if end.line > start.line:
                    long[:] = [(start, end)]
            yield event

    try:
        yield from _tree(watched(yaml.parse(text, Loader=loader)), text, locate, offset)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if "quoted scalar" in str(error.context) and error.context_mark is not None:
            # The end of the text says nothing of where the quote opens.
            place = locate(offset(error.context_mark))
            raise YamlTrouble("not YAML: a quote that never closes", place) from error
        place = locate(offset(mark)) if mark is not None else locate(0)
        why = f"{error.problem or error.context or 'broken'}"
        if long and mark is not None and 0 <= mark.line - long[0][1].line <= 1:
            place = locate(offset(long[0][0]))
            why = f"the quote that opens here ends only in line {long[0][1].line + 1}"
        raise YamlTrouble(f"not YAML: {why}", place) from error
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise YamlTrouble(f"not YAML: {str(error).splitlines()[0][:100]}", locate(0)) from error


def _tree(events: Any, text: str, locate: Locate, offset: Callable[[Any], int]) -> Iterator[Node]:
    import yaml

    stack: list[tuple[Node, str, Scalar | None]] = []
    anchors: dict[str, Node] = {}
    count = 0
    for event in events:
        kind = type(event)
        if kind is yaml.DocumentStartEvent:
            anchors = {}
            continue
        node: Node
        if kind in (yaml.SequenceEndEvent, yaml.MappingEndEvent):
            node, _, _ = stack.pop()
        elif kind is yaml.AliasEvent:
            found = anchors.get(event.anchor)
            if found is None:
                raise YamlTrouble(f"*{event.anchor}: no such anchor above", locate(offset(event.start_mark)))
            if any(found is opened for opened, _, _ in stack):
                raise YamlTrouble(f"*{event.anchor} contains itself", locate(offset(event.start_mark)))
            node = found
        elif kind is yaml.ScalarEvent:
            count += 1
            node = Scalar(event.value, offset(event.start_mark), event.style or "", text, locate)
        elif kind in (yaml.SequenceStartEvent, yaml.MappingStartEvent):
            start = offset(event.start_mark)
            node = (
                Sequence([], start, locate) if kind is yaml.SequenceStartEvent else Mapping({}, start, locate)
            )
            if len(stack) >= MAX_DEPTH:
                raise YamlTrouble(f"nested deeper than {MAX_DEPTH} levels", locate(start))
            if event.anchor:
                anchors[event.anchor] = node
            stack.append((node, "", None))
            count += 1
            continue
        else:
            continue
        if kind is yaml.ScalarEvent and event.anchor:
            anchors[event.anchor] = node
        if count > MAX_NODES:
            raise YamlTrouble(f"more than {MAX_NODES} values", locate(0))
        if not stack:
            yield node
            continue
        parent, _, key = stack[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif isinstance(parent, Mapping):
            if key is None:
                # A key that is no plain text is kept under its kind: nothing of ours has one.
                stack[-1] = (
                    parent,
                    "",
                    node if isinstance(node, Scalar) else Scalar("?", node.start, "", text, locate),
                )
            else:
                _put(parent, key, node)
                stack[-1] = (parent, "", None)


def _put(parent: Mapping, key: Scalar, node: Node) -> None:
    if key.text == "<<" and not key.style:
        given = node.items if isinstance(node, Sequence) else [node]
        for item in given[:100]:
            if isinstance(item, Mapping) and len(parent.defaults) < 10_000:
                for name, pair in {**item.defaults, **item.pairs}.items():
                    parent.defaults.setdefault(name, pair)
    else:
        parent.pairs[key.text] = (key, node)
