"""From failing measurements to what they have in common: bisect to node, rail or port. Pure.

A thing is suspected when every measurement that touches it fails while others pass; the smallest set of things
that covers all failures is named, single things before pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from epdoctor.bench.results import Measurement, Suspect
from epdoctor.model import Status

Key = tuple[str, str]


def _pair(one: Measurement) -> str:
    return " and ".join(sorted((one.a, one.b)))


_KINDS: tuple[tuple[str, Callable[[Measurement], Iterable[str]]], ...] = (
    ("node", lambda m: {m.a, m.b} - {""}),
    ("rail", lambda m: [m.rail] if m.rail else []),
    ("port", lambda m: [m.what] if m.what.startswith("port ") else []),
    ("node-rail", lambda m: [f"{m.rail} of {n}" for n in sorted({m.a, m.b} - {""})] if m.rail else []),
    ("port of node", lambda m: [f"{m.what} on {m.b}"] if m.b and m.what.startswith("port ") else []),
    ("pair", lambda m: [_pair(m)] if m.b else []),
    ("rail of pair", lambda m: [f"{m.rail} between {_pair(m)}"] if m.b and m.rail else []),
)


def suspects(measurements: Sequence[Measurement], limit: int = 5) -> list[Suspect]:
    """Most likely first; empty without a failure. Unknown and skipped measurements are no evidence."""
    judged = [one for one in measurements if one.status in (Status.PASS, Status.FAIL)]
    failing = [one for one in judged if one.status is Status.FAIL]
    if not failing:
        return []
    nodes = {name for one in judged for name in (one.a, one.b) if name}
    if len(nodes) == 1 and not any(one.rail for one in judged):
        return []
    if len(failing) == len(judged) and len(nodes) > 1:
        return [
            Suspect(
                "all", "every node", len(failing), len(judged), "everything fails: look at what all share"
            )
        ]
    touched: dict[Key, list[Measurement]] = {}
    for kind, names in _KINDS:
        for one in judged:
            for name in names(one):
                touched.setdefault((kind, name), []).append(one)
    whole = {key: ones for key, ones in touched.items() if all(one.status is Status.FAIL for one in ones)}
    found: list[Suspect] = []
    left = list(failing)
    rank = [kind for kind, _ in _KINDS]
    while left and len(found) < limit:
        covering = {key: sum(one in ones for one in left) for key, ones in whole.items()}
        best = max(covering, key=lambda key: (covering[key], -rank.index(key[0]), key[1]), default=None)
        if best is None or not covering[best]:
            break
        ones = whole.pop(best)
        found.append(_suspect(best, len(ones), len(ones)))
        left = [one for one in left if one not in ones]
    if left and len(found) < limit:
        # No thing fails wholly: name what fails most often.
        share = {
            key: (sum(one.status is Status.FAIL for one in ones), len(ones))
            for key, ones in touched.items()
            if any(one in left for one in ones)
        }
        ordered = sorted(
            share, key=lambda k: (-share[k][0] / share[k][1], -share[k][0], rank.index(k[0]), k[1])
        )
        found += [_suspect(key, *share[key]) for key in ordered[: min(2, limit - len(found))]]
    return found


def suspects_of_failed_kinds(measurements: Sequence[Measurement]) -> list[Suspect]:
    """As suspects(), by measurements of a kind of which one failed: that a rail can be opened does not clear it of
    carrying nothing."""
    failing = [one for one in measurements if one.status is Status.FAIL]
    kinds = {one.what for one in failing}
    found = suspects([one for one in measurements if one.what in kinds])
    if not found and len({one.a for one in measurements}) > 1:
        # Measured on the broken node alone: that it has no RDMA device where others have one.
        alone = Counter(one.a for one in failing if not one.b)
        return [_suspect(("node", name), count, count) for name, count in alone.items()]
    return found


def _suspect(key: Key, failing: int, of: int) -> Suspect:
    kind, name = key
    how = "everything" if failing == of else f"{failing} of {of}"
    words = {
        "node": f"{name}: {how} that touches it fails",
        "rail": f"rail {name}: {how} over it fails, on all nodes",
        "port": f"{name}: {how} to it fails, on all nodes",
        "node-rail": f"{name}: {how} over it fails",
        "port of node": f"{name}: {how} to it fails",
        "pair": f"between {name}: {how} fails",
        "rail of pair": f"rail {name}: {how} fails",
    }
    return Suspect(kind, name, failing, of, words[kind])
