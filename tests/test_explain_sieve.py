"""Which lines need a regex: never fewer than those that match, however common the literals are."""

from __future__ import annotations

import random

import pytest

from epdoctor.explain.causes import load_causes
from epdoctor.explain.literals import MIN_LENGTH, required_sets
from epdoctor.explain.match import compile_regex
from epdoctor.explain.scan import Scanner

COMMON = ["gpu", "nccl", "driver", "using", "plugin", "error", "device", "cuda", "rank", "version", "network"]


def _examples() -> list[tuple[str, str]]:
    causes = load_causes()
    return [
        (s.regex, line)
        for c in causes
        for s in causes[c].signatures
        if s.strength in ("strong", "weak")
        for text in (s.example, *s.more_examples)
        for line in text.splitlines()
        if compile_regex(s.regex).search(line.encode())
    ]


def test_every_match_holds_one_literal_of_each_set() -> None:
    for regex, line in _examples():
        branches = required_sets(regex)
        lowered = line.lower()
        assert any(all(any(x in lowered for x in one) for one in sets) for sets in branches), (regex, line)


@pytest.mark.parametrize(
    ("regex", "expected"),
    [
        ("cannot register (cq|wq) buf", [[{"cannot register cq buf", "cannot register wq buf"}]]),
        ("gpu.{0,40}fallen", [[{"fallen"}, {"gpu"}]]),
        ("abcd|efgh", [[{"abcd"}], [{"efgh"}]]),
        ("a+", []),
    ],
)
def test_required_sets(regex: str, expected: list[list[set[str]]]) -> None:
    assert required_sets(regex) == expected
    assert all(any(min(map(len, one)) >= MIN_LENGTH for one in sets) for sets in required_sets(regex))


def test_a_log_dense_in_common_words_hides_nothing() -> None:
    """The literals are chosen anew in such a log; what an example says is found before and after."""
    choose = random.Random(4)
    noise = "".join(f"INFO {' '.join(choose.choices(COMMON, k=12))} {n}\n" for n in range(20_000)).encode()
    patterns = load_causes().patterns
    numbers = {pattern.regex: n for n, pattern in enumerate(patterns)}
    wanted = {numbers[regex]: line for regex, line in _examples() if not patterns[numbers[regex]].phrase}
    blocks = [noise[at : at + 500_000] for at in range(0, len(noise), 500_000)]
    lines = ("\n".join(wanted.values()) + "\n").encode()
    alone = Scanner(patterns).scan("", [lines])
    among = Scanner(patterns).scan("", [*blocks, b"\n", lines, *blocks])
    spoken = {n for n, pattern in enumerate(patterns) if pattern.phrase}
    assert set(alone.seen) - spoken <= set(among.seen)


def test_digits_that_decide_are_looked_at() -> None:
    lines = "".join(f"NVRM: Xid (PCI:0000:19:00): {code}, pid=1\n" for code in (31, 43, 79, 48) * 30)
    scan = Scanner(load_causes().patterns).scan("", [lines.encode()])
    named = {cause for n in scan.seen for cause in load_causes().patterns[n].strong}
    assert "xid-79-fallen-off-bus" in named
    assert "gpu-ecc-error" in named
