"""Compile and apply signatures: google-re2 on bytes, case ignored, linear in the text's length."""

from __future__ import annotations

from functools import cache
from typing import Any

MAX_LINE = 64 * 1024
"""Longest piece of a line that a signature sees."""
_SMALL_BYTES, _LARGE_BYTES = 192 << 10, 4 << 20


@cache
def _options(memory_bytes: int, across: bool = False, captures: bool = False) -> Any:
    import re2

    options = re2.Options()
    options.case_sensitive = False
    # Bytes as they are: a log may hold any encoding, and a bad byte must not hide the rest of its line.
    options.encoding = re2.Options.Encoding.LATIN1
    # No match goes over a line's end, whatever a signature's \s or [^)] would allow.
    options.never_nl = not across
    options.log_errors = False
    options.max_mem = memory_bytes
    # Where a match begins and ends is all that is asked: groups would cost a second, slower search.
    options.never_capture = not captures
    return options


@cache
def compile_regex(regex: str) -> Any:
    """For `search(bytes)`; ^ and $ are a line's ends. Kept once compiled. Raises re2.error."""
    return compile_once(regex)


def compile_once(regex: str, *, captures: bool = False) -> Any:
    """The same, not kept. `captures`: with groups."""
    import re2

    across = spans_lines(regex)
    pattern = b"(?m)" + regex.encode()
    if not across:
        # What a search learns is kept in this memory, and 2,000 expressions live side by side.
        try:
            return re2.compile(pattern, _options(_SMALL_BYTES, across, captures))
        except re2.error:
            pass  # too long for that, or wrong: then the next one says so
    return re2.compile(pattern, _options(_LARGE_BYTES, across, captures))


def spans_lines(regex: str) -> bool:
    """Whether the signature names a line's end: what lies around a hit may be said by two lines together."""
    return "\\n" in regex


DIFFER, SAME = "differ", "same"
_MOST_COMPARED = 200


def compared(compiled: Any, captures: str, text: bytes) -> Any:
    """The match that shows that what the regex captures differs, or is the same, over `text`; None where it is not.

    One group: its values are compared with each other ("max-num-seqs (\\d+)"). Two groups, one of them in each
    match: the values of the one with those of the other ("driver (\\S+)|fabric manager (\\S+)")."""
    sides: dict[int, dict[bytes, Any]] = {}
    last: Any = None
    number = 0
    for number, match in enumerate(compiled.finditer(text)):
        for side, value in enumerate(match.groups()):
            if value is not None:
                last = sides.setdefault(side, {}).setdefault(value.strip().lower(), match)
        if number >= _MOST_COMPARED:
            break
    if compiled.groups == 1:
        values = sides.get(0, {})
        if captures == DIFFER:
            return list(values.values())[1] if len(values) > 1 else None
        return last if len(values) == 1 and number > 0 else None
    if len(sides) < 2:
        return None
    one, other = sides[0], sides[1]
    if captures == SAME:
        return last if one.keys() == other.keys() else None
    return next(
        (
            other.get(value) or one.get(value)
            for value in (*other, *one)
            if (value in one) != (value in other)
        ),
        None,
    )


def line_at(text: bytes, start: int, end: int) -> tuple[int, int]:
    """Bounds of the line around text[start:end], at most MAX_LINE bytes around it."""
    low = max(0, start - MAX_LINE // 2)
    high = min(len(text), end + MAX_LINE // 2)
    begin = text.rfind(b"\n", low, start) + 1 or low
    stop = text.find(b"\n", end, high)
    return begin, high if stop < 0 else stop


def clip(line: bytes, start: int, end: int, limit: int = 400) -> str:
    """The line as text, cut around what matched."""
    if len(line) > limit:
        low = max(0, min(start - limit // 4, len(line) - limit))
        piece = line[low : low + limit]
        return (
            ("..." if low else "")
            + piece.decode("utf-8", "replace").strip()
            + ("..." if low + limit < len(line) else "")
        )
    return line.decode("utf-8", "replace").strip()
