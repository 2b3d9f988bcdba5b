"""The tree of a shell text, and what in it is no shell.

tree-sitter with its bash grammar reads everything that bash reads, knows places, and goes on after an error
(bashlex, the other parser on PyPI, has had no release since 2023, stops at the first error, knows neither arrays
nor arithmetic, and is GPL). Its grammar is not bash's own parser: an error of the tree alone is a doubt, an open
quote or here-document found in the text is a fact.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from epdoctor.launch.shell.scan import closing_backtick, closing_quote
from epdoctor.launch.shell.text import Script
from epdoctor.model import Problem, Severity

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

PLACEHOLDER = re.compile(
    r"(?<=[\s\"'=:/,])<[A-Za-z][A-Za-z0-9_. -]{0,60}(?<! )>(?=[\s\"'/:,]|\Z)|<[A-Za-z](?:[A-Za-z0-9.]|_(?!_)){0,57}_{2,400}>"
)
"""<model> as manuals write it, <model___> for a template. A redirection has a blank on one side only."""
MAX_ERRORS = 20
MAX_NODES = 400_000


@functools.lru_cache(maxsize=1)
def _parser() -> Parser:
    import tree_sitter
    import tree_sitter_bash

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))


def parse(text: str) -> Any:
    """Root of the tree. Offsets are characters: letters outside ASCII are one "?" each for the parser."""
    if "<" in text:
        text = PLACEHOLDER.sub(lambda match: "_" * len(match[0]), text)
    return _root(text.encode("ascii", "replace").replace(b"\0", b"?"))


@functools.lru_cache(maxsize=16)
def _root(data: bytes) -> Any:
    # Pods of one group and tasks of one srun read the same text.
    return _parser().parse(data).root_node


def problems(script: Script, root: Node) -> Iterator[Problem]:
    """What cannot be shell, first the open quotes."""
    if not root.has_error:
        return
    opened = open_quote(script.text)
    if opened is not None:
        offset, what = opened
        place = script.locate(offset)
        line = script.text[script.text.rfind("\n", 0, offset) + 1 :].split("\n", 1)[0]
        yield Problem(
            found=f"{what} that never closes",
            expected=f"a closing {'bracket' if what[-1] in '({' else 'quote'}",
            evidence=(line.strip()[:200],),
            location=place,
        )
        return
    for node in _errors(root):
        if not _matters(script.text, node):
            continue
        text = script.text[node.start_byte : node.end_byte].strip().split("\n", 1)[0][:80]
        yield Problem(
            found=f"not understood as shell: {text or 'a word is missing'}",
            expected="shell that can be read without running it",
            severity=Severity.WARNING,
            location=script.locate(node.start_byte),
        )


_STARTS = re.compile(r"\bvllm[\w./]*[\"']?\s+serve\b|vllm\.entrypoints|vllm-openai|dynamo\.vllm")


_FILLED = re.compile(r"<<[^<>\n]{1,400}>>")


def _matters(text: str, node: Node) -> bool:
    """Whether the doubt is beside a command that starts vLLM: elsewhere the grammar's doubts are nobody's concern."""
    if _FILLED.search(text, node.start_byte, min(node.end_byte + 200, node.start_byte + 2000)):
        # A template in YAML, reported as such.
        return False
    start, end = node.start_byte, min(node.end_byte, node.start_byte + 20_000)
    for _ in range(8):
        start = max(text.rfind("\n", 0, start), 0)
    for _ in range(2):
        following = text.find("\n", end)
        end = following + 1 if following >= 0 else len(text)
    return _STARTS.search(text, start, end) is not None


def _errors(root: Node) -> Iterator[Node]:
    """Error nodes in order, not those inside another; bounded."""
    stack, seen, shown = [root], 0, 0
    while stack and shown < MAX_ERRORS and seen < MAX_NODES:
        node = stack.pop()
        seen += 1
        if node.is_error or node.is_missing:
            shown += 1
            yield node
        elif node.has_error:
            stack.extend(reversed(node.children))


def open_quote(text: str) -> tuple[int, str] | None:
    """(offset, what) of the quote or bracket that is open at the end, or None.

    Where the last one swallows lines that look like options, the fault is at the first string that does."""
    position, end = 0, len(text)
    swallowing: int | None = None
    waiting: list[tuple[str, bool]] = []
    word_start = True
    while position < end:
        char = text[position]
        if char == "\\":
            position += 2
            word_start = False
            continue
        if char == "#" and word_start:
            newline = text.find("\n", position)
            position = end if newline < 0 else newline
            continue
        if char in "'\"`":
            closed = _close(text, position, end)
            if closed < 0:
                what = {"'": "a single quote", '"': "a double quote", "`": "a back quote"}[char]
                return (swallowing if swallowing is not None else position), what
            if swallowing is None and char != "`" and _swallows(text, position, closed):
                swallowing = position
            position = closed + 1
            word_start = False
            continue
        if char == "<" and text.startswith("<<", position) and not text.startswith("<<<", position):
            position = _here_document(text, position + 2, waiting)
            continue
        if char == "<" and text.startswith("<<<", position):
            position += 3
            continue
        if char == "\n" and waiting:
            position = _skip_bodies(text, position + 1, waiting)
            word_start = True
            continue
        word_start = char in " \t\n;|&()"
        position += 1
    return None


def _close(text: str, position: int, end: int) -> int:
    if text[position] == "'":
        if position and text[position - 1] == "$":
            closed = position + 1
            while closed < end and text[closed] != "'":
                closed += 2 if text[closed] == "\\" else 1
            return closed if closed < end else -1
        return text.find("'", position + 1)
    if text[position] == '"':
        return closing_quote(text, position + 1, end)
    return closing_backtick(text, position + 1, end)


def _swallows(text: str, start: int, closed: int) -> bool:
    """A string that runs over the end of a line into the next option: it was meant to end before."""
    newline = text.find("\n", start, closed)
    while newline >= 0:
        line = text[newline + 1 : closed].split("\n", 1)[0].lstrip(" \t")
        if line.startswith("--") and text[start + 1 : newline].rstrip(" \t").endswith("\\"):
            return True
        newline = text.find("\n", newline + 1, closed)
    return False


def _here_document(text: str, position: int, waiting: list[tuple[str, bool]]) -> int:
    strip = text[position : position + 1] == "-"
    position += 1 if strip else 0
    while text[position : position + 1] in (" ", "\t") and position < len(text):
        position += 1
    start = position
    while position < len(text) and text[position] not in " \t\n;|&<>()":
        position += 1
    word = text[start:position].replace("'", "").replace('"', "").replace("\\", "")
    if word and not word[0].isdigit():
        waiting.append((word, strip))
    return position


def _skip_bodies(text: str, position: int, waiting: list[tuple[str, bool]]) -> int:
    """Past the here-documents that start on the line before."""
    for word, strip in waiting:
        while position < len(text):
            newline = text.find("\n", position)
            stop = len(text) if newline < 0 else newline
            line = text[position:stop]
            position = stop + 1
            if (line.lstrip("\t") if strip else line) == word:
                break
    waiting.clear()
    return position


def words_of(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words of a command in one text, as docker compose splits it: new lines are blanks."""
    found: list[tuple[int, int]] = []
    position, end = 0, len(text)
    while position < end and len(found) < 10_000:
        if text[position] in " \t\n\r":
            position += 1
            continue
        start = position
        while position < end and text[position] not in " \t\n\r":
            char = text[position]
            if char == "\\":
                position += 2
            elif char in "'\"":
                closed = _close(text, position, end)
                position = end if closed < 0 else closed + 1
            else:
                position += 1
        found.append((start, min(position, end)))
    return found
