"""Processes of the GPU layers on this machine, without a GPU: what they get, and what their ends come to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.bench import gpu_ranks
from epdoctor.bench.fleet import Fleet
from epdoctor.bench.gpu_ranks import error_line, run_ranks
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers import deepep
from epdoctor.bench.layers._gpu import finish
from epdoctor.bench.results import LayerResult, judge_value
from epdoctor.collect.targets import this_machine
from epdoctor.model import Goal, Status
from tests.bench_records import FOLDER, recorded
from tests.test_facts_rdma import node, tree

SAY = """
import json, os, sys, time
out = os.fdopen(3, "w")
def say(**value):
    out.write(json.dumps(value) + "\\n"); out.flush()
params = json.loads(os.environ["EPDOCTOR_PARAMS"])
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet([this_machine("here")]) as started:
        started.wait_ready(20)
        yield started


def bench_of(fleet: Fleet, seconds: float = 60.0, backend: str = "") -> Bench:
    nodes = {"here": node(tree("rxe"))}
    return Bench(fleet, nodes, Goal(backend=backend), {}, gpu=True, deadline=time.monotonic() + seconds)


def run(monkeypatch: pytest.MonkeyPatch, bench: Bench, program: str, **more: Any) -> gpu_ranks.Outcome:
    monkeypatch.setattr(gpu_ranks, "source", lambda name: SAY + program)
    return run_ranks(bench, {"here": 2}, {"tokens": 3}, python="x.py", modules=("json",), **more)


def test_ranks_get_their_place_and_a_folder_that_goes_with_them(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
open(os.path.join(os.environ["EP_JIT_CACHE_DIR"], "kernel"), "w").close()
say(rank_=os.environ["RANK"], world=params["world"], folder=os.environ["EP_JIT_CACHE_DIR"], own=os.environ["OWN"])
"""
    outcome = run(
        monkeypatch, bench_of(fleet), program, tmp_env=("EP_JIT_CACHE_DIR", "TMPDIR"), env={"OWN": "yes"}
    )
    said = [value for _, _, value in outcome.of(world=2)]
    assert sorted(value["rank_"] for value in said) == ["0", "1"]
    assert {value["own"] for value in said} == {"yes"}
    (folder,) = {value["folder"] for value in said}
    assert Path(folder).name.startswith("epdoctor-")
    deadline = time.monotonic() + 5
    while Path(folder).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(folder).exists()
    assert not outcome.failed


def test_a_rank_that_dies_says_its_own_error(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    program = 'raise ImportError("_C.so: undefined symbol: ncclCommQueryProperties")'
    outcome = run(monkeypatch, bench_of(fleet), program)
    assert outcome.failed["here"].endswith("ImportError: _C.so: undefined symbol: ncclCommQueryProperties")
    result = LayerResult("7", "deepep", "DeepEP", Status.SKIP)
    finish(result, outcome, "DeepEP v2")
    assert result.status is Status.FAIL
    assert "undefined symbol" in result.broken


def test_who_was_cut_off_by_the_budget_is_not_known_to_be_broken(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    outcome = run(monkeypatch, bench_of(fleet, 1.5), "say(started=1)\ntime.sleep(60)")
    assert time.monotonic() - began < 10
    assert not outcome.failed
    assert "by the budget" in outcome.lost["here"]
    hung = run(monkeypatch, bench_of(fleet), "time.sleep(60)", timeout_s=1.0, enough_s=0.5)
    assert hung.failed["here"].startswith("took too long")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("[rank1]: ImportError: x.so: undefined symbol: y\n[rank0]:[W1122 ...] Warning: z", "ImportError: x.so: undefined symbol: y"),
        ("  File \"a.py\", line 3\n[rank0]:     assert cuda_home is not None\n[rank0]: AssertionError\n", "AssertionError: assert cuda_home is not None"),
        ("torch.distributed.DistBackendError: NCCL error in: a.cpp:93\n", "DistBackendError: NCCL error in: a.cpp:93"),
        ("AssertionError", "AssertionError"),
        ("all is well\nError rate: 3", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_error_that_python_reported(output: str, said: str) -> None:
    assert error_line(output) == said


@given(st.text(max_size=3000))
def test_any_output_has_a_line_or_none(output: str) -> None:
    assert "\n" not in error_line(output)
    assert error_line("A." * 5000 + "xError" + output) is not None


# ---------------------------------------------------------------- layer 7


def deepep_layer(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, offers: list[str], backend: str = "", world: int = 2
) -> LayerResult:
    """The layer over processes that say what a recorded run said, for a package with these classes."""
    values = {one.what: one for one in recorded("h200x2-deepep-2.1").layers[0].measurements}
    told = {what: [one.value, one.detail.partition(" ")[0]] for what, one in values.items()}
    program = f"""
offers, told = {offers!r}, {told!r}
needs = {{"normal": "Buffer", "low-latency": "Buffer", "v2": "ElasticBuffer"}}
say(version="2.1.0", classes=offers)
for mode in params["modes"]:
    if needs[mode] in offers:
        say(started=mode)
        for what in ("dispatch", "combine"):
            us, speed = told[mode + " " + what]
            say(what=what, mode=mode, us=us, gb_s=float(speed or 0), right=True, error=0.0)
"""
    monkeypatch.setattr(gpu_ranks, "source", lambda name: SAY + program)
    monkeypatch.setattr(deepep, "begin", lambda bench, result: {"here": world})
    real = run_ranks

    def without_torch(*args: Any, **more: Any) -> gpu_ranks.Outcome:
        return real(*args, **{**more, "modules": ("json",)})

    monkeypatch.setattr(deepep, "run_ranks", without_torch)
    return deepep.run(bench_of(fleet, backend=backend))


def test_both_buffers_are_measured_where_the_package_has_both(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = deepep_layer(fleet, monkeypatch, ["Buffer", "ElasticBuffer"])
    assert found.status is Status.PASS
    assert [one.what for one in found.measurements] == [
        "normal dispatch", "normal combine", "low-latency dispatch", "low-latency combine", "v2 dispatch", "v2 combine",
    ]  # fmt: skip
    assert found.summary.endswith("(DeepEP 2.1.0: Buffer, ElasticBuffer)")
    # This node has an RDMA device, so GIN was not switched off.
    assert not found.notes


def test_generation_1_is_measured_by_what_it_has(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    found = deepep_layer(fleet, monkeypatch, ["Buffer"])
    assert found.status is Status.PASS
    assert len(found.measurements) == 4
    wanted = deepep_layer(fleet, monkeypatch, ["Buffer"], backend="deepep_v2")
    assert wanted.status is Status.UNKNOWN
    assert "DeepEP 2.1.0 offers Buffer, not ElasticBuffer, which --backend deepep_v2 needs" in wanted.reason


def test_generation_2_5_is_named_and_not_measured(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    found = deepep_layer(fleet, monkeypatch, ["EPBuffer"])
    assert found.status is Status.UNKNOWN
    assert len(found.measurements) == 1
    assert "generation 2.5, which vLLM up to 0.33 cannot use" in found.reason


def test_a_back_end_is_tried_by_its_own_buffer_alone(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    found = deepep_layer(fleet, monkeypatch, ["Buffer", "ElasticBuffer"], backend="deepep_v2")
    assert [one.what for one in found.measurements] == ["v2 dispatch", "v2 combine"]


def test_nodes_that_a_mode_does_not_fit() -> None:
    assert not deepep._not_for("normal", {"a": 2})
    assert "8 GPUs" in deepep._not_for("normal", {"a": 4, "b": 4})
    assert not deepep._not_for("v2", {"a": 4, "b": 4})
    assert "as many GPUs" in deepep._not_for("v2", {"a": 4, "b": 8})
    assert not deepep._not_for("low-latency", {"a": 4, "b": 8})


def test_names_of_the_checks_that_explain_v2() -> None:
    from epdoctor.catalog import load_checks

    assert set(deepep.V2_CHECKS) <= set(load_checks())


def test_recorded_times_meet_what_the_links_of_that_machine_carry(fleet: Fleet) -> None:

    from epdoctor.collect.store import parse_record
    from epdoctor.facts import Node
    from epdoctor.facts.base import CollectOptions

    raw = (FOLDER.parent / "h200x2.json").read_bytes()
    facts = Node("vm", parse_record(raw, "vm").source(), Goal(), CollectOptions())
    bench = Bench(fleet, {"vm": facts}, Goal(), {}, gpu=True)
    seen = 0
    for one in recorded("h200x2-deepep-2.1").layers[0].measurements:
        mode = one.what.split()[0]
        gb_s = float(one.detail.partition(" ")[0] or 0)
        found = deepep._expected(one, bench, mode, [{"us": one.value, "gb_s": gb_s}])
        assert found.expected is not None
        assert judge_value(found) is Status.PASS
        # Half of what was measured is no noise.
        assert mode == "low-latency" or found.expected < 2 * (one.value or 0)
        seen += 1
    assert seen == 6
