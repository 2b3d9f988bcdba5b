"""Put the pieces together: a text or several logs in, an Explanation out. Pure but for the compiled catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise

from epdoctor.explain.cascade import compare_logs, fold, gather_consequences
from epdoctor.explain.causes import Catalogue, load_causes
from epdoctor.explain.guards import (
    asks_only,
    has_words,
    is_bare_name,
    is_log_line,
    is_own_script,
    is_program_output,
    is_table,
    is_told,
    may_be_own,
    names_fault,
    says_all_is_well,
    tells_of_trouble,
    without_healthy,
)
from epdoctor.explain.hearsay import came_right, drop_hearsay, without_hearsay
from epdoctor.explain.languages import in_english
from epdoctor.explain.rank import NAMED_FROM, candidates, is_frame, is_quiet, order
from epdoctor.explain.ranks import compare_ranks
from epdoctor.explain.recovery import is_mild
from epdoctor.explain.result import CERTAIN, LIKELY, POSSIBLE, Candidate, Evidence, Explanation
from epdoctor.explain.scan import Scan, Scanner
from epdoctor.explain.typed import Typed, TypedIndex, load_index, looks_alike, resembles, tokens, without_head
from epdoctor.explain.unknown import error_lines
from epdoctor.explain.wording import spelled_out

TYPED_BYTES = 700
"""A longer text is a log, not something that a person typed."""
TYPED_NAMES = 0.50
"""Typed words name a cause from this score on."""
TYPED_NAMES_CALM = 0.6
"""The same for words that tell of no trouble: a state, a version, a thing that was done."""
TYPED_NAMES_LONG = 0.34
"""The same for a text of many words, where one cause stands out: a long description is never covered in full."""
TYPED_NAMES_TOLD, TYPED_NAMES_TOLD_CLOSE = 0.30, 0.36
"""The same for a fault told in sentences: where one cause stands out, and where two are close."""
TYPED_NAMES_TOLD_LONG = ((20, 1.4, 0.22), (14, 1.3, 0.26), (14, 1.2, 0.28))
"""The same for a long account, as (words, how far ahead of the next cause, score): the more is told, the less of it
one cause covers."""
TYPED_NAMES_HEAVY = ((30.0, 1.0), (22.0, 1.5))
"""What is known of an account, as (weight, how far ahead of the next cause): a person tells much beside, in any
language. People who only ask or report other faults came to 26 at most (300 texts), faults to 25 to 65."""
_HEAVY_NAMES = 0.14
_TELLING, _TELLING_MAYBE = 7.0, 4.5
"""Weight of what is known below which words name no cause, or none even perhaps: "timeout" weighs 3, "permission
denied" 7, the shortest of 700 accounts that words alone explain rightly 8.6."""
_TOLD_WORDS = 9
TYPED_NAMES_PROGRAM = 0.74
"""The same for a program's own line that no signature matched: most such lines are other errors."""
LINE_NAMES = 0.72
"""The same for an error line of a longer log."""
_NEVER = 2.0
TYPED_MAYBE = 0.34
TYPED_LIKELY = 0.7
TYPED_WEIGHT = 12.0
_RELATIVE = 0.45
_UNNAMED = NAMED_FROM - 0.1
"""A cause with less than this share of the best score is not listed."""
_WRAPPED_BYTES = 8 * 1024
_HEAD_BYTES = 64 * 1024
_LOG_LINES = 8
_WITH_NEIGHBOURS = 3
"""Causes at most, where some of them are only neighbours."""
_NEIGHBOUR = 0.2
"""Score of a neighbour, as a share of the best."""
_EXCEPTION = re.compile(r"^\W{0,3}[\w.]{1,80}(Error|Exception): (?=\S)")
"""An exception's name says less than the words behind it."""


def explain_text(text: bytes, name: str = "") -> Explanation:
    """A text from the command line or standard input."""
    return explain_logs([(name, [text])])


def explain_logs(logs: Iterable[tuple[str, Iterable[bytes]]], top: int = 5) -> Explanation:
    """Logs as (name, blocks). `top`: how many causes at most."""
    catalogue = load_causes()
    scanner = _scanner(catalogue)
    scans: list[Scan] = []
    small: list[bytes] = []
    for name, blocks in logs:
        kept = _Kept(blocks)
        scans.append(scanner.scan(name, kept))
        small.append(kept.text)
    text = small[0] if len(small) == 1 else b""
    head = text[:_HEAD_BYTES].decode("utf-8", "replace")
    if 0 < len(text) <= _HEAD_BYTES and (plain := in_english(head)) != head:
        return _as_printed(explain_logs([(scans[0].name, [plain.encode()])], top), head)
    heard = [drop_hearsay(scan, head, catalogue.lasting) for scan in scans]
    about_errors = any(one.about_errors for one in heard)
    found = candidates(catalogue, scans)
    own_script = is_own_script(head)
    if own_script:
        found = {name: c for name, c in found.items() if c.strong or not _only_own(c)}
    # What was taken out would come back in joined lines.
    told = text and not about_errors and not any(one.dropped for one in heard)
    told = told and not any(c.strong for c in found.values())
    if told and len(text) <= _WRAPPED_BYTES and not is_table(head):
        _unwrap(catalogue, scanner, text, scans, found)
    if told and len(text) <= TYPED_BYTES and not any(c.strong for c in found.values()):
        _respell(catalogue, scanner, text, scans, found)
    found = fold(catalogue, found, scans)
    maybe = [c for c in found.values() if c.score < NAMED_FROM]
    ranked = order(
        (c for c in found.values() if c.score >= NAMED_FROM),
        several_lines=sum(scan.lines for scan in scans) > 1,
    )
    shown = text.decode("utf-8", "replace") if len(text) <= _WRAPPED_BYTES else ""
    said = without_hearsay(shown) if len(text) <= TYPED_BYTES else shown
    asked = about_errors or asks_only(shown) or says_all_is_well(shown)
    asked = asked or (own_script and may_be_own(head))
    asked = asked or (len(said) < len(shown) - 1 and not names_fault(said))
    if asked:
        # A question names things that work: only a program's clear word counts.
        unsure = [c for c in ranked if not c.said_by_program]
        ranked = [c for c in ranked if c not in unsure]
        maybe += unsure
    if not asked and has_words(shown) and len(text) <= TYPED_BYTES and text.count(b"\n") <= 6:
        ranked, maybe = _with_typed(catalogue, load_index(), [*ranked, *maybe], without_healthy(said))
    calm = bool(shown) and is_program_output(shown) and not tells_of_trouble(shown)
    if calm:
        quiet = [c for c in ranked if not c.strong and c.weak]
        ranked = [c for c in ranked if c not in quiet]
        maybe += quiet
    if ranked:
        bar = _RELATIVE * ranked[0].score
        ranked = [c for c in ranked if c.score >= bar]
    if not ranked and text and not asked:
        ranked, near = _by_lines(catalogue, load_index(), text, scans[0].name)
        maybe += [c for c in near if c.cause.id not in {m.cause.id for m in maybe}]
    gather_consequences(catalogue, ranked, scans)
    compare_logs(catalogue, ranked, scans)
    if len(scans) == 1:
        compare_ranks(catalogue, ranked, scans[0])
    if ranked and len(text) <= _HEAD_BYTES and _only_mild(ranked, head):
        ranked, maybe = [], [*ranked, *maybe]
    ranked += _neighbours(catalogue, ranked)
    maybe = [c for c in maybe if not c.excluded]
    if ranked or calm:
        maybe = []  # "perhaps the module is not loaded" under a list that has it helps nobody
    answer = Explanation(ranked[:top], maybe[:3])
    answer.files = len(scans)
    answer.lines = sum(scan.lines for scan in scans)
    answer.size_bytes = sum(scan.size_bytes for scan in scans)
    if not ranked and text:
        answer.error_lines = error_lines(text, scans[0].name)
    return answer


def _only_mild(ranked: list[Candidate], text: str) -> bool:
    """One weak sign each, on a line that a log of some length gives as information or a warning.

    What stopped that log, if anything did, is not it: a warning about a setting says little of a crash below."""
    for candidate in ranked:
        if candidate.strong or candidate.context or candidate.weak != 1 or not candidate.evidence:
            return False
        if not all(is_mild(item.text) for item in candidate.evidence):
            return False
    lines = [line for line in text.splitlines() if line.strip()]
    logged = sum(is_log_line(line) for line in lines)
    return logged >= _LOG_LINES and 2 * logged >= len(lines)


def _as_printed(answer: Explanation, text: str) -> Explanation:
    """Evidence in the words that the reader's own log has, not in those it was read by."""

    for candidate in (*answer.results, *answer.maybe):
        candidate.evidence = _in_words_of(text, candidate.evidence)
        candidate.consequences = _in_words_of(text, candidate.consequences)
    answer.error_lines = _in_words_of(text, answer.error_lines)
    return answer


def _in_words_of(text: str, items: list[Evidence]) -> list[Evidence]:
    """The same lines as they stand in `text`, of which another wording was read."""
    return [item if item.text in text else replace(item, text=_line(text, item.line)) for item in items]


def _only_own(candidate: Candidate) -> bool:
    return all(may_be_own(item.text) for item in candidate.evidence)


def _neighbours(catalogue: Catalogue, ranked: list[Candidate]) -> list[Candidate]:
    """What the same words may mean as well, where nothing is certain: so that an admin, and a check, look there too."""
    if not ranked or ranked[0].certainty == CERTAIN:
        return []
    known = {candidate.cause.id for candidate in ranked}
    found: list[Candidate] = []
    for candidate in ranked:
        for cause_id in candidate.cause.neighbours:
            if len(known) >= _WITH_NEIGHBOURS:
                return found
            if cause_id not in known:
                known.add(cause_id)
                score = _NEIGHBOUR * ranked[0].score
                found.append(Candidate(catalogue[cause_id], score=score, instead_of=candidate.cause.id))
    return found


@cache
def _scanner(catalogue: Catalogue) -> Scanner:
    """Its automaton takes longer to build than a short text to explain."""
    return Scanner(catalogue.patterns)


class _Kept:
    """Blocks passed on, and the text itself while it is short."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self.blocks = blocks
        self.text = b""
        self.whole = True

    def __iter__(self) -> Iterator[bytes]:
        for block in self.blocks:
            if self.whole and len(self.text) + len(block) <= 1 << 20:
                self.text += block
            else:
                self.text, self.whole = b"", False
            yield block


def _unwrap(
    catalogue: Catalogue, scanner: Scanner, text: bytes, scans: list[Scan], found: dict[str, Candidate]
) -> None:
    """A terminal or a chat may have broken a line: each line is tried again together with the next one."""
    lines = [line.strip() for line in text.replace(b"\r", b"\n").split(b"\n")]
    heads = [is_log_line(line[:400].decode("utf-8", "replace")) for line in lines]
    # The head of a log is where a line begins, not where one goes on.
    broken = [n for n, (a, b) in enumerate(pairwise(lines)) if a and b and not heads[n + 1]]
    pairs = [lines[n] + glue + lines[n + 1] for n in broken for glue in (b" ", b"")]
    if not pairs:
        return
    joined = scanner.scan(scans[0].name, [b"\n".join(pairs)])
    drop_hearsay(joined, "")
    again = candidates(catalogue, [joined])
    printed = is_program_output(text.decode("utf-8", "replace"))
    for cause_id, candidate in again.items():
        # Two rows of a program's table together are no person's words.
        if candidate.strong and cause_id not in found and (candidate.said_by_program or not printed):
            found[cause_id] = candidate
            scans[0].seen.update(joined.seen)
    # Line numbers of the joined text mean nothing to the reader.
    for cause_id, candidate in again.items():
        if found.get(cause_id) is candidate:
            candidate.evidence = [replace(e, line=1 + broken[(e.line - 1) // 2]) for e in candidate.evidence]


def _respell(
    catalogue: Catalogue, scanner: Scanner, text: bytes, scans: list[Scan], found: dict[str, Candidate]
) -> None:
    """A person's text is read once more with its typing errors undone."""
    typed = text.decode("utf-8", "replace")
    if is_program_output(typed):
        return
    plain = spelled_out(typed, load_index())
    if plain == typed:
        return
    again = scanner.scan(scans[0].name, [plain.encode()])
    for cause_id, candidate in candidates(catalogue, [again]).items():
        if candidate.strong and cause_id not in found:
            candidate.evidence = _in_words_of(typed, candidate.evidence)
            found[cause_id] = candidate
            scans[0].seen.update(again.seen)


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number - 1].strip() if 0 < number <= len(lines) else text.strip()


def _with_typed(
    catalogue: Catalogue, index: TypedIndex, found: list[Candidate], text: str
) -> tuple[list[Candidate], list[Candidate]]:
    """Add what the words alone say: to the score of what was found, and as causes of their own."""
    by_id = {candidate.cause.id: candidate for candidate in found}
    ranked, maybe = list(found), []
    words = set(tokens(text))
    shorter = _EXCEPTION.sub("", without_head(text))
    if "\n" in text.strip() or len(tokens(shorter)) < 3:
        shorter = text
    nearest = [] if is_bare_name(text) else index.rank(shorter, printed=is_program_output(text))
    needed = _needed(text, len(words), nearest)
    for typed in nearest:
        cause = catalogue[typed.cause_id]
        if looks_alike(text, cause):
            continue
        names = typed.score >= needed and typed.weight >= _TELLING
        candidate = by_id.get(typed.cause_id)
        if candidate is None and resembles(text, cause):
            continue
        if candidate is not None:
            if candidate.score < NAMED_FROM and needed >= TYPED_NAMES_PROGRAM:
                continue  # a program's line that says little: its words say no more
            candidate.typed = typed.score
            candidate.score += TYPED_WEIGHT * typed.score
            if names:
                candidate.score = max(candidate.score, NAMED_FROM)
            if candidate.certainty == POSSIBLE and typed.score >= TYPED_LIKELY:
                candidate.certainty = LIKELY
            continue
        fresh = Candidate(cause, score=TYPED_WEIGHT * typed.score, typed=typed.score)
        fresh.certainty = LIKELY if typed.score >= TYPED_LIKELY else POSSIBLE
        if names:
            fresh.score = max(fresh.score, NAMED_FROM)
            ranked.append(fresh)
        elif typed.score >= TYPED_MAYBE and typed.weight >= _TELLING_MAYBE:
            fresh.score = _UNNAMED * typed.score
            maybe.append(fresh)
    maybe = [c for c in ranked if c.score < NAMED_FROM] + maybe
    ranked = [c for c in ranked if c.score >= NAMED_FROM]
    for some in (ranked, maybe):
        some.sort(key=lambda c: (-c.score, c.first, c.cause.id))
    return ranked, maybe


def _needed(text: str, words: int, nearest: list[Typed]) -> float:
    """The score from which typed words name a cause."""
    if is_program_output(text):
        return TYPED_NAMES_PROGRAM if tells_of_trouble(text) else _NEVER
    if not tells_of_trouble(text):
        return TYPED_NAMES_CALM
    if words >= _TOLD_WORDS and is_told(text):
        ahead = nearest[0].score / nearest[1].score if len(nearest) > 1 and nearest[1].score else 9.0
        short = TYPED_NAMES_TOLD_CLOSE if ahead < 1.15 else TYPED_NAMES_TOLD
        long = [score for least, lead, score in TYPED_NAMES_TOLD_LONG if words >= least and ahead >= lead]
        if nearest and any(nearest[0].weight >= least and ahead >= lead for least, lead in TYPED_NAMES_HEAVY):
            long.append(_HEAVY_NAMES)
        return min([short, *long])
    if len(nearest) > 1 and nearest[0].score < 1.2 * nearest[1].score:
        return TYPED_NAMES
    share = min(1.0, max(0.0, (words - 6) / 8))
    return TYPED_NAMES - share * (TYPED_NAMES - TYPED_NAMES_LONG)


def _by_lines(
    catalogue: Catalogue, index: TypedIndex, text: bytes, name: str
) -> tuple[list[Candidate], list[Candidate]]:
    """For a log that no signature knows: causes whose words are nearly those of one of its error lines."""
    best: dict[str, Candidate] = {}
    items = error_lines(text, name, limit=60)
    if items and came_right([item.text for item in items], _below(text, items[-1].line)):
        return [], []
    for item in items:
        if is_quiet(item.text) or is_frame(item.text):
            continue
        line = _EXCEPTION.sub("", without_head(item.text))
        words = set(tokens(line))
        for typed in index.rank(line, limit=2, printed=True):
            cause = catalogue[typed.cause_id]
            known = best.get(cause.id)
            if len(words) < 3 or (known and known.typed >= typed.score):
                continue
            if looks_alike(line, cause) or resembles(line, cause):
                continue
            found = Candidate(
                cause, score=TYPED_WEIGHT * 0.6 * typed.score, typed=typed.score, evidence=[item]
            )
            best[cause.id] = found
    near = sorted(best.values(), key=lambda c: (-c.typed, c.cause.id))
    named = [c for c in near if c.typed >= LINE_NAMES][:3]
    return named, [] if named else [c for c in near if c.typed >= TYPED_NAMES]


def _below(text: bytes, number: int) -> str:
    """The text after a line, its beginning and its end."""
    rest = text.split(b"\n", number)[number:]
    piece = rest[0] if rest else b""
    if len(piece) > _HEAD_BYTES:
        piece = piece[: _HEAD_BYTES // 2] + b"\n" + piece[-_HEAD_BYTES // 2 :]
    return piece.decode("utf-8", "replace")
