"""The labelled texts, and how one is judged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from epdoctor.explain.answer import explain_text
from epdoctor.explain.result import Explanation

FILES = ("serving", "communication", "provoked", "everyday", "calm", "fresh", "blind")
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One labelled text."""

    id: str
    text: str
    right: frozenset[str]
    """The best cause and those that are also right."""
    negative: bool
    """No environment cause."""
    form: str
    layer: str


@cache
def cases(name: str) -> tuple[Case, ...]:
    """All texts of one file."""
    found = []
    for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        value = json.loads(line)
        right = frozenset({value["expect"], *value["accept"]})
        found.append(
            Case(value["id"], value["text"], right, value["expect"] == "none", value["form"], value["layer"])
        )
    return tuple(found)


@dataclass
class Tally:
    """Counts over some cases."""

    positives: int = 0
    first: int = 0
    among_three: int = 0
    negatives: int = 0
    false_alarms: int = 0

    def add(self, case: Case, answer: Explanation) -> bool:
        """Count one; returns whether its first answer was right."""
        named = [candidate.cause.id for candidate in answer.results]
        if case.negative:
            self.negatives += 1
            good = not named or named[0] in case.right
            self.false_alarms += not good
            return good
        self.positives += 1
        good = bool(named) and named[0] in case.right
        self.first += good
        self.among_three += bool(case.right & set(named[:3]))
        return good

    def row(self) -> list[str]:
        def share(part: int, whole: int) -> str:
            return f"{part}/{whole} ({100 * part / whole:.1f} %)" if whole else "-"

        return [
            share(self.first, self.positives),
            share(self.among_three, self.positives),
            share(self.false_alarms, self.negatives),
        ]


def tally(chosen: list[Case]) -> tuple[Tally, list[Case]]:
    """Counts, and the cases whose first answer was wrong."""
    counts = Tally()
    wrong = [case for case in chosen if not counts.add(case, explain_text(case.text.encode()))]
    return counts, wrong
