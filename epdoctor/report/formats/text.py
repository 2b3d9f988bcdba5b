"""For people, at a fixed width: what the terminal shows, without colour."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.model import Report
from epdoctor.report.formats import Style
from epdoctor.report.text import TextReport

SUMMARY = "for people: verdict, worst first, what to type"


def render(report: Report, style: Style) -> Iterator[str]:
    yield TextReport(report, width=style.width, verbose=style.verbose, command=style.command).plain()
