"""[ ], [[ ]] and test: True, False, or None where it depends on the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from epdoctor.launch.shell.arithmetic import NotArithmetic
from epdoctor.launch.shell.text import Text
from epdoctor.launch.shell.words import Words

if TYPE_CHECKING:
    from tree_sitter import Node

_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "-eq": lambda a, b: a == b, "-ne": lambda a, b: a != b, "-lt": lambda a, b: a < b,
    "-le": lambda a, b: a <= b, "-gt": lambda a, b: a > b, "-ge": lambda a, b: a >= b,
}  # fmt: skip
_TEXTS = ("=", "==", "!=", "<", ">")


def matches(subject: Text, pattern: Text) -> bool | None:
    """Whether a text fits a glob of the simple kind: literal, or one star at either end."""
    if not subject.known or not pattern.known:
        return None
    glob, text = pattern.text, subject.text
    inner = glob.strip("*")
    if any(char in inner for char in "*?[|("):
        return None
    if not inner and glob:
        return True
    if glob.startswith("*") and glob.endswith("*") and len(glob) > 1:
        return inner in text
    if glob.startswith("*"):
        return text.endswith(inner)
    if glob.endswith("*"):
        return text.startswith(inner)
    return text == glob


def _not(truth: bool | None) -> bool | None:
    return None if truth is None else not truth


def _both(left: bool | None, right: bool | None) -> bool | None:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def _either(left: bool | None, right: bool | None) -> bool | None:
    return _not(_both(_not(left), _not(right)))


def _binary(words: Words, operator: str, left: Text, right: Text) -> bool | None:
    if operator in _NUMBERS:
        try:
            return _NUMBERS[operator](_number(words, left), _number(words, right))
        except NotArithmetic:
            return None
    if operator in ("=", "=="):
        return matches(left, right)
    if operator == "!=":
        return _not(matches(left, right))
    if operator in ("<", ">") and left.known and right.known:
        return left.text < right.text if operator == "<" else left.text > right.text
    return None


def _number(words: Words, text: Text) -> int:
    if not text.known:
        raise NotArithmetic(text.text)
    stripped = text.text.strip()
    digits = stripped.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) < 19:
        return int(stripped)
    return words.number(stripped)


def _unary(words: Words, operator: str, operand: Text) -> bool | None:
    if operator in ("-z", "-n") and operand.known:
        return (operand.text == "") == (operator == "-z")
    if operator == "-v" and operand.known and operand.text in words.scope.variables:
        return True
    return None


def test(words: Words, node: Node) -> bool | None:
    """A test_command of the tree."""
    inner = [child for child in node.children if child.is_named and child.type != "comment"]
    return _test(words, inner[0], 0) if len(inner) == 1 else None


def _test(words: Words, node: Node, depth: int) -> bool | None:
    if depth > 40:
        return None
    kind = node.type
    if kind == "parenthesized_expression":
        named = [child for child in node.children if child.is_named]
        return _test(words, named[0], depth + 1) if len(named) == 1 else None
    if kind == "unary_expression":
        operator = node.children[0]
        name = words.script.text[operator.start_byte : operator.end_byte]
        operand = node.children[-1]
        if name == "!":
            return _not(_test(words, operand, depth + 1))
        return _unary(words, name, words.one(operand.start_byte, operand.end_byte))
    if kind == "binary_expression":
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        between = node.child_by_field_name("operator")
        if left is None or right is None:
            return None
        operator_text = (
            words.script.text[between.start_byte : between.end_byte]
            if between is not None
            else words.script.text[left.end_byte : right.start_byte].strip()
        )
        if operator_text in ("&&", "-a"):
            return _both(_test(words, left, depth + 1), _test(words, right, depth + 1))
        if operator_text in ("||", "-o"):
            return _either(_test(words, left, depth + 1), _test(words, right, depth + 1))
        return _binary(
            words,
            operator_text,
            words.one(left.start_byte, left.end_byte),
            words.one(right.start_byte, right.end_byte),
        )
    text = words.one(node.start_byte, node.end_byte)
    return bool(text.text) if text.known else None


def test_words(words: Words, given: list[Text]) -> bool | None:
    """`test a = b`: the same on words."""
    if given and given[0].text == "!":
        return _not(test_words(words, given[1:]))
    if len(given) == 1:
        return bool(given[0].text) if given[0].known else None
    if len(given) == 2:
        return _unary(words, given[0].text, given[1])
    if len(given) == 3:
        return _binary(words, given[1].text, given[0], given[2])
    return None
