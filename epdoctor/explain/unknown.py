"""What to show of a text whose cause is not known: the lines that a maintainer would ask for. Pure."""

from __future__ import annotations

import re

from epdoctor.explain.guards import is_healthy
from epdoctor.explain.result import Evidence

_ERROR_LINE = re.compile(
    r"(?i)(error|exception)\b|\b(fail(ed|ure)?|fatal|abort(ed)?|cannot|unable|denied|timed? ?out)\b"
)
_LIBRARY_WARNS = re.compile(r"\b(NCCL|NVSHMEM|UCX) +(WARN|ERROR|FATAL)\b")
"""What these call a warning is why they stop."""


def error_lines(text: bytes, name: str, limit: int = 3) -> list[Evidence]:
    """The first lines that look like errors: what a maintainer would ask for."""
    found = []
    for number, line in enumerate(text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), 1):
        shown = line[:400].decode("utf-8", "replace").strip()
        if shown and (_ERROR_LINE.search(shown) or _LIBRARY_WARNS.search(shown)) and not is_healthy(shown):
            found.append(Evidence(name, number, shown, "unknown"))
            if len(found) >= limit:
                break
    return found
