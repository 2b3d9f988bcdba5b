"""Helm's and Jinja's marks: found, never filled in; the rest of the text stays readable and in its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from epdoctor.launch.shell.text import placeholder
from epdoctor.model import Location, Severity

if TYPE_CHECKING:
    from epdoctor.launch.reading import Reading

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


def report_unfilled(reading: Reading, text: str, locate: Callable[[int], Location]) -> None:
    """One sentence for all templates of a text."""
    templates = unfilled(text)
    if templates:
        offset, first = templates[0]
        more = f" and {len(templates) - 1} more" if len(templates) > 1 else ""
        reading.report(
            f"a template that is not filled in: {first}{more}",
            "the file as it is used, with values in place: helm template CHART > all.yaml",
            locate(offset),
            severity=Severity.WARNING,
        )


def fill(text: str) -> str:
    """YAML of the same length: lines of nothing but a template are blank, others hold << ... >> in its place."""
    text = _CONTROL.sub(lambda match: " " * len(match[0]), text)
    return _TEMPLATE.sub(
        lambda match: "<<" + re.sub(r"[\"'`:#,\[\]&*!|>%@\\]", "_", match[0][2:-2]) + ">>", text
    )


def as_written(text: str) -> str:
    """A filled text for people: << x >> and <x___> as the templates that they stand for."""
    text = re.sub(r"<<([^<>\n]{1,400})>>", r"{{\1}}", text)
    return re.sub(r"<([A-Za-z](?:[A-Za-z0-9.]|_(?!_)){0,57})_{2,400}>", r"{{ \1 }}", text)


def in_command(text: str) -> bool:
    """Whether a template stands in a shell's command that starts vLLM, or the text is made of templates.

    `docker ps --format '{{.Names}}'` elsewhere in a script is none."""
    if "{{" not in text and "{%" not in text:
        return False
    starts = template = False
    for line in text.split("\n"):
        starts = starts or "vllm" in line
        template = template or "{{" in line
        if starts and template:
            return True
        if not line.rstrip(" \t\r").endswith("\\"):
            starts = template = False
    return False


def fill_shell(text: str) -> str:
    """Shell of the same length: lines of nothing but a template are blank, others hold <name___> in its place."""
    text = _CONTROL.sub(lambda match: " " * len(match[0]), text)
    return _TEMPLATE.sub(lambda match: placeholder(match[0]), text)
