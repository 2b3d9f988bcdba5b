"""Follows the statements of a shell text: which commands start, with which words and variables."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from epdoctor.launch.shell import conditions, control
from epdoctor.launch.shell.assign import assign, blanks_around, declare
from epdoctor.launch.shell.builtins import QUIET, builtin
from epdoctor.launch.shell.control import MAX_ROUNDS
from epdoctor.launch.shell.redirects import here_string, redirected_statement
from epdoctor.launch.shell.scope import Scope
from epdoctor.launch.shell.substitution import substitute
from epdoctor.launch.shell.syntax import parse, problems
from epdoctor.launch.shell.text import Budget, Leave, Script, Text, plain
from epdoctor.launch.shell.words import Words
from epdoctor.model import Location

if TYPE_CHECKING:
    from tree_sitter import Node

    from epdoctor.launch.reading import Reading, Setting

Start = Callable[
    ["Reading", "Setting", Scope, "list[Text]", "dict[str, tuple[Text, str]]", "Text | None"], bool | None
]
"""Takes a command that is no builtin; says whether it succeeds, where that is known."""
_PASSED = ("comment", ";", ";;", "\n", "&", "{", "}", "(", ")", "do", "done", "heredoc_start", "heredoc_end")
_FAMILIES = ("VLLM_", "NCCL_", "NVSHMEM_", "GLOO_", "UCX_", "CUDA_VISIBLE_DEVICES")
_STOPS = ("kill", "pkill", "killall", "wait")


@dataclass(frozen=True)
class _Launched:
    """The last command, for options that a broken continuation cut off from it."""

    servers: int
    words: list[Text]
    inline: dict[str, tuple[Text, str]]
    scope: Scope
    reported: bool


class Interpreter:
    """One shell process."""

    def __init__(
        self, reading: Reading, setting: Setting, script: Script, scope: Scope, start: Start
    ) -> None:
        self.reading, self.setting, self.script, self.scope = reading, setting, script, scope
        self.start = start
        self.words = Words(script, scope, substitute)
        self._depth = 0
        self._last: _Launched | None = None
        self.branch = ""
        """Which ways through conditions of unknown outcome lead here."""
        self._beside = -1
        """`stopped` of the reading when something was last started in the background."""
        self._aside: Setting | None = None

    def run(self) -> None:
        """Follow the whole text; trouble goes to the reading. Ends at its limits."""
        root = parse(self.script.text)
        for problem in problems(self.script, root):
            if problem not in self.reading.trouble:
                self.reading.trouble.append(problem)
        with suppress(Leave):
            self.statements(root.children)

    def sub(self, script: Script, scope: Scope) -> Interpreter:
        inner = Interpreter(self.reading, self.setting, script, scope, self.start)
        inner.branch = self.branch
        return inner

    def text(self, node: Node) -> str:
        return self.script.text[node.start_byte : node.end_byte]

    def place(self, node: Node) -> Location:
        return self.script.locate(node.start_byte)

    def statements(self, nodes: list[Node]) -> bool | None:
        truth: bool | None = True
        for position, node in enumerate(nodes):
            if node.type in _PASSED:
                continue
            before = self.setting
            if position + 1 < len(nodes) and nodes[position + 1].type == "&":
                self._beside = self.reading.stopped
            if self._beside == self.reading.stopped and not before.machine:
                where = f"{self.script.path} {before.index} {self.branch} {self._beside}"
                if self._aside is None or self._aside.machine != where:
                    self._aside = replace(before, machine=where)
                self.setting = self._aside
            try:
                truth = self.statement(node)
            except Leave as leave:
                if leave.how == "exec":
                    self._cut_off(nodes[position + 1 :])
                raise
            finally:
                self.setting = before
        return truth

    def _cut_off(self, nodes: list[Node]) -> None:
        """Options that a comment or a missing backslash cut off from an `exec`, which never comes back."""
        for node in nodes:
            if node.type in _PASSED:
                continue
            if node.type != "command" or not self.text(node).startswith("-"):
                return
            self.statement(node)

    def statement(self, node: Node) -> bool | None:
        """Follow one statement; whether it succeeds, where that is known."""
        if node.type == "command" and node.children[0].type == "command_name":
            name = self.text(node.children[0])
            if name in _STOPS or name.startswith(("cleanup", "stop")):
                self.reading.stopped += 1
            if name in QUIET:
                self._last = None
                return True
        self.scope.limits.step()
        self.reading.at = (self.script, node.start_byte)
        self._depth += 1
        if self._depth > 200:
            raise Budget
        try:
            handler = _HANDLERS.get(node.type)
            return handler(self, node) if handler is not None else self._other(node)
        finally:
            self._depth -= 1

    # Simple statements

    def command(self, node: Node, stdin: Text | None = None, extra: list[Node] | None = None) -> bool | None:
        inline: dict[str, tuple[Text, str]] = {}
        words: list[Text] = []
        for child in [*node.children, *(extra or ())]:
            if child.type == "variable_assignment":
                name, value = self._assigned(child)
                if name and value is not None:
                    inline[name] = (value, "inline")
            elif child.type == "command_name":
                words += self.fields(child)
            elif child.type in ("herestring_redirect", "file_redirect", "heredoc_redirect"):
                stdin = here_string(self, child) if child.type == "herestring_redirect" else stdin
            elif child.type not in ("comment", "&", ";"):
                words += self.fields(child)
        if not words:
            for name, (value, _) in inline.items():
                self.scope.set(name, value)
            return True
        return self.call(words, inline, stdin, node)

    def call(
        self, words: list[Text], inline: dict[str, tuple[Text, str]], stdin: Text | None, node: Node
    ) -> bool | None:
        """A simple command after expansion."""
        name = words[0].text
        if len(words) > 1 and words[1].text == "=" and name.isidentifier() and name.isupper():
            blanks_around(self, node, self.text(node).split("\n", 1)[0])
            return None
        if name.startswith("-") and words[0].known:
            if self._last is not None:
                self._continue(words, node)
            return None
        function = self.scope.functions.get(name)
        if function is not None:
            return self._function(function, words[1:], inline)
        done, truth = builtin(self, words, inline, stdin, node)
        if done:
            return truth
        self._last = _Launched(len(self.reading.servers), words, inline, self.scope, False)
        before = len(self.reading.servers)
        truth = self.start(self.reading, self.setting, self.scope, words, inline, stdin)
        if len(self.reading.servers) > before:
            self._keep_unexported(before)
        return truth

    def _keep_unexported(self, since: int) -> None:
        """Variables of a server's programs that the shell keeps to itself, and that the script does not use."""
        kept = {
            name: variable.scalar.value()
            for name, variable in self.scope.variables.items()
            if not variable.exported
            and variable.scalar is not None
            and name.startswith(_FAMILIES)
            and f"${name}" not in self.script.text
            and f"${{{name}" not in self.script.text
        }
        if kept:
            self.reading.servers[since:] = [
                replace(server, unexported={n: v for n, v in kept.items() if n not in server.environment})
                for server in self.reading.servers[since:]
            ]

    def _is_launch(self, words: list[Text]) -> bool:
        return any("vllm" in word.text for word in words[:200])

    def _continue(self, words: list[Text], node: Node) -> None:
        """An option at the start of a command: what was meant is read, and the cut is reported once."""
        last = self._last
        assert last is not None
        joined = [*last.words, *words]
        del self.reading.servers[last.servers :]
        self.start(self.reading, self.setting, last.scope, joined, last.inline, None)
        starts = len(self.reading.servers) > last.servers or self._is_launch(joined)
        if starts and not last.reported:
            self._stray_option(words[0], node)
        self._last = _Launched(last.servers, joined, last.inline, last.scope, last.reported or starts)

    def _stray_option(self, word: Text, node: Node) -> None:
        lines = self.script.text[: node.start_byte].split("\n")[-12:-1]
        why, offset = "the command before it has ended", node.start_byte
        position = node.start_byte - len(self.script.text[: node.start_byte].split("\n")[-1])
        for line in reversed(lines):
            position -= len(line) + 1
            stripped = line.strip()
            if stripped.startswith("#"):
                why, offset = "a comment line between the options ends the command", position + line.find("#")
                break
            if re.search(r"\\[ \t]+#", line):
                why = "a comment after the backslash ends the command"
                offset = position + line.rfind("\\")
                break
            if re.search(r"\\[ \t\r]+$", line):
                why, offset = "white space after the backslash ends the command", position + line.rfind("\\")
                break
            if re.search(r"(^|\s)#.*\\$", line):
                why, offset = (
                    "the backslash is inside a comment, so the command ends",
                    position + line.find("#"),
                )
                break
            if stripped:
                why, offset = "no backslash at the end of the line before it", position + len(line.rstrip())
                break
            why, offset = "an empty line ends the command", position
            break
        self.reading.report(
            f"{why}: {word.text} and what follows do not reach vLLM",
            "every line but the last ends in a backslash, with nothing after it and no comment between",
            self.script.locate(min(max(offset, 0), len(self.script.text))),
            line=self.script.text[node.start_byte :].split("\n", 1)[0],
        )

    def _function(
        self, function: tuple[Script, Any], arguments: list[Text], inline: dict[str, tuple[Text, str]]
    ) -> bool | None:
        script, body = function
        scope = self.scope.deeper()
        scope.arguments, scope.local = tuple(arguments), {}
        for name, (value, source) in inline.items():
            scope.set(name, value, exported=True, source=source)
        try:
            return self.sub(script, scope).statement(body)
        except Leave as leave:
            if leave.how != "return":
                raise
            return None
        finally:
            scope.unhide()

    def fields(self, node: Node) -> list[Text]:
        """Words that a node of the tree becomes."""
        text = self.text(node)
        braces = re.fullmatch(r"\{(-?\d{1,6})\.\.(-?\d{1,6})(?:\.\.(\d{1,4}))?\}", text)
        if braces:
            first, last, step = int(braces[1]), int(braces[2]), int(braces[3] or 1) or 1
            numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
            return [plain(str(number), self.place(node)) for number in numbers[:MAX_ROUNDS]]
        return self.words.fields(node.start_byte, node.end_byte)

    def _assigned(self, node: Node) -> tuple[str, Text | None]:
        """Name and value of `A=b` before a command."""
        value = node.child_by_field_name("value")
        name = node.child_by_field_name("name")
        if name is None or value is None:
            return (self.text(name) if name is not None else "", plain("", self.place(node)))
        return self.text(name), self.words.one(value.start_byte, value.end_byte)

    def assignment(self, node: Node) -> bool:
        assign(self, node)
        return True

    def assignments(self, node: Node) -> bool:
        for child in node.children:
            if child.type == "variable_assignment":
                assign(self, child)
        return True

    def declaration(self, node: Node) -> bool:
        declare(self, node)
        return True

    def unset(self, node: Node) -> bool:
        for child in node.children[1:]:
            if not self.text(child).startswith("-"):
                self.scope.unset(self.text(child))
        return True

    def test(self, node: Node) -> bool | None:
        return conditions.test(self.words, node)

    def define(self, node: Node) -> bool:
        name, body = node.child_by_field_name("name"), node.child_by_field_name("body")
        if name is not None and body is not None:
            self.scope.functions[self.text(name)] = (self.script, body)
        return True

    def use(self, scope: Scope) -> None:
        self.scope = scope
        self.words = Words(self.script, scope, substitute)

    def _other(self, node: Node) -> bool | None:
        """A node that the grammar did not make sense of: the commands in it still start."""
        if node.is_named and node.type in ("ERROR", "program"):
            return self.statements(node.children)
        return None


_HANDLERS: dict[str, Callable[[Interpreter, Node], bool | None]] = {
    "command": Interpreter.command,
    "variable_assignment": Interpreter.assignment,
    "variable_assignments": Interpreter.assignments,
    "declaration_command": Interpreter.declaration,
    "unset_command": Interpreter.unset,
    "test_command": Interpreter.test,
    "function_definition": Interpreter.define,
    "list": control.list_statement,
    "negated_command": control.negated_command,
    "subshell": control.subshell,
    "compound_statement": control.compound_statement,
    "do_group": control.compound_statement,
    "pipeline": control.pipeline,
    "if_statement": control.if_statement,
    "case_statement": control.case_statement,
    "for_statement": control.for_statement,
    "c_style_for_statement": control.c_style_for_statement,
    "while_statement": control.while_statement,
    "redirected_statement": redirected_statement,
}
