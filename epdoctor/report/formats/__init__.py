"""Every form in which a report is written; a file each, found by its name.

A module `epdoctor/report/formats/NAME.py` is the format NAME (`json_.py`: Python has a module of that name). It has

    SUMMARY: str                                            one line for `epdoctor report --help`
    def render(report: Report, style: Style) -> Iterable[str]    pure: the text, in pieces

All are written from the one Report. What comes from nodes is hostile in every one of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from epdoctor.model import Report


@dataclass(frozen=True)
class Style:
    """What a format may know besides the report."""

    verbose: bool = False
    command: str = "epdoctor check"
    """The command line as typed, for the next step."""
    width: int = 100
    """Columns, for what is read as text."""


@cache
def format_names() -> tuple[str, ...]:
    """Names in alphabetical order, text first. Imports none of them."""
    names = sorted(info.name.rstrip("_") for info in pkgutil.iter_modules(__path__))
    return tuple(sorted(names, key=lambda name: name != "text"))


def render(name: str, report: Report, style: Style) -> Iterable[str]:
    """The report in the format of this name, in pieces."""
    files = {info.name.rstrip("_"): info.name for info in pkgutil.iter_modules(__path__)}
    module = importlib.import_module(f"{__name__}.{files[name]}")
    pieces: Iterable[str] = module.render(report, style)
    return pieces


def summary(name: str) -> str:
    """What a format is for, in one line."""
    files = {info.name.rstrip("_"): info.name for info in pkgutil.iter_modules(__path__)}
    text: str = importlib.import_module(f"{__name__}.{files[name]}").SUMMARY
    return text
