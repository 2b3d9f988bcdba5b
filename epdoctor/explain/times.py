"""When a log line was written, as far as it says so."""

from __future__ import annotations

import calendar
import math
import re

# Bounded and anchored near the line's start: never tried on long text.
_CLOCK = re.compile(
    r"(?P<year>20\d\d)-(?P<month>\d\d)-(?P<day>\d\d)[T ](?P<time>\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)"
    r"|\b(?P<month2>\d\d)-(?P<day2>\d\d) (?P<time2>\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)"
    r"|\b[IWEF](?:20\d\d)?(?P<month3>\d\d)(?P<day3>\d\d) (?P<time3>\d\d:\d\d:\d\d(?:\.\d{1,9})?)"
    r"|\b(?P<name>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) {1,2}(?P<day4>\d{1,2}) (?P<time4>\d\d:\d\d:\d\d)"
)
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def clock(line: str) -> float:
    """Seconds since the year's start, inf where the line has no date.

    Formats: ISO, vLLM ("11-21 10:02:02"), glog ("E1121 10:00:13.2"), syslog ("Nov 21 10:02:02"). Epoch seconds (UCX)
    are left out: they are in UTC, the others in local time, and a wrong order is worse than none."""
    match = _CLOCK.search(line[:160])
    if match is None:
        return math.inf
    groups = match.groupdict()
    if groups["name"]:
        month = _MONTHS.index(groups["name"]) + 1
        day, time = groups["day4"], groups["time4"]
    else:
        suffix = "" if groups["month"] else "2" if groups["month2"] else "3"
        month, day, time = int(groups["month" + suffix]), groups["day" + suffix], groups["time" + suffix]
    if not 1 <= month <= 12:
        return math.inf
    hours, minutes, seconds = time.replace(",", ".").split(":")
    days = sum(calendar.monthrange(2024, m)[1] for m in range(1, month)) + int(day)
    return days * 86400.0 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
