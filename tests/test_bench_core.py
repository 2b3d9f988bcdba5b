"""The ladder without a network: pairs, suspects, expectations, layers, the worker's protocol, the report."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.bench import fleet as fleet_module
from epdoctor.bench.expect import load_expectations
from epdoctor.bench.fleet import Fleet, OperationFailed, Worker, WorkerLost
from epdoctor.bench.ladder import choose, layers
from epdoctor.bench.pairs import rounds
from epdoctor.bench.results import LayerResult, Measurement, judge_value, overall
from epdoctor.bench.suspects import suspects
from epdoctor.catalog import load_checks
from epdoctor.collect.targets import Target, this_machine
from epdoctor.exceptions import CatalogError, UsageError
from epdoctor.model import Status
from epdoctor.report.bench_text import head_line, layer_lines
from tests.bench_records import recorded

REPOSITORY = Path(__file__).resolve().parent.parent
OPS = REPOSITORY / "epdoctor" / "bench" / "ops"

# ---------------------------------------------------------------- pairs


@given(st.integers(0, 40))
def test_full_rounds_hold_every_pair_once_and_no_node_twice(count: int) -> None:
    names = [f"n{i}" for i in range(count)]
    found = rounds(names, "full")
    for one in found:
        busy = [name for pair in one for name in pair]
        assert len(busy) == len(set(busy))
    pairs = [frozenset(pair) for one in found for pair in one]
    assert len(pairs) == len(set(pairs)) == count * (count - 1) // 2


@given(st.integers(2, 40), st.integers(1, 5))
def test_neighbour_rounds_are_disjoint_and_touch_everyone(count: int, reach: int) -> None:
    names = [f"n{i}" for i in range(count)]
    found = rounds(names, str(reach))
    for one in found:
        busy = [name for pair in one for name in pair]
        assert len(busy) == len(set(busy))
    assert {name for one in found for pair in one for name in pair} == set(names)
    assert sum(map(len, found)) <= count * reach


@pytest.mark.parametrize("word", ["0", "-1", "all", "", "1.5", "99999"])
def test_pairs_that_mean_nothing(word: str) -> None:
    with pytest.raises(UsageError, match="ring, full"):
        rounds(["a", "b"], word)


# ---------------------------------------------------------------- suspects


def full_mesh(names: list[str], bad: Any, rails: tuple[str, ...] = ("",)) -> list[Measurement]:
    return [
        Measurement("port 29550", a, b, rail, status=Status.FAIL if bad(a, b, rail) else Status.PASS)
        for a in names
        for b in names
        if a != b
        for rail in rails
    ]


NAMES = [f"gpu{i:02d}" for i in range(1, 9)]


def test_one_node_that_nothing_reaches() -> None:
    found = suspects(full_mesh(NAMES, lambda a, b, r: "gpu07" in (a, b)))
    assert [(s.kind, s.name, s.failing, s.of) for s in found] == [("node", "gpu07", 14, 14)]


def test_a_port_blocked_on_one_node() -> None:
    both = [
        replace(one, what=what, status=one.status if what == "port 29550" else Status.PASS)
        for one in full_mesh(NAMES, lambda a, b, r: b == "gpu03")
        for what in ("port 29550", "port 8000")
    ]
    found = suspects(both)
    assert [(s.kind, s.name) for s in found] == [("port of node", "port 29550 on gpu03")]


def test_one_rail_of_one_node_and_one_rail_everywhere() -> None:
    rails = ("mlx5_0", "mlx5_1")
    one = suspects(full_mesh(NAMES, lambda a, b, r: r == "mlx5_1" and "gpu02" in (a, b), rails))
    assert [(s.kind, s.name) for s in one] == [("node-rail", "mlx5_1 of gpu02")]
    everywhere = suspects(full_mesh(NAMES, lambda a, b, r: r == "mlx5_1", rails))
    assert [(s.kind, s.name) for s in everywhere] == [("rail", "mlx5_1")]


def test_one_pair_two_nodes_everything_nothing() -> None:
    pair = suspects(full_mesh(NAMES, lambda a, b, r: {a, b} == {"gpu01", "gpu02"}))
    assert [(s.kind, s.name) for s in pair] == [("pair", "gpu01 and gpu02")]
    two = suspects(full_mesh(NAMES, lambda a, b, r: bool({a, b} & {"gpu04", "gpu05"})))
    assert {(s.kind, s.name) for s in two} == {("node", "gpu04"), ("node", "gpu05")}
    assert [s.kind for s in suspects(full_mesh(NAMES, lambda a, b, r: True))] == ["all"]
    assert suspects(full_mesh(NAMES, lambda a, b, r: False)) == []
    assert suspects([Measurement("x", "a", "b", status=Status.UNKNOWN)]) == []


@given(st.sets(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=20))
def test_there_is_always_a_suspect_for_a_failure(bad: set[tuple[str, str]]) -> None:
    found = full_mesh(NAMES, lambda a, b, r: (a, b) in bad)
    assert bool(suspects(found)) == any(one.status is Status.FAIL for one in found)
    assert len(suspects(found)) <= 5


# ---------------------------------------------------------------- expectations and layers


def test_every_expectation_has_one_number_and_a_source() -> None:
    for row in load_expectations().values():
        assert sum(one is not None for one in (row.factor, row.at_least, row.at_most)) == 1
        assert row.unit
        assert "table of" in row.source


def test_a_site_may_expect_other_numbers(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("expectations:\n  tcp_connect: {at_most: 5}\n")
    found = load_expectations(str(own))["tcp_connect"]
    assert (found.at_most, found.unit, found.source) == (5.0, "ms", str(own))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1", "mapping `expectations`"),
        ("expectations: {tcp_conect: {at_most: 1}}", "did you mean tcp_connect"),
        ("expectations: {tcp_connect: {at_most: fast}}", "needs one number"),
        ("expectations: {tcp_connect: {at_most: 1, at_least: 2}}", "needs one number"),
        ("expectations: {tcp_connect: {limit: 1}}", "takes at_least"),
    ],
)
def test_a_wrong_table_is_refused_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(CatalogError, match=said) as raised:
        load_expectations(str(own))
    assert str(raised.value).startswith(str(own))


def test_values_are_judged_in_their_own_direction() -> None:
    rate = Measurement("write", "a", "b", value=40.0, expected=45.0)
    assert judge_value(rate) is Status.FAIL
    assert judge_value(replace(rate, lower_is_better=True)) is Status.PASS
    assert judge_value(replace(rate, expected=None)) is Status.PASS
    assert judge_value(replace(rate, value=None)) is Status.UNKNOWN
    assert overall([rate, replace(rate, status=Status.UNKNOWN)]) is Status.UNKNOWN
    assert overall([]) is Status.SKIP


def test_layers_are_found_ordered_and_name_real_checks() -> None:
    known = layers()
    numbers = [layer.number for layer in known]
    assert numbers[0] == "1"
    assert numbers == sorted(numbers, key=lambda n: (int(n.rstrip("abc")), n))
    assert len({layer.name for layer in known}) == len(known)
    import importlib

    for module in ("tcp", "gpu_copy", "nccl_node", "nccl_cluster", "nvshmem_put", "deepep"):
        named = importlib.import_module(f"epdoctor.bench.layers.{module}").CHECKS
        assert set(named) <= set(load_checks()), module


def test_layers_are_chosen_by_number_name_and_range() -> None:
    assert [layer.number for layer in choose(["tcp"])] == ["1"]
    assert {layer.number for layer in choose(["5-6"])} >= {"5", "5b", "5c", "6"}
    assert choose([]) == layers()
    with pytest.raises(UsageError, match="did you mean tcp"):
        choose(["tpc"])


# ---------------------------------------------------------------- the worker


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Operations of this test; the real ones are there, too."""
    own: dict[str, str] = {}
    real = fleet_module._source.__wrapped__
    monkeypatch.setattr(fleet_module, "_source", lambda op: own[op] if op in own else real(op))
    return own


def test_values_errors_and_ends(operations: dict[str, str]) -> None:
    operations["good"] = "emit({'x': PARAMS['n']})\nprint('noise on stdout')\nemit([1, 2])"
    operations["bad"] = "raise OSError(5, 'broken')"
    operations["slow"] = "import time\nemit(1)\ntime.sleep(60)"
    with Fleet([this_machine("here")]) as fleet:
        fleet.wait_ready(20)
        worker = fleet["here"]
        assert fleet.alive == ["here"]
        assert worker.hello["uid"] == os.getuid()
        call = worker.start("good", {"n": 7})
        assert call.values() == [{"x": 7}, [1, 2]]
        assert call.stderr.strip() == "noise on stdout"
        with pytest.raises(OperationFailed, match="broken"):
            worker.start("bad").value()
        slow = worker.start("slow", timeout_s=0.3)
        assert slow.value() == 1
        with pytest.raises(OperationFailed, match="took too long"):
            slow.value()
        stopped = worker.start("slow")
        stopped.value()
        stopped.stop()
        with pytest.raises(OperationFailed, match="was stopped"):
            stopped.value()


def test_a_folder_is_given_and_taken_away(operations: dict[str, str]) -> None:
    operations["folder"] = (
        "import time\nopen(PARAMS['tmp'] + '/file', 'w').close()\nemit(PARAMS['tmp'])\ntime.sleep(60)"
    )
    with Fleet([this_machine("here")]) as fleet:
        fleet.wait_ready(20)
        first = fleet["here"].start("folder", tmp=True)
        path = Path(first.value())
        assert path.is_dir()
        first.stop()
        with pytest.raises(OperationFailed):
            first.value()
        assert not path.exists()
        second = Path(fleet["here"].start("folder", tmp=True).value())
        assert second.is_dir()
    wait_for(lambda: not second.exists())


def wait_for(condition: Any, limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


CHILD = "import subprocess, time\np = subprocess.Popen(['sleep', '600'])\nemit(p.pid)\ntime.sleep(600)"


def test_closing_ends_what_operations_started(operations: dict[str, str]) -> None:
    operations["child"] = CHILD
    with Fleet([this_machine("here")]) as fleet:
        fleet.wait_ready(20)
        pid = fleet["here"].start("child").value()
        assert running(pid)
    wait_for(lambda: not running(pid))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_controller_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    script = (
        "from epdoctor.bench import fleet\nfrom epdoctor.collect.targets import this_machine\nimport time\n"
        f"fleet._source = lambda op: {CHILD!r}\n"
        "f = fleet.Fleet([this_machine('here')])\nf.wait_ready(20)\n"
        "print(f['here'].start('child', timeout_s=600).value(), flush=True)\ntime.sleep(600)\n"
    )
    controller = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert controller.stdout is not None
    pid = int(controller.stdout.readline())
    assert running(pid)
    controller.send_signal(number)
    controller.wait()
    controller.stdout.close()
    wait_for(lambda: not running(pid))


def test_a_node_without_python_is_lost_and_says_why() -> None:
    target = Target(name="odd", connection="local", python_interpreter="/no/such/python")
    with Fleet([target, this_machine("here")]) as fleet:
        fleet.wait_ready(20)
        assert fleet.alive == ["here"]
        assert "/no/such/python" in fleet["odd"].lost
        with pytest.raises(WorkerLost):
            fleet["odd"].start("free_port")
        assert fleet["here"].start("free_port").value()["port"] > 0


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_a_worker_takes_any_bytes_of_a_node(parts: list[bytes]) -> None:
    worker = Worker(this_machine("x"), "0" * 16)
    for part in parts:
        worker.heard(part)
        worker.heard(b"@@epdoctor " + b"0" * 16 + b" " + part + b"\n")
    worker.heard(b'\n@@epdoctor 0000000000000000 {"hello": {"uid": 1}}\n')
    assert worker.hello == {"uid": 1}


def test_node_side_files_are_python_3_6() -> None:
    import ast

    for path in [REPOSITORY / "epdoctor/bench/worker.py", *OPS.glob("*.py")]:
        ast.parse(path.read_text(), feature_version=(3, 6))


# ---------------------------------------------------------------- report


def test_the_recorded_run_reads_well() -> None:
    done = recorded("h200x2").layers
    text = "\n".join(line for layer in done for line in layer_lines(layer))
    assert "2 directions" in text
    assert "DeepEP dispatch and combine" in text
    assert head_line(done).startswith("PASSES  layers 5, 5b, 6, 7 pass")


def test_recorded_rates_meet_todays_expectations() -> None:
    rows = load_expectations()
    link_gb_s = 18 * 26.562
    least = {"copy": "gpu_copy", "put": "nvshmem_put", "all-to-all 64 MiB": "nccl_all_to_all"}
    seen = 0
    for layer in recorded("h200x2").layers:
        for one in layer.measurements:
            if one.what in least and one.value is not None:
                assert one.value >= (rows[least[one.what]].factor or 0) * link_gb_s
                seen += 1
    assert seen >= 5


@given(st.text(max_size=50), st.text(max_size=50))
def test_hostile_text_stays_on_its_line(name: str, detail: str) -> None:
    bad = Measurement("port 1", name, "b", status=Status.FAIL, detail=detail)
    layer = LayerResult("1", "tcp", "TCP", Status.FAIL, [bad, bad], broken=detail, suspects=suspects([bad]))
    for line in layer_lines(layer, verbose=True):
        assert "\n" not in line
        assert "\x1b" not in line


def test_the_table_of_expectations_is_plain_yaml() -> None:
    text = (REPOSITORY / "checks/compat/bench.yaml").read_text()
    assert set(yaml.safe_load(text)) == {"as_of", "source", "expectations"}
