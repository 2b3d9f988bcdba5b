"""Are the rules held by their cases? A rule is replaced, or one of its conditions turned round: a case must break.

`python -m tests.mutants` lists the conditions that no case notices.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from epdoctor.model import Problem
from tests.mutants import all_case_rules, cases_by_rule, survivors, unchanged

LIMIT = 60
"""Conditions that are turned round for each rule: more than any has."""
SURVIVING = 0.15
"""The share that may pass unnoticed: many of them choose the words of a finding, or its command."""
NO_CONDITION = {
    "workers_agree_on_node": "each difference that the facts list is a problem: replacing it is all that can be done",
}


def always_passes(facts: object, **_: Any) -> Iterator[Problem]:
    return iter(())


def always_fails(facts: object, **_: Any) -> Iterator[Problem]:
    yield Problem("anything", "anything else", odd_nodes=("n1",))


RULES = sorted(cases_by_rule())
survivors_of = cache(survivors)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_always_says_the_same_breaks_a_case(name: str) -> None:
    cases = cases_by_rule()[name]
    assert any(case.case.verdict == "fail" and case.breaks(always_passes) for case in cases)
    assert any(case.case.verdict == "pass" and case.breaks(always_fails) for case in cases)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_compiled_again_gives_what_its_cases_say(name: str) -> None:
    """Else a broken mutant would tell nothing."""
    function = unchanged(all_case_rules()[name])
    assert [case.case.id for case in cases_by_rule()[name] if case.breaks(function)] == []


@pytest.mark.parametrize("name", RULES)
def test_turning_a_condition_round_breaks_a_case(name: str) -> None:
    made, left = survivors_of(name, LIMIT)
    if name in NO_CONDITION:
        assert made == 0, f"{name} has conditions now: {left}"
        return
    assert len(left) < made, f"no case notices any of {left}"


def test_most_conditions_are_held_by_a_case() -> None:
    made = sum(survivors_of(name, LIMIT)[0] for name in RULES)
    left = [where for name in RULES for where in survivors_of(name, LIMIT)[1]]
    text = f"{made} conditions turned round, {len(left)} noticed by no case:\n" + "\n".join(sorted(set(left)))
    print(text)
    assert len(left) < made * SURVIVING, text
