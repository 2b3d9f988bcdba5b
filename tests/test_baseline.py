"""epdoctor baseline and check --baseline: what has moved is a finding in every format; what is unknown is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from epdoctor.collect.store import save
from epdoctor.exceptions import EpdoctorError, UsageError
from epdoctor.report.formats import format_names
from tests import demo_cluster
from tests.test_diff import frame, recording, records, run

ONLY = ("--select", "drift.baseline")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return recording(tmp_path / "good.tar.gz")


@pytest.fixture
def baseline(good: Path, tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    result = run("baseline", "save", "--from", good, "-o", path)
    assert result.return_value == 0
    assert result.stdout.splitlines()[0].startswith("4 nodes")
    return path


def findings(path: Path, baseline: Path, *words: str) -> dict[str, dict[str, Any]]:
    """The finding of drift.baseline by node."""
    report = json.loads(
        run("check", "--from", path, "--baseline", baseline, *ONLY, "--format", "json", *words).stdout
    )
    return {
        n: found for found in report["findings"] if found["id"] == "drift.baseline" for n in found["nodes"]
    }


def test_against_itself_nothing_has_moved(good: Path, baseline: Path) -> None:
    assert {found["status"] for found in findings(good, baseline).values()} == {"pass"}


def test_what_has_moved_is_a_finding_on_its_node(baseline: Path, tmp_path: Path) -> None:
    bad = recording(tmp_path / "bad.tar.gz", {"gpu03": [demo_cluster.no_peermem]})
    found = findings(bad, baseline)
    assert {node: f["status"] for node, f in found.items()} == dict.fromkeys(("gpu01", "gpu02", "gpu04"), "pass") | {"gpu03": "fail"}  # fmt: skip
    subjects = {problem["subject"]: problem["found"] for problem in found["gpu03"]["problems"]}
    assert subjects["modules.loaded nvidia_peermem"].startswith(
        "modules.loaded nvidia_peermem: not there (was 580"
    )
    assert run("check", "--from", bad, "--baseline", baseline, *ONLY).return_value == 0, "a warning"
    assert (
        run("check", "--from", bad, "--baseline", baseline, *ONLY, "--fail-on", "warning").return_value == 1
    )


@pytest.mark.parametrize("name", [name for name in format_names() if name != "nagios"])
def test_every_format_shows_it(
    name: str, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    bad = recording(tmp_path / "bad.tar.gz", {"gpu03": [demo_cluster.no_peermem]})
    assert (
        "drift.baseline"
        in run("check", "--from", bad, "--baseline", baseline, *ONLY, "--format", name).stdout
    )


def test_a_node_that_the_baseline_does_not_know_is_unknown(good: Path, tmp_path: Path) -> None:
    two, nodes = tmp_path / "two.tar.gz", ("gpu01", "gpu02")
    save(two, frame(nodes), records(nodes=nodes))
    run("baseline", "save", "--from", two, "-o", tmp_path / "two.json")
    found = findings(good, tmp_path / "two.json")
    assert {node: f["status"] for node, f in found.items()} == {
        "gpu01": "pass", "gpu02": "pass", "gpu03": "unknown", "gpu04": "unknown",
    }  # fmt: skip
    assert "not in the baseline" in found["gpu03"]["reason"]


def test_one_good_node_stands_for_all(tmp_path: Path) -> None:
    one = tmp_path / "one.tar.gz"
    save(one, frame(("gpu01",)), records(nodes=("gpu01",)))
    run("baseline", "save", "--from", one, "-o", tmp_path / "one.json")
    bad = recording(tmp_path / "bad.tar.gz", {"gpu03": [demo_cluster.other_nccl]})
    found = findings(bad, tmp_path / "one.json")
    assert [node for node, f in found.items() if f["status"] == "fail"] == ["gpu03"]
    assert "of gpu01" in found["gpu03"]["expected"]


def test_not_measured_is_unknown_and_not_green(good: Path, baseline: Path, tmp_path: Path) -> None:
    def blind(probes: dict[str, Any]) -> None:
        for name in list(probes):
            if name.startswith("rdma"):
                probes[name] = {"status": "timeout", "seconds": 10.0}

    found = findings(recording(tmp_path / "blind.tar.gz", {"gpu01": [blind]}), baseline)["gpu01"]
    assert found["status"] == "unknown"
    assert "timeout" in found["reason"]
    assert findings(good, baseline)["gpu01"]["status"] == "pass"


def test_nodes_that_are_missing_now_are_told(baseline: Path, tmp_path: Path) -> None:
    two, nodes = tmp_path / "two.tar.gz", ("gpu01", "gpu02")
    save(two, frame(nodes), records(nodes=nodes))
    assert "in the baseline, not in this run: gpu[03,04]" in run("check", "--from", two, "--baseline", baseline, *ONLY).stdout  # fmt: skip


def test_it_is_waived_and_ignored_like_any_other(baseline: Path, tmp_path: Path) -> None:
    bad = recording(tmp_path / "bad.tar.gz", {"gpu03": [demo_cluster.no_peermem]})
    waivers = tmp_path / "w.yaml"
    waivers.write_text("- {check: drift.baseline, nodes: gpu03, reason: on purpose}\n")
    assert findings(bad, baseline, "--waivers", str(waivers))["gpu03"]["waived"] == "on purpose"
    words = ("--select", "drift.kernel", "--ignore", "drift.baseline")
    text = run("check", "--from", bad, "--baseline", baseline, *words, "--format", "json").stdout
    assert {found["id"] for found in json.loads(text)["findings"]} == {"drift.kernel"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '{"baseline_version": 2, "nodes": [], "facts": {}}',
            "baseline version 2; this epdoctor reads version 1",
        ),
        ('{"baseline_version": true, "nodes": ["a"], "facts": {}}', "version unreadable"),
        ('{"schema_version": 1}', "not a baseline"),
        ("[]", "not a baseline"),
        ("PK\x03", "not even JSON"),
        ("[" * 100_000, "not even JSON"),
        ('{"baseline_version": 1, "nodes": [], "facts": {}}', "of no node"),
        ('{"baseline_version": 1, "nodes": ["a"], "facts": {"x": 3}}', "malformed"),
        (
            '{"baseline_version": 1, "nodes": ["a"], "facts": {"x": [{"nodes": ["a"], "value": {"k": 1}}]}}',
            "malformed",
        ),
        ('{"baseline_version": 1, "nodes": [1], "facts": {}}', "malformed"),
    ],
)
def test_another_version_or_no_baseline_ends_with_a_sentence(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(content)
    error = run("check", "--baseline", path).exception
    assert isinstance(error, UsageError), "exit code 2"
    assert says in str(error)


def test_bad_words_of_save(good: Path, tmp_path: Path) -> None:
    run("check", "--from", good, "-o", f"json={tmp_path / 'r.json'}", *("--select", "drift.kernel"))
    for words, says in (
        (("--from", good, "--all-nodes"), "does not go with"),
        (("--from", tmp_path / "none"), "no such recording"),
        (("--from", good, "-o", "/no/such/folder/b.json"), "cannot be written"),
        (("--from", tmp_path / "r.json"), "is a report"),
    ):
        error = run("baseline", "save", *words).exception
        assert isinstance(error, EpdoctorError)
        assert says in str(error)
