"""${...}: defaults, lengths, pieces and replacements of variables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epdoctor.launch.shell.arithmetic import NotArithmetic
from epdoctor.launch.shell.scope import RUNTIME
from epdoctor.launch.shell.text import Text, plain

if TYPE_CHECKING:
    from epdoctor.launch.shell.words import Words

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]")
_RANK = re.compile(
    r"(^|_)(NODE_?)?RANK$|NODE_?ID$|NODE_INDEX$|WORKER_INDEX$|PROCID$|(^|_)ROLE$", re.IGNORECASE
)
_OPERATOR = re.compile(r":-|:=|:\+|:\?|:|-|=|\+|\?|##|#|%%|%|//|/|\^\^|\^|,,|,|@")


@dataclass(frozen=True)
class Expanded:
    words: list[Text]
    separate: bool = False
    """Each is a word of its own even in quotes: "$@", "${A[@]}"."""
    keep_place: bool = False


def names_in(text: str) -> list[str]:
    """Names that arithmetic text uses, each once, with or without a dollar sign."""
    found = re.findall(r"(?<![A-Za-z0-9_])[A-Za-z_][A-Za-z0-9_]*", text[:2000])
    return list(dict.fromkeys(found))


def _missing(words: Words, name: str, written: str, start: int) -> Text:
    place = words.script.locate(start)
    if name in RUNTIME:
        return Text(written, ((0, place),), (), RUNTIME[name])
    if name in ("?", "$", "!", "-"):
        return Text(written, ((0, place),), (), "a value of the running shell")
    return Text(written, ((0, place),), (name,))


def _arguments(words: Words, name: str, start: int) -> Expanded:
    given = words.scope.arguments
    place = words.script.locate(start)
    if name == "#":
        if given is None:
            return Expanded([_missing(words, "#", "$#", start)])
        return Expanded([plain(str(len(given)), place)])
    # A script that is called without arguments: "$@" adds nothing.
    return Expanded(list(given or ()), separate=name == "@")


def expand(words: Words, start: int, end: int, quoted: bool) -> Expanded:
    """What stands between ${ and } in the script's text at [start, end)."""
    text = words.script.text
    written = "${" + text[start:end] + "}"
    if text[start - 1 : start] == "$":
        written = "$" + text[start:end]
    position = start
    place = words.script.locate(start)
    unknown = Expanded([Text(written, ((0, place),), (text[start:end][:80],))])
    length_of = indirect = False
    if text[start] == "#" and end - start > 1 and _NAME.match(text, start + 1, end):
        length_of, position = True, start + 1
    elif text[start] == "!" and end - start > 1:
        indirect, position = True, start + 1
    match = _NAME.match(text, position, end)
    if match is None:
        return unknown
    name, position = match[0], match.end()
    subscript = ""
    if position < end and text[position] == "[":
        closed = text.find("]", position, end)
        if closed < 0:
            return unknown
        subscript, position = text[position + 1 : closed], closed + 1
    if name in ("@", "*", "#") and not length_of:
        return _arguments(words, name, start)
    scope = words.scope
    if name == "0" and not length_of:
        return Expanded([scope.name or Text(written, ((0, place),), (), "the script's name")])
    if indirect:
        variable = scope.variables.get(name)
        if subscript in ("@", "*"):
            keys = list(variable.values) if variable is not None else []
            return Expanded([plain(key, place) for key in keys], separate=True)
        pointed = scope.get(name)
        if pointed is None or not pointed.known:
            return unknown
        name = pointed.text
        found = _value(words, name, "", place)
        return Expanded([found]) if found is not None else Expanded([_missing(words, name, written, start)])
    if subscript in ("@", "*"):
        variable = scope.variables.get(name)
        if length_of:
            if variable is None:
                return Expanded([Text(written, ((0, place),), (name,))])
            only = next(iter(variable.values.values()), None)
            if only is not None and len(variable.values) == 1 and not only.known and variable.array:
                return Expanded([Text(written, ((0, place),), only.unresolved, only.runtime)])
            return Expanded([plain(str(len(variable.values)), place)])
        values = list(variable.values.values()) if variable is not None else []
        if position < end and text[position] == ":":
            bounds = _bounds(words, text[position + 1 : end], position)
            if bounds is None:
                return unknown
            offset, count = bounds
            values = values[offset:] if count is None else values[offset : offset + count]
        # ${ARGS[@]+"${ARGS[@]}"}, the guard of `set -u`, is the array itself.
        if variable is None and position == end and name.isidentifier() and name in RUNTIME:
            return unknown
        return Expanded(values, separate=subscript == "@" or not quoted)
    value = _value(words, name, subscript, place)
    if length_of:
        if value is None or not value.known:
            return Expanded([_missing(words, name, written, start)])
        return Expanded([plain(str(len(value.text)), place)])
    if position == end:
        return Expanded([value if value is not None else _missing(words, name, written, start)])
    operator = _OPERATOR.match(text, position, end)
    if operator is None:
        return unknown
    return _operate(words, name, value, operator[0], operator.end(), end, written, quoted)


def _value(words: Words, name: str, subscript: str, place: object) -> Text | None:
    scope = words.scope
    if name.isdigit():
        given = scope.arguments
        number = int(name) if len(name) < 6 else 0
        if given is None:
            return None
        return given[number - 1] if 1 <= number <= len(given) else Text("", ((0, words.script.locate(0)),))
    variable = scope.variables.get(name)
    if variable is None:
        return None
    if not subscript:
        return variable.scalar
    key = subscript.strip("\"'")
    if key in variable.values:
        return variable.values[key]
    try:
        number = words.calculate(subscript, 0)
    except NotArithmetic:
        return None
    if number < 0:
        number += len(variable.values)
    return variable.values.get(str(number))


def _bounds(words: Words, text: str, position: int) -> tuple[int, int | None] | None:
    first, colon, second = text.partition(":")
    try:
        offset = words.calculate(first, position)
        count = words.calculate(second, position) if colon else None
    except NotArithmetic:
        return None
    return (offset, count) if offset >= 0 and (count is None or count >= 0) else None


def _operate(
    words: Words,
    name: str,
    value: Text | None,
    operator: str,
    start: int,
    end: int,
    written: str,
    quoted: bool,
) -> Expanded:
    place = words.script.locate(start)
    argument = words.script.text[start:end]
    if operator in (":-", "-", ":=", "=", ":+", "+", ":?", "?"):
        empty = value is None or (operator[0] == ":" and value.known and not value.text)
        if operator in (":+", "+"):
            if value is None and name.isdigit():
                return Expanded([])
            return Expanded([]) if empty else _default(words, start, end, quoted)
        if not empty:
            return Expanded([value]) if value is not None else Expanded([])
        if operator in (":?", "?"):
            return Expanded([_missing(words, name, written, start)])
        if value is None and (name in RUNTIME or _tells_nodes_apart(name, argument)):
            return Expanded([_missing(words, name, written, start)])
        default = _default(words, start, end, quoted)
        if operator in (":=", "=") and len(default.words) == 1:
            words.scope.set(name, default.words[0])
        return default
    if value is None or not value.known:
        if value is None:
            return Expanded([_missing(words, name, written, start)])
        return Expanded([Text(written, ((0, place),), value.unresolved, value.runtime)])
    changed = _change(words, value.text, operator, argument, start)
    if changed is None:
        return Expanded([Text(written, ((0, place),), (written[2:-1][:80],))])
    return Expanded([plain(changed, place)])


def _tells_nodes_apart(name: str, default: str) -> bool:
    """NODE_RANK=${NODE_RANK:-0}, RANK=${1:-0}: the default is one node's; every other node has its own."""
    return _RANK.search(name) is not None or (name.isdigit() and default.strip() == "0")


def _default(words: Words, start: int, end: int, quoted: bool) -> Expanded:
    if quoted:
        return Expanded([words.one(start, end)])
    found = words.fields(start, end)
    return Expanded(found, separate=True) if len(found) != 1 else Expanded(found)


def _change(words: Words, text: str, operator: str, argument: str, start: int) -> str | None:
    """None: a pattern that is not simple enough to be sure of."""
    if operator in ("^^", ",,"):
        return (text.upper() if operator == "^^" else text.lower()) if not argument else None
    if operator in ("^", ","):
        head = text[:1].upper() if operator == "^" else text[:1].lower()
        return head + text[1:] if not argument else None
    if operator == "@":
        return text if argument in ("Q", "a", "E") else None
    if operator == ":":
        bounds = _bounds(words, argument.strip(), start)
        if bounds is None:
            return None
        offset, count = bounds
        return text[offset:] if count is None else text[offset : offset + count]
    pattern, _, replacement = argument.partition("/") if operator in ("/", "//") else (argument, "", "")
    expanded = words.one(start, start + len(pattern))
    if not expanded.known:
        return None
    pattern = expanded.text
    if operator in ("/", "//"):
        if any(char in pattern for char in "*?[") or "$" in replacement:
            return None
        return text.replace(pattern, replacement, -1 if operator == "//" else 1) if pattern else text
    return _strip(text, operator, pattern)


def _strip(text: str, operator: str, pattern: str) -> str | None:
    """${x#pattern} and its kin, for patterns with one star at an end."""
    star_first, star_last = pattern.startswith("*"), pattern.endswith("*")
    literal = pattern.strip("*")
    if any(char in literal for char in "*?["):
        return None
    if operator in ("#", "##"):
        if star_last and not star_first:
            if not text.startswith(literal):
                return text
            return "" if operator == "##" else text[len(literal) :]
        if not star_first:
            return text.removeprefix(literal)
        at = text.find(literal) if operator == "#" else text.rfind(literal)
        return text if at < 0 else text[at + len(literal) :]
    if star_first and not star_last:
        return ("" if operator == "%%" else text[: -len(literal)]) if text.endswith(literal) else text
    if not star_last:
        return text.removesuffix(literal)
    at = text.rfind(literal) if operator == "%" else text.find(literal)
    return text if at < 0 else text[:at]
