"""Trouble that is over names nothing; trouble that came back, or is told beside what is over, does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.explain.answer import explain_text
from epdoctor.explain.closed import is_over


def named(text: str) -> list[str]:
    return [candidate.cause.id for candidate in explain_text(text.encode()).results]


@pytest.mark.parametrize(
    "text",
    [
        "Post-mortem of Tuesday: decode was down. Root cause was a memlock limit of 64 KiB. Fixed by LimitMEMLOCK=infinity.",
        "Ticket 81 | status: Closed | resolution: Fixed\nnvidia_peermem not loaded after the kernel update",
        "the outage is explained: PFC was off on one leaf, NCCL got status 12. since then no error in 14 hours",
        "nvm, init failed for transport: IBGDA was my own mistake",
        "Closing as completed: with nvshmem 3.4.5 the CPU recv timeout does not happen any more",
        "ping: h200-o4: Name or service not known     # typo, h200-04 answers",
    ],
)
def test_what_is_over_names_nothing(text: str) -> None:
    assert is_over(text)
    assert named(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "solved it with modprobe nvidia_peermem, but after each reboot nvidia_peermem is not loaded again",
        "that was fixed by raising memlock, now cannot register cq buf on the other node",
        "nvidia_peermem is not loaded, how can this be fixed by ansible",
        "the issue is resolved by loading nvidia_peermem, it is not loaded at boot. what prevents it?",
        "cannot register cq buf",
        "[Thu Nov 20 10:00:01 2026] kernel: nvidia-peermem: status: closed",
    ],
)
def test_what_is_not(text: str) -> None:
    assert not is_over(text)


def test_a_report_keeps_its_cause_beside_what_was_mended() -> None:
    assert "nvidia-peermem-not-loaded" in named(
        "solved it with modprobe nvidia_peermem, but after each reboot nvidia_peermem is not loaded again"
    )


@given(st.text(max_size=2000))
def test_any_text_gets_an_answer(text: str) -> None:
    assert is_over(text) in (True, False)
