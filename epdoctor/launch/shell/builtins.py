"""Commands that the shell itself carries out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epdoctor.launch.shell import conditions
from epdoctor.launch.shell.arithmetic import NotArithmetic
from epdoctor.launch.shell.text import Builder, Leave, Script, Text, text_script

if TYPE_CHECKING:
    from tree_sitter import Node

    from epdoctor.launch.shell.interpret import Interpreter

QUIET = frozenset(
    ("echo", "printf", "cd", "true", "sleep", "mkdir", "rm", "cp", "ls", "pushd", "popd", "ulimit", "wait",
     "trap", "which", "umask", "shopt", "alias", "hash", "type", "date", "hostname", "touch", "chmod", "nvidia-smi")
)  # fmt: skip
"""Succeed on the way to a launch and start nothing."""


def builtin(
    shell: Interpreter,
    words: list[Text],
    inline: dict[str, tuple[Text, str]],
    stdin: Text | None,
    node: Node,
) -> tuple[bool, bool | None]:
    """(whether it was one, whether it succeeds where that is known)."""
    name, rest = words[0].text, words[1:]
    if name in QUIET or name == ":":
        # The words of `: "${A:=5}"` were expanded on the way here, which is what it is written for.
        return True, True
    if name == "false":
        return True, False
    if name in ("exit", "return", "break", "continue"):
        raise Leave(name)
    if name in ("[", "test"):
        given = rest[:-1] if name == "[" else rest
        return True, conditions.test_words(shell.words, given)
    if name == "exec" and not rest:
        return True, True
    if name == "exec":
        position = 0
        while position < len(rest) and rest[position].text in ("-a", "-c", "-l"):
            position += 2 if rest[position].text == "-a" else 1
        if rest[position:]:
            shell.call(rest[position:], inline, stdin, node)
        raise Leave("exec")
    if name in ("command", "builtin", "time") and rest and not rest[0].text.startswith("-"):
        return True, shell.call(rest, inline, stdin, node)
    if name == "set":
        _set(shell, rest)
        return True, True
    if name == "shift":
        given_now = shell.scope.arguments
        if given_now is not None:
            count = int(rest[0].text) if rest and rest[0].text.isdigit() and len(rest[0].text) < 6 else 1
            shell.scope.arguments = given_now[count:]
        return True, True
    if name == "let":
        for word in rest:
            try:
                shell.words.calculate(word.text, node.start_byte)
            except NotArithmetic:
                shell.scope.unset(word.text.partition("=")[0])
        return True, True
    if name in ("mapfile", "readarray", "read"):
        _read(shell, name, rest, stdin)
        return True, None
    if name == "eval":
        return True, _eval(shell, rest)
    if name in ("source", ".") and rest:
        return True, _source(shell, rest)
    return False, None


def _set(shell: Interpreter, rest: list[Text]) -> None:
    for number, word in enumerate(rest):
        if word.text == "--":
            shell.scope.arguments = tuple(rest[number + 1 :])
            return
        if word.text in ("-a", "+a") or word.text in ("-ae", "-aeu", "-ea"):
            shell.scope.export_all = word.text.startswith("-")
        if word.text == "allexport" and number:
            shell.scope.export_all = rest[number - 1].text == "-o"


def _read(shell: Interpreter, name: str, rest: list[Text], stdin: Text | None) -> None:
    names = [word.text for word in rest if word.text.isidentifier()]
    if not names:
        return
    into_array = name != "read" or any(word.text in ("-a", "-ra") for word in rest)
    if stdin is None:
        for variable in names:
            shell.scope.set(
                variable, Text(f"${variable}", ((0, rest[-1].location),), (), "what the script reads")
            )
    elif into_array:
        words = stdin.split() if stdin.known or stdin.separable else [stdin]
        shell.scope.set_array(names[-1], {str(number): word for number, word in enumerate(words)})
    else:
        whole = any(word.text in ("-d", "-rd") for word in rest)
        end = len(stdin.text) if whole else (stdin.text + "\n").find("\n")
        text = stdin.part(0, end)
        parts = text.split() if len(names) > 1 and text.known else [text]
        for number, variable in enumerate(names):
            if number < len(parts):
                shell.scope.set(variable, parts[number])


def _eval(shell: Interpreter, rest: list[Text]) -> bool | None:
    builder = Builder()
    for number, word in enumerate(rest):
        if number:
            builder.add(" ", word.location)
        builder.add_text(word)
    if not rest:
        return True
    scope = shell.scope.deeper()
    inner = shell.sub(text_script(builder.build(rest[0].location)), scope)
    inner.run()
    return None


def _source(shell: Interpreter, rest: list[Text]) -> bool | None:
    from epdoctor.launch.sources import beside

    found = beside(shell.reading, shell.setting, rest[0])
    if found is None:
        return None
    scope = shell.scope.deeper()
    if len(rest) > 1:
        scope.arguments = tuple(rest[1:])
    shell.sub(Script(found.text, found.locate, found.path), scope).run()
    return True
