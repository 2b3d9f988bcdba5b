"""What is no fault must name none, however many words it shares with a cause."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.explain.answer import explain_logs, explain_text
from epdoctor.explain.guards import asks_only, is_bare_name, is_healthy, is_log_line, is_program_output


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("how do I set NVSHMEM_QP_DEPTH", True),
        ("is nvidia_peermem needed when the driver has dmabuf?", True),
        ("why does dispatch hang after an upgrade of nvshmem?", False),
        (
            "quick question before our rollout: why would deepep not be used? it runs, I just want to know",
            True,
        ),
        ("quick question, no issue: isn't gdrcopy needed?", True),
        ("quick question: the gdrdrv module is missing, is it needed?", False),
        ("nvshmem never starts, memlock 64k is set for all pods, could that be it?", False),
        ("lsmod shows gdrdrv and /dev/gdrdrv, gdrcopy_sanity passed on all 64 nodes", True),
        ("after modprobe nvidia_peermem worked we added it to modules-load.d, so this one is done", True),
        ("gdrdrv is not loaded on n7, otherwise all good", False),
        ("all good on n1 but gdrdrv is not loaded on n7", False),
        ("is peermem not loaded?", False),
        ("nvidia_peermem is not loaded", False),
    ],
)
def test_question_without_a_symptom(text: str, asks: bool) -> None:
    assert asks_only(text) is asks
    assert bool(explain_text(text.encode()).results) is not asks


@pytest.mark.parametrize(
    ("line", "healthy"),
    [
        ("            DRAM Uncorrectable                : 0", True),
        ("    Remapping Failure Occurred            : No", True),
        ("SymbolErrorCounter:..............0", True),
        ("        Uncorrectable Error                 : 3", False),
        ("    Pending                               : Yes", False),
        ("fails before the start, works with VLLM_USE_DEEP_GEMM=0", False),
        ("cannot register cq buf: 0", False),
    ],
)
def test_counter_that_stands_at_zero(line: str, healthy: bool) -> None:
    assert is_healthy(line) is healthy


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("vm.max_map_count = 1048576", True),
        ("NVSHMEM INFO init complete", True),
        ("mlx5_core 0000:1b:00.0 ib0: Link up", True),
        ("NCCL_IB_HCA=mlx5_0\nUCX_TLS=rc", True),
        ("our dispatch hangs when two nodes take part", False),
        ("UCX_TLS=tcp is set and there is no cuda in it", False),
    ],
)
def test_program_output(text: str, printed: bool) -> None:
    assert is_program_output(text) is printed


def test_a_collector_in_front_makes_no_log_line() -> None:
    assert not is_log_line("2026-11-21T10:02:02.123456Z stderr F a person wrote this")
    assert is_log_line("2026-11-21T10:02:02.123456Z stderr F ERROR 11-21 10:02:02 [core.py:1] x")


def test_long_account_in_another_language_is_weighed_by_what_is_known_of_it() -> None:
    text = (
        "Guten Abend zusammen, wir sind etwas ratlos: unsere normalen internode kernel von DeepEP liefern seit"
        " letzter Woche auf vier nodes falsche token. Genau da hat das Netzteam auf den quantum-2 switches adaptive"
        " routing eingeschaltet. Schalten sie adaptive routing wieder aus, dann geht alles durch."
    )
    assert [c.cause.id for c in explain_text(text.encode()).results][:1] == ["adaptive-routing-unsupported"]


@pytest.mark.parametrize("name", ["AssertionError", "builtins.RuntimeError", "TimeoutError:"])
def test_bare_exception_names_nothing(name: str) -> None:
    assert is_bare_name(name)
    assert explain_text(name.encode()).results == []


@given(st.text(max_size=3000))
def test_guards_take_any_text(text: str) -> None:
    for guard in (asks_only, is_program_output, is_healthy, is_bare_name, is_log_line):
        assert guard(text) in (True, False)


def test_numbers_alone_name_nothing() -> None:
    """A code is a cause's only beside the words of the program that prints it."""
    lines = [
        f"step {n}: took {n} us, port {n} status={n} code {n} id={n:x} GPU-{n:08x}" for n in range(66_000)
    ]
    answer = explain_logs([("steps.log", ["\n".join(lines).encode()])])
    assert [(c.cause.id, c.evidence[0].text) for c in answer.results] == []


def test_list_that_has_the_module_is_not_perhaps_without_it() -> None:
    text = "$ lsmod | grep -E 'peermem|gdrdrv'\nnvidia_peermem         16384  0\ngdrdrv                 32768  0\n"
    answer = explain_text(text.encode())
    assert (answer.results, answer.maybe) == ([], [])


@pytest.mark.parametrize(
    "text",
    ["timeout", "not found", "the gpu", "nothing works", "server down", "nccl error", "no such thing at all"],
)
def test_words_that_fit_everything_name_nothing(text: str) -> None:
    assert explain_text(text.encode()).results == []


def test_few_words_that_tell_much_name_their_cause() -> None:
    answer = explain_text(b"no /dev/infiniband inside the pod")
    assert answer.results[0].cause.id == "rdma-device-not-in-container"


def test_warning_about_a_setting_is_not_what_stopped_a_log() -> None:
    lines = [f"(Worker pid={n}) INFO 11-15 16:00:0{n} [loader.py:308] Loading weights" for n in range(9)]
    lines.insert(
        3,
        "(APIServer pid=5) WARNING 11-15 16:00:03 [envs.py:1884] Unknown vLLM environment variable detected: VLLM_MOE_X",
    )
    lines.append(
        "(Worker pid=1) ERROR 11-15 16:00:36 [core.py:1340] RuntimeError: split_with_sizes expects 3 sizes"
    )
    assert explain_text("\n".join(lines).encode()).results == []


def test_an_unknown_fault_is_shown_by_what_its_library_says() -> None:
    text = (
        b'n1:8:8 [0] graph/tuning.cc:104 NCCL WARN Unrecognized element token "LL512" when parsing "LL512"\n'
        b"[rank1]: torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:93, invalid usage\n"
    )
    answer = explain_text(text)
    assert not answer.results
    assert answer.error_lines[0].line == 1
