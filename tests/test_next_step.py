"""The line after `next`, and the verdict on nodes without a GPU."""

from __future__ import annotations

import pytest

from epdoctor.model import Goal, Readiness, Report
from epdoctor.report.next_step import _for_eyes
from epdoctor.report.summary import no_gpu


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("epdoctor check -ojson=/tmp/x.json", "epdoctor check"),
        ("epdoctor check -o text=a --all-nodes -i inv.ini", "epdoctor check --all-nodes -i inv.ini"),
        ("epdoctor check --output=junit=z --format json --ignore a", "epdoctor check --ignore a"),
        (
            "epdoctor check --nodes-fail /tmp/f --exit-code nagios -i 'gpu[01-02]'",
            "epdoctor check -i 'gpu[01-02]'",
        ),
        ("epdoctor check 'it", "epdoctor check 'it"),
    ],
)
def test_the_next_look_writes_no_files(typed: str, kept: str) -> None:
    assert _for_eyes(typed) == kept


def _report(*readiness: Readiness) -> Report:
    return Report(Goal(), [], [], {}, readiness=list(readiness))


def test_a_back_end_that_nothing_stops_and_no_node_serves_means_no_gpu() -> None:
    nccl = Readiness("allgather_reducescatter", (), ("n1", "n2"), (), (), ())
    deepep = Readiness("deepep_v2", (), ("n1", "n2"), (), ("rdma.hca-present",), ())
    assert no_gpu(_report(nccl, deepep))
    assert not no_gpu(_report(deepep))
    assert not no_gpu(_report(Readiness("deepep_v2", ("n1",), ("n2",), (), (), ())))
    assert not no_gpu(_report())
