"""Ranking, cascades, several logs, checks that move the ranking, typed words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.cli.explain_checks import summarise
from epdoctor.explain.answer import explain_logs, explain_text
from epdoctor.explain.causes import load_causes
from epdoctor.explain.rank import apply_check_results
from epdoctor.explain.result import CheckResult
from epdoctor.explain.times import clock
from epdoctor.explain.typed import edit_distance, load_index, tokens
from epdoctor.model import Finding, Problem, Severity, Status
from tests.explain.variants import variants

CQ = "ibgda.cpp:1454: non-zero status: 7 cannot register cq buf."
CASCADE = [
    CQ,
    "transport.cpp:nvshmemi_transport_init:282: init failed for transport: IBGDA",
    "NVSHMEM API called before NVSHMEM initialization has completed",
    "(EngineCore_DP0 pid=5) ERROR 11-21 10:02:09 [core.py:1346] EngineCore failed to start.",
]


def test_cascade_is_folded_under_its_first_error() -> None:
    results = explain_text("\n".join(CASCADE).encode()).results
    assert results[0].cause.id == "memlock-limit"
    assert [item.line for item in results[0].consequences][:1] == [2]
    assert "ibgda-driver-not-configured" not in [candidate.cause.id for candidate in results]


def test_several_logs() -> None:
    def log(stamp: str, *lines: str) -> list[bytes]:
        return [
            (
                "\n".join(f"(Worker pid=1) ERROR 11-21 {stamp} [x.py:1] {line}" for line in lines) + "\n"
            ).encode()
        ]

    answer = explain_logs(
        [
            ("rank0.log", log("10:02:05", CASCADE[1])),
            ("rank1.log", log("10:02:01", *CASCADE)),
            ("rank2.log", log("10:02:06", CASCADE[1])),
            ("rank3.log", log("10:02:06", "Too many open files")),
            ("rank4.log", [b"all is well\n"]),
        ]
    )
    root = answer.results[0]
    assert root.cause.id == "memlock-limit"
    assert root.logs == {
        "rank0.log": "follows",
        "rank1.log": "has",
        "rank2.log": "follows",
        "rank3.log": "differs",
        "rank4.log": "clean",
    }
    assert root.evidence[0].file == "rank1.log"


def test_earliest_of_two_roots_comes_first() -> None:
    first = b"ERROR 11-21 10:00:01 [a.py:1] RuntimeError: can't start new thread\n"
    second = b"ERROR 11-21 10:00:09 [a.py:1] OSError: [Errno 24] Too many open files\n"
    for logs in ([("a", [second]), ("b", [first])], [("a", [first]), ("b", [second])]):
        assert explain_logs(logs).results[0].cause.id == "process-limit"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n\n",
        "hello world",
        "KeyError: 'model'",
        "Traceback (most recent call last):\n  File \"serve.py\", line 3, in <module>\nNameError: name 'modle' is not defined",
        "OSError: meta-lama/Llama is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
        "INFO 11-21 10:02:02 [x.py:1] error handler registered; retry limit 7, timeout 22, failover ready",
        "what is the weather in Berlin tomorrow",
    ],
)
def test_no_cause(text: str) -> None:
    assert explain_text(text.encode()).results == []


def test_checks_move_the_ranking() -> None:
    results = explain_text(b"ibv_reg_mr failed: Cannot allocate memory").results
    assert len(results) >= 2
    last = results[-1]
    assert last.cause.checks
    check = last.cause.checks[0]
    passing = {c: CheckResult(c, "pass") for r in results[:-1] for c in r.cause.checks}
    moved = apply_check_results(
        list(results), {**passing, check: CheckResult(check, "fail", ("gpu03",), "8 MiB")}
    )
    assert check in [r.check for r in moved[0].check_results if r.status == "fail"]
    assert moved[0].check_results
    unknown = {c: CheckResult(c, "unknown") for r in results for c in r.cause.checks}
    order = [r.cause.id for r in moved]
    assert [r.cause.id for r in apply_check_results(moved, unknown)] == order


def test_summarise_names_the_nodes_that_fail() -> None:
    findings = [
        Finding("host.x", Status.PASS, Severity.ERROR, "gpu01"),
        Finding("host.x", Status.FAIL, Severity.ERROR, "gpu03", (Problem("8 MiB", "unlimited"),)),
        Finding("host.x", Status.UNKNOWN, Severity.ERROR, "gpu04", reason="denied"),
    ]
    assert summarise("host.x", findings) == CheckResult("host.x", "fail", ("gpu03",), "8 MiB")
    assert summarise("host.x", findings[:1]).status == "pass"
    assert summarise("host.x", findings[2:]).found == "denied"


def test_clock() -> None:
    same = [
        "(Worker pid=1) ERROR 11-21 10:00:13 [core.py:1]",
        "2026-11-21T10:00:13Z stderr F x",
        "2026-11-21 10:00:13,000 WARNING x",
        "E1121 10:00:13.000000 5120 ucx_utils.cpp:660] x",
        "I20261121 10:00:13.0 3110 x",
        "Nov 21 10:00:13 gpu03 kernel: x",
    ]
    assert len({clock(line) for line in same}) == 1
    assert clock("no time here") == math.inf
    assert clock("2026-99-99 10:00:13 x") == math.inf


@settings(deadline=None)
@given(st.text(max_size=300))
def test_clock_takes_anything(text: str) -> None:
    assert clock(text) >= 0


def test_edit_distance() -> None:
    assert edit_distance("register", "regsiter", 2) == 1
    assert edit_distance("register", "registr", 2) == 1
    assert edit_distance("peermem", "gdrcopy", 2) == 3
    assert tokens("Cannot register the CQ buffers!") == tokens("cannot registering cq buffer")


def test_typed_query_with_typos() -> None:
    for text in (
        "ulimt memlok too low ibv_creat_cq canot alocate",
        "canot regster cq buf",
        "memlock limit too low",
    ):
        assert "memlock-limit" in [c.cause.id for c in explain_text(text.encode()).results[:3]], text


def test_variants_of_examples_are_found() -> None:
    wanted = 200
    found = 0
    for text, right, _ in variants(wanted, seed=11):
        named = {candidate.cause.id for candidate in explain_text(text.encode()).results[:3]}
        found += bool(named & right)
    assert found >= 0.9 * wanted


def test_index_covers_every_cause() -> None:
    assert set(load_index().names) == set(load_causes())
