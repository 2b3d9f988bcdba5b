"""The ladder's report: what the screen says at 80 columns, the page with its heat maps, the place among the own."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epdoctor.bench.ladder import GPU_REASON
from epdoctor.bench.layers._gpu import PYTHON_NEXT
from epdoctor.bench.results import (
    LadderReport,
    LayerResult,
    Measurement,
    Suspect,
    with_percentiles,
)
from epdoctor.cli.bench import _next
from epdoctor.model import Status
from epdoctor.report.bench_html import render_bench_html
from epdoctor.report.bench_json import render_bench_json
from epdoctor.report.bench_text import not_run_lines, text_lines
from epdoctor.report.heat_table import heat_tables
from tests.bench_records import FOLDER, choice, recorded
from tests.reports import hostile
from tests.test_html import Page

RUNS = ("h200x2", "h200x2-deepep-2.1", "h200x2-deepep-2.1-nccl-2.28", "soft-roce-healthy", "soft-roce-mtu")
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def page_of(report: LadderReport) -> str:
    return "".join(render_bench_html(report))


# ---------------------------------------------------------------- the screen


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("unicode", [True, False])
def test_the_screen_fits_eighty_columns(name: str, *, unicode: bool) -> None:
    lines = list(text_lines(recorded(name), unicode=unicode, width=80))
    assert all(len(line) <= 80 for line in lines if not line.startswith("next ")), lines
    assert unicode or "".join(lines).isascii()


def test_what_was_not_run_is_one_line_for_each_reason() -> None:
    layers = [
        LayerResult("1", "tcp", "TCP", Status.FAIL, broken="no answer"),
        LayerResult("2", "verbs", "verbs", Status.SKIP, reason="layer 1 is broken (--keep-going)", not_run=True),
        LayerResult("2b", "gpu-mr", "memory", Status.SKIP, reason=GPU_REASON, not_run=True),
        LayerResult("3", "rdma", "bandwidth", Status.SKIP, reason="layer 1 is broken (--keep-going)", not_run=True),
        LayerResult("8", "nixl", "NIXL", Status.SKIP, reason="one node: nothing to connect to"),
    ]  # fmt: skip
    assert not_run_lines(layers) == [
        "- layers 2, 3 not run: layer 1 is broken (--keep-going)",
        "- layer 2b not run: only with --gpu: it occupies GPUs",
    ]


def test_a_recorded_run_of_both_kinds_of_buffer() -> None:
    report = recorded("h200x2-deepep-2.1")
    text = "\n".join(text_lines(report, width=400))
    assert "v2 dispatch" in text
    assert "DeepEP 2.1.0" in text
    assert "EP_DISABLE_GIN=1" in text
    assert "PASSES  layer 7 passes" in text


def test_a_recorded_package_that_wants_a_newer_nccl() -> None:
    report = recorded("h200x2-deepep-2.1-nccl-2.28")
    text = "\n".join(text_lines(report, width=120))
    assert "undefined symbol: ncclCommQueryProperties" in text
    assert "means     The wrong NCCL library is loaded, or two of them  (nccl-library-mismatch)" in text


def test_the_json_is_what_was_recorded() -> None:
    report = recorded("soft-roce-mtu")
    again = json.loads(render_bench_json(report))
    assert again["exit_code"] == report.exit_code
    assert [layer["status"] for layer in again["layers"]] == [layer.status.value for layer in report.layers]
    assert again["layers"][0]["measurements"][0]["percentile"] is None


# ---------------------------------------------------------------- the place among the own


def rates(*values: float, lower: bool = False) -> list[Measurement]:
    return [
        Measurement("write", f"n{at}", value=value, unit="x", lower_is_better=lower)
        for at, value in enumerate(values)
    ]


def test_the_place_among_the_own() -> None:
    assert [one.percentile for one in with_percentiles(rates(1, 2, 3, 4, 5))] == [0, 25, 50, 75, 100]
    assert [one.percentile for one in with_percentiles(rates(1, 2, 3, 4, 5, lower=True))] == [
        100,
        75,
        50,
        25,
        0,
    ]
    assert [one.percentile for one in with_percentiles(rates(1, 9, 9, 9, 9))] == [0, 62.5, 62.5, 62.5, 62.5]
    for few in (rates(1, 2, 3, 4), rates(7, 7, 7, 7, 7), []):
        assert with_percentiles(few) == few
    mixed = [*rates(1, 2, 3, 4, 5), Measurement("other", "n1", value=9), Measurement("write", "n9", unit="x")]
    assert [one.percentile for one in with_percentiles(mixed)][5:] == [None, None]


@given(st.lists(st.floats(0.001, 1e6), max_size=12), st.booleans())
def test_places_lie_in_order(values: list[float], lower: bool) -> None:
    found = [one for one in with_percentiles(rates(*values, lower=lower)) if one.percentile is not None]
    found.sort(key=lambda one: one.value or 0, reverse=lower)
    places = [one.percentile or 0.0 for one in found]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)


# ---------------------------------------------------------------- the page


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_makes_a_page_without_a_script(name: str) -> None:
    text = page_of(recorded(name))
    page = Page(text)
    assert "script" not in page.tags
    assert "unsafe" not in page.policy
    assert "script-src" not in page.policy
    assert "default-src 'none'" in page.policy
    digest = base64.b64encode(hashlib.sha256(page.sheets[0].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.policy
    assert "url(" not in page.sheets[0]
    assert "@import" not in page.sheets[0]


def test_the_heat_map_tells_the_worst_rail_and_the_gpus_of_a_node() -> None:
    slow = Measurement(
        "write bandwidth", "gpu2", "gpu10", "mlx5_2", value=0.4, unit="GB/s", status=Status.FAIL, detail="slow pair"
    )  # fmt: skip
    ones = [
        Measurement("write bandwidth", "gpu2", "gpu10", "mlx5_1", value=48.0, unit="GB/s"), slow,
        Measurement("write bandwidth", "gpu10", "gpu2", "mlx5_1", value=30.0, unit="GB/s"),
        Measurement("write bandwidth", "gpu2", "gpu3", "mlx5_1", status=Status.UNKNOWN, detail="lost"),
        Measurement("copy", "gpu2", rail="GPU0-GPU1", value=380.0, unit="GB/s"),
    ]  # fmt: skip
    between, inside = heat_tables(ones)
    assert between.ends == ["gpu2", "gpu3", "gpu10"]
    assert between.caption == "write bandwidth (GB/s), from row to column, the worst"
    cell = between.cells["gpu2", "gpu10"]
    assert (cell.kind, cell.text) == ("fail", "0.4")
    assert "mlx5_2  0.4 GB/s  slow pair fail" in cell.title
    assert between.cells["gpu10", "gpu2"].kind == "h1"
    assert between.cells["gpu2", "gpu3"].kind == "unknown"
    assert inside.cells["GPU0", "GPU1"].text == "380"


def test_the_heat_map_of_many_nodes_keeps_those_that_fail() -> None:
    names = [f"gpu{i:03d}" for i in range(100)]
    ones = [Measurement("write", a, b) for a in names for b in names if a != b]
    (table,) = heat_tables([*ones, Measurement("write", "gpu007", "gpu012", status=Status.FAIL)])
    assert (table.ends, table.left_out) == (["gpu007", "gpu012"], 98)


texts = hostile
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=1e12)
measurements = st.builds(
    Measurement, what=texts, a=texts, b=texts, rail=texts | st.just("GPU0-GPU1"), value=numbers, unit=texts,
    expected=numbers, expected_from=texts, status=st.sampled_from(Status), detail=texts, output=texts,
    lower_is_better=st.booleans(),
)  # fmt: skip
layers = st.builds(
    LayerResult, number=texts, name=texts, title=texts, status=st.sampled_from(Status),
    measurements=st.lists(measurements, max_size=4), reason=texts, summary=texts, broken=texts,
    suspects=st.lists(st.builds(Suspect, texts, texts, st.just(1), st.just(1), texts), max_size=2),
    causes=st.lists(st.tuples(texts, texts), max_size=2), checks=st.lists(texts, max_size=2).map(tuple),
    next=texts, notes=st.lists(texts, max_size=2), seconds=st.just(0.1), not_run=st.booleans(),
)  # fmt: skip
ladders = st.builds(
    LadderReport, nodes=st.lists(texts, min_size=1, max_size=3).map(tuple), layers=st.lists(layers, max_size=2),
    missing=st.dictionaries(texts, texts, max_size=2), seconds=st.just(1.5), budget_s=st.just(90.0),
    exit_code=st.just(1), interrupted=st.booleans(), next=texts, ended_at=texts,
)  # fmt: skip


@quick
@given(ladders)
def test_nothing_in_a_ladder_is_markup(report: LadderReport) -> None:
    page = Page(page_of(report))
    assert set(page.tags) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "pre", "section", "div", "span",
        "table", "tr", "th", "td", "details", "summary",
    }  # fmt: skip
    assert {name for name, _ in page.attributes} <= {
        "lang", "charset", "http-equiv", "name", "content", "class", "title", "open",
    }  # fmt: skip
    assert len(page.sheets) == 1
    json.loads(render_bench_json(report))


@quick
@given(ladders)
def test_any_ladder_is_harmless_lines(report: LadderReport) -> None:
    for line in text_lines(report, verbose=True, width=80):
        assert "\n" not in line
        assert "\x1b" not in line


# ---------------------------------------------------------------- the command to type


def test_the_command_to_type() -> None:
    broken = LayerResult(
        "1", "tcp", "TCP", Status.FAIL, next="epdoctor check --all-nodes --select network -l b"
    )
    own = choice(inventory=("my hosts.ini",))
    assert _next([broken], {}, own, 90) == "epdoctor check -i 'my hosts.ini' --select network -l b"
    assert _next([broken], {}, choice(), 90) == broken.next
    explained = replace(broken, next="", causes=[("memlock-limit", "x")])
    assert _next([explained], {}, own, 90) == "epdoctor explain memlock-limit"
    short = LayerResult(
        "3", "rdma-bw", "x", Status.UNKNOWN, reason="the budget was spent before it (--budget)"
    )
    assert _next([short], {}, own, 90) == "epdoctor bench -i 'my hosts.ini' --layers 3 --budget 360s"
    assert _next([replace(short, number="7")], {}, choice(all_nodes=False), 20) == (
        "epdoctor bench --layers 7 --gpu --budget 80s"
    )
    assert _next([], {"gpu04": "no answer"}, own, 90) == "epdoctor check -i 'my hosts.ini' -l gpu04"
    lacking = LayerResult(
        "7", "deepep", "x", Status.UNKNOWN, reason="missing: torch in python3", next=PYTHON_NEXT
    )
    assert _next([lacking], {}, own, 90).startswith("epdoctor bench -i 'my hosts.ini' --gpu --python ")
    passed = LayerResult("1", "tcp", "x", Status.PASS)
    gpu = LayerResult("5", "gpu", "x", Status.SKIP, reason=GPU_REASON, not_run=True)
    assert _next([passed, gpu], {}, own, 90).startswith("epdoctor bench -i 'my hosts.ini' --gpu ")
    assert _next([passed], {}, own, 90) == ""


@pytest.mark.parametrize("name", ["h200x2", "h200x2-deepep-2.1", "h200x2-deepep-2.1-nccl-2.28"])
def test_the_docs_show_recorded_runs(name: str) -> None:
    page = (FOLDER.parents[2] / "docs/bench.md").read_text("utf-8")
    assert "\n".join(text_lines(recorded(name))) in page


def doctor(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "epdoctor", "bench", "--no-state", "--layers", "1", *words],
        capture_output=True, text=True,
    )  # fmt: skip


def test_files_are_written_beside_the_screen(tmp_path: Path) -> None:
    page, data = tmp_path / "bench.html", tmp_path / "bench.json"
    done = doctor(["-o", f"html={page}", "-o", f"json={data}"])
    assert done.returncode == 3, done.stderr
    assert "one node: nothing to connect to" in done.stdout
    assert "<h1>NOTHING MEASURED</h1>" in page.read_text("utf-8")
    assert json.loads(data.read_text("utf-8"))["exit_code"] == 3


def test_what_cannot_be_written_is_refused_before_any_node_is_touched(tmp_path: Path) -> None:
    for words, said in (
        (["-o", "sarif=x"], "sarif"),
        (["-o", f"html={tmp_path}/no/such/x.html"], "no/such"),
        (["-o", f"html={tmp_path}/x", "-o", f"json={tmp_path}/x"], "two formats on one file"),
    ):
        done = doctor(words)
        assert done.returncode == 2
        assert said in done.stderr
