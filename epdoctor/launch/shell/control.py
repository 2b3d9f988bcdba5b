"""Compound statements: branches, loops, lists, pipelines and subshells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from epdoctor.launch.shell import conditions
from epdoctor.launch.shell.arithmetic import NotArithmetic
from epdoctor.launch.shell.scope import Scope
from epdoctor.launch.shell.text import Leave, Text

if TYPE_CHECKING:
    from tree_sitter import Node

    from epdoctor.launch.shell.interpret import Interpreter

MAX_ROUNDS = 1024


def list_statement(shell: Interpreter, node: Node) -> bool | None:
    left, right = node.children[0], node.children[-1]
    operator = next((child.type for child in node.children if child.type in ("&&", "||")), "&&")
    truth = shell.statement(left)
    if truth is None:
        return _maybe(shell, [right])
    return shell.statement(right) if truth == (operator == "&&") else truth


def _maybe(shell: Interpreter, nodes: list[Node]) -> bool | None:
    """Statements that may or may not run."""
    _branches(shell, [nodes, []])
    return None


_BY_NODE = re.compile(r"RANK|NODE|HOST|hostname|INDEX|ROLE|HEAD|MASTER|PROCID|\$\{?1\b", re.IGNORECASE)
"""What a condition asks that tells the nodes of one launch apart."""


def _branches(shell: Interpreter, branches: list[list[Node]], statement: Node | None = None) -> None:
    """All of them are possible; one that leaves the script has no say in what follows."""
    before = shell.scope
    forced = shell.scope.limits.forced.get(statement.start_byte) if statement is not None else None
    if forced is not None:
        shell.statements(branches[forced] if forced < len(branches) else [])
        return
    ends: list[Scope] = []
    left: Leave | None = None
    branch = shell.branch
    for number, nodes in enumerate(branches):
        shell.use(before.copy())
        shell.branch = f"{branch} {statement.start_byte if statement is not None else 0}.{number}"
        try:
            shell.statements(nodes)
            ends.append(shell.scope)
        except Leave as leave:
            left = leave
    shell.branch = branch
    shell.use(before)
    if ends:
        different = before.merge(ends, shell.script.locate(0))
        if statement is not None and different and _BY_NODE.search(shell.text(statement)[:200]):
            for name in different:
                before.limits.differing.setdefault(name, (statement.start_byte, len(branches)))
    elif left is not None:
        raise left


def negated_command(shell: Interpreter, node: Node) -> bool | None:
    truth = shell.statements(node.children[1:])
    return None if truth is None else not truth


def subshell(shell: Interpreter, node: Node) -> bool | None:
    before = shell.scope
    shell.use(before.copy())
    try:
        return shell.statements(node.children)
    except Leave:
        return None
    finally:
        shell.use(before)


def compound_statement(shell: Interpreter, node: Node) -> bool | None:
    if shell.text(node).startswith("(("):
        inner = shell.text(node)[2:].rstrip()[:-2]
        try:
            return shell.words.calculate(inner, node.start_byte) != 0
        except NotArithmetic:
            return None
    return shell.statements(node.children)


def pipeline(shell: Interpreter, node: Node, stdin: Text | None = None) -> bool | None:
    for child in node.children:
        if child.type in ("|", "|&"):
            continue
        before = shell.scope
        shell.use(before.copy())
        try:
            if child.type == "command" and stdin is not None:
                shell.command(child, stdin)
            else:
                shell.statement(child)
        except Leave:
            pass
        finally:
            shell.use(before)
    return None


def if_statement(shell: Interpreter, node: Node) -> bool | None:
    """Known conditions choose; the rest of the branches are all possible."""
    possible: list[list[Node]] = []
    for condition, body in _clauses(node):
        truth = True if condition is None else _holds(shell, condition)
        if truth is False:
            continue
        possible.append(body)
        if truth:
            break
    else:
        possible.append([])
    if len(possible) == 1:
        return shell.statements(possible[0])
    _branches(shell, possible, node)
    return None


def _holds(shell: Interpreter, nodes: list[Node]) -> bool | None:
    try:
        return shell.statements(nodes)
    except Leave:
        return None


def case_statement(shell: Interpreter, node: Node) -> bool | None:
    value = node.child_by_field_name("value")
    subject = shell.words.one(value.start_byte, value.end_byte) if value is not None else None
    possible: list[list[Node]] = []
    for item in node.children:
        if item.type != "case_item":
            continue
        patterns = item.children_by_field_name("value")
        closed = next((n for n, child in enumerate(item.children) if child.type == ")"), 0)
        matches = [_matches(shell, subject, pattern) for pattern in patterns]
        truth = True if True in matches else None if None in matches else False
        if truth is False:
            continue
        possible.append(item.children[closed + 1 :])
        if truth:
            break
    else:
        possible.append([])
    if len(possible) == 1:
        return shell.statements(possible[0])
    _branches(shell, possible, node)
    return None


def _matches(shell: Interpreter, subject: Text | None, pattern: Node) -> bool | None:
    text = shell.text(pattern).strip()
    if subject is None:
        return None
    expanded = shell.words.one(pattern.start_byte, pattern.end_byte)
    if text == "*":
        return True
    return conditions.matches(subject, expanded)


def for_statement(shell: Interpreter, node: Node) -> bool | None:
    variable = node.child_by_field_name("variable")
    body = node.child_by_field_name("body")
    if variable is None or body is None:
        return None
    words: list[Text] = []
    for child in node.children_by_field_name("value"):
        words += shell.fields(child)
    if not any(child.type == "in" for child in node.children):
        words = list(shell.scope.arguments or ())
    for word in words[:MAX_ROUNDS]:
        shell.scope.set(shell.text(variable), word)
        if not _round(shell, body):
            break
    return True


def _round(shell: Interpreter, body: Node) -> bool:
    """One round of a loop; False: break."""
    try:
        shell.statement(body)
    except Leave as leave:
        if leave.how not in ("break", "continue"):
            raise
        return leave.how == "continue"
    return True


def c_style_for_statement(shell: Interpreter, node: Node) -> bool | None:
    header = shell.script.text[node.start_byte : node.end_byte]
    opened, closed = header.find("(("), header.find("))")
    parts = header[opened + 2 : closed].split(";")
    body = node.child_by_field_name("body")
    if body is None or len(parts) != 3:
        return None
    try:
        shell.words.calculate(parts[0], node.start_byte)
        for _ in range(MAX_ROUNDS):
            if parts[1].strip() and shell.words.calculate(parts[1], node.start_byte) == 0:
                return True
            if not _round(shell, body):
                return True
            shell.words.calculate(parts[2], node.start_byte)
    except NotArithmetic:
        _maybe(shell, [body])
    return None


def while_statement(shell: Interpreter, node: Node) -> bool | None:
    body = node.child_by_field_name("body")
    until = any(child.type == "until" for child in node.children)
    conditions_ = node.children_by_field_name("condition")
    for _ in range(MAX_ROUNDS):
        truth = _holds(shell, conditions_)
        if truth is None or body is None:
            break
        if truth is until:
            return True
        written = " ".join(shell.text(condition) for condition in conditions_).strip(" ;\n")
        constant = written in ("true", ":", "false", "[ 1 ]", "[ true ]", "(( 1 ))", "((1))", "")
        if not _round(shell, body):
            return None
        if constant:
            # `while true` ends by a way that is not known here.
            return None
    if body is not None:
        # It may run: what it starts counts, what it sets is what options of the call would set.
        before = shell.scope
        shell.use(before.copy())
        try:
            shell.statement(body)
        except Leave:
            pass
        finally:
            shell.use(before)
    return None


def _clauses(node: Node) -> list[tuple[list[Any] | None, list[Any]]]:
    """(condition, body) of if, elif and else; no condition: else."""
    found: list[tuple[list[Any] | None, list[Any]]] = []
    condition: list[Any] = []
    body: list[Any] = []
    in_body = False
    others: list[tuple[list[Any] | None, list[Any]]] = []
    for child in node.children:
        if child.type in ("if", "elif", "fi"):
            continue
        if child.type == "then":
            in_body = True
        elif child.type == "elif_clause":
            others += _clauses(child)
        elif child.type == "else_clause":
            others.append((None, child.children[1:]))
        elif in_body:
            body.append(child)
        else:
            condition.append(child)
    found.append((condition, body))
    return found + others
