"""Fold what only follows under its root, and say over several logs who has the root and who follows. Pure."""

from __future__ import annotations

from epdoctor.explain.causes import Catalogue
from epdoctor.explain.rank import NAMED_FROM
from epdoctor.explain.result import Candidate, Evidence
from epdoctor.explain.scan import Scan

_MOST_CONSEQUENCES = 8


def fold(catalogue: Catalogue, found: dict[str, Candidate], scans: list[Scan]) -> dict[str, Candidate]:
    """Roots only, with their consequence lines; a cause whose every line follows from another is folded under it."""
    patterns = catalogue.patterns
    own: dict[str, set[tuple[int, int]]] = {}
    under: dict[str, set[tuple[int, int]]] = {}
    for index, scan in enumerate(scans):
        for number, seen in scan.seen.items():
            pattern = patterns[number]
            lines = {(index, hit.line) for hit in seen.hits}
            for cause_id in (*pattern.strong, *pattern.weak):
                own.setdefault(cause_id, set()).update(lines)
            for cause_id in pattern.follows:
                under.setdefault(cause_id, set()).update(lines)
    folded: dict[str, str] = {}
    for cause_id, candidate in sorted(found.items(), key=lambda item: item[1].first):
        fitting = [
            root
            for root in found.values()
            if root is not candidate
            and not root.excluded
            and root.score >= min(NAMED_FROM, candidate.score)  # what is not named itself explains nothing
            and root.cause.id not in folded
            and own.get(cause_id, set()) <= under.get(root.cause.id, set())
            and not own[root.cause.id] <= under.get(cause_id, set())
            and _before(root, candidate)
        ]
        if fitting:
            folded[cause_id] = min(fitting, key=lambda c: (-c.strong, c.first)).cause.id
    for cause_id, candidate in found.items():
        if cause_id in folded:
            continue
        mine = {item.line for item in candidate.evidence if item.strength != "context"}
        for scan in scans:
            for number in sorted(scan.seen):
                if cause_id in patterns[number].follows and cause_id not in patterns[number].strong:
                    hit = next((h for h in scan.seen[number].hits if h.line not in mine), None)
                    if hit is not None:
                        candidate.consequences.append(
                            Evidence(scan.name, hit.line, hit.text, "follows", "", scan.seen[number].count)
                        )
    for cause_id, root in folded.items():
        below = found[cause_id]
        found[root].also.append(cause_id)
        found[root].consequences.extend(e for e in below.evidence if e.strength != "context")
    for candidate in found.values():
        candidate.consequences = _distinct(candidate.consequences)[:_MOST_CONSEQUENCES]
    return {cause_id: candidate for cause_id, candidate in found.items() if cause_id not in folded}


def gather_consequences(catalogue: Catalogue, ranked: list[Candidate], scans: list[Scan]) -> None:
    """Put under the first cause what never is a cause by itself ("Engine core initialization failed"), below its line."""
    if not ranked:
        return
    root = ranked[0]
    known = {(e.file, e.line) for e in (*root.evidence, *root.consequences)}
    known |= {(e.file, e.line) for c in ranked for e in c.evidence if e.strength == "strong"}
    for order, scan in enumerate(scans):
        for number in sorted(scan.seen):
            if not only_follows(catalogue, number):
                continue
            for hit in scan.seen[number].hits[:1]:
                after = len(scans) > 1 or (order, hit.line) > root.first[1:]
                if after and (scan.name, hit.line) not in known:
                    count = scan.seen[number].count
                    root.consequences.append(Evidence(scan.name, hit.line, hit.text, "follows", "", count))
    root.consequences = _distinct(root.consequences)[:_MOST_CONSEQUENCES]


def only_follows(catalogue: Catalogue, number: int) -> bool:
    """Whether a pattern is known as a consequence and names no cause for sure."""
    pattern = catalogue.patterns[number]
    return bool(pattern.follows) and not pattern.strong


def _before(root: Candidate, other: Candidate) -> bool:
    """Whether `root` can be behind `other`: it is not the weaker guess, nor, equally sure, the later one."""
    if bool(other.strong) != bool(root.strong):
        return bool(root.strong)
    if root.first == other.first and root.score < other.score:
        return False
    return root.first <= other.first


def _distinct(lines: list[Evidence]) -> list[Evidence]:
    seen: dict[tuple[str, int], Evidence] = {}
    for item in sorted(lines, key=lambda e: (e.file, e.line)):
        seen.setdefault((item.file, item.line), item)
    return list(seen.values())


def compare_logs(catalogue: Catalogue, ranked: list[Candidate], scans: list[Scan]) -> None:
    """With several logs: for the first cause, which log has it, only follows, names another cause, or is clean."""
    if len(scans) < 2 or not ranked:
        return
    root = ranked[0]
    patterns = catalogue.patterns
    below = {root.cause.id, *root.also}
    for scan in scans:
        state = "clean"
        for number in scan.seen:
            pattern = patterns[number]
            named = {*pattern.strong, *pattern.weak}
            if root.cause.id in named:
                state = "has"
                break
            if root.cause.id in pattern.follows or named & below:
                state = "follows"
            elif named and state == "clean":
                state = "differs"
        root.logs[scan.name] = state
