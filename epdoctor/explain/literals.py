"""Which literal texts every match of a regex must contain (any one of a set).

A multi-pattern search for these literals finds the few lines of a log that need a regex at all. The idea is
RE2's FilteredRE2 (https://github.com/google/re2, re2/prefilter.h); only the syntax that google-re2 takes is
understood, and what is not understood gives no literal, never a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

MIN_LENGTH = 3
"""A shorter literal would be found in nearly every line."""
_MAX_EXACT = 32
_MAX_CLASS = 4
_MAX_SETS = 5


@dataclass(frozen=True)
class _Info:
    """What is known of a piece of a regex; all texts in lower case."""

    exact: frozenset[str] | None
    """Every text it can match, where they are few."""
    needed: frozenset[str] | None
    """One of these is in every match."""
    further: tuple[frozenset[str], ...] = ()
    """More such sets: a match holds one text of each."""


_EMPTY = _Info(frozenset({""}), None)
_ANY = _Info(None, None)


@cache
def required_literals(regex: str) -> tuple[str, ...]:
    """Lower-case literals of which each match (without regard to case) holds at least one; () where none is found."""
    parser = _Parser(regex)
    info = parser.alternation()
    if parser.at < len(regex):
        return ()
    best = _better(info.needed, info.exact)
    if best is None or min(map(len, best)) < MIN_LENGTH:
        return ()
    return tuple(sorted(best))


def required_sets(regex: str) -> list[list[frozenset[str]]]:
    """For each alternative of the regex: sets of lower-case literals, of each of which a match holds at least one.

    A match fits at least one alternative. [] where an alternative has no literal of MIN_LENGTH characters; beside one
    that has, shorter ones still tell what cannot match."""
    parser = _Parser(regex)
    found = []
    for info in parser.branches():
        sets = {
            one
            for one in (info.needed, info.exact, *info.further)
            if one and min(map(len, one)) >= MIN_LENGTH
        }
        if not sets:
            return []
        found.append(sorted(sets, key=_use, reverse=True)[:_MAX_SETS])
    return found if parser.at >= len(regex) else []


def _use(literals: frozenset[str]) -> tuple[bool, float, int]:
    """What can be sought comes before what can only be tested."""
    return (min(map(len, literals)) >= MIN_LENGTH, *_value(literals))


def _value(literals: frozenset[str] | None) -> tuple[float, int]:
    """Rarer is better: long ones, and letters rather than the digits and signs that fill every log."""
    if not literals:
        return (0.0, 0)
    worst = min(sum(1.0 if c.isalpha() else 0.4 for c in literal) for literal in literals)
    return (min(worst, 12.0), -len(literals))


def _better(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    chosen = one if _value(one) >= _value(other) else other
    return chosen if chosen and all(chosen) else None


class _Parser:
    """Recursive descent over the regex; one method a level of precedence."""

    def __init__(self, regex: str) -> None:
        self.regex = regex
        self.at = 0

    def peek(self) -> str:
        return self.regex[self.at : self.at + 1]

    def branches(self) -> list[_Info]:
        found = [self.concatenation()]
        while self.peek() == "|":
            self.at += 1
            found.append(self.concatenation())
        return found

    def alternation(self) -> _Info:
        branches = self.branches()
        if len(branches) == 1:
            return branches[0]
        exact: frozenset[str] | None = None
        if all(branch.exact is not None for branch in branches):
            exact = frozenset().union(*(branch.exact or () for branch in branches))
            if len(exact) > _MAX_EXACT:
                exact = None
        each = [_better(branch.needed, branch.exact) for branch in branches]
        needed = None if any(one is None for one in each) else frozenset().union(*(one or () for one in each))
        return _Info(exact, needed)

    def concatenation(self) -> _Info:
        run: frozenset[str] = frozenset({""})
        needed: frozenset[str] | None = None
        further: list[frozenset[str]] = []
        whole = True
        while self.at < len(self.regex) and self.peek() not in ("|", ")"):
            item = self.repeated()
            if item.exact is not None and len(run) * len(item.exact) <= _MAX_EXACT:
                run = frozenset(a + b for a in run for b in item.exact)
                continue
            whole = False
            needed = _better(needed, run)
            needed = _better(needed, item.needed)
            further += [one for one in (run, item.needed, *item.further) if one and all(one)]
            run = frozenset({""})
            if item.exact is not None:
                run = item.exact
        if whole:
            return _Info(run, None)
        if all(run):
            further.append(run)
        return _Info(None, _better(needed, run), tuple(further))

    def repeated(self) -> _Info:
        item = self.atom()
        low, high = 1, 1
        sign = self.peek()
        if sign and sign in "*+?":
            self.at += 1
            low, high = {"*": (0, 9), "+": (1, 9), "?": (0, 1)}[sign]
        elif sign == "{":
            end = self.regex.find("}", self.at)
            first, _, last = self.regex[self.at + 1 : end].partition(",")
            if end < 0 or not first.isdigit():
                return item  # a literal brace: taken as an unknown character by the next atom
            low = int(first)
            high = low if "," not in self.regex[self.at : end] else int(last) if last.isdigit() else 9
            self.at = end + 1
        else:
            return item
        if self.peek() == "?":
            self.at += 1
        if (low, high) == (1, 1):
            return item
        if (low, high) == (0, 1) and item.exact is not None:
            return _Info(item.exact | {""}, None)
        if low == 0:
            return _ANY
        return _Info(None, _better(item.needed, item.exact), item.further)

    def atom(self) -> _Info:
        character = self.peek()
        self.at += 1
        if character == "(":
            return self.group()
        if character == "[":
            return self.character_class()
        if character == "\\":
            return self.escape()
        if character in "^$":
            return _EMPTY
        if character in ".{":
            return _ANY
        return _Info(frozenset({character.lower()}), None) if character.isascii() else _ANY

    def group(self) -> _Info:
        if self.peek() == "?":
            end = self.at + 1
            while self.regex[end : end + 1] not in ("", ":", ")", ">"):
                end += 1
            self.at = end + 1
            if self.regex[end : end + 1] == ")":
                return _EMPTY  # (?i): flags only
        info = self.alternation()
        self.at += 1
        return info

    def character_class(self) -> _Info:
        start = self.at
        if self.peek() == "^":
            self.at += 1
        first = True
        plain = self.at == start
        members: set[str] = set()
        while self.at < len(self.regex) and (self.peek() != "]" or first):
            first = False
            if self.regex.startswith("[:", self.at) or self.regex[self.at + 1 : self.at + 2] == "-":
                plain = plain and self.regex[self.at + 2 : self.at + 3] == "]"
                if self.regex.startswith("[:", self.at):
                    end = self.regex.find(":]", self.at)
                    self.at = end if end > 0 else len(self.regex)
            if self.peek() == "\\":
                self.at += 1
                plain = plain and not self.peek().isalnum()
            members.add(self.peek().lower())
            self.at += 1
        self.at += 1
        if not plain or len(members) > _MAX_CLASS or not all(m.isascii() for m in members):
            return _ANY
        return _Info(frozenset(members), None)

    def escape(self) -> _Info:
        character = self.peek()
        self.at += 1
        if character in ("b", "B", "A", "z"):
            return _EMPTY
        if character in ("n", "t", "r") or character.isdigit():
            return _ANY
        if character == "x":
            self.at = self.regex.find("}", self.at) + 1 if self.peek() == "{" else self.at + 2
            return _ANY
        if character in ("p", "P"):
            self.at = self.regex.find("}", self.at) + 1 if self.peek() == "{" else self.at + 1
            return _ANY
        if character.isalnum():
            return _ANY
        return _Info(frozenset({character}), None) if character.isascii() else _ANY
