"""Every check has cases that fail it, pass it and leave it unknown; every case gives what its name says."""

from __future__ import annotations

import pytest

from epdoctor.catalog import load_checks
from epdoctor.model import Status
from tests.case_files import VERDICTS, Case, all_cases, complaint, judge_case

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case_gives_the_verdict_in_its_name(case: Case) -> None:
    assert case.verdict in VERDICTS, f"{case.path}: verdict must be one of {VERDICTS}"
    finding, spec = judge_case(case)
    assert not complaint(case, finding, spec)


def test_every_case_belongs_to_a_check() -> None:
    assert {case.check for case in CASES} <= set(load_checks())


@pytest.mark.parametrize("check_id", sorted(load_checks()))
def test_check_has_a_failing_a_passing_and_an_unknown_case(check_id: str) -> None:
    have = {case.verdict for case in CASES if case.check == check_id}
    needed = {"fail", "pass", "unknown"} | ({"skip"} if load_checks()[check_id].needs else set())
    assert needed <= have, f"{check_id} lacks {sorted(needed - have)}"


def test_status_names_are_the_verdicts() -> None:
    assert {status.value for status in Status} - {"error"} == set(VERDICTS)
