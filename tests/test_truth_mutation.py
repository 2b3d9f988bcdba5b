"""Are the rules held by their cases? A rule is replaced, or one of its conditions turned round: a case must break.

`python -m tests.mutants` lists the conditions that no case notices.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from epdoctor.model import Problem
from tests.mutants import all_case_rules, cases_by_rule, unchanged, verdicts

LIMIT = 60
"""Conditions that are turned round for each rule: more than any has."""
SURVIVING = {"node or cluster": 0.10, "launch": 0.20}
"""The share of conditions that may pass unnoticed: many choose a finding's words, its command, or (a launch's) the
line that it points at."""
NO_CONDITION = {
    "workers_agree_on_node": "each difference that the facts list is a problem: replacing it is all that can be done",
}


def always_passes(facts: object, **_: Any) -> Iterator[Problem]:
    return iter(())


def always_fails(facts: object, **_: Any) -> Iterator[Problem]:
    yield Problem("anything", "anything else", odd_nodes=("n1",))


RULES = sorted(cases_by_rule())
verdicts_of = cache(verdicts)


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
    made = len(verdicts_of(name, LIMIT))
    left = [where for where, broke in verdicts_of(name, LIMIT) if not broke]
    if name in NO_CONDITION:
        assert made == 0, f"{name} has conditions now: {left}"
        return
    assert len(left) < made, f"no case notices any of {left}"


@pytest.mark.parametrize("scope", SURVIVING)
def test_most_conditions_are_held_by_a_case(scope: str) -> None:
    """A condition in a function that several rules call counts once: a case of any of them may hold it."""
    rules = all_case_rules()
    noticed: dict[str, bool] = {}
    for name in RULES:
        if (rules[name].scope == "launch") == (scope == "launch"):
            for where, broke in verdicts_of(name, LIMIT):
                noticed[where] = noticed.get(where, False) or broke
    left = sorted(where for where, broke in noticed.items() if not broke)
    text = f"{len(noticed)} conditions turned round, {len(left)} noticed by no case:\n" + "\n".join(left)
    assert len(left) < len(noticed) * SURVIVING[scope], text
