"""Find the lines of a log that say something: an Aho-Corasick pass over chunks, then regexes on those lines only.

Memory does not grow with the log: evidence is capped, and what lies around a hit is kept as windows of bounded
size. A log that repeats one line a million times does not get slower: a pattern that has been seen often enough
leaves the automaton, and a literal that is often there without its pattern is sought by its regex instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from epdoctor.explain.causes import Pattern
from epdoctor.explain.match import MAX_LINE, clip, compile_regex, joined_regex, line_at

WINDOW_LINES = 200
"""Context signatures are sought this many lines around a hit."""
_WINDOW_BYTES = 48 * 1024
_MAX_WINDOWS = 48
_KEPT = 5
"""Evidence lines kept of each pattern."""
_ENOUGH = 20
_NOISY = 200
"""Lines that a literal brought without a match, before its pattern is sought by regex in the whole chunk..."""
_NOISY_PER_MB = 300
"""...and how dense they must be for that to pay."""
_OVERLAP = 4 * 1024
_IDLE = 4000
_QUOTED = (
    b"received request",
    b"'prompt':",
    b'"prompt":',
    b'"messages":',
    b"'messages':",
)
"""Marks of a line that logs what a user asked a model: errors in it are not this machine's."""
_LOWER = bytes(range(256)).lower().replace(b"\r", b"\n").replace(b"\0", b" ")


@dataclass(frozen=True)
class Hit:
    """One line that one pattern matched."""

    pattern: int
    line: int
    """1-based, as an editor counts."""
    text: str
    window: int
    """Index into Scan.windows; -1 where none was kept."""


@dataclass
class Seen:
    """All that is kept of one pattern in one log."""

    hits: list[Hit] = field(default_factory=list)
    count: int = 0
    """Lines that matched; stops at the limit where the pattern is no longer sought."""


@dataclass
class Window:
    """Bytes around a hit."""

    first_line: int
    text: bytes
    wanted: int
    """Bytes still to come."""

    def line_of(self, position: int) -> int:
        return self.first_line + self.text.count(b"\n", 0, position)


@dataclass
class Scan:
    """What one log says."""

    name: str
    seen: dict[int, Seen] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    lines: int = 0
    size_bytes: int = 0


class Automaton:
    """The literals of some patterns; immutable, shared by the scans of many files."""

    def __init__(self, patterns: list[Pattern], without: frozenset[int] = frozenset()) -> None:
        import ahocorasick_rs

        owners: dict[str, list[int]] = {}
        for number, pattern in enumerate(patterns):
            if number not in without:
                for literal in pattern.literals:
                    owners.setdefault(literal, []).append(number)
        self.owners = list(owners.values())
        self._search = (
            ahocorasick_rs.BytesAhoCorasick(
                [literal.encode() for literal in owners],
                implementation=ahocorasick_rs.Implementation.ContiguousNFA,
            )
            if owners
            else None
        )

    def find(self, lowered: bytes) -> list[tuple[int, int, int]]:
        """(literal, start, end) of every occurrence, also overlapping ones, by end."""
        return self._search.find_matches_as_indexes(lowered, overlapping=True) if self._search else []


class Scanner:
    """Scans logs for the patterns of a catalogue."""

    def __init__(self, patterns: list[Pattern]) -> None:
        self.patterns = patterns
        self.automaton = Automaton(patterns)

    def scan(self, name: str, blocks: Iterable[bytes]) -> Scan:
        """One log, given as blocks of any size, in constant memory."""
        run = _Run(self, Scan(name))
        rest = b""
        for block in blocks:
            run.result.size_bytes += len(block)
            data = rest + block if rest else block
            end = max(data.rfind(b"\n"), data.rfind(b"\r", max(0, len(data) - MAX_LINE))) + 1
            if len(data) - end <= MAX_LINE:
                if end:
                    run.chunk(data[:end])
                rest = data[end:]
            else:
                # A line longer than MAX_LINE: cut, and looked at again from a little before the cut.
                run.chunk(data)
                rest = data[-_OVERLAP:]
        if rest:
            run.chunk(rest)
            run.result.lines += not rest.endswith((b"\n", b"\r"))
        return run.result


class _Run:
    """The state of one scan."""

    def __init__(self, scanner: Scanner, result: Scan) -> None:
        self.patterns = scanner.patterns
        self.automaton = scanner.automaton
        self.owners = self.automaton.owners
        self.idle = 0
        """Occurrences of literals of which no pattern is sought any more, since the automaton was built."""
        self.result = result
        self.line = 1
        self.tail = b""
        self.retired: set[int] = set()
        self.direct: set[int] = set()
        """Patterns whose literals are too common: sought by regex over the whole chunk."""
        self.misses: dict[int, int] = {}
        self.open: list[Window] = []

    def chunk(self, raw: bytes) -> None:
        data = _plain(raw) if b"\x1b" in raw else raw
        lowered = data.translate(_LOWER)
        if self.open:
            self._extend(data)
        found = self.automaton.find(lowered)
        changed = self._lines(data, lowered, found) if found else False
        if self.direct:
            self._direct(data, lowered)
        if changed:
            gone = self.retired | self.direct
            self.owners = [[n for n in numbers if n not in gone] for numbers in self.owners]
        if self.idle > _IDLE:
            self.automaton = Automaton(self.patterns, frozenset(self.retired | self.direct))
            self.owners = self.automaton.owners
            self.idle = 0
        newlines = data.count(b"\n")
        self.line += newlines
        self.result.lines += newlines
        self.tail = data[-_WINDOW_BYTES:]

    def _lines(self, data: bytes, lowered: bytes, found: list[tuple[int, int, int]]) -> bool:
        """Apply the patterns of each line's literals. True where the automaton should be rebuilt."""
        owners, changed = self.owners, False
        begin = stop = -1
        counted, line = 0, self.line
        numbers: dict[int, None] = {}
        for literal, start, end in found:
            if not owners[literal]:
                self.idle += 1
                continue
            if start >= stop or end > stop:
                if numbers:
                    changed |= self._apply(data, begin, stop, line, numbers)
                    numbers = {}
                begin, stop = line_at(lowered, start, end)
                line += data.count(b"\n", counted, begin)
                counted = max(counted, begin)
            for number in owners[literal]:
                numbers[number] = None
        if numbers:
            changed |= self._apply(data, begin, stop, line, numbers)
        return changed

    def _apply(self, data: bytes, begin: int, stop: int, line: int, numbers: dict[int, None]) -> bool:
        text = data[begin:stop]
        changed = False
        for number in numbers:
            if number in self.retired or number in self.direct:
                continue
            match = compile_regex(self.patterns[number].regex).search(text)
            if match is None:
                missed = self.misses[number] = self.misses.get(number, 0) + 1
                if missed >= _NOISY and missed * 1_000_000 > _NOISY_PER_MB * self.result.size_bytes:
                    self.direct.add(number)
                    changed = True
                continue
            changed |= self._hit(number, line, text, match.span(), data, begin, stop)
        return changed

    def _direct(self, data: bytes, lowered: bytes) -> None:
        """Seek the patterns whose literals are too common: all in one pass, then each on the lines found."""
        active = sorted(self.direct - self.retired)
        position = 0
        while active and position < len(data):
            match = joined_regex(tuple(self.patterns[number].regex for number in active)).search(
                data, position
            )
            if match is None:
                return
            start, end = match.span()
            begin, stop = line_at(lowered, start, max(start, end))
            line = self.line + data.count(b"\n", 0, begin)
            text = data[begin:stop]
            for number in active:
                found = compile_regex(self.patterns[number].regex).search(text)
                if found is not None:
                    self._hit(number, line, text, found.span(), data, begin, stop)
            active = [number for number in active if number not in self.retired]
            position = stop + 1

    def _hit(
        self, number: int, line: int, text: bytes, span: tuple[int, int], data: bytes, begin: int, stop: int
    ) -> bool:
        if any(mark in text[:2000].lower() for mark in _QUOTED):
            return False
        seen = self.result.seen.get(number)
        if seen is None:
            seen = self.result.seen[number] = Seen()
        seen.count += 1
        if len(seen.hits) < _KEPT:
            window = self._window(line, data, begin, stop) if len(seen.hits) < 2 else -1
            seen.hits.append(Hit(number, line, clip(text.replace(b"\r", b"\n"), *span), window))
        if seen.count >= _ENOUGH:
            self.retired.add(number)
            return True
        return False

    def _window(self, line: int, data: bytes, begin: int, stop: int) -> int:
        windows = self.result.windows
        for index in range(len(windows) - 1, max(-1, len(windows) - 4), -1):
            window = windows[index]
            last = window.first_line + window.text.count(b"\n")
            if window.first_line <= line <= max(window.first_line, last - WINDOW_LINES // 4) or (
                window.wanted and window.first_line <= line <= last
            ):
                return index
        if len(windows) >= _MAX_WINDOWS:
            return -1
        before = data[max(0, begin - _WINDOW_BYTES) : begin]
        if len(before) < _WINDOW_BYTES:
            before = self.tail[len(before) - _WINDOW_BYTES :] + before
        position = len(before)
        for _ in range(WINDOW_LINES + 1):
            position = before.rfind(b"\n", 0, position)
            if position < 0:
                break
        before = before[position + 1 :]
        after = data[begin : stop + _WINDOW_BYTES]
        window = Window(line - before.count(b"\n"), before + after, stop + _WINDOW_BYTES - len(data))
        window.wanted = max(0, window.wanted)
        windows.append(window)
        if window.wanted:
            self.open.append(window)
        return len(windows) - 1

    def _extend(self, data: bytes) -> None:
        for window in self.open:
            piece = data[: window.wanted]
            window.text += piece
            window.wanted -= len(piece)
        self.open = [window for window in self.open if window.wanted > 0]


def _plain(data: bytes) -> bytes:
    """Without terminal sequences: colours split the words that signatures look for."""
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    sequence = re2.compile(
        rb"\x1b(?:\[[0-9;?]{0,40}[ -/]{0,4}[@-~]|\][^\x07\x1b\n]{0,400}(?:\x07|\x1b\\))", options
    )
    return bytes(sequence.sub(b"", data))
