"""Assignments: A=b, A+=c, ARGS=( ... ), A[i]=x, export, declare, local."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epdoctor.launch.shell.arithmetic import NotArithmetic
from epdoctor.launch.shell.text import Builder, Text, plain

if TYPE_CHECKING:
    from tree_sitter import Node

    from epdoctor.launch.shell.interpret import Interpreter


def assign(shell: Interpreter, node: Node, *, exported: bool | None = None) -> None:
    """Follow a variable_assignment node."""
    target = node.child_by_field_name("name")
    value = node.child_by_field_name("value")
    if target is None:
        return
    append = any(child.type == "+=" for child in node.children)
    if target.type == "subscript":
        _element(shell, target, value, append)
        return
    name = shell.text(target)
    if value is not None and value.type == "array":
        _array(shell, name, value, append)
    else:
        text = (
            shell.words.one(value.start_byte, value.end_byte)
            if value is not None
            else plain("", shell.place(node))
        )
        shell.scope.set(name, _joined(shell.scope.get(name), text) if append else text)
    if exported is not None:
        shell.scope.export(name, exported=exported)


def blanks_around(shell: Interpreter, node: Node, line: str) -> None:
    """NAME = VALUE: a command called NAME, or three names for export."""
    shell.reading.report(
        f"blanks around =: {line[:60]} sets nothing",
        "NAME=VALUE without blanks",
        shell.place(node),
        line=line,
    )


def _joined(before: Text | None, after: Text) -> Text:
    if before is None:
        return after
    builder = Builder()
    builder.add_text(before)
    builder.add_text(after)
    return builder.build(before.location)


def _element(shell: Interpreter, target: Node, value: Node | None, append: bool) -> None:
    name_node, index_node = target.child_by_field_name("name"), target.child_by_field_name("index")
    if name_node is None or index_node is None:
        return
    name = shell.text(name_node)
    text = (
        shell.words.one(value.start_byte, value.end_byte)
        if value is not None
        else plain("", shell.place(target))
    )
    key = _key(shell, name, shell.text(index_node), index_node.start_byte)
    variable = shell.scope.variables.get(name)
    before = variable.values.get(key) if variable is not None and append else None
    shell.scope.set_element(name, key, _joined(before, text))


def _key(shell: Interpreter, name: str, written: str, position: int) -> str:
    """An array's number, or an associative array's word."""
    try:
        return str(shell.words.calculate(written, position))
    except NotArithmetic:
        expanded = shell.words.one(position, position + len(written))
        return expanded.text.strip("\"'")


def _array(shell: Interpreter, name: str, value: Node, append: bool) -> None:
    variable = shell.scope.variables.get(name)
    values = dict(variable.values) if append and variable is not None else {}
    numbers = [int(key) for key in values if key.isdigit()]
    following = max(numbers) + 1 if numbers else 0
    for child in value.children:
        if child.type in ("(", ")", "comment", "\n"):
            continue
        text = shell.text(child)
        closed = text.find("]=")
        if text.startswith("[") and closed > 0:
            start = child.start_byte + closed + 2
            values[_key(shell, name, text[1:closed], child.start_byte + 1)] = shell.words.one(
                start, child.end_byte
            )
            continue
        for word in shell.fields(child):
            values[str(following)] = word
            following += 1
            if following > 20_000:
                return
    shell.scope.set_array(name, values)


def declare(shell: Interpreter, node: Node) -> None:
    """export, declare, typeset, local, readonly."""
    keyword = node.children[0].type
    exported: bool | None = True if keyword == "export" else None
    hides = keyword in ("local", "declare", "typeset")
    for child in node.children[1:]:
        text = shell.text(child)
        if child.type == "word" and text.startswith("-"):
            if "x" in text and keyword != "export":
                exported = True
            if "n" in text and keyword == "export":
                exported = False
        elif child.type == "variable_assignment":
            target = child.child_by_field_name("name")
            value = child.child_by_field_name("value")
            if hides and target is not None and (value is None or value.type != "array"):
                shell.scope.hide(shell.text(target))
            assign(shell, child, exported=exported)
        elif child.type == "variable_name" or text.isidentifier():
            if hides:
                shell.scope.hide(text)
            if exported is not None:
                shell.scope.export(text, exported=exported)
        elif text == "=":
            blanks_around(shell, child, shell.text(node).split("\n", 1)[0])
        else:
            # export "A=$B", export $(...): words that hold an assignment
            for word in shell.fields(child):
                name, equals, _ = word.text.partition("=")
                if equals and name.isidentifier():
                    shell.scope.set(name, word.part(len(name) + 1, len(word.text)), exported=exported)
