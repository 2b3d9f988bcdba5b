"""What a person typed: words missing, misspelt, in any order, against the words of each cause."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from epdoctor.compiled import load_compiled
from epdoctor.explain.causes import Catalogue, Cause, load_causes
from epdoctor.paths import data_dir

_FORMAT = 5
_WORD = re.compile(r"[a-z]+|[0-9]+")
_STOP = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "in",
        "on",
        "of",
        "to",
        "for",
        "and",
        "or",
        "but",
        "with",
        "at",
        "by",
        "from",
        "as",
        "it",
        "its",
        "this",
        "that",
        "we",
        "i",
        "my",
        "our",
        "me",
        "you",
        "your",
        "when",
        "if",
        "then",
        "than",
        "so",
        "too",
        "do",
        "does",
        "did",
        "has",
        "have",
        "had",
        "can",
        "could",
        "should",
        "would",
        "will",
        "there",
        "here",
        "just",
        "only",
        "also",
        "cant",
        "wont",
        "doesnt",
        "isnt",
        "dont",
        "someone",
        "somebody",
        "overnight",
        "yesterday",
        "since",
        "until",
        "again",
        "although",
        "apparently",
        "weird",
        "insists",
        "throws",
        "suddenly",
        "everything",
        "nothing",
        "somehow",
        "after",
        "before",
        "while",
        "why",
        "what",
        "how",
        "which",
        "who",
        "get",
        "gets",
        "got",
        "please",
        "help",
        "any",
        "some",
        "all",
        "no",
        "yes",
        "still",
        "now",
        "every",
        "each",
        "both",
        "one",
        "into",
        "out",
        "up",
        "where",
        "s",
        "t",
        "re",
        "d",
        "ll",
        "m",
        "ve",
        "error",
        "errors",
        "failed",
        "fail",
        "fails",
        "problem",
        "issue",
        "using",
        "use",
        "used",
        "py",
        "line",
        "file",
    ]
)
_SPELLING = re.compile(r"[a-z]{4,24}")
_WEIGHTS = {
    "say": 1.0,
    "title": 0.9,
    "strong": 0.9,
    "weak": 0.7,
    "meaning": 0.45,
    "context": 0.45,
    "deciding": 0.45,
}
_MAX_TOKENS = 60


def tokens(text: str) -> list[str]:
    """Lower-case words and numbers without endings and stop words, in order, each once."""
    found: dict[str, None] = {}
    for word in _WORD.findall(text[:8000].lower()):
        if word in _STOP or (word.isdigit() and len(word) > 5):
            continue
        found[_stem(word)] = None
    return list(found)[:_MAX_TOKENS]


def _stem(word: str) -> str:
    if word.isdigit() or len(word) < 5:
        return word
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            stem = word[: -len(ending)]
            return stem + "y" if ending == "ies" else stem.rstrip("e") or stem
    return word.rstrip("e")


_HEAD = re.compile(
    r"^(\(\w[^)]{0,60}\) ?)?((ERROR|WARNING|WARN|FATAL|CRITICAL) ?)?[\d\-:., TZ]{0,40}(\[[\w.]{1,60}:\d{1,6}\] ?)?"
)
_PATH = re.compile(r"(?:^|(?<=\s))/\S{1,300}")
_LONG_NUMBER = re.compile(r"\b(?:0x[0-9a-f]{1,16}|\d{5,20})\b")


def without_head(line: str) -> str:
    """A log line without process, level, time and source in front."""
    return _HEAD.sub("", line)


def looks_alike(text: str, cause: Cause) -> bool:
    """Whether the text holds one of the lines that must not name this cause; long numbers may differ."""
    if not cause.look_alikes:
        return False
    plain = _plain(text)
    return any(_plain(without_head(line)) in plain for line in cause.look_alikes)


def resembles(text: str, cause: Cause) -> bool:
    """Whether the text's words are, but for two, those of a line that must not name this cause.

    Numbers and paths may differ."""
    own = _words(text)
    for line in cause.look_alikes if len(own) >= 3 else ():
        words = _words(without_head(line))
        common = len(own & words)
        if len(own) - common <= 2 and common >= 3 and common >= 0.7 * max(len(own), len(words)):
            return True
    return False


def _words(text: str) -> set[str]:
    return {word for word in tokens(_PATH.sub(" ", text[:4000])) if not word.isdigit()}


def _plain(text: str) -> str:
    return " ".join(_LONG_NUMBER.sub("#", text[:4000].lower()).split())


def build_index(causes: Iterable[Cause]) -> dict[str, Any]:
    """Phrases of each cause and, for each word, the phrases that hold it. A JSON value."""
    phrases: list[list[Any]] = []
    words: dict[str, list[int]] = {}
    names: list[str] = []
    spread: dict[str, set[int]] = {}
    spellings: set[str] = set()
    for number, cause in enumerate(causes):
        names.append(cause.id)
        texts = [(phrase, "say") for phrase in cause.say]
        texts += [(cause.title, "title"), (cause.id.replace("-", " "), "title"), (cause.meaning, "meaning")]
        for signature in cause.signatures:
            if signature.strength == "excluding":
                continue
            texts += [(text, signature.strength) for text in (signature.example, *signature.more_examples)]
        for text, kind in texts:
            spellings.update(_SPELLING.findall(text.lower()))
            own = tokens(text)
            if not own:
                continue
            phrases.append([number, _WEIGHTS[kind], own])
            for word in own:
                words.setdefault(word, []).append(len(phrases) - 1)
                spread.setdefault(word, set()).add(number)
    idf = {word: round(math.log(1 + len(names) / len(owners)), 3) for word, owners in spread.items()}
    rows = [[number, weight, round(sum(idf[w] for w in own), 2)] for number, weight, own in phrases]
    return {"names": names, "phrases": rows, "words": words, "idf": idf, "spellings": sorted(spellings)}


@dataclass(frozen=True)
class Typed:
    """How well one cause fits typed words."""

    cause_id: str
    score: float
    """0 to 1."""
    covered: float
    """Share of the typed words, by how telling they are, that the cause knows."""
    weight: float = 0.0
    """How telling those words are in all: about 5 for each that one or two causes know, 2 for a common one."""


class TypedIndex:
    """Ranks causes for typed words."""

    def __init__(self, index: Mapping[str, Any]) -> None:
        self.names: list[str] = index["names"]
        self.phrases: list[list[Any]] = index["phrases"]
        self.words: dict[str, list[int]] = index["words"]
        self.idf: dict[str, float] = index["idf"]
        self.spellings: frozenset[str] = frozenset(index["spellings"])
        """Words of at least four letters as they are written, with their endings."""
        self._unknown = math.log(1 + len(self.names) / 2)

    def rank(self, text: str, limit: int = 10, *, printed: bool = False) -> list[Typed]:
        """Best first. A word that no cause knows counts against all, as a rare word would.

        A line that a program printed is compared with what programs print, not with a person's words."""
        query = tokens(text)
        total = 0.0
        cause_words: dict[int, float] = {}
        shared: dict[int, float] = {}
        for position, word in enumerate(query):
            meant = self._meant(word, query[position + 1] if position + 1 < len(query) else "")
            if not meant:
                # An unknown name or number says less than an unknown word: half.
                total += self._unknown * (0.3 if word.isdigit() else 0.8)
                continue
            best = max(self.idf[known] for known in meant)
            total += best
            here: dict[int, float] = {}
            for known, likeness in meant.items():
                value = best * likeness
                for phrase in self.words[known]:
                    number, weight, _ = self.phrases[phrase]
                    if printed and weight == _WEIGHTS["say"]:
                        continue
                    shared[phrase] = shared.get(phrase, 0.0) + value / len(meant)
                    here[number] = max(here.get(number, 0.0), value * weight)
            for number, value in here.items():
                cause_words[number] = cause_words.get(number, 0.0) + value
        if not total:
            return []
        best_phrase: dict[int, float] = {}
        for phrase, value in shared.items():
            number, weight, norm = self.phrases[phrase]
            alike = weight * value / (0.65 * total + 0.35 * max(norm, value))
            best_phrase[number] = max(best_phrase.get(number, 0.0), alike)
        scored = [
            Typed(
                self.names[n],
                min(1.0, 0.5 * value / total + 0.5 * best_phrase.get(n, 0.0)),
                value / total,
                value,
            )
            for n, value in cause_words.items()
        ]
        scored.sort(key=lambda typed: (-typed.score, typed.cause_id))
        return scored[:limit]

    def _meant(self, word: str, following: str) -> dict[str, float]:
        """Known words that a typed one may stand for, with how alike they are."""
        found: dict[str, float] = {}
        if word in self.words:
            found[word] = 1.0
        if following and word + following in self.words:
            found[word + following] = 1.0
        if found or word.isdigit():
            return found
        for cut in range(3, len(word) - 2):
            if word[:cut] in self.words and word[cut:] in self.words:
                return {word[:cut]: 0.9, word[cut:]: 0.9}
        if len(word) < 4:
            return found
        allowed = 2 if len(word) >= 8 else 1
        for known in self.words:
            if abs(len(known) - len(word)) <= allowed and len(known) >= 4 and not known.isdigit():
                if known[0] != word[0] and known[1:3] != word[1:3] and known[:2] != word[1::-1]:
                    continue
                distance = edit_distance(word, known, allowed)
                if distance <= allowed:
                    found[known] = 0.85 if distance == 1 else 0.65
        best = max(found.values(), default=0.0)
        return {known: value for known, value in found.items() if value == best}


def edit_distance(one: str, other: str, limit: int) -> int:
    """Insertions, deletions, replacements and swaps of neighbours; more than `limit` is limit + 1."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            value = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                value = min(value, before[j - 2] + 1)
            row.append(value)
        if min(row) > limit:
            return limit + 1
        before, last = last, row
    return min(last[-1], limit + 1)


@cache
def load_index() -> TypedIndex:
    """The index of the shipped causes, from the cache while they are unchanged."""

    def compile_index() -> dict[str, Any]:
        catalogue: Catalogue = load_causes()
        return build_index(catalogue[cause_id] for cause_id in catalogue)

    return TypedIndex(
        load_compiled(f"causes-typed-{_FORMAT}", [data_dir("checks") / "errors"], compile_index)
    )
