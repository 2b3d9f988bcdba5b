"""The figures that are promised, on the labelled texts; by what margin is in docs/accuracy.md."""

from __future__ import annotations

import re

import pytest

from epdoctor.explain.causes import load_causes
from tests.explain.cases import FILES, cases, tally


@pytest.mark.parametrize("name", FILES)
def test_right_often_enough(name: str) -> None:
    # A part of the many fresh and blind texts: all of them take half a minute (python -m tests.explain.accuracy).
    counts, wrong = tally(list(cases(name))[:: {"fresh": 4, "blind": 12, "calm": 4}.get(name, 1)])
    shown = [f"{case.id} {case.form} {sorted(case.right)}" for case in wrong]
    assert counts.first >= 0.90 * counts.positives, shown
    assert counts.among_three >= 0.97 * counts.positives, shown
    assert counts.false_alarms <= max(1, 0.03 * counts.negatives), shown  # one in a small part is no rate


@pytest.mark.parametrize("name", FILES)
def test_labels_are_causes(name: str) -> None:
    catalogue = load_causes()
    unknown = {
        cause for case in cases(name) for cause in case.right if cause != "none" and cause not in catalogue
    }
    assert unknown == set()


@pytest.mark.parametrize("name", ["serving", "communication", "blind"])
def test_no_labelled_text_is_a_signature(name: str) -> None:
    """Examples are the programs' words, never a labelled line with its made-up addresses, numbers and names."""
    catalogue = load_causes()
    made_up = re.compile(r"\d+\.\d+\.\d+\.\d+|(?=[a-f]*\d)[0-9a-f]{10,}|node-?\d+")
    lines = {line.strip() for case in cases(name) for line in case.text.splitlines()}
    lines = {line for line in lines if len(line) > 60 and made_up.search(line)}
    examples = {
        text
        for cause_id in catalogue
        for signature in catalogue[cause_id].signatures
        for text in (signature.example, *signature.more_examples)
    }
    assert lines & examples == set()
