"""Text from nodes and logs is hostile: make it harmless for a terminal, once, at the edge."""

from __future__ import annotations

import re

# C0 without tab, DEL, C1, zero-width, bidirectional controls (they can reorder what is read), line separators.
_UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-9;?]{0,40}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,400}(?:\x07|\x1b\\)|[@-Z\\-_])"
)


def sanitize(text: str, limit: int = 2000) -> str:
    """One line of harmless text: escape sequences dropped, other control characters shown as \\x1b, cut."""
    if len(text) > limit:
        text = text[:limit] + "..."
    if not _UNSAFE.search(text):
        return text.replace("\t", " ")
    text = _SEQUENCE.sub("", text).replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
    return _UNSAFE.sub(lambda match: _visible(match.group(0)), text).replace("\t", " ")


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
