"""The HTML report without a browser: its size, what can end a script block, and the pictures of real nodes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epdoctor.catalog import load_checks
from epdoctor.collect.store import parse_record
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions
from epdoctor.judge import build_report, judge_recording
from epdoctor.model import Finding, Goal, Problem, Report, Severity, SharedTopology, Status
from epdoctor.node_shape import node_shape
from epdoctor.report.formats import Style, render
from epdoctor.report.formats.html_ import assets, block, pictures
from epdoctor.report.html.data import page_data, ranges
from epdoctor.report.html.picture import affinity, svg, troubles
from tests.demo_cluster import DEMO
from tests.reports import hostile, large_report, reports

RECORDS = Path(__file__).parent / "records"
ROOT = Path(__file__).parent.parent
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def shape_of(name: str, change: Any = None) -> dict[str, Any]:
    raw = json.loads((RECORDS / f"{name}.json").read_text())
    if change is not None:
        change(raw["probes"])
    record = parse_record(json.dumps(raw).encode(), name)
    return node_shape(Node(name, record.source(), Goal(multinode=True), CollectOptions()))


@cache
def _demo() -> Report:
    checks = dict(load_checks())
    engine, recording, judged = judge_recording(
        DEMO, checks, Goal(backend="deepep_low_latency"), None, {}, topology=True
    )
    return build_report(
        judged, engine, checks, source="demo", fail_on=Severity.ERROR, collected_at=recording.collected_at
    )


def demo_report() -> Report:
    return _demo()


def written(report: Report) -> str:
    return "".join(render("html", report, Style()))


class Page(HTMLParser):
    """What a browser would make of the markup, as far as elements go."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.sheets: list[str] = []
        self.policy = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = tag
        if tag == "script":
            self.scripts.append("")
        if tag == "style":
            self.sheets.append("")
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.sheets[-1] += data


# ---------------------------------------------------------------- the page


def test_hundreds_of_nodes_fit() -> None:
    assert len(written(large_report()).encode()) < 5_000_000


def test_texts_that_all_differ_fit_too_and_what_is_left_out_is_said() -> None:
    """512 nodes x 150 checks, all failed, each in words of its own."""
    report = large_report(512, 150)
    report.findings = [
        Finding(
            f.check,
            Status.FAIL,
            Severity.ERROR,
            f.node,
            (Problem(f"{f.node} {f.check}: {'x' * 120}", "nothing"),),
        )
        for f in report.findings
    ]
    shape = shape_of("8xh200-ib")
    report.topologies = [SharedTopology((o.node,), {**shape, "unknown": [o.node]}) for o in report.outcomes]
    text = written(report)
    assert len(text.encode()) < 5_000_000
    groups = json.loads(Page(text).scripts[0])["groups"]
    assert any(group.get("cut") for group in groups)
    assert all(len(group["v"]) >= 3 for group in groups)


@quick
@given(reports())
def test_nothing_in_a_report_is_markup(report: Report) -> None:
    page = Page(written(report))
    assert page.tags.count("script") == 2
    assert set(page.tags) <= {
        "html", "head", "meta", "title", "style", "body", "noscript", "pre", "div", "script",
    }  # fmt: skip
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "style")]
    json.loads(page.scripts[0])


@quick
@given(st.recursive(hostile, lambda inner: st.lists(inner) | st.dictionaries(hostile, inner), max_leaves=5))
def test_a_data_block_holds_nothing_that_ends_it(value: Any) -> None:
    text = block(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert text.isascii()
    assert json.loads(text) == value


def test_the_policy_names_the_only_script_and_sheet() -> None:
    page = Page(written(demo_report()))
    script, sheet = assets()
    assert page.scripts[1] == script
    assert page.sheets == [sheet]
    assert "default-src 'none'" in page.policy
    assert "unsafe" not in page.policy
    for text in (script, sheet):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in page.policy


def test_the_scripts_put_text_on_the_page_as_text_alone() -> None:
    script, sheet = assets()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch(",
                 "XMLHttpRequest", "import(", "setTimeout(\"", "srcdoc", "</script"):  # fmt: skip
        assert word not in script
    assert "url(" not in sheet
    assert "@import" not in sheet
    assert "</style" not in sheet


def test_the_data_tells_the_demo() -> None:
    data = page_data(demo_report(), "epdoctor check --demo")
    assert data["run"]["headline"] == "NOT READY"
    assert data["run"]["next"] == ["gpu03", "sudo modprobe nvidia_peermem"]
    assert data["nodes"] == ["gpu01", "gpu02", "gpu03", "gpu04"]
    marks = {data["nodes"][int(nodes)]: row for row, nodes in data["rows"]}
    place = [check["id"] for check in data["checks"]].index("gpudirect.memory-registrable")
    assert [marks[node][place] for node in data["nodes"]] == ["p", "p", "E", "p"]
    assert {row["nodes"] for row in data["drift"]["rows"]} == {"gpu01", "gpu02", "gpu03"}


def test_what_is_not_known_or_not_reached_is_never_shown_as_passed() -> None:
    report = large_report(4, 6)
    first = report.outcomes[0]
    report.outcomes[0] = type(first)(first.node, error="refused")
    report.findings = [f for f in report.findings if f.node != first.node]
    rows = {nodes: row for row, nodes in page_data(report, "epdoctor check")["rows"]}
    assert rows["0"] == "XXXXXX"
    for finding in report.findings:
        row = next(row for nodes, row in rows.items() if str(int(finding.node[3:]) - 1) in _all(nodes))
        letter = row[list(report.checks).index(finding.check)]
        assert (letter == "p") == (finding.status is Status.PASS)


def _all(nodes: str) -> set[str]:
    found = set()
    for part in nodes.split(","):
        first, _, last = part.partition("-")
        found |= {str(n) for n in range(int(first), int(last or first) + 1)}
    return found


@given(st.sets(st.integers(0, 40)))
def test_ranges_hold_the_nodes(wanted: set[int]) -> None:
    names = {f"n{index}": index for index in range(41)}
    text = ranges([f"n{index}" for index in wanted], names)
    assert (_all(text) if text else set()) == {str(index) for index in wanted}


# ---------------------------------------------------------------- pictures


def texts(markup: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(markup).iter() if element.tag == "text"]


def test_the_picture_of_eight_gpus_and_their_nics() -> None:
    shape = shape_of("8xh200-ib")
    words = texts(svg(shape, "gpu01"))
    assert [word for word in words if word.startswith("GPU ")] == [f"GPU {n}" for n in range(8)]
    assert {f"PIX mlx5_{n}" for n in (0, 1, 4, 5, 6, 7, 8, 9)} <= set(words)
    assert "NUMA 0 · CPUs 0-55" in words
    assert "NUMA 1 · CPUs 56-111" in words
    assert "switch 15:00.0" in words
    assert "NVSwitch · 18 NVLinks a GPU" in words
    assert "200 Gb/s, not EP" in words
    assert troubles(shape) == []


def test_the_picture_of_a_virtual_machine() -> None:
    shape = shape_of("h200x2")
    words = texts(svg(shape, "h200x2"))
    assert [word for word in words if word.startswith("GPU ")] == ["GPU 0", "GPU 1"]
    assert "bridge 0000:00" in words
    assert troubles(shape) == []


def test_the_picture_shows_faults_in_colour_and_in_words() -> None:
    shape = shape_of("8xh200-ib")
    shape["gpus"][2].update(relation="SYS", nearest=["mlx5_6"])
    shape["gpus"][3].update(relation="NODE", nearest=["mlx5_1"])
    shape["gpus"][5].update(nvlinks=17, nvlinks_down=[7])
    shape["gpus"][6].update(pcie=[5, 8, 16])
    shape["nics"][0].update(up=False, state="DOWN", rate_gbps=None)
    told = {(trouble.level, trouble.text) for trouble in troubles(shape)}
    assert told == {
        ("bad", "GPU 2: its nearest NIC is SYS, through the CPU"),
        ("warn", "GPU 3: its nearest NIC is NODE, through the CPU"),
        ("bad", "GPU 5: NVLinks down: 7"),
        ("warn", "GPU 6: PCIe x8 of x16"),
        ("bad", "mlx5_0: DOWN"),
    }
    root = ET.fromstring(svg(shape, "gpu01"))
    kinds = {
        g.findtext("title", "").split(" NVIDIA")[0].split(" 0000")[0]: g.get("class") for g in root.iter("g")
    }
    assert kinds["GPU 2"] == "gpu bad"
    assert kinds["GPU 3"] == "gpu warn"
    assert kinds["GPU 5"] == "gpu bad"
    assert kinds["GPU 6"] == "gpu warn"
    assert kinds["GPU 0"] == "gpu bad"  # its only near NIC is down
    assert kinds["GPU 1"] == "gpu ok"
    assert "PIX mlx5_0, down" in texts(svg(shape, "gpu01"))
    assert kinds["mlx5_0"] == "nic bad"
    assert [line.get("class") for line in root.iter("line") if "affinity" in (line.get("class") or "")] == [
        "affinity bad", "affinity warn",
    ]  # fmt: skip
    assert "GPU 5: NVLinks down: 7" in root.findtext("desc", "")


@pytest.mark.parametrize("change", [{"virtual": True}, {"virtual": None}, {"grace": True}])
def test_distance_is_no_fault_where_it_says_nothing(change: dict[str, Any]) -> None:
    shape = shape_of("8xh200-ib")
    shape["gpus"][2].update(relation="SYS", nearest=["mlx5_6"])
    shape.update(change)
    assert affinity(shape["gpus"][2], shape) == "mute"
    assert troubles(shape) == []


def test_every_record_has_a_shape_that_fits_the_schema() -> None:
    import jsonschema

    schema = json.loads((ROOT / "epdoctor" / "report" / "report_schema.json").read_text())
    validator = jsonschema.Draft202012Validator({**schema["$defs"]["shape"], "$defs": schema["$defs"]})
    for path in sorted(RECORDS.glob("*.json")):
        shape = shape_of(path.stem)
        validator.validate(shape)
        markup = svg(shape, path.stem)
        assert bool(markup) == bool(shape["gpus"] or shape["nics"])
        if markup:
            ET.fromstring(markup)


def test_the_boxes_of_a_picture_stay_apart_and_inside() -> None:
    for name in ("8xh200-ib", "p5-efa", "mi300x-mori", "h100-8hca", "gb200-nvl72"):
        root = ET.fromstring(svg(shape_of(name), name))
        _, _, width, height = (float(part) for part in root.attrib["viewBox"].split())
        boxes = [
            tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            for rect in root.iter("rect")
            if rect.get("class") == "box"
        ]
        for index, (x, y, w, h) in enumerate(boxes):
            assert x >= 0
            assert y >= 0
            assert x + w <= width
            assert y + h <= height
            for x2, y2, w2, h2 in boxes[index + 1 :]:
                assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, name


def test_equal_nodes_share_a_picture_and_the_worst_comes_first() -> None:
    report = demo_report()
    assert sorted(len(topology.nodes) for topology in report.topologies) == [1, 1, 2]
    figures, entries = pictures(report)
    assert len(figures) == 3
    assert [len(entry["troubles"]) > 0 for entry in entries] == [True, True, False]  # type: ignore[arg-type]  # lists, by construction


def test_topology_is_kept_only_where_it_is_asked_for() -> None:
    checks = dict(load_checks())
    engine, _, judged = judge_recording(DEMO, checks, Goal(), None, {})
    report = build_report(judged, engine, checks, source="demo", fail_on=Severity.ERROR)
    assert report.topologies == []
    assert not re.search(r'id="picture-', written(report))
