"""Several ranks in one log: which had the first cause first, which only follow, which say something else. Pure."""

from __future__ import annotations

from epdoctor.explain.cascade import only_follows
from epdoctor.explain.causes import Catalogue
from epdoctor.explain.result import Candidate
from epdoctor.explain.scan import Scan
from epdoctor.explain.speakers import Speaker, speaker

_ORDER = ("has", "follows", "differs", "clean")
_MOST_RANKS = 1024
_MOST_BYTES = 512 * 1024


def compare_ranks(catalogue: Catalogue, ranked: list[Candidate], scan: Scan) -> None:
    """Fill `ranks` and `first_rank` of the first cause, where the log's lines name more than one rank."""
    if not ranked:
        return
    root = ranked[0]
    around = speakers_around(scan)
    names: dict[int, str] = {}
    for one in around:
        if one.pid and not one.vague:
            names.setdefault(one.pid, one.name)

    def name(one: Speaker) -> str:
        return names.get(one.pid, one.name) if one.vague else one.name

    states = {name(one): "clean" for one in around}
    firsts: dict[str, tuple[float, int]] = {}
    below = {root.cause.id, *root.also}
    for number, seen in scan.seen.items():
        pattern = catalogue.patterns[number]
        named = {*pattern.strong, *pattern.weak}
        if root.cause.id in (pattern.strong if root.strong else named):
            state = "has"
        elif root.cause.id in pattern.follows or named & below or only_follows(catalogue, number):
            state = "follows"
        else:
            state = "differs" if pattern.strong else ""
        for one, place in seen.ranks.items():
            who = name(one)
            if state and _ORDER.index(state) < _ORDER.index(states.get(who, "clean")):
                states[who] = state
            states.setdefault(who, "clean")
            if state == "has":
                firsts[who] = min(firsts.get(who, place), place)
    if len(states) < 2 or "has" not in states.values():
        return
    root.ranks = states
    dated = all(time < float("inf") for time, _ in firsts.values())
    root.first_rank = min(firsts, key=lambda who: firsts[who] if dated else (0.0, firsts[who][1]))


def speakers_around(scan: Scan) -> dict[Speaker, None]:
    """Who writes near the hits, in order."""
    found: dict[Speaker, None] = {}
    left = _MOST_BYTES
    for window in scan.windows:
        for line in window.text[:left].splitlines():
            one = speaker(line[:240].decode("utf-8", "replace"))
            if one is not None and len(found) < _MOST_RANKS:
                found[one] = None
        left -= len(window.text)
        if left <= 0:
            break
    return found
