"""epdoctor diff: what changed is told, folded, once; what moves by itself is not; --last-good finds the right file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.cli import cli
from epdoctor.collect import history
from epdoctor.collect.record import Record, Recording
from epdoctor.collect.store import save
from epdoctor.compare.difference import fact_changes
from epdoctor.compare.facts import node_facts
from epdoctor.compare.last_good import asked_of
from epdoctor.exceptions import EpdoctorError, Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions, Source
from epdoctor.model import Goal, NodeOutcome
from tests import demo_cluster

Edit = Callable[[dict[str, Any]], None]
MEMLOCK = ("--select", "host.memlock-unlimited")


def records(
    edits: Mapping[str, Sequence[Edit]] = {}, nodes: Sequence[str] = tuple(demo_cluster.NODES), missed: str = ""
) -> list[Record]:  # fmt: skip
    found = []
    for name in nodes:
        probes = demo_cluster.healthy(name)
        for edit in edits.get(name, ()):
            edit(probes)
        outcome = NodeOutcome(name, error="no route to host" if name == missed else "")
        if name == missed:
            probes = {}
        found.append(Record(name, "2026-11-20T10:00:00Z", {"uid": 0, "user": "root"}, outcome, probes))
    return found


def frame(nodes: Sequence[str] = tuple(demo_cluster.NODES)) -> Recording:
    return Recording("inventory.ini", CollectOptions(node_names=tuple(nodes)), "2026-11-20T10:00:00Z")


def recording(path: Path, edits: Mapping[str, Sequence[Edit]] = {}, **options: Any) -> Path:
    save(path, frame(), records(edits, **options))
    return path


def run(*words: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
    if isinstance(result.exception, EpdoctorError):
        return result
    assert result.exception is None, result.exc_info
    return result


def diff(*words: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("diff", *words, "--format", "json").stdout)
    return found


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return recording(tmp_path / "good.tar.gz")


# ---------------------------------------------------------------- recordings


def test_the_same_recording_is_the_same(good: Path) -> None:
    result = run("diff", good, good)
    assert result.return_value == 0
    assert "SAME" in result.stdout


def test_what_moves_by_itself_is_no_difference(good: Path, tmp_path: Path) -> None:
    def later(probes: dict[str, Any]) -> None:
        probes["controller.clock"] = {
            "status": "ran",
            "rc": 0,
            "data": [["offset_s", 0.004], ["uncertainty_s", 0.01]],
        }
        for name, path in (("system.files", "/proc/uptime"), ("system.files", "/proc/meminfo")):
            for row in probes.get(name, {}).get("data", ()):
                if row[0] == path:
                    row[1] = row[1].replace("MemAvailable:   ", "MemAvailable:   9").replace("1234", "99999")

    moved = recording(tmp_path / "later.tar.gz", {name: [later] for name in demo_cluster.NODES})
    found = diff(good, moved)
    assert found["same"], (found["facts"], found["findings"])


def test_each_fault_is_told_as_fact_and_finding_on_its_node(good: Path, tmp_path: Path) -> None:
    bad = recording(
        tmp_path / "bad.tar.gz",
        {
            "gpu02": [demo_cluster.low_memlock],
            "gpu03": [demo_cluster.no_peermem],
            "gpu04": [demo_cluster.port_down],
        },
    )
    found = diff(good, bad)
    assert not found["same"]
    facts = {(change["fact"], *change["nodes"]): change for change in found["facts"]}
    assert facts["limits.memlock", "gpu02"]["after"] == "8 MiB"
    gone = facts["modules.loaded", "gpu03"]
    assert (gone["subjects"], gone["kind"]) == (["nvidia_peermem"], "went")
    assert facts["rdma.ports", "gpu04"]["after"].startswith("DOWN")
    findings = {(change["check"], *change["nodes"]): change for change in found["findings"]}
    assert findings["gpudirect.memory-registrable", "gpu03"]["kind"] == "appeared"
    assert run("diff", good, bad).return_value == 1
    back = diff(bad, good)
    kinds = {(change["check"], change["kind"]) for change in back["findings"]}
    assert ("gpudirect.memory-registrable", "went") in kinds


def test_an_equal_change_of_several_nodes_is_one_entry(good: Path, tmp_path: Path) -> None:
    bad = recording(
        tmp_path / "bad.tar.gz", {n: [demo_cluster.no_peermem] for n in ("gpu01", "gpu02", "gpu03")}
    )
    found = diff(good, bad)
    peermem = [c for c in found["facts"] if c["subjects"] == ["nvidia_peermem"]]
    assert [c["nodes"] for c in peermem] == [["gpu01", "gpu02", "gpu03"]]
    assert "gpu[01-03]" in run("diff", good, bad).stdout


def test_nodes_that_come_go_and_fall_silent(good: Path, tmp_path: Path) -> None:
    less = recording(tmp_path / "less.tar.gz", nodes=("gpu01", "gpu02", "gpu03"), missed="gpu02")
    found = diff(good, less)
    assert found["nodes"]["gone"] == ["gpu04"]
    assert found["nodes"]["now_unreached"] == {"gpu02": "no route to host"}
    assert not any("gpu02" in change["nodes"] for change in (*found["facts"], *found["findings"]))
    assert diff(less, good)["nodes"]["now_reached"] == ["gpu02"]


def test_not_measured_any_more_is_a_difference_and_no_change_of_value(good: Path, tmp_path: Path) -> None:
    def blind(probes: dict[str, Any]) -> None:
        for name in list(probes):
            if name.startswith("rdma"):
                probes[name] = {"status": "timeout", "seconds": 10.0}

    found = diff(good, recording(tmp_path / "blind.tar.gz", {"gpu01": [blind]}))
    ports = next(c for c in found["facts"] if c["fact"] == "rdma.ports")
    assert (ports["kind"], ports["nodes"]) == ("unseen", ["gpu01"])
    assert "timeout" in ports["after"]
    assert not found["same"]


def test_two_machines_are_compared_without_their_names(tmp_path: Path) -> None:
    one = tmp_path / "one.tar.gz"
    save(one, frame(("gpu01",)), records(nodes=("gpu01",)))
    other = tmp_path / "other.tar.gz"
    save(other, frame(("gpu02",)), records({"gpu02": [demo_cluster.no_peermem]}, nodes=("gpu02",)))
    found = diff(one, other)
    assert {change["fact"] for change in found["facts"]} == {"modules.loaded", "modules.nvidia-flavour"}
    assert "two machines, gpu01 and gpu02" in found["notes"][0]


# ---------------------------------------------------------------- reports


def test_reports_and_a_report_beside_a_recording(good: Path, tmp_path: Path) -> None:
    bad = recording(tmp_path / "bad.tar.gz", {"gpu03": [demo_cluster.no_peermem]})
    for name, path in (("good", good), ("bad", bad)):
        run("check", "--from", path, "--backend", "deepep_low_latency", "-o", f"json={tmp_path / name}.json")
    reports = diff(tmp_path / "good.json", tmp_path / "bad.json")
    mixed = diff(tmp_path / "good.json", bad)
    assert reports["findings"] == mixed["findings"], "the recording is judged for what the report was"
    assert (
        next(c for c in reports["findings"] if c["check"] == "gpudirect.memory-registrable")["severity"]
        == "error"
    )
    assert not reports["facts"]
    assert "a report holds no facts" in mixed["notes"][-1]
    assert run("diff", tmp_path / "good.json", tmp_path / "good.json").return_value == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "compares two"),
        (("GOOD",), "compares two"),
        (("GOOD", "none.tar.gz"), "no such recording"),
        (("GOOD", "HERE/x.json"), "x.json"),
        (("GOOD", "GOOD", "--format", "junit"), "no such format"),
        (("GOOD", "GOOD", "-o", "/no/such/folder/x"), "cannot be written"),
        (("GOOD", "GOOD", "--select", "no.such"), "no check"),
        (("--last-good", "GOOD", "GOOD"), "one recording at most"),
    ],
)
def test_bad_input_is_told_in_a_sentence(
    words: tuple[str, ...], says: str, good: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text('{"schema": 1}')
    result = run("diff", *[w.replace("GOOD", str(good)).replace("HERE", str(tmp_path)) for w in words])
    assert isinstance(result.exception, EpdoctorError)
    assert says in str(result.exception)


def test_text_is_harmless_and_fits(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hostile(probes: dict[str, Any]) -> None:
        for row in probes["modules.sysfs"]["data"] if "modules.sysfs" in probes else ():
            if row[0].endswith("/version"):
                row[1] = "\x1b[31m[red]<script>\n" + "9" * 300

    monkeypatch.setenv("COLUMNS", "80")
    text = run(
        "diff", good, recording(tmp_path / "h.tar.gz", {"gpu01": [hostile, demo_cluster.other_nccl]})
    ).stdout
    assert "\x1b" not in text
    assert text.splitlines()[-1].startswith("next ")


# ---------------------------------------------------------------- since it worked


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """keep(edits, exit_code) -> path; each a second younger than the one before."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    number = 0

    def keep(edits: Mapping[str, Sequence[Edit]] = {}, code: int | None = 0, **asked: Any) -> Path:
        nonlocal number
        number += 1
        nodes = asked.pop("nodes", tuple(demo_cluster.NODES))
        defaults = {"select": MEMLOCK[1:], "ignore": (), "profile": "", "fail_on": "error", "multinode": None}
        verdict = {"exit_code": code, "asked": asked_of({**defaults, **asked}), "nodes": list(nodes)}
        path = history.keep_recording(
            frame(nodes), records(edits, nodes=nodes), None if code is None else verdict
        )
        assert path is not None
        later = path.with_name(f"20261120T1000{number:02d}-1{'-good' if code == 0 else ''}.tar.gz")
        path.rename(later)
        return later

    return keep


LOW: Mapping[str, Sequence[Edit]] = {"gpu02": [demo_cluster.low_memlock]}


def test_last_good_takes_the_latest_green_one(state: Callable[..., Path]) -> None:
    state()
    green = state()
    state(LOW, 1)
    state(LOW, 1)
    result = run("diff", "--last-good")
    assert result.return_value == 1
    assert result.stdout.splitlines()[0].startswith("last good")
    assert green.name in result.stdout
    assert "limits.memlock" in result.stdout


def test_last_good_judges_what_was_asked_otherwise(state: Callable[..., Path]) -> None:
    """A run of other checks was green for other reasons; one without a verdict is judged now."""
    state(LOW, 0, select=("drift.kernel",))
    unjudged = state({}, None)
    state(LOW, 0, select=("drift.kernel",))
    state(LOW, 1)
    assert diff("--last-good")["before"]["name"] == str(unjudged)


def test_last_good_is_of_the_same_nodes(state: Callable[..., Path]) -> None:
    whole = state()
    state(nodes=("gpu01",))
    state(LOW, 1)
    assert diff("--last-good")["before"]["name"] == str(whole)


def test_last_good_says_when_there_is_none(state: Callable[..., Path]) -> None:
    result = run("diff", "--last-good")
    assert "no recordings are kept" in str(result.exception)
    state(LOW, 1)
    assert "no older recording" in str(run("diff", "--last-good").exception)
    state(LOW, 1)
    assert "none of the 1 older" in str(run("diff", "--last-good").exception)


def test_ten_failures_do_not_push_out_the_last_good_one(state: Callable[..., Path]) -> None:
    green = state()
    for _ in range(14):
        state({}, 1, nodes=("gpu01",))
    assert green.exists()
    assert len(history.kept_recordings()) == history.KEEP + 1


# ---------------------------------------------------------------- facts


@given(st.dictionaries(st.sampled_from(sorted(demo_cluster.healthy("gpu01"))), st.none() | st.text() | st.dictionaries(st.text(), st.text())))  # fmt: skip
def test_facts_of_garbage_are_unmeasured_and_never_raise(garbage: dict[str, Any]) -> None:
    probes = {name: {"status": "ran", "rc": 0, "stdout": str(value), "stderr": "", "data": [["x", str(value)]]} for name, value in garbage.items()}  # fmt: skip
    for value in node_facts(Node("n", Source(probes), Goal(), CollectOptions())).values():
        assert value is None or isinstance(value, (str, dict, Unmeasured))


def test_every_fact_is_measured_on_a_healthy_node() -> None:
    facts = node_facts(
        Node("gpu01", Source(demo_cluster.healthy("gpu01"), root=True), Goal(), demo_cluster.OPTIONS)
    )
    assert not {name: str(value) for name, value in facts.items() if isinstance(value, Unmeasured)}


def test_changes_of_one_fact() -> None:
    assert list(fact_changes({"a": "1", "b": "2"}, {"a": "1", "c": "3"})) == [
        ("b", "went", "2", ""),
        ("c", "appeared", "", "3"),
    ]
    assert list(fact_changes(None, "x")) == [("", "appeared", "", "x")]
    assert list(fact_changes(None, {"a": "1"})) == [("a", "appeared", "", "1")]
    assert list(fact_changes({"a": "?"}, {"a": "1"})) == [], "not seen is no difference"
    assert list(fact_changes(Unmeasured("x"), Unmeasured("y"))) == []


def test_a_diff_is_written_to_files_too(good: Path, tmp_path: Path) -> None:
    result = run("diff", good, good, "-o", f"json={tmp_path / 'd.json'}")
    assert "SAME" in result.stdout
    assert json.loads((tmp_path / "d.json").read_text())["same"] is True
