"""Which literals to look for in a log so that few lines need a regex: chosen anew by what the log holds.

A literal that a log repeats in every line ("nccl", "error") finds nothing. Each pattern has several sets of
literals of which a match holds one each; where the set in use turns out common, the rarest one in this log takes its
place, and what the automaton still brings must hold all the sets before the regex runs.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from epdoctor.explain.causes import Pattern
from epdoctor.explain.literals import MIN_LENGTH, required_sets

COMMON_PER_MB = 40
"""A literal that is there more often, and brings nothing, is common."""
_SAMPLE_BYTES = 48 * 1024
_MAX_CHOICES = 4
"""A pattern's literals are chosen at most this many times in one log."""

Found = list[tuple[int, int, int]]
"""(literal, start, end) of each occurrence, by end."""


_DIGIT = re.compile(r"\d")
_ANY_DIGITS = re.compile(r"\{\d+(,\d*)?\}|\\d|0-9")


@cache
def _minds_digits(regex: str) -> bool:
    """Whether other digits in a line may change what it matches."""
    return _DIGIT.search(_ANY_DIGITS.sub("", regex)) is not None


class Automaton:
    """The literals of some patterns; immutable, shared by the scans of many files."""

    def __init__(self, literals: dict[int, tuple[str, ...]]) -> None:
        import ahocorasick_rs

        owners: dict[str, list[int]] = {}
        for number, own in literals.items():
            for literal in own:
                owners.setdefault(literal, []).append(number)
        self.literals = list(owners)
        self.owners = list(owners.values())
        self._search = (
            ahocorasick_rs.BytesAhoCorasick(
                [literal.encode() for literal in owners],
                implementation=ahocorasick_rs.Implementation.ContiguousNFA,
            )
            if owners
            else None
        )

    def some(self, lowered: bytes) -> Found:
        """Occurrences that do not overlap: each line that holds any literal has one."""
        return self._search.find_matches_as_indexes(lowered) if self._search else []

    def patterns(self, lowered_line: bytes) -> dict[int, None]:
        """The patterns of which a literal is in the line, in the order of their literals."""
        if self._search is None:
            return {}
        found = self._search.find_matches_as_indexes(lowered_line, overlapping=True)
        return {number: None for literal, _, _ in found for number in self.owners[literal]}


class Sieve:
    """The automaton of one scan."""

    def __init__(self, patterns: list[Pattern], first: Automaton) -> None:
        self.patterns = patterns
        self.automaton = first
        self.literals: dict[int, tuple[str, ...]] = {n: p.literals for n, p in enumerate(patterns)}
        self.gone = 0
        """Patterns dropped since the automaton was built."""
        self._numeric: Automaton | None = None
        self._all: dict[int, list[list[tuple[bytes, ...]]]] = {}
        """What a match of a pattern must hold, for those whose literals are common."""
        self._choices: Counter[int] = Counter()

    @property
    def numeric(self) -> Automaton:
        """The literals of the patterns for which digits matter."""
        if self._numeric is None:
            self._numeric = Automaton(
                {n: own for n, own in self.literals.items() if _minds_digits(self.patterns[n].regex)}
            )
        return self._numeric

    def drop(self, number: int) -> None:
        """Seek this pattern no more."""
        if self.literals.pop(number, None) is not None:
            self.gone += 1

    def can_match(self, number: int, lowered_line: bytes) -> bool:
        """False only where the regex cannot match."""
        if number not in self.literals:
            return False
        branches = self._all.get(number)
        if branches is None:
            return True
        for sets in branches:
            for one in sets:
                for literal in one:
                    if literal in lowered_line:
                        break
                else:
                    break
            else:
                return True
        return False

    def tune(self, found: Found, lowered: bytes) -> None:
        """Choose again for the patterns whose literals fill this chunk; leave out those that were dropped."""
        counts = Counter(literal for literal, _, _ in found)
        most = COMMON_PER_MB * len(lowered) / 1e6
        common = {
            n for literal, count in counts.items() if count > most for n in self.automaton.owners[literal]
        }
        sample = lowered[:_SAMPLE_BYTES]
        known: dict[str, int] = {}
        changed = False
        for number in sorted(common & self.literals.keys()):
            if self._choices[number] < _MAX_CHOICES:
                self._choices[number] += 1
                changed |= self._choose(number, sample, known)
        if changed or self.gone:
            self.rebuild()

    def rebuild(self) -> None:
        """An automaton of what is still sought."""
        self.automaton = Automaton(self.literals)
        self._numeric = None
        self.gone = 0

    def _choose(self, number: int, sample: bytes, known: dict[str, int]) -> bool:
        branches = required_sets(self.patterns[number].regex)
        if not branches:
            return False

        def count(literals: frozenset[str]) -> int:
            for literal in literals:
                if literal not in known:
                    known[literal] = sample.count(literal.encode())
            return sum(known[literal] for literal in literals)

        rarest_first = [sorted(sets, key=lambda one: (count(one), len(one))) for sets in branches]
        self._all[number] = [
            [tuple(literal.encode() for literal in one) for one in sets] for sets in rarest_first
        ]
        long = [next(one for one in sets if min(map(len, one)) >= MIN_LENGTH) for sets in rarest_first]
        chosen = tuple(sorted(set().union(*long)))
        if chosen == self.literals[number]:
            return False
        self.literals[number] = chosen
        return True
