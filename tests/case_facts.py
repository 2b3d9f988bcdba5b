"""Which facts a failing case changes: what its probes hold that the nearest passing case's do not, and the reverse.

An approximation. A fact is a line of a text or a leaf of a value, under its probe and path. The nearest passing
case is the one of the same check with the fewest differences; where both start from the same record, what is left
is the edit alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from epdoctor.compiled import read_yaml
from tests.case_files import Case, probes_of

FactName = tuple[str, ...]
"""Sign, probe (or digest value), path of keys, and the text."""

_IGNORED = ("seconds", "rc", "argv", "truncated")


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(value, Mapping):
        path = (*path, value["name"]) if isinstance(value.get("name"), str) else path
        # A process is a fact of its own by what it is: raylet's limit is not a worker's.
        path = (*path, value["comm"]) if isinstance(value.get("comm"), str) else path
        for key, inner in value.items():
            if key not in _IGNORED:
                yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, list):
        # Rows are [name, value]: the name belongs to the path, and a row's place means nothing.
        named = len(value) == 2 and isinstance(value[0], str)
        for number, inner in enumerate(value[1:] if named else value):
            place = str(value[0]) if named else "" if isinstance(inner, list) else str(number)
            yield from _leaves(inner, (*path, place))
    elif isinstance(value, str) and "\n" in value:
        for line in value.splitlines():
            yield (*path, line.strip())
    else:
        yield (*path, str(value).strip())


def facts_of(spec: dict[str, Any]) -> frozenset[tuple[str, ...]]:
    """Every line and leaf of a case: probes, digests of nodes, and what --env-file or options say.

    The second of two equal lines is another fact than the first."""
    found: Counter[tuple[str, ...]] = Counter(_leaves(spec.get("options") or {}, ("options",)))
    found.update(_leaves(spec.get("launch") or {}, ("launch",)))
    nodes: dict[str, Any] = spec.get("nodes") or {"": spec}
    for node, own in nodes.items():
        for name, entry in probes_of(own).items():
            found.update(_leaves(entry, (name,)))
        if node:
            found.update(_leaves(own.get("digest") or {}, ("digest",)))
    return frozenset(
        fact if n == 0 else (*fact, str(n)) for fact, count in found.items() for n in range(count)
    )


def changed_facts(failing: Case, passing: list[Case]) -> frozenset[FactName]:
    """The smallest set of differences to a passing case of the same check."""
    spec = read_yaml(failing.path)
    own = facts_of(spec)
    others = [read_yaml(case.path) for case in passing]
    # Another goal can make the same facts right: compare within one goal where there is a case.
    others = [other for other in others if other.get("goal") == spec.get("goal")] or others
    best: frozenset[FactName] | None = None
    for other in map(facts_of, others):
        difference = frozenset(
            {("+", *fact) for fact in own - other} | {("-", *fact) for fact in other - own}
        )
        if best is None or len(difference) < len(best):
            best = difference
    assert best is not None, f"{failing.check} has no passing case"
    return best
