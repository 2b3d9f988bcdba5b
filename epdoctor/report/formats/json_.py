"""The whole report as data (epdoctor/report/report_schema.json); `epdoctor report` reads it back."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.model import Report
from epdoctor.report.formats import Style
from epdoctor.report.json_report import render_json

SUMMARY = "everything, by a schema; epdoctor report --from reads it back"


def render(report: Report, style: Style) -> Iterator[str]:
    del style
    yield render_json(report)
