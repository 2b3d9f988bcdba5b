"""Helm's and Jinja's marks in YAML: found, never filled in; the rest of the text stays readable and in its place."""

from __future__ import annotations

import re

_TEMPLATE = re.compile(r"\{\{[^{}\n]{0,400}\}\}")
_CONTROL = re.compile(r"(?m)^[ \t]*(?:\{\{-?[^{}\n]{0,400}-?\}\}|\{%-?[^{}\n]{0,400}-?%\})[ \t\r]*$")


def unfilled(text: str) -> list[tuple[int, str]]:
    """(offset, template) of each, in order, at most 1000."""
    found: list[tuple[int, str]] = []
    if "{{" in text:
        for match in _TEMPLATE.finditer(text):
            found.append((match.start(), match[0]))
            if len(found) >= 1000:
                break
    return found


def fill(text: str) -> str:
    """YAML of the same length: lines of nothing but a template are blank, others hold << ... >> in its place."""
    text = _CONTROL.sub(lambda match: " " * len(match[0]), text)
    return _TEMPLATE.sub(
        lambda match: "<<" + re.sub(r"[\"'`:#,\[\]&*!|>%@\\]", "_", match[0][2:-2]) + ">>", text
    )
