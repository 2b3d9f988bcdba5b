"""Nothing that a node sends is interpreted by the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.report.sanitize import sanitize


@given(st.text(max_size=300))
def test_no_control_character_survives(text: str) -> None:
    clean = sanitize(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in clean)
    assert not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069" for c in clean)
    clean.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("[/dev/nvidia0]", "[/dev/nvidia0]"),
        ("[rank0]: RuntimeError [mlx5_0:1]", "[rank0]: RuntimeError [mlx5_0:1]"),
        ("a\r\nb\nc", "a b c"),
        ("bell\x07", "bell\\x07"),
        ("gpu\u202e10", "gpu\\u202e10"),
    ],
)
def test_known_texts(text: str, clean: str) -> None:
    assert sanitize(text) == clean
