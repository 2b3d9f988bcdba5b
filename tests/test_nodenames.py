"""Folding and expanding node names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.nodenames import MAX_NAMES, NodeNamesError, expand, fold, natural_key, split_terms


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu01", "gpu01"),
        ("gpu[01-03]", "gpu01 gpu02 gpu03"),
        ("a[1-3,7],b5", "a1 a2 a3 a7 b5"),
        ("r[1-2]n[01-02]", "r1n01 r1n02 r2n01 r2n02"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("n[098-101].example.org", "n098.example.org n099.example.org n100.example.org n101.example.org"),
        (" a , b ,, a ", "a b"),
        ("10.0.0.[1-2]", "10.0.0.1 10.0.0.2"),
        ("", ""),
    ],
)
def test_expand(text: str, names: str) -> None:
    assert expand(text) == tuple(names.split())


@pytest.mark.parametrize(
    "text",
    [
        "a[1-3",
        "a1-3]",
        "a[[1]]",
        "a[3-1]",
        "a[]",
        "a[x-y]",
        "a[1-]",
        "a b",
        "a[1-999999999]",
        "a[0-999]b[0-999]",
        "a[-1]",
    ],
)
def test_expand_refuses(text: str) -> None:
    with pytest.raises(NodeNamesError):
        expand(text)


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ("gpu01 gpu02 gpu03 gpu04 gpu05 gpu06 gpu07", "gpu[01-07]"),
        ("gpu01 gpu02 gpu04 gpu06", "gpu[01,02,04,06]"),
        ("gpu03", "gpu03"),
        ("a9 a10 a11 a8", "a[8-11]"),
        ("a09 a10 a08", "a[08-10]"),
        ("a1 a01", "a01,a1"),
        ("r1n01 r1n02 r2n01", "r1n[01,02],r2n01"),
        ("gpu01.dc2 gpu02.dc2 gpu03.dc2", "gpu[01-03].dc2"),
        ("10.0.0.1 10.0.0.2 10.0.0.3", "10.0.0.[1-3]"),
        ("login gpu1", "gpu1,login"),
        ("", ""),
    ],
)
def test_fold(names: str, folded: str) -> None:
    assert fold(names.split()) == folded


NAME = st.from_regex(r"[a-z0-9._-]{1,12}", fullmatch=True)


@given(st.sets(NAME, max_size=40))
def test_fold_is_undone_by_expand(names: set[str]) -> None:
    assert set(expand(fold(names))) == names


@given(
    st.sets(
        st.builds("{}{:0{}}".format, st.sampled_from(["gpu", "n"]), st.integers(0, 1200), st.integers(0, 4))
    )
)
def test_fold_of_numbered_names_is_undone_by_expand(names: set[str]) -> None:
    assert set(expand(fold(names))) == names


@given(st.text() | st.text("a[]1-9,: ", max_size=40))
def test_expand_gives_names_or_refuses(text: str) -> None:
    try:
        names = expand(text)
    except NodeNamesError:
        return
    assert len(names) <= MAX_NAMES
    assert all(name and not set(name) & set("[], \n") for name in names)


def test_terms_are_split_outside_brackets_only() -> None:
    assert split_terms("a[1,2]:b,c", ",:") == ["a[1,2]", "b", "c"]


def test_natural_order() -> None:
    assert sorted(["gpu10", "gpu2", "a", "gpu1"], key=natural_key) == ["a", "gpu1", "gpu2", "gpu10"]
