"""Redirections: here-documents, here-strings, and files that a script writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epdoctor.launch.shell.control import pipeline
from epdoctor.launch.shell.substitution import substitute
from epdoctor.launch.shell.text import Text

if TYPE_CHECKING:
    from tree_sitter import Node

    from epdoctor.launch.shell.interpret import Interpreter


def here_string(shell: Interpreter, node: Node) -> Text | None:
    child = node.children[-1] if node.children else None
    return shell.words.one(child.start_byte, child.end_byte) if child is not None else None


def redirected_statement(shell: Interpreter, node: Node) -> bool | None:
    body = node.child_by_field_name("body")
    stdin: Text | None = None
    target = ""
    follow: list[Node] = []
    extra: list[Node] = []
    for child in node.children:
        if child.type == "heredoc_redirect":
            stdin, after, more = _heredoc(shell, child)
            follow += after
            extra += more
        if child.type in ("file_redirect", "heredoc_redirect"):
            target = _target(shell, child) or target
        elif child.type == "herestring_redirect":
            stdin = here_string(shell, child)
    if body is None:
        return None
    if stdin is not None and target and _writes(shell, body):
        shell.reading.written[target] = stdin
        return True
    if stdin is not None and follow:
        for stage in follow:
            if stage.type == "pipeline":
                pipeline(shell, stage, stdin)
            elif stage.type == "command":
                shell.command(stage, stdin)
            else:
                shell.statement(stage)
        return True
    if body.type == "command":
        substituted = next((n for n in node.children if n.type == "file_redirect"
                            and any(c.type == "process_substitution" for c in n.children)), None)  # fmt: skip
        if substituted is not None and stdin is None:
            inner = next(c for c in substituted.children if c.type == "process_substitution")
            stdin = substitute(shell.text(inner)[2:-1], shell.script, shell.scope)
        return shell.command(body, stdin, extra)
    if body.type == "pipeline" and stdin is not None:
        return pipeline(shell, body, stdin)
    return shell.statement(body)


def _writes(shell: Interpreter, body: Node) -> bool:
    """Whether what it reads goes to the file unchanged."""
    return body.type == "command" and shell.text(body).split(None, 1)[0] == "cat"


def _target(shell: Interpreter, node: Node) -> str:
    redirects = (
        [node] if node.type == "file_redirect" else [c for c in node.children if c.type == "file_redirect"]
    )
    for redirect in redirects:
        target = redirect.child_by_field_name("destination")
        operators = {child.type for child in redirect.children}
        if target is not None and operators & {">", ">>", ">|"}:
            word = shell.words.one(target.start_byte, target.end_byte)
            return word.text
    return ""


def _heredoc(shell: Interpreter, node: Node) -> tuple[Text | None, list[Node], list[Node]]:
    """The body after expansion, the commands that read it after a pipe, and further words of the command."""
    start = next((child for child in node.children if child.type == "heredoc_start"), None)
    body = next((child for child in node.children if child.type == "heredoc_body"), None)
    # `<<E || true`: what comes after the command, not what reads it.
    right = node.child_by_field_name("right")
    follow = [
        c
        for c in node.children
        if c != right and c.type in ("pipeline", "command", "list", "redirected_statement")
    ]
    more = [c for c in node.children if c.type in ("word", "string", "raw_string", "concatenation")]
    if body is None:
        return None, follow, more
    quoted = start is not None and any(char in shell.text(start) for char in "'\"\\")
    if quoted:
        text = shell.words.written(body.start_byte, body.end_byte)
    else:
        text = shell.words.quoted(body.start_byte, body.end_byte)
    return text, follow, more
