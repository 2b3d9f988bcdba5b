"""Node names, folded for people and expanded from what people and Slurm write: `gpu[01-07]`.

The bracket syntax is Slurm's hostlist expression (scontrol show hostnames): comma lists and ranges in
brackets, zero padding kept, several brackets in one name, e.g. `a[1-3,7],b5` or `r[1-2]n[01-16]`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

MAX_NAMES = 65536
"""More names than this from one expression is a typing error, not a cluster."""

_RUN = re.compile(r"([0-9]+)")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?\Z")
_WORD = re.compile(r"[^\s,\[\]]+\Z")


class NodeNamesError(ValueError):
    """An expression is no list of node names; `str()` says what is wrong with it."""


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which gpu2 comes before gpu10."""
    parts = _RUN.split(name)
    return tuple((0, int(part), part) if at % 2 else (1, 0, part) for at, part in enumerate(parts))


def expand(text: str) -> tuple[str, ...]:
    """Names in the order written, without repetition.

    Raises NodeNamesError on unbalanced or nested brackets, descending ranges, or more than MAX_NAMES names.
    """
    names: dict[str, None] = {}
    for term in split_terms(text):
        for name in _expand_term(term):
            names[name] = None
            if len(names) > MAX_NAMES:
                raise NodeNamesError(f"more than {MAX_NAMES} names")
    return tuple(names)


def split_terms(text: str, separators: str = ",") -> list[str]:
    """Split at separators that stand outside brackets; blanks around terms and empty terms go."""
    terms, start, inside = [], 0, False
    for at, char in enumerate(text):
        if char == "[":
            if inside:
                raise NodeNamesError(f'brackets inside brackets in "{text[:80]}"')
            inside = True
        elif char == "]":
            if not inside:
                raise NodeNamesError(f'"]" without "[" in "{text[:80]}"')
            inside = False
        elif char in separators and not inside:
            terms.append(text[start:at])
            start = at + 1
    if inside:
        raise NodeNamesError(f'"[" is not closed in "{text[:80]}"')
    terms.append(text[start:])
    return [term.strip() for term in terms if term.strip()]


def _expand_term(term: str) -> Iterable[str]:
    pieces: list[Sequence[str]] = []
    count = 1
    rest = term
    while rest:
        head, bracket, rest = rest.partition("[")
        if head:
            if not _WORD.match(head):
                raise NodeNamesError(f'"{term[:80]}" is not a node name')
            pieces.append((head,))
        if bracket:
            inner, _, rest = rest.partition("]")
            pieces.append(_expand_bracket(inner, term))
            count *= len(pieces[-1])
            if count > MAX_NAMES:
                raise NodeNamesError(f'"{term[:80]}" stands for more than {MAX_NAMES} names')
    return ("".join(parts) for parts in itertools.product(*pieces))


def _expand_bracket(inner: str, term: str) -> list[str]:
    out: list[str] = []
    for part in inner.split(","):
        match = _RANGE.match(part.strip())
        if match is None:
            raise NodeNamesError(f'"[{inner[:60]}]" in "{term[:80]}" is not a range such as [01-08,12]')
        low, high = match.group(1), match.group(2) or match.group(1)
        first, last = int(low), int(high)
        if last < first:
            raise NodeNamesError(f'range {low}-{high} in "{term[:80]}" runs backwards')
        if last - first >= MAX_NAMES:
            raise NodeNamesError(f'"{term[:80]}" stands for more than {MAX_NAMES} names')
        out.extend(str(number).zfill(len(low)) for number in range(first, last + 1))
    return out


def fold(names: Iterable[str]) -> str:
    """Short form of a set of names: `gpu[01-07],login1`. Two neighbours are written [01,02].

    For names made of letters, digits and punctuation other than brackets and commas, `expand(fold(names))`
    is the same set.
    """
    wanted = sorted(set(names), key=natural_key)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in wanted:
        runs = _RUN.split(name)
        groups.setdefault(tuple(runs[::2]), []).append(name)
    folded: list[tuple[tuple[tuple[int, int, str], ...], str]] = []
    for skeleton, members in groups.items():
        folded += _fold_group(skeleton, members)
    return ",".join(text for _, text in sorted(folded))


def _fold_group(
    skeleton: tuple[str, ...], members: list[str]
) -> list[tuple[tuple[tuple[int, int, str], ...], str]]:
    """Members share everything but their numbers: fold the last number that differs between them."""
    numbers = [_RUN.split(name)[1::2] for name in members]
    if len(members) == 1:
        return [(natural_key(members[0]), members[0])]
    at = max(i for i in range(len(skeleton) - 1) if len({row[i] for row in numbers}) > 1)
    rows: dict[tuple[tuple[str, ...], int], list[tuple[int, str]]] = {}
    widths = {len(row[at]) for row in numbers if row[at].startswith("0") and len(row[at]) > 1}
    for row in numbers:
        width = len(row[at]) if len(row[at]) in widths else 0
        key = (tuple(row[:at] + row[at + 1 :]), width)
        rows.setdefault(key, []).append((int(row[at]), row[at]))
    out = []
    for (others, _), values in rows.items():
        values.sort()
        parts = list(others)
        body = values[0][1] if len(values) == 1 else f"[{_ranges(values)}]"
        parts.insert(at, body)
        first = list(others)
        first.insert(at, values[0][1])
        out.append((natural_key(_join(skeleton, first)), _join(skeleton, parts)))
    return out


def _ranges(values: list[tuple[int, str]]) -> str:
    parts: list[str] = []
    for _, run in itertools.groupby(enumerate(values), key=lambda item: item[1][0] - item[0]):
        texts = [text for _, (_, text) in run]
        parts += texts if len(texts) < 3 else [f"{texts[0]}-{texts[-1]}"]
    return ",".join(parts)


def _join(skeleton: tuple[str, ...], numbers: list[str]) -> str:
    out = [skeleton[0]]
    for text, number in zip(skeleton[1:], numbers, strict=True):
        out += [number, text]
    return "".join(out)
