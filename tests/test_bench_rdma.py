"""The RDMA layers without an HCA: rails from facts, what the exchange's answers come to, perftest's text, GPU memory."""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.bench.causes import named
from epdoctor.bench.expect import load_expectations
from epdoctor.bench.fleet import Fleet, OperationFailed
from epdoctor.bench.gpu_memory import decide
from epdoctor.bench.layers import gpu_mr, nixl, rdma_bw, rdma_gpu, verbs
from epdoctor.bench.layers._rdma import among_own, measured, settled, shortfall
from epdoctor.bench.perftest_run import (
    Answer,
    Job,
    cross_rail_steps,
    iterations,
    ordered_rounds,
    same_rail_steps,
)
from epdoctor.bench.perftest_text import lacks_cuda, parse_bandwidth, parse_latency
from epdoctor.bench.rails import Rail, Rails, all_rails, node_rails
from epdoctor.bench.results import LayerResult, Measurement, shown
from epdoctor.bench.verbs_run import End, Exchange, Failed, _take
from epdoctor.catalog import load_checks
from epdoctor.collect.targets import this_machine
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.model import Goal, Status
from epdoctor.report.bench_text import head_line, layer_lines
from epdoctor.report.heat_map import heat_lines
from tests.bench_records import recorded
from tests.test_facts_rdma import node, tree

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "tests/records/raw/perftest"
NDR = Rail(0, "mlx5_0", 1, 3, "its RoCE v2 GID", 400.0, software=False)
SOFT = Rail(0, "rxe0", 1, 1, "its RoCE v2 GID", 2.5, software=True)


def rails_of(nodes: int, count: int = 1, like: Rail = NDR) -> Rails:
    own = tuple(
        replace(like, number=n, device=f"mlx5_{n}" if like is NDR else like.device) for n in range(count)
    )
    return Rails({f"gpu{i:02d}": own for i in range(1, nodes + 1)}, {}, {})


# ---------------------------------------------------------------- telling a running operation


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, str], Any]]:
    from epdoctor.bench import fleet as fleet_module

    own: dict[str, str] = {}
    real = fleet_module._source.__wrapped__
    monkeypatch.setattr(fleet_module, "_source", lambda op: own[op] if op in own else real(op))
    with Fleet([this_machine("here")]) as fleet:
        fleet.wait_ready(20)
        yield own, fleet["here"]


def test_an_operation_hears_what_it_is_told(here: Any) -> None:
    operations, worker = here
    operations["echo"] = (
        "while True:\n    said = hear()\n    if said is None: break\n    emit([said, len(said)])"
    )
    call = worker.start("echo")
    call.tell("a")
    call.tell({"b": "ö\n"})
    assert call.value() == ["a", 1]
    assert call.value() == [{"b": "ö\n"}, 1]
    # Far more than a pipe holds, while it is not reading yet.
    long = ["x" * 1000] * 400
    call.tell(long)
    call.tell("after")
    assert call.value() == [long, 400]
    assert call.value() == ["after", 5]
    call.tell(None)
    with pytest.raises(OperationFailed) as ended:
        call.value()
    assert ended.value.end == "ran"
    call.tell("too late")


def test_an_operation_that_never_listens_holds_up_nobody(here: Any) -> None:
    operations, worker = here
    operations["deaf"] = "import time\nemit(1)\ntime.sleep(60)"
    operations["quick"] = "emit(hear())"
    deaf = worker.start("deaf")
    deaf.value()
    deaf.tell("x" * 500_000)
    quick = worker.start("quick")
    quick.tell(7)
    assert quick.value(10) == 7
    deaf.stop()


# ---------------------------------------------------------------- perftest's text


def test_recorded_output_of_perftest() -> None:
    rate = parse_bandwidth((RAW / "write_bw-soft-roce-6.06.txt").read_text())
    assert (rate.bytes, rate.iterations, rate.average_gbps) == (65536, 50, 0.036390)
    late = parse_latency((RAW / "write_lat-soft-roce-6.06.txt").read_text())
    assert (late.bytes, late.iterations, late.least_us, late.typical_us) == (8, 200, 1007.84, 3802.06)
    assert lacks_cuda((RAW / "no-cuda-6.06.txt").read_text())
    assert not lacks_cuda((RAW / "write_bw-soft-roce-6.06.txt").read_text())


@given(
    st.one_of(
        st.text(max_size=300), st.lists(st.text("#bytesBW average[Gb/]0123456789. \n-naif", max_size=40))
    )
)
def test_any_text_is_a_number_or_unmeasured(text: str | list[str]) -> None:
    whole = text if isinstance(text, str) else "\n".join(["#bytes BW average[Gb/sec] t_typical[usec]", *text])
    for parse in (parse_bandwidth, parse_latency):
        try:
            parse(whole)
        except Unmeasured:
            continue


# ---------------------------------------------------------------- layouts


OFFSETS = {  # offsetof() over infiniband/verbs.h of rdma-core 44.0, x86-64
    "Context": {"device": 0, "ops": 8},
    "PortAttr": {"state": 0, "active_mtu": 8, "gid_tbl_len": 12, "lid": 34, "sm_lid": 36},
    "QpInit": {"send_cq": 8, "recv_cq": 16, "srq": 24, "cap": 32, "qp_type": 52, "sq_sig_all": 56},
    "Address": {"sgid_index": 20, "hop_limit": 21, "dlid": 24, "sl": 26, "is_global": 29, "port": 30},
    "QpAttr": {
        "path_mtu": 8, "rq_psn": 20, "sq_psn": 24, "dest_qpn": 28, "access": 32, "cap": 36, "ah": 56, "alt_ah": 88,
        "pkey_index": 120, "max_rd": 126, "max_dest_rd": 127, "min_rnr": 128, "port": 129, "timeout": 130,
        "retry_cnt": 131, "rnr_retry": 132, "rate_limit": 136,
    },
    "SendWr": {"next": 8, "sg_list": 16, "num_sge": 24, "opcode": 28, "flags": 32, "remote_addr": 40, "rkey": 48},
    "Completion": {"status": 8, "opcode": 12, "vendor": 16},
    "MemoryRegion": {"addr": 16, "lkey": 36, "rkey": 40},
    "Qp": {"handle": 48, "qp_num": 52},
}  # fmt: skip
SIZES = {
    "Capacity": 20,
    "QpInit": 64,
    "Address": 32,
    "QpAttr": 144,
    "SendWr": 128,
    "Completion": 48,
    "Sge": 16,
}


def test_structures_lie_as_in_the_header() -> None:
    source = (ROOT / "epdoctor/bench/ops/verbs_exchange.py").read_text().removesuffix("main()\n")
    names: dict[str, Any] = {}
    exec(compile(source, "verbs_exchange", "exec"), names)
    for name, offsets in OFFSETS.items():
        for field, offset in offsets.items():
            assert getattr(names[name], field).offset == offset, (name, field)
    for name, size in SIZES.items():
        assert ctypes.sizeof(names[name]) == size, name
    assert names["Context"].ops.offset + 8 * names["POLL_CQ"] == 8 + 88
    assert names["Context"].ops.offset + 8 * names["POST_SEND"] == 8 + 200


def test_without_libibverbs_or_libcuda_it_is_named(here: Any) -> None:
    _, worker = here
    values = worker.start("verbs_gpu_mr", {"gpus": [], "bytes": 65536}).values()
    assert values == [{"missing": "libcuda.so.1"}] or "step" in values[0] or values == []
    (ended,) = worker.start("perftest", {"argv": ["/no/such/ib_write_bw"], "host": "", "device": "x", "ib_port": 1,
                                         "limit_s": 5}).values()  # fmt: skip
    assert ended == {"missing": "/no/such/ib_write_bw", "text": "No such file or directory"}


def test_a_program_that_never_ends_is_ended(here: Any) -> None:
    _, worker = here
    params = {"argv": ["sleep", "60"], "host": "x", "port": 1, "device": "x", "ib_port": 1, "limit_s": 0.3}
    params["argv"] = ["sh", "-c", "echo so far; sleep 60", "sh"]
    (ended,) = worker.start("perftest", params).values()
    assert (ended["rc"], ended["stdout"], ended["resent"]) == ("timeout", "so far\n", None)


# ---------------------------------------------------------------- the exchange


A, B = End("gpu01", 0), End("gpu02", 0)


def test_every_step_of_an_exchange_has_its_words() -> None:
    found = Exchange(said={A: {}, B: {}})
    failed = found.failed(A, B)
    assert failed is not None
    assert failed.step == "lost"
    _take(
        found,
        "gpu01",
        {"rail": 0, "key": "0 gpu02", "step": "QP to RTR", "errno": "ETIMEDOUT", "text": "timed out"},
    )
    assert str(found.failed(A, B)) == "QP to RTR: ETIMEDOUT, timed out"
    assert str(found.failed(B, A)) == "QP to RTR: ETIMEDOUT, timed out (at gpu01)"
    _take(
        found,
        "gpu02",
        {"rail": 0, "key": "0 gpu01", "status": 12, "text": "transport retry counter exceeded"},
    )
    assert str(found.failed(B, A)) == "write: transport retry counter exceeded (status 12)"
    _take(found, "gpu02", {"rail": 0, "key": "0 gpu01", "status": 0, "text": "success"})
    assert "did not answer" in str(found.failed(B, A))
    _take(found, "gpu01", {"rail": 0, "key": "0 gpu02", "right": False})
    assert "bytes" in str(found.failed(B, A))
    _take(found, "gpu01", {"rail": 0, "key": "0 gpu02", "right": True})
    assert found.failed(B, A) is None


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(
                    ["rail", "key", "step", "errno", "text", "qps", "status", "right", "gid", "missing"]
                ),
                inner,
                max_size=5,
            ),
        ),
        max_leaves=8,
    )
)
def test_any_answer_of_a_node_is_taken_or_passed_over(value: Any) -> None:
    _take(Exchange(), "gpu01", value)


def test_causes_and_checks_that_layers_name_exist() -> None:
    assert len(named(verbs.CAUSES.values(), limit=99)) == len(set(verbs.CAUSES.values()))
    for module in (verbs, gpu_mr, rdma_bw, rdma_gpu, nixl):
        assert set(module.CHECKS) <= set(load_checks()), module.__name__
    assert set(verbs._CHECK_OF.values()) <= set(load_checks())
    assert named([rdma_bw.CAUSE_OF_RESENT])


# ---------------------------------------------------------------- GPU memory


@pytest.mark.parametrize(
    ("plain", "dmabuf", "host", "ways", "cause"),
    [
        ("", "", "", ("nvidia-peermem", "dma-buf"), ""),
        ("EFAULT", "", "", ("dma-buf",), ""),
        ("", "EOPNOTSUPP", "", ("nvidia-peermem",), ""),
        ("EFAULT", "EOPNOTSUPP", "", (), "nvidia-peermem-not-loaded"),
        ("EFAULT", "CUDA error 801", "", (), "dmabuf-needs-open-kernel-module"),
        ("ENOMEM", "ENOMEM", "ENOMEM", (), "memlock-limit"),
        ("EPERM", "EPERM", "EPERM", (), "rdma-uverbs-permission-denied"),
        ("EIO", "EIO", "", (), ""),
    ],
)
def test_errnos_of_gpu_memory_are_told_apart(
    plain: str, dmabuf: str, host: str, ways: tuple[str, ...], cause: str
) -> None:
    found = decide({"index": 0, "device": "mlx5_0", "plain": plain, "dmabuf": dmabuf, "host": host})
    assert found is not None
    assert (found.ways, found.cause) == (ways, cause)
    assert not cause or named([cause])
    assert not found.check or found.check in load_checks()


def test_a_device_that_cannot_be_opened() -> None:
    found = decide({"step": "open", "errno": "EACCES", "text": "Permission denied"})
    assert found is not None
    assert found.cause == "rdma-uverbs-permission-denied"
    assert decide({"plain": 1}) is None


# ---------------------------------------------------------------- perftest's numbers


def bandwidth(gbps: float) -> str:
    return f" #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]\n 65536 50 {gbps} {gbps} 0.1\n"


def answers(rails: Rails, slow: Any) -> list[Measurement]:
    expect = load_expectations()
    return [
        one
        for step in same_rail_steps(list(rails.of), rails, "full")
        for row in step
        for job in row
        if job.tool == "write_bw"
        for one in measured(
            Answer(job, stdout=bandwidth(3.2 if slow(job) else 388.0), resent=0, iterations=100),
            rails, expect, "rdma_write_bw",
        )
    ]  # fmt: skip


def test_one_slow_pair_on_one_rail_is_named() -> None:
    rails = rails_of(4, 2)
    result = LayerResult("3", "rdma-bw", "RDMA", Status.SKIP)
    result.measurements = answers(rails, lambda job: {job.a, job.b} == {"gpu01", "gpu03"} and job.rail_a == 1)
    settled(result)
    assert result.status is Status.FAIL
    assert "rail mlx5_1 between gpu0" in result.broken
    assert "0.4 GB/s" in result.broken
    assert "at least 42.5 GB/s" in result.broken
    assert [s.sentence for s in result.suspects] == ["rail mlx5_1 between gpu01 and gpu03: everything fails"]
    text = "\n".join(layer_lines(result))
    assert "✗" in text
    assert "write bandwidth, from row to column" in text


def test_one_node_that_is_slow_among_its_own_kind() -> None:
    rails = rails_of(3, like=SOFT)
    found = answers(rails, lambda job: "gpu02" in (job.a, job.b))
    assert all(one.status is Status.PASS for one in found)  # the link's rate says nothing on Soft-RoCE
    judged = among_own(found, True, load_expectations())
    assert {one.a for one in judged if one.status is Status.FAIL} | {
        one.b for one in judged if one.status is Status.FAIL
    } == {"gpu01", "gpu02", "gpu03"}
    result = LayerResult("3", "rdma-bw", "RDMA", Status.SKIP, judged)
    settled(result)
    assert [(s.kind, s.name) for s in result.suspects] == [("node", "gpu02")]


def test_equal_pairs_are_no_outliers_and_few_are_not_compared() -> None:
    expect = load_expectations()
    same = [Measurement("write bandwidth", "a", f"b{i}", value=1.0) for i in range(9)]
    assert among_own(same, False, expect) == same
    few = [replace(same[0], value=0.001), *same[1:5]]
    assert among_own(few, False, expect) == few


def test_what_perftest_does_is_told_apart() -> None:
    rails, expect = rails_of(2), load_expectations()
    job = Job("write_bw", "gpu01", "gpu02", 0, 0)
    (lacks,) = measured(Answer(job, missing="ib_write_bw on gpu02"), rails, expect, "rdma_write_bw")
    assert (lacks.status, lacks.detail) == (Status.UNKNOWN, "missing: ib_write_bw on gpu02")
    (broken,) = measured(
        Answer(job, failed="ended with status 1", output="Failed"), rails, expect, "rdma_write_bw"
    )
    assert (broken.status, broken.output) == (Status.FAIL, "Failed")
    (slow,) = measured(Answer(job, timed_out_s=8.0, iterations=100), rails, expect, "rdma_write_bw")
    assert slow.status is Status.FAIL
    assert "no end in 8 s" in shortfall(slow)
    (cut,) = measured(Answer(job, unknown="cut short by the budget"), rails, expect, "rdma_write_bw")
    assert cut.status is Status.UNKNOWN
    (odd,) = measured(Answer(job, stdout="nothing"), rails, expect, "rdma_write_bw")
    assert odd.status is Status.UNKNOWN
    _, again = measured(
        Answer(job, stdout=bandwidth(390), resent=40, iterations=100), rails, expect, "rdma_write_bw"
    )
    assert (again.what, again.value, again.status) == ("sent again", 400.0, Status.FAIL)


@given(st.integers(2, 20), st.sampled_from(["full", "ring", "2"]))
def test_the_ring_is_measured_first_and_nobody_twice_at_once(count: int, pairs: str) -> None:
    names = [f"n{i:02d}" for i in range(count)]
    found = ordered_rounds(names, pairs)
    for one in found:
        busy = [name for pair in one for name in pair]
        assert len(busy) == len(set(busy))
    early: set[str] = set()
    ring = {frozenset((names[i], names[(i + 1) % count])) for i in range(count)}
    for one in found:
        if any(frozenset(pair) in ring for pair in one):
            early |= {name for pair in one for name in pair}
        else:
            break
    assert early == set(names)
    assert len({frozenset(pair) for one in found for pair in one}) == sum(map(len, found))


def test_runs_take_about_as_long_on_any_link() -> None:
    assert iterations(SOFT) == 50
    assert iterations(NDR) * 65536 * 8 / 400e9 == pytest.approx(0.2, rel=0.01)
    assert iterations(replace(NDR, rate_gbps=None)) == 5000
    rails = rails_of(2, 3)
    assert {
        (j.rail_a, j.rail_b) for step in cross_rail_steps(list(rails.of), rails) for row in step for j in row
    } == {(m, n) for m in range(3) for n in range(3) if m != n}


# ---------------------------------------------------------------- the heat map


def test_sixteen_nodes_fit_eighty_columns() -> None:
    rails = rails_of(16)
    found = answers(rails, lambda job: {job.a, job.b} == {"gpu03", "gpu11"})
    for unicode in (True, False):
        lines = heat_lines(found, unicode=unicode)
        assert len(lines) == 18
        assert max(map(len, lines)) + 6 <= 80
        if not unicode:
            assert all(line.isascii() for line in lines)
            assert sum(line.count("X") for line in lines[1:17]) == 2
    assert heat_lines(answers(rails_of(2), lambda job: False)) == []
    many = answers(rails_of(40), lambda job: job.a == "gpu07" and job.b == "gpu09")
    assert len(heat_lines(many)) == 4


def test_numbers_for_people() -> None:
    assert [shown(48.51, "GB/s"), shown(0.0043, "GB/s"), shown(5662, "us"), shown(2.1, "us"), shown(1200, "x")] == [
        "48.5 GB/s", "4.3 MB/s", "5.66 ms", "2.1 us", "1200 x",
    ]  # fmt: skip


def test_a_failed_exchange_is_a_sentence() -> None:
    assert str(Failed("register memory", "ENOMEM", "Cannot allocate memory")) == (
        "register memory: ENOMEM, Cannot allocate memory"
    )


# ---------------------------------------------------------------- the budget

SLOW_PERFTEST = """import time
if not PARAMS["host"]:
    emit({"listening": 1})
    time.sleep(60)
began = time.time()
while time.time() - began < PARAMS["limit_s"]:
    time.sleep(0.01)
emit({"rc": "timeout", "stdout": "", "stderr": "", "seconds": 1, "resent": None})
"""


def test_one_slow_pair_does_not_eat_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run hangs until its own limit ends it; the campaign ends with its share of the time all the same."""
    from epdoctor.bench import fleet as fleet_module
    from epdoctor.bench.ladder import Bench
    from epdoctor.bench.perftest_run import run_jobs

    monkeypatch.setattr(fleet_module, "_source", lambda op: SLOW_PERFTEST)
    monkeypatch.setattr("epdoctor.bench.perftest_run.LIMIT_S", 0.5)
    targets = [replace(this_machine("here"), name=f"gpu{i:02d}") for i in (1, 2)]
    rails = rails_of(2, 8)
    with Fleet(targets) as fleet:
        fleet.wait_ready(20)
        bench = Bench(fleet, {}, Goal(), {}, deadline=time.monotonic() + 2.0)
        began = time.monotonic()
        found = run_jobs(bench, rails, same_rail_steps(list(rails.of), rails, "full"))
        took = time.monotonic() - began
    assert took < 4.0  # without limits 8 rails x 3 runs hang for 60 s each
    assert found.left_out > 0
    assert len(found.answers) + found.left_out == 24
    assert all(answer.timed_out_s or answer.unknown for answer in found.answers)


# ---------------------------------------------------------------- rails from facts


def rxe_node(
    gids: list[list[Any]] | None = None, env: str = "", backend: str = "", state: str = "4: ACTIVE"
) -> Node:
    """The recorded Soft-RoCE tree; its GID table as rows of the probe."""
    files = {**tree("rxe"), "rxe0/ports/1/state": state}
    rows = gids if gids is not None else GIDS
    more = {"rdma.gids": {"status": "ran", "data": [*rows, ["rxe0/1/scanned", 64]]}}
    return node(files, more, goal=Goal(multinode=True, backend=backend), env=env)


LOCAL = [
    "rxe0/1/gids/0",
    {"gid": "fe80:0000:0000:0000:5054:00ff:fe77:010b", "type": "RoCE v2", "netdev": "eth1"},
]
MAPPED = [
    "rxe0/1/gids/1",
    {"gid": "0000:0000:0000:0000:0000:ffff:0a4d:000b", "type": "RoCE v2", "netdev": "eth1"},
]
GIDS = [LOCAL, MAPPED]


def test_a_roce_rail_takes_its_ipv4_gid_or_the_one_that_workers_are_told() -> None:
    (rail,) = node_rails(rxe_node())
    assert (rail.gid_index, rail.software, rail.problem) == (1, True, "")
    (told,) = node_rails(rxe_node(env="NCCL_IB_GID_INDEX=5\nNVSHMEM_IB_GID_INDEX=4\n"))
    assert (told.gid_index, told.gid_from.partition(" ")[0]) == (5, "NCCL_IB_GID_INDEX=5")
    (other,) = node_rails(
        rxe_node(env="NCCL_IB_GID_INDEX=5\nNVSHMEM_IB_GID_INDEX=4\n", backend="deepep_low_latency")
    )
    assert other.gid_index == 4


def test_a_port_without_an_address_or_a_link_carries_nothing() -> None:
    (bare,) = node_rails(rxe_node([LOCAL]))
    assert (bare.step, bare.problem) == ("gid", "port 1 has no RoCE v2 GID with an IP address")
    (down,) = node_rails(rxe_node([LOCAL], state="1: DOWN"))
    assert down.step == "link"
    assert "port 1 is DOWN" in down.problem


def test_infiniband_goes_by_lid_and_rails_by_place() -> None:
    files = tree("h100-8hca")
    rails = node_rails(node(files))
    assert len(rails) == 8
    assert {(rail.gid_index, rail.rate_gbps, rail.software) for rail in rails} == {(-1, 400.0, False)}
    with_some = all_rails({"a": node(files), "b": node({}), "c": node(files)}, ["a", "b", "c", "d"])
    assert with_some.count == 8
    assert with_some.without == {"b": "no RDMA device"}
    assert with_some.unknown == {"d": "its facts are missing"}
    assert with_some.label(2, "a", "c") == "mlx5_4"
    nowhere = all_rails({"b": node({})}, ["b"])
    assert not nowhere.of
    assert not nowhere.without


# ---------------------------------------------------------------- recorded runs


def run_of(name: str) -> dict[str, LayerResult]:
    """A recorded run over three virtual machines with Soft-RoCE."""
    return {layer.number: layer for layer in recorded(name).layers}


def test_the_recorded_mtu_fault_reads_well() -> None:
    layers = run_of("soft-roce-mtu")
    assert head_line(list(layers.values())) == "BROKEN AT LAYER 2  layer 1 passes"
    again = LayerResult("2", "verbs", "RDMA verbs", Status.SKIP, layers["2"].measurements)
    verbs._settled(again, Counter({("mtu", ""): 4}))
    assert [(s.kind, s.name) for s in again.suspects] == [("node", "vm2")]
    assert [cause for cause, _ in again.causes] == ["rdma-mtu-mismatch"]
    assert again.next == "epdoctor explain rdma-mtu-mismatch"
    text = "\n".join(layer_lines(again))
    assert "4096 here and 1024 there" in text
    assert "vm2              ✗ · ✗" in text


def test_the_recorded_healthy_run_reads_well() -> None:
    layers = run_of("soft-roce-healthy")
    assert head_line(list(layers.values())) == "PASSES  layers 1, 2, 3 pass"
    text = "\n".join(line for layer in layers.values() for line in layer_lines(layer))
    assert "1 pair both ways on rxe0" in text
    assert "latency 1.35 ms" in text
