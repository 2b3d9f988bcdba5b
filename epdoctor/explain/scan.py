"""Find the lines of a log that say something: an Aho-Corasick pass over chunks, then regexes on those lines only.

Memory does not grow with the log: evidence is capped, and what lies around a hit is kept as windows of bounded
size. A log that repeats one line a million times does not get slower: lines that differ in digits only are looked
at once, a pattern that has been seen often enough leaves the automaton, and common literals give way to rarer ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from epdoctor.explain.causes import Pattern
from epdoctor.explain.guards import is_healthy
from epdoctor.explain.match import MAX_LINE, clip, compile_regex, line_at
from epdoctor.explain.sieve import Automaton, Found, Sieve
from epdoctor.explain.speakers import Speaker, speaker
from epdoctor.explain.times import clock

WINDOW_LINES = 200
"""Context signatures are sought this many lines around a hit."""
_WINDOW_BYTES = 48 * 1024
_MAX_WINDOWS = 48
_KEPT = 5
"""Evidence lines kept of each pattern."""
_ENOUGH = 20
"""Lines counted of each pattern, and so many more after each new rank that prints it."""
_MAX_RANKS = 1024
_MOST_HEALTHY = 500
"""Counters at zero passed over for each pattern, so that the one behind them that is not is found."""
_OVERLAP = 4 * 1024
_SPOKEN_BYTES = 1024 * 1024
"""A person's words are sought in this much of a log only: nobody types more, and programs' lines are full of them."""
_DENSE_BYTES = 2000
"""Where a literal shows more often than once in so many bytes, the literals are chosen again."""
_MIN_TUNED_BYTES = 64 * 1024
_MOST_GONE = 150
"""Patterns seen often enough, before an automaton without them pays."""
_MAX_SHAPES = 50_000
_QUOTED = (
    b"received request",
    b"'prompt':",
    b'"prompt":',
    b'"messages":',
    b"'messages':",
    b"user message",
    b"user prompt",
    b"prompt contained",
    b"user asked",
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
    ranks: dict[Speaker, tuple[float, int]] = field(default_factory=dict)
    """Who wrote these lines: the time (inf where there is none) and number of its first one."""
    settled: int = 0
    """`count` when the last new rank showed."""
    healthy: int = 0
    """Lines that matched but say there is no fault, beyond the first: not kept."""


@dataclass
class Window:
    """Bytes around a hit."""

    first_line: int
    text: bytes
    wanted: int
    """Bytes still to come."""
    _counted: tuple[int, int] = (-1, 0)

    @property
    def last_line(self) -> int:
        """Number of the last line; counted once for each length, since every cause asks it of every window."""
        if self._counted[0] != len(self.text):
            self._counted = len(self.text), self.text.count(b"\n")
        return self.first_line + self._counted[1]

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
    tail: bytes = b""
    """The log's end."""


class Scanner:
    """Scans logs for the patterns of a catalogue."""

    def __init__(self, patterns: list[Pattern]) -> None:
        self.patterns = patterns
        self.automaton = Automaton({n: p.literals for n, p in enumerate(patterns)})

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
        run.result.tail = run.tail
        return run.result


class _Run:
    """The state of one scan."""

    def __init__(self, scanner: Scanner, result: Scan) -> None:
        self.patterns = scanner.patterns
        self.sieve = Sieve(scanner.patterns, scanner.automaton)
        self.result = result
        self.line = 1
        self.counted = 0, 1
        """A position in the chunk, and its line."""
        self.tail = b""
        self.open: list[Window] = []
        self.shapes: dict[int, tuple[int, ...]] = {}
        """Lines that differ in digits only, by hash: the patterns that such a line matched."""
        self.chunks = 0
        self.scanned_bytes = 0
        self.spoken = True
        """Whether a person's words are still sought."""

    def chunk(self, raw: bytes) -> None:
        data = _plain(raw) if b"\x1b" in raw else raw
        lowered = data.translate(_LOWER)
        if self.open:
            self._extend(data)
        found = self.sieve.automaton.some(lowered)
        self.counted = 0, self.line
        if found:
            self._lines(data, lowered, found)
        self.chunks += 1
        self.scanned_bytes += len(data)
        if self.spoken and self.scanned_bytes > _SPOKEN_BYTES:
            self.spoken = False
            for number, pattern in enumerate(self.patterns):
                if pattern.phrase:
                    self.sieve.drop(number)
        if len(found) * _DENSE_BYTES > len(data) and len(data) > _MIN_TUNED_BYTES and self._due():
            self.sieve.tune(found, lowered)
        elif self.sieve.gone > _MOST_GONE:
            self.sieve.rebuild()
        newlines = data.count(b"\n")
        self.line += newlines
        self.result.lines += newlines
        self.tail = data[-_WINDOW_BYTES:]

    def _due(self) -> bool:
        return self.chunks <= 4 or self.chunks % 16 == 0

    def _lines(self, data: bytes, lowered: bytes, found: Found) -> None:
        """Apply the patterns whose literals are in a line; to a line of a known shape only what digits decide."""
        sieve, shapes = self.sieve, self.shapes
        owners, wanted = sieve.automaton.owners, sieve.literals
        stop = -1
        for literal, start, end in found:
            if end <= stop or (sieve.gone and not any(n in wanted for n in owners[literal])):
                continue
            begin, stop = line_at(lowered, start, end)
            text = lowered[begin:stop]
            shape = hash(text.translate(None, b"0123456789"))
            matched = shapes.get(shape)
            if matched is None:
                numbers = sieve.automaton.patterns(text)
                shapes[shape] = tuple(n for n in numbers if self._apply(n, data, text, begin, stop))
                if len(shapes) > _MAX_SHAPES:
                    shapes.clear()
                continue
            for number in {*matched, *sieve.numeric.patterns(text)}:
                if number not in wanted:
                    continue
                if number in matched and self._repeats(number, data, begin, stop):
                    continue
                self._apply(number, data, text, begin, stop)

    def _repeats(self, number: int, data: bytes, begin: int, stop: int) -> bool:
        """Count one more line of a pattern of which enough lines are kept."""
        seen = self.result.seen.get(number)
        if seen is None or len(seen.hits) < _KEPT:
            return False
        self._count(number, seen, data, begin, stop)
        return True

    def _count(self, number: int, seen: Seen, data: bytes, begin: int, stop: int) -> None:
        seen.count += 1
        head = data[begin : min(stop, begin + 240)].decode("utf-8", "replace")
        who = speaker(head)
        if who is not None and who not in seen.ranks and len(seen.ranks) < _MAX_RANKS:
            seen.ranks[who] = clock(head), self._line_of(data, begin)
            seen.settled = seen.count
        if seen.count - seen.settled >= _ENOUGH:
            self.sieve.drop(number)

    def _apply(self, number: int, data: bytes, lowered_line: bytes, begin: int, stop: int) -> bool:
        if not self.sieve.can_match(number, lowered_line):
            return False
        text = data[begin:stop]
        match = compile_regex(self.patterns[number].regex).search(text)
        if match is None:
            return False
        self._hit(number, text, match.span(), data, begin, stop)
        return True

    def _hit(
        self, number: int, text: bytes, span: tuple[int, int], data: bytes, begin: int, stop: int
    ) -> None:
        if any(mark in text[:2000].lower() for mark in _QUOTED):
            return
        seen = self.result.seen.get(number)
        if seen is None:
            seen = self.result.seen[number] = Seen()
        if len(seen.hits) < _KEPT:
            shown = clip(text.replace(b"\r", b"\n"), *span)
            if seen.hits and seen.healthy < _MOST_HEALTHY and is_healthy(shown):
                seen.healthy += 1
                return
            line = self._line_of(data, begin)
            window = self._window(line, data, begin, stop) if len(seen.hits) < 2 else -1
            seen.hits.append(Hit(number, line, shown, window))
        self._count(number, seen, data, begin, stop)

    def _line_of(self, data: bytes, position: int) -> int:
        before, line = self.counted
        if before > position:
            before, line = 0, self.line
        line += data.count(b"\n", before, position)
        self.counted = position, line
        return line

    def _window(self, line: int, data: bytes, begin: int, stop: int) -> int:
        windows = self.result.windows
        for index in range(len(windows) - 1, max(-1, len(windows) - 4), -1):
            window = windows[index]
            last = window.last_line
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
