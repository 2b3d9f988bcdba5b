"""One line for Nagios, Icinga and their kin (Monitoring Plugins development guidelines), with performance data.

`epdoctor check --exit-code nagios` ends with the state's number: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. Unknown
outweighs a warning: a warning must not hide that nobody looked.
"""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.model import Report
from epdoctor.nodenames import fold
from epdoctor.report.formats import Style
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import Group, exit_code
from epdoctor.report.verdict import Tally, sentence, tally

SUMMARY = "one line with performance data for Nagios, Icinga"

STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_SHOWN = 3


def render(report: Report, style: Style) -> Iterator[str]:
    del style
    counts = tally(report)
    groups = counts.errors or counts.unknown or counts.warnings
    text = sentence(counts)
    if report.fail_on_expired_waiver and report.expired_waivers:
        number = len(report.expired_waivers)
        text += f", {number} waiver{'s' if number > 1 else ''} expired"
    if groups:
        text += ": " + ", ".join(_named(group, counts) for group in groups[:_SHOWN])
        if len(groups) > _SHOWN:
            text += f" and {len(groups) - _SHOWN} more"
    yield f"EPDOCTOR {STATES[nagios_code(report, counts)]} - {plain(text)} | {_numbers(report, counts)}\n"


def nagios_code(report: Report, counts: Tally | None = None) -> int:
    """0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."""
    counts = counts or tally(report)
    if counts.errors:
        return 2
    if report.interrupted or counts.unknown or counts.unreached:
        return 3
    # What makes exit code 1 otherwise: warnings under --fail-on warning, a waiver that has expired.
    return 1 if counts.warnings or exit_code(report) else 0


def plain(text: str) -> str:
    """One line in which nothing starts performance data."""
    return sanitize(text).replace("|", "/")[:1000]


def _named(group: Group, counts: Tally) -> str:
    if counts.nodes < 2 or not group.nodes:
        return group.check.id
    where = fold(group.nodes)
    return f"{group.check.id} on {where if len(where) <= 60 else f'{len(group.nodes)} nodes'}"


def _numbers(report: Report, counts: Tally) -> str:
    """label=value;warn;crit;min;max"""
    nodes = counts.nodes
    return (
        f"errors={len(counts.errors)};;0;0 warnings={len(counts.warnings)};0;;0 unknown={len(counts.unknown)};;;0"
        f" waived={len(counts.waived)};;;0 nodes={nodes};;;0 nodes_not_reached={counts.unreached};;;0;{nodes}"
        f" nodes_with_findings={len(counts.failing_nodes)};;;0;{nodes} time={report.seconds:.3f}s;;;0"
    )
