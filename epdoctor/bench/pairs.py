"""Which nodes measure with which, in rounds where no node is busy twice. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from epdoctor.exceptions import UsageError

Pair = tuple[str, str]


def rounds(names: Sequence[str], pairs: str) -> list[list[Pair]]:
    """`pairs`: "full" (each with each), "ring" (each with the next), or a number N (each with its N next ones).

    Every round holds disjoint pairs, so that no link is measured twice at once. Raises UsageError."""
    if pairs == "full":
        return _full(list(names))
    reach = 1 if pairs == "ring" else int(pairs) if pairs.isdigit() else 0
    if not 1 <= reach <= 1024:
        raise UsageError(f"--pairs {pairs}: ring, full, or how many neighbours each node measures with")
    wanted = {
        frozenset((name, names[(at + step) % len(names)]))
        for at, name in enumerate(names)
        for step in range(1, reach + 1)
    }
    wanted = {pair for pair in wanted if len(pair) == 2}
    # The full tournament's rounds, thinned out: each stays disjoint.
    thinned = [[pair for pair in one if frozenset(pair) in wanted] for one in _full(list(names))]
    return [one for one in thinned if one]


def _full(names: list[str]) -> list[list[Pair]]:
    """The circle method: n - 1 rounds for an even number of nodes, n for an odd one."""
    if len(names) < 2:
        return []
    seats: list[str | None] = [*names] if len(names) % 2 == 0 else [*names, None]
    found = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        sides = zip(seats[:half], reversed(seats[half:]), strict=True)
        found.append([(a, b) for a, b in sides if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return found
