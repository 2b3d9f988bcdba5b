"""Several ranks in one log: who had the error first, who follows, who is clean; and what a person misspelt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.explain.answer import explain_logs, explain_text
from epdoctor.explain.speakers import speaker
from epdoctor.explain.typed import load_index
from epdoctor.explain.wording import spelled_out

CQ = "ibgda.cpp:1454: non-zero status: 7 cannot register cq buf."
LOG = f"""\
(APIServer pid=100) INFO 11-21 10:00:00 [api_server.py:1] vLLM API server version 0.33.0
(EngineCore_DP0 pid=200) INFO 11-21 10:00:01 [core.py:84] Initializing a V1 LLM engine
(EngineCore_DP1 pid=201) INFO 11-21 10:00:01 [core.py:84] Initializing a V1 LLM engine
(EngineCore_DP3 pid=203) ERROR 11-21 10:00:07 [core.py:84] {CQ}
(EngineCore_DP2 pid=202) ERROR 11-21 10:00:05 [core.py:84] {CQ}
(EngineCore_DP0 pid=200) ERROR 11-21 10:01:02 [core.py:866] RuntimeError: NVSHMEM API called before NVSHMEM initialization has completed
(APIServer pid=100) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("(EngineCore_DP3 pid=123) ERROR x", "EngineCore_DP3"),
        ("(Worker_DP0_TP1_EP1 pid=77) x", "Worker_DP0_TP1_EP1"),
        ("(VllmWorker rank=3 pid=29) x", "VllmWorker rank 3"),
        ("(VllmWorker TP0 pid=2940) x", "VllmWorker TP0"),
        ("(RayWorkerWrapper pid=5, ip=10.0.0.4) x", "RayWorkerWrapper pid 5 on 10.0.0.4"),
        ("[rank3]: Traceback", "rank 3"),
        ("[rank3]:[W1121 10:00:13.123 ProcessGroupNCCL.cpp:1] x", "rank 3"),
        ("[gpu07:1234:5678] UCX ERROR", "gpu07 pid 1234"),
        ("gpu07:1234:5678 [3] NCCL WARN x", "gpu07 GPU 3"),
        ("2026-01-01T00:00:00Z gpu07:1234:5678 [3] NCCL WARN x", "gpu07 GPU 3"),
        ("12: srun labelled line", "rank 12"),
        ("[pod/decode-0/vllm] line", "pod/decode-0/vllm"),
        ("a line without a head", None),
        ("10:02:03 not a rank", None),
    ],
)
def test_heads(line: str, name: str | None) -> None:
    found = speaker(line)
    assert (found.name if found else None) == name


@given(st.text(max_size=400))
def test_any_line_has_a_head_or_none(line: str) -> None:
    found = speaker(line)
    assert found is None or found.name


def test_ranks_of_one_log() -> None:
    root = explain_text(LOG.encode()).results[0]
    assert root.cause.id == "memlock-limit"
    assert root.ranks == {
        "APIServer": "follows",
        "EngineCore_DP0": "follows",
        "EngineCore_DP1": "clean",
        "EngineCore_DP2": "has",
        "EngineCore_DP3": "has",
    }
    assert root.first_rank == "EngineCore_DP2", "by time, not by order"
    assert any("before NVSHMEM initialization" in item.text for item in root.consequences)
    assert any("Engine core initialization failed" in item.text for item in root.consequences)


def test_a_process_is_named_by_its_rank() -> None:
    """NCCL's head has host and process; the same process names its rank on another line."""
    log = LOG + f"gpu07:201:999 [1] NCCL WARN {CQ}\n"
    root = explain_text(log.encode()).results[0]
    assert root.ranks["EngineCore_DP1"] == "has"
    assert "gpu07 GPU 1" not in root.ranks


def test_all_ranks_of_a_large_log_are_seen() -> None:
    lines = "".join(f"(EngineCore_DP{n} pid={900 + n}) {CQ}\n" for n in range(64) for _ in range(3))
    root = explain_logs([("x.log", [lines.encode()])]).results[0]
    assert sum(state == "has" for state in root.ranks.values()) == 64


def test_one_rank_says_nothing_about_ranks() -> None:
    root = explain_text(f"(EngineCore_DP3 pid=1) {CQ}\n".encode()).results[0]
    assert (root.ranks, root.first_rank) == ({}, "")


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("the module isnt loaded", "the module is not loaded"),
        ("we can't regster memory", "we cannot register memory"),
        ("w/o gdrcopy", "without gdrcopy"),
        ("cannot alocate memory", "cannot allocate memory"),
    ],
)
def test_spelled_out(typed: str, plain: str) -> None:
    assert spelled_out(typed, load_index()) == plain


@pytest.mark.parametrize(
    "text", ["1\n2\n3\n4", "0 1 0 1", "Link up, no errors, symbol_error 0, link_downed 0"]
)
def test_nothing_is_wrong(text: str) -> None:
    assert explain_text(text.encode()).results == []
