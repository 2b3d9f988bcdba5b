"""A person's words as a program or a careful writer would have put them: endings spelt out, typing errors undone. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from epdoctor.explain.typed import TypedIndex, edit_distance

_NOT = re.compile(r"(?i)\b(is|are|was|were|do|does|did|has|have|had|could|would|should)n['\u2019`]?t\b")
_CANNOT = re.compile(r"(?i)\b(can['\u2019`]?t|can not|cant|couldn['\u2019`]?t|couldnt)\b")
_WILL_NOT = re.compile(r"(?i)\bwon['\u2019`]?t\b")
_WITHOUT = re.compile(r"(?i)\bw/o\b")
_WORD = re.compile(r"[A-Za-z]{5,24}")
_MOST_WORDS = 8


def spelled_out(text: str, index: TypedIndex) -> str:
    """The text with "isnt" as "is not" and misspelt words as the nearest word that the causes use.

    A word with several nearest ones stays as it is."""
    plain = _NOT.sub(
        r"\1 not", _CANNOT.sub("cannot", _WILL_NOT.sub("will not", _WITHOUT.sub("without", text)))
    )
    left = _MOST_WORDS

    def right(match: re.Match[str]) -> str:
        nonlocal left
        word = match[0].lower()
        if word in index.spellings or not left:
            return match[0]
        left -= 1
        return _nearest(word, index.spellings) or match[0]

    return _WORD.sub(right, plain)


def _nearest(word: str, known: Iterable[str]) -> str:
    allowed = 2 if len(word) >= 9 else 1
    best, found = allowed + 1, ""
    for other in known:
        if abs(len(other) - len(word)) > allowed or other[0] != word[0]:
            continue
        distance = edit_distance(word, other, allowed)
        if distance < best:
            best, found = distance, other
        elif distance == best and distance <= allowed:
            found = ""
    return found if best <= allowed else ""
