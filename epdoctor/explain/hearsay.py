"""Take out of a scan what is no report of a fault: values at zero, mentions, tries that succeeded. Pure.

Only lines that a signature matched are looked at, a few of each signature: nothing here grows with a log."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from difflib import SequenceMatcher

from epdoctor.explain.closed import is_over
from epdoctor.explain.documents import (
    fails_tests,
    is_about_errors,
    is_command,
    is_mention,
    passes_tests,
    plays_well,
)
from epdoctor.explain.guards import counts_faults, is_foreign, is_healthy, is_nothing, names_fault
from epdoctor.explain.recovery import (
    is_link_down,
    is_mild,
    is_slight,
    is_success,
    may_recover,
    served,
    went_well,
)
from epdoctor.explain.scan import Hit, Scan, Window

_FOLLOWING = 8
"""Lines below a command or a table's head that are its values."""


_PROBE = re.compile(
    r"\b(Readiness|Startup|Liveness) probe (failed|errored)|^\s{0,8}(\S{1,20}\s{1,20})?Warning\s{1,20}[A-Z]\w{3,40}\s"
)
"""Events of a pod."""
_CAME_UP = re.compile(r"(?m)\bcondition met\s{0,3}$|\bsuccessfully rolled out\b|\bAll replicas are ready\b")
_COUNTS = re.compile(r"\bgrep (-\w{1,8} ){0,3}-\w{0,4}c\w{0,4}\b")
"""A command whose answer is a number."""
_READY = re.compile(r"(?m)^\s{1,8}Ready\s{1,30}True\b")
_NOT_READY = re.compile(r"(?m)^\s{1,8}Ready:?\s{1,30}False\b|^\s{1,8}Restart Count:\s{1,20}([2-9]|\d\d)")

_POD_ROW = re.compile(
    r"(?m)^\s{0,8}\S{1,160}\s{1,80}(\d{1,4})/(\d{1,4})\s{1,40}(\w{3,40})\s{1,40}(\d{1,6})\b"
)
"""`kubectl get pods`."""

_NAME = re.compile(r"^\s{0,20}[a-z]\w{2,60}:?\s{0,8}$")
_ZERO = re.compile(r"^(0|0x0{1,16})$")
"""`tr ' ' '\\n'` puts a counter's value on the line below its name."""


_CHOICE = re.compile(r"invalid choice: '([^'\n]{1,80})' \(choose from ([^)\n]{1,1500})\)")
_ALIKE = 0.93


@dataclass(frozen=True)
class Heard:
    """What was taken out of a scan."""

    about_errors: bool
    """The text as a whole only speaks about errors."""
    dropped: bool
    """Whether a signature lost all its lines."""


def drop_hearsay(scan: Scan, text: str, lasting: Container[int] = ()) -> Heard:
    """Remove from `scan` the hits that are no report.

    `text`: the log, or its beginning where it is long. `lasting`: patterns of faults with which a service runs all
    the same; it served, so the others were none."""
    if passes_tests(text) or plays_well(text) or is_over(text):
        dropped = bool(scan.seen)
        scan.seen.clear()
        return Heard(True, dropped)
    about = is_about_errors(text) and not fails_tests(text)
    before = len(scan.seen)
    well: dict[int, bool] = {}
    for number, seen in list(scan.seen.items()):
        kept = [hit for hit in seen.hits if not _is_hearsay(hit, scan, about)]
        if _all_tries(kept, seen.count):
            # A line may say both: "Link down, then Link up again".
            tries = [hit for hit in kept if not is_success(hit.text)] or kept
            last = max(tries, key=_line)
            if last.line not in well:
                well[last.line] = went_well(_below(scan, last))
            if well[last.line]:
                kept = []
        if kept:
            seen.hits = kept
        else:
            del scan.seen[number]
    _drop_served(scan, lasting)
    return Heard(about, len(scan.seen) < before)


def _drop_served(scan: Scan, lasting: Container[int]) -> None:
    """Information and warnings of what would have kept the service from coming up, where it came up below them."""
    mild = {
        number: max(seen.hits, key=_line)
        for number, seen in scan.seen.items()
        if all(is_slight(hit.text) or (number not in lasting and is_mild(hit.text)) for hit in seen.hits)
    }
    forgiven: set[str] = set()
    for number, last in sorted(mild.items(), key=lambda item: (item[1].line, item[0]), reverse=True):
        hits = scan.seen[number].hits
        if not served(_above(scan, hits[0])) and went_well(_below(scan, last), forgiven):
            forgiven.update(hit.text.strip() for hit in hits)
            del scan.seen[number]


def without_hearsay(text: str) -> str:
    """A short text without the lines that are no report of a fault."""
    lines = text.splitlines()
    kept = []
    ready = _is_ready(text)
    for number, line in enumerate(lines):
        if is_healthy(line.rstrip()) or is_foreign(line) or is_mention(line, False):
            continue
        if _is_misspelt(line) or (ready and _PROBE.search(line)):
            continue
        if (is_command(line) or _is_head(line)) and counts_faults(line):
            if _all_nil(lines[number + 1 : number + 1 + _FOLLOWING]):
                continue
        elif (may_recover(line) or is_slight(line)) and went_well("\n".join(lines[number + 1 :])):
            continue
        kept.append(line)
    return "\n".join(kept)


def came_right(texts: list[str], after: str) -> bool:
    """Whether all these lines are tries that failed, and what comes below them says that one succeeded."""
    return bool(texts) and all(may_recover(text) for text in texts) and went_well(after)


def _all_tries(hits: list[Hit], count: int) -> bool:
    if count == 1 and len(hits) == 1 and is_link_down(hits[0].text):
        return True
    return any(may_recover(hit.text) and not is_success(hit.text) for hit in hits) and all(
        may_recover(hit.text) or is_success(hit.text) for hit in hits
    )


def _is_hearsay(hit: Hit, scan: Scan, about: bool) -> bool:
    if is_healthy(hit.text) or is_foreign(hit.text) or is_mention(hit.text, about):
        return True
    if _PROBE.search(hit.text) and hit.window >= 0 and _is_ready(_text(scan.windows[hit.window].text)):
        return True
    if _is_misspelt(hit.text):
        return True
    if is_command(hit.text) and _COUNTS.search(hit.text) and names_fault(hit.text):
        return _below(scan, hit, 400).split("\n", 1)[0].strip() == "0"
    if _NAME.match(hit.text) and counts_faults(hit.text):
        value = _below(scan, hit, 400).split("\n", 1)[0].strip()
        return _ZERO.match(value) is not None
    if not (is_command(hit.text) or _is_head(hit.text)) or not counts_faults(hit.text):
        return False
    below = _below(scan, hit, 4000).splitlines()[:_FOLLOWING]
    return _all_nil(below) or _columns_nil(hit.text, below)


def _all_nil(below: list[str]) -> bool:
    """The values under a command or a table's head, up to the next one: all are zero or tell of no fault."""
    values = [line for line in below if line.strip() and not is_command(line) and not _is_head(line)]
    return bool(values) and all(is_healthy(line.rstrip()) or is_nothing(line) for line in values)


def _columns_nil(head: str, below: list[str]) -> bool:
    """Under a head of names, those that count faults have nothing but zeros: the temperature beside them may be any."""
    names = head.split(",")
    counters = [column for column, name in enumerate(names) if counts_faults(name)]
    rows = [row for row in (line.split(",") for line in below) if len(row) == len(names) > 1]
    return bool(rows and counters) and all(is_nothing(row[column]) for row in rows for column in counters)


def _is_ready(text: str) -> bool:
    """A pod that is ready now, by `kubectl describe` or `get pods`: its events tell of the time before."""
    if _NOT_READY.search(text):
        return False
    if _READY.search(text) or _CAME_UP.search(text):
        return True
    pods = _POD_ROW.findall(text)
    return bool(pods) and all(row[0] == row[1] and row[2:] == ("Running", "0") for row in pods)


def _is_misspelt(line: str) -> bool:
    """argparse lists what was meant: 'DeepEP_low_latency' beside 'deepep_low_latency'."""
    found = _CHOICE.search(line[:2000])
    if found is None:
        return False
    wanted = _letters(found[1])
    return any(
        SequenceMatcher(None, wanted, _letters(choice)).ratio() > _ALIKE
        for choice in found[2].split(",")[:60]
    )


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())[:60]


def _is_head(line: str) -> bool:
    """Names in a row, as above a table of comma-separated values."""
    names = line.split(",")
    return len(names) > 1 and all(0 < len(name.split()) <= 2 and not name.strip().isdigit() for name in names)


def _line(hit: Hit) -> int:
    return hit.line


def _around(scan: Scan, hit: Hit) -> tuple[Window, int] | None:
    """The window that holds the hit's line, and where that line begins in it."""
    for window in scan.windows:
        if window.first_line <= hit.line <= window.last_line:
            start = 0
            for _ in range(hit.line - window.first_line):
                start = window.text.find(b"\n", start) + 1
            return window, start
    return None


def _above(scan: Scan, hit: Hit) -> str:
    """What is kept of the log before the hit's line."""
    found = _around(scan, hit)
    return _text(found[0].text[: found[1]]) if found else ""


def _below(scan: Scan, hit: Hit, size: int = 1 << 16) -> str:
    """What is kept of the log after the hit's line: the window around it, and the log's end."""
    found = _around(scan, hit)
    if found is None:
        return ""
    window, start = found
    end = window.text.find(b"\n", start) + 1
    if not end:
        return ""
    piece = window.text[end : end + size]
    if window.last_line < scan.lines - 1 and size > 4000:
        piece += b"\n" + scan.tail
    return _text(piece)


def _text(piece: bytes) -> str:
    return piece.replace(b"\r", b"\n").decode("utf-8", "replace")
