"""Integer arithmetic of $(( )), as bash computes it: 64 bit, C's operators and precedence."""

from __future__ import annotations

import re
from collections.abc import Callable

_TOKEN = re.compile(r"\s*(?:(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})|([A-Za-z_][A-Za-z0-9_]{0,200})"
                    r"|(\*\*|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%<>!~&|^?:=(),]))")  # fmt: skip
_BINARY = {"||": 1, "&&": 2, "|": 3, "^": 4, "&": 5, "==": 6, "!=": 6, "<": 7, "<=": 7, ">": 7, ">=": 7,
           "<<": 8, ">>": 8, "+": 9, "-": 9, "*": 10, "/": 10, "%": 10, "**": 11}  # fmt: skip
MAX_LENGTH = 2000


class NotArithmetic(Exception):  # noqa: N818 - a state: the value is then unresolved
    """No value: a name without one, an operator out of place, a division by zero."""


def _wrap(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _apply(operator: str, left: int, right: int) -> int:
    if operator in ("/", "%"):
        if right == 0:
            raise NotArithmetic("division by zero")
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        return quotient if operator == "/" else left - quotient * right
    if operator == "**":
        if not 0 <= right <= 63:
            raise NotArithmetic("exponent")
        return int(left**right)
    if operator in ("<<", ">>"):
        return left << (right % 64) if operator == "<<" else left >> (right % 64)
    return {
        "+": left + right, "-": left - right, "*": left * right, "&": left & right, "|": left | right,
        "^": left ^ right, "==": int(left == right), "!=": int(left != right), "<": int(left < right),
        "<=": int(left <= right), ">": int(left > right), ">=": int(left >= right),
        "&&": int(bool(left) and bool(right)), "||": int(bool(left) or bool(right)),
    }[operator]  # fmt: skip


class _Parser:
    def __init__(self, text: str, lookup: Callable[[str], int], assign: Callable[[str, int], None]) -> None:
        self._tokens: list[tuple[str, str]] = []
        self._lookup, self._assign = lookup, assign
        position = 0
        text = text.strip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise NotArithmetic(text[position : position + 20])
            kind = "number" if match[1] else "name" if match[2] else "operator"
            self._tokens.append((kind, match[1] or match[2] or match[3]))
            position = match.end()
        self._next = 0
        self._depth = 0

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _take(self) -> tuple[str, str]:
        if self._next >= len(self._tokens):
            raise NotArithmetic("ends early")
        self._next += 1
        return self._tokens[self._next - 1]

    def whole(self) -> int:
        if not self._tokens:
            return 0
        value = self._ternary()
        while self._peek() == ",":
            self._take()
            value = self._ternary()
        if self._next != len(self._tokens):
            raise NotArithmetic(self._peek())
        return value

    def _ternary(self) -> int:
        self._depth += 1
        if self._depth > 60:
            raise NotArithmetic("too deep")
        if (
            self._next + 1 < len(self._tokens)
            and self._tokens[self._next][0] == "name"
            and self._assignment_at(self._next + 1)
        ):
            value = self._assigned()
        else:
            value = self._binary(0)
            if self._peek() == "?":
                self._take()
                yes = self._ternary()
                if self._take()[1] != ":":
                    raise NotArithmetic("?")
                no = self._ternary()
                value = yes if value else no
        self._depth -= 1
        return value

    def _assignment_at(self, index: int) -> bool:
        tokens = [token for _, token in self._tokens[index : index + 2]]
        return tokens[:1] == ["="] or (len(tokens) == 2 and tokens[1] == "=" and tokens[0] in "+-*/%")

    def _assigned(self) -> int:
        name = self._take()[1]
        operator = self._take()[1]
        if operator != "=":
            self._take()
        value = self._ternary()
        if operator != "=":
            value = _apply(operator, self._lookup(name), value)
        self._assign(name, _wrap(value))
        return _wrap(value)

    def _binary(self, least: int) -> int:
        left = self._unary()
        while (strength := _BINARY.get(self._peek(), 0)) > least:
            operator = self._take()[1]
            # ** binds to the right; all others to the left.
            right = self._binary(strength - 1 if operator == "**" else strength)
            left = _wrap(_apply(operator, left, right))
        return left

    def _unary(self) -> int:
        kind, token = self._take()
        self._depth += 1
        if self._depth > 60:
            raise NotArithmetic("too deep")
        try:
            if kind == "number":
                return _wrap(_literal(token))
            if kind == "name":
                value = self._lookup(token)
                if self._peek() in ("++", "--"):
                    self._assign(token, value + (1 if self._take()[1] == "++" else -1))
                return value
            if token.startswith("("):
                value = self._ternary()
                if self._take()[1] != ")":
                    raise NotArithmetic("(")
                return value
            if (
                token in ("++", "--")
                and self._next < len(self._tokens)
                and self._tokens[self._next][0] == "name"
            ):
                name = self._take()[1]
                value = self._lookup(name) + (1 if token.startswith("+") else -1)
                self._assign(name, value)
                return value
            if token in ("+", "-", "!", "~"):
                value = self._unary()
                signs = {"+": value, "-": -value, "!": int(not value), "~": ~value}
                return signs[token]
        finally:
            self._depth -= 1
        raise NotArithmetic(token)


def _literal(token: str) -> int:
    if token[:2] in ("0x", "0X"):
        return int(token, 16)
    if len(token) > 1 and token[0] == "0":
        try:
            return int(token, 8)
        except ValueError:
            raise NotArithmetic(f"{token} is no octal number") from None
    return int(token)


def evaluate(text: str, lookup: Callable[[str], int], assign: Callable[[str, int], None]) -> int:
    """The number. Raises NotArithmetic where there is none; `lookup` raises it for a name that is not known."""
    if len(text) > MAX_LENGTH:
        raise NotArithmetic("too long")
    return _Parser(text, lookup, assign).whole()
