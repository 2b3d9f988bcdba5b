"""Two values that differ, or agree, around a cause's line: versions of two parts, one setting on two nodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.explain.match import DIFFER, SAME, compared, compile_once

ONE = r"--max-num-seqs[ =](\d+)"
TWO = r"driver version: (\S+)|fabric manager version: (\S+)"


def holds(regex: str, captures: str, text: str) -> bool:
    return compared(compile_once(regex, captures=True), captures, text.encode()) is not None


@pytest.mark.parametrize(
    ("regex", "text", "differ", "same"),
    [
        (ONE, "n1: --max-num-seqs 64\nn2: --max-num-seqs 128\n", True, False),
        (ONE, "n1: --max-num-seqs 64\nn2: --max-num-seqs=64\n", False, True),
        (ONE, "n1: --max-num-seqs 64\n", False, False),
        (ONE, "nothing", False, False),
        (TWO, "driver version: 580.95\nfabric manager version: 580.82\n", True, False),
        (TWO, "driver version: 580.95\nfabric manager version: 580.95\n", False, True),
        (TWO, "driver version: 580.95\ndriver version: 580.82\n", False, False),
        (TWO, "driver version: a\nfabric manager version: a\ndriver version: b\n", True, False),
        (TWO, "driver version: A\nfabric manager version: a\n", False, True),
    ],
)
def test_values_compared(regex: str, text: str, differ: bool, same: bool) -> None:
    assert holds(regex, DIFFER, text) is differ
    assert holds(regex, SAME, text) is same


def test_what_is_shown_is_the_line_that_differs() -> None:
    found = compared(
        compile_once(TWO, captures=True), DIFFER, b"driver version: 1\nfabric manager version: 2\n"
    )
    assert found[0] == b"fabric manager version: 2"


@given(st.binary(max_size=2000), st.sampled_from([ONE, TWO]))
def test_never_both(text: bytes, regex: str) -> None:
    text += b"--max-num-seqs 1 driver version: 1\n" + text
    compiled = compile_once(regex, captures=True)
    assert compared(compiled, DIFFER, text) is None or compared(compiled, SAME, text) is None
