"""Where a bracket or quote that opens in shell text closes."""

from __future__ import annotations

_CLOSING = {"(": ")", "{": "}"}


def closing_quote(text: str, start: int, end: int) -> int:
    """Offset of the double quote that closes a string whose inside starts at `start`; -1: none."""
    position = start
    while position < end:
        char = text[position]
        if char == "\\":
            position += 2
            continue
        if char == '"':
            return position
        if char == "$" and text[position + 1 : position + 2] in ("(", "{"):
            closed = closing(text, position + 2, end, _CLOSING[text[position + 1]])
            if closed < 0:
                return -1
            position = closed + 1
            continue
        if char == "`":
            closed = closing_backtick(text, position + 1, end)
            if closed < 0:
                return -1
            position = closed + 1
            continue
        position += 1
    return -1


def closing_backtick(text: str, start: int, end: int) -> int:
    position = start
    while position < end:
        if text[position] == "\\":
            position += 2
            continue
        if text[position] == "`":
            return position
        position += 1
    return -1


def closing(text: str, start: int, end: int, close: str) -> int:
    """Offset of the bracket that closes; -1: none. Iterative, so that depth costs no stack."""
    stack: list[str] = [close]
    position = start
    while position < end:
        char = text[position]
        top = stack[-1]
        if char == "\\":
            position += 2
            continue
        if top == '"':
            if char == '"':
                stack.pop()
            elif char == "$" and text[position + 1 : position + 2] in ("(", "{"):
                stack.append(_CLOSING[text[position + 1]])
                position += 1
        elif char == '"':
            stack.append('"')
        elif char == "'" and (top == ")" or '"' not in stack):
            # Inside "${x:-'}" a single quote is a letter; inside "$(echo '"')" it quotes.
            closed = text.find("'", position + 1, end)
            if closed < 0:
                return -1
            position = closed
        elif char == "`":
            closed = closing_backtick(text, position + 1, end)
            if closed < 0:
                return -1
            position = closed
        elif char == "$" and text[position + 1 : position + 2] in ("(", "{"):
            stack.append(_CLOSING[text[position + 1]])
            position += 1
        elif char == "(" and top == ")":
            stack.append(")")
        elif char == top:
            stack.pop()
            if not stack:
                return position
        position += 1
    return -1
