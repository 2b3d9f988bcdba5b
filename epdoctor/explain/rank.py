"""Weigh what the lines say: which causes a text points to, best first. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from epdoctor.explain.causes import Catalogue, Pattern, Signature
from epdoctor.explain.guards import is_log_line
from epdoctor.explain.match import clip, compared, compile_once, line_at
from epdoctor.explain.result import CERTAIN, LIKELY, POSSIBLE, Candidate, CheckResult, Evidence
from epdoctor.explain.scan import Hit, Scan
from epdoctor.explain.times import clock
from epdoctor.explain.typed import looks_alike

# Weights, tuned on the development texts of serving programs; docs/accuracy.md has what they give elsewhere.
STRONG, STRONG_MORE = 10.0, 2.0
PHRASE = 5.0
"""For a strong signature of a person's words that matches a program's line."""
WEAK, WEAK_MORE = 4.0, 2.5
SAME_LINE = 0.5
FOLLOWS = 0.4
"""Factor for a weak line that another cause, seen above it, triggers as well."""
CONTEXT = 2.0
DECIDING = 8.0
"""For what lies around a line that several causes print and says which of them it is."""
EXCLUDING = 8.0
"""Taken off for what lies around a line and says that it is not this cause."""
FIRST = 3.0
"""For the cause that shows first; half of it for the next one, and so on."""
QUIET, QUIET_STRONG, QUIET_PHRASE = 0.5, 0.8, 0.5
"""Factors for a weak and a strong line that its program logged as information."""
IN_FRAME = 0.7
"""Factor for a strong line that is a stack frame (a bare assert or raise may be all that is said)."""
_BELOW_FRAME = 30
_FRAME = re.compile(r'File "[^"]{1,300}", line \d{1,6}|\]:?\s{4,40}(?!assert |raise )[A-Za-z_]')
_MOST_EVIDENCE = 6

NAMED_FROM = 3.0
"""A cause with a lower score, before the bonus for coming first, is only a maybe."""

_TROUBLE = re.compile(
    r"(?i)error|fail|fatal|exception|abort|cannot|can't|could ?n.t|unable|denied|refused|timed? ?-?out|invalid|missing"
    r"|mismatch|not |\bno |un\w+ed\b|errno|killed|died|lost|broken|corrupt|exceed|exhaust|insufficient|too |warn|xid|reset"
    r"|disabled|incompatible|required|conflict|already|stuck|hang|hung|out of|down\b|drop|bad |wrong|skip|fall|only "
)
_PYTHON_BUG = re.compile(
    r"\b(Index|Key|Attribute|Name|Type|ZeroDivision|UnboundLocal|Recursion|Syntax)Error\b"
)
"""Mostly a bug in Python code: beside such a line a weak signature says little."""
_QUIET = re.compile(
    r"\b(INFO|DEBUG|TRACE|info|debug)\b(:| |\]|\")|^\W{0,2}[ID](20\d\d)?\d{4} \d\d:|\blevel=(info|debug)\b|\b[ID]\d{4} \d\d:\d\d:"
)


def candidates(catalogue: Catalogue, scans: list[Scan]) -> dict[str, Candidate]:
    """Every cause that a strong or weak signature names, scored, before cascades are folded."""
    patterns = catalogue.patterns
    found: dict[str, Candidate] = {}
    points: dict[str, list[_Point]] = {}
    for order, scan in enumerate(scans):
        for number, seen in scan.seen.items():
            pattern = patterns[number]
            # Stack frames say where, the line below them says what.
            hit = next((h for h in seen.hits if not is_frame(h.text)), seen.hits[0])
            frame = is_frame(hit.text)
            phrase = pattern.phrase and is_log_line(hit.text)
            quiet = all(is_quiet(h.text) for h in seen.hits)
            place = (
                _when(scan, hit) if len(scans) > 1 else 0.0,
                order,
                hit.line + (_BELOW_FRAME if frame else 0),
            )
            for strength, causes in (("strong", pattern.strong), ("weak", pattern.weak)):
                weight = PHRASE if phrase and strength == "strong" else STRONG
                weight = _weight(pattern, strength, quiet, frame, weight)
                for cause_id in causes:
                    shown = hit
                    if strength == "weak" and looks_alike(hit.text, catalogue[cause_id]):
                        # The harmless twin may come first: c10d warns of IPv6, then fails with IPv4.
                        other = [h for h in seen.hits if not looks_alike(h.text, catalogue[cause_id])]
                        if not other:
                            continue
                        shown = other[0]
                    candidate = found.get(cause_id)
                    if candidate is None:
                        candidate = found[cause_id] = Candidate(catalogue[cause_id])
                    candidate.evidence.append(
                        _evidence(scan, shown, pattern, strength, seen.count, candidate)
                    )
                    candidate.first = min(candidate.first, place)
                    candidate.said_by_program |= strength == "strong" and not pattern.phrase
                    points.setdefault(cause_id, []).append(
                        _Point(weight, strength == "strong" and not phrase, pattern.regex, (order, hit.line))
                    )
    explained = _explained(patterns, scans, found)
    for cause_id, candidate in found.items():
        others = {line for line, causes in explained.items() if causes - {cause_id}}
        own = [p for p in points[cause_id] if p.strong or p.line not in others]
        follows = [replace(p, weight=p.weight * FOLLOWS) for p in points[cause_id] if p not in own]
        _score(candidate, own + follows, scans)
    return found


def _explained(
    patterns: list[Pattern], scans: list[Scan], found: Mapping[str, Candidate]
) -> dict[tuple[int, int], set[str]]:
    """Lines that only follow from a cause which shows on an earlier line, with these causes."""
    lines: dict[tuple[int, int], set[str]] = {}
    for order, scan in enumerate(scans):
        for number, seen in scan.seen.items():
            for cause_id in patterns[number].follows:
                root = found.get(cause_id)
                if root is not None and root.first < (root.first[0], order, seen.hits[0].line):
                    lines.setdefault((order, seen.hits[0].line), set()).add(cause_id)
    return lines


@dataclass(frozen=True)
class _Point:
    """One signature that matched, for one cause."""

    weight: float
    strong: bool
    regex: str
    line: tuple[int, int]


def _weight(pattern: Pattern, strength: str, quiet: bool, frame: bool, strong: float) -> float:
    if strength == "strong":
        return (
            strong
            * (1.0 if not quiet else QUIET_STRONG if strong == STRONG else QUIET_PHRASE)
            * (IN_FRAME if frame else 1.0)
        )
    shared = len(pattern.weak) + len(pattern.strong)
    return WEAK * (QUIET if quiet else 1.0) * max(0.8, 1.0 - 0.04 * (shared - 1))


def _when(scan: Scan, hit: Hit) -> float:
    """The hit's time, or that of the nearest line above it that has one."""
    when = clock(hit.text)
    if when < math.inf or hit.window < 0:
        return when
    window = scan.windows[hit.window]
    above = window.text.split(b"\n")[: max(0, hit.line - window.first_line)]
    for line in above[:-60:-1]:
        when = clock(line[:200].decode("utf-8", "replace"))
        if when < math.inf:
            return when
    return math.inf


def _score(candidate: Candidate, points: list[_Point], scans: list[Scan]) -> None:
    """The best signature counts in full, further ones add; two that match the same line say little more than one."""
    score = 0.0
    regexes: set[str] = set()
    lines: set[tuple[int, int]] = set()
    for point in sorted(points, key=lambda point: (-point.weight, point.line)):
        if point.regex in regexes:
            continue
        more = STRONG_MORE * point.weight / STRONG if point.strong else WEAK_MORE * point.weight / WEAK
        score += point.weight if not regexes else more if point.line not in lines else SAME_LINE
        candidate.strong += point.strong
        candidate.weak += not point.strong
        regexes.add(point.regex)
        lines.add(point.line)
        if len(regexes) == 5:
            break
    contexts = _contexts(candidate, "context", scans)
    deciding = _contexts(candidate, "deciding", scans)
    candidate.context = len(contexts) + len(deciding)
    candidate.evidence.extend(deciding + contexts)
    candidate.strong += bool(deciding)
    candidate.said_by_program |= bool(deciding)
    if _contexts(candidate, "excluding", scans):
        score -= EXCLUDING
        candidate.excluded = True
    score += CONTEXT * min(len(contexts), 3) + DECIDING * bool(deciding)
    candidate.score = score + 0.15 * math.log2(1 + candidate.cause.reports)


def _contexts(candidate: Candidate, strength: str, scans: list[Scan]) -> list[Evidence]:
    """Signatures of this strength near the cause's own lines, one line each."""
    signatures = candidate.cause.of(strength)
    if not signatures:
        return []
    wanted: dict[str, set[int]] = {}
    own = {(item.file, item.line) for item in candidate.evidence}
    for item in candidate.evidence:
        wanted.setdefault(item.file, set()).add(item.line)
    found: list[Evidence] = []
    for signature in signatures:
        hit = _context(signature, scans, wanted)
        if hit is None or (strength == "context" and not candidate.strong and (hit.file, hit.line) in own):
            continue  # a weak line that is its own context says nothing twice
        found.append(hit)
    return found


def _context(signature: Signature, scans: list[Scan], wanted: Mapping[str, set[int]]) -> Evidence | None:
    # Not kept: a log with all faults in it would hold every expression of the catalogue.
    compiled = compile_once(signature.regex, captures=bool(signature.captures))
    for scan in scans:
        lines = wanted.get(scan.name)
        if not lines:
            continue
        for window in scan.windows:
            if not any(window.first_line <= line <= window.last_line for line in lines):
                continue
            text = window.text.replace(b"\r", b"\n") if b"\r" in window.text else window.text
            if signature.captures:
                match = compared(compiled, signature.captures, text)
            else:
                match = compiled.search(text)
            if match is not None:
                start, end = match.span()
                end = min(end, text.find(b"\n", start, end) % (len(text) + 1))
                begin, stop = line_at(text, start, end)
                line = window.line_of(begin)
                return Evidence(
                    scan.name, line, clip(text[begin:stop], start - begin, end - begin), "context"
                )
    return None


def _evidence(
    scan: Scan, hit: Hit, pattern: Pattern, strength: str, count: int, candidate: Candidate
) -> Evidence:
    program = next((s.program for s in candidate.cause.signatures if s.regex == pattern.regex), "")
    return Evidence(scan.name, hit.line, hit.text, strength, program, count)


def is_quiet(text: str) -> bool:
    """Logged as information, without any word of trouble, or what any Python bug may print."""
    return bool(_QUIET.search(text[:160]) or _PYTHON_BUG.search(text)) or not _TROUBLE.search(text)


def is_frame(text: str) -> bool:
    """A line of a Python traceback that says where, not what."""
    return bool(_FRAME.search(text[:400]))


def order(found: Iterable[Candidate], *, several_lines: bool = True) -> list[Candidate]:
    """Best first. What shows first gets a little more: the first error counts, where there are several lines."""
    ranked = sorted(found, key=lambda c: c.first)
    bonus = FIRST if several_lines else 0.0
    previous: tuple[float, int, int] | None = None
    for candidate in ranked:
        if previous is not None and candidate.first != previous:
            bonus /= 2
        candidate.score += bonus
        previous = candidate.first
    ranked.sort(key=lambda c: (-c.score, c.first, c.cause.id))
    _judge_certainty(ranked)
    for candidate in ranked:
        rank = {"strong": 0, "weak": 1, "context": 2}
        candidate.evidence.sort(key=lambda e: (rank.get(e.strength, 3), e.file, e.line))
        candidate.evidence = _distinct(candidate.evidence)[:_MOST_EVIDENCE]
    return ranked


def _distinct(evidence: list[Evidence]) -> list[Evidence]:
    seen: dict[tuple[str, int], Evidence] = {}
    for item in evidence:
        seen.setdefault((item.file, item.line), item)
    return list(seen.values())


def _judge_certainty(ranked: list[Candidate]) -> None:
    """certain: a strong signature, no cause close behind, and none that the same line may also mean."""
    for index, candidate in enumerate(ranked):
        others = [other for other in ranked if other is not candidate]
        lines = _lines(candidate, ("strong",))
        shared = any(lines & _lines(other, ("strong", "weak")) for other in others)
        close = any(other.score > candidate.score - 2.0 for other in others)
        if candidate.strong and index == 0 and not close and not shared:
            candidate.certainty = CERTAIN
        elif candidate.strong or (candidate.weak + candidate.context >= 3 and index == 0):
            candidate.certainty = LIKELY
        else:
            candidate.certainty = POSSIBLE


def _lines(candidate: Candidate, strengths: tuple[str, ...]) -> set[tuple[str, int]]:
    return {(item.file, item.line) for item in candidate.evidence if item.strength in strengths}


# ---------------------------------------------------------------- checks move the ranking


def apply_check_results(ranked: list[Candidate], results: Mapping[str, CheckResult]) -> list[Candidate]:
    """The same candidates, moved by what their checks say. Pure.

    A failing check is proof beside the text; one that passes on every node rules a guess out of the first place but
    never removes it (the log may be older than the node's state). Unknown and skipped move nothing."""
    for candidate in ranked:
        own = [results[check] for check in candidate.cause.checks if check in results]
        candidate.check_results = own
        if any(result.status == "fail" for result in own):
            candidate.score += 8.0
        elif own and all(result.status == "pass" for result in own):
            candidate.score -= 5.0
    moved = sorted(ranked, key=lambda c: (-c.score, c.first, c.cause.id))
    for candidate in moved:
        if any(result.status == "fail" for result in candidate.check_results):
            candidate.certainty = CERTAIN if candidate.strong else LIKELY
        elif candidate.check_results and all(r.status == "pass" for r in candidate.check_results):
            candidate.certainty = POSSIBLE
    return moved
