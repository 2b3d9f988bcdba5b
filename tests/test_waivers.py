"""Waivers: the file and its errors, what they do to findings, and `epdoctor waive`."""

from __future__ import annotations

import contextlib
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.catalog import load_checks
from epdoctor.cli import cli
from epdoctor.exceptions import UsageError
from epdoctor.model import Finding, Location, NodeOutcome, Problem, Report, Severity, Status, Waiver
from epdoctor.node_patterns import node_matcher
from epdoctor.nodenames import NodeNamesError
from epdoctor.report.summary import exit_code, readiness
from epdoctor.waivers import (
    FIELDS,
    WaiverError,
    apply_waivers,
    entry_text,
    parse_waivers,
    stray_warnings,
    with_entry,
)
from tests.reports import check, hostile

TODAY = date(2026, 11, 22)
CHECKS = ("gpu.mig-disabled", "gpudirect.memory-registrable", "host.memlock-unlimited", "drift.nccl-version")
BAD = Problem("found", "expected")


def parse(text: str) -> list[Waiver]:
    return parse_waivers(text.encode(), "waivers.yaml", CHECKS, TODAY)


def test_a_file_with_everything() -> None:
    text = """# why we have these
waivers:
  - check: gpudirect.memory-registrable
    nodes: [gpu03, "gpu[05-07]"]
    reason: >
      driver swap,
      TICKET-311
    expires: 2026-11-22
    owner: anna
  - {check: host., reason: ok, expires: 2026-11-21}
"""
    first, second = parse(text)
    assert (first.check, first.nodes) == ("gpudirect.memory-registrable", "gpu03,gpu[05-07]")
    assert first.reason == "driver swap, TICKET-311"
    assert (first.expires, first.owner, first.expired) == ("2026-11-22", "anna", False)
    assert str(first.location) == "waivers.yaml:3"
    assert (second.check, second.nodes, second.expired) == ("host", "", True)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "waivers:\n", "[]", "---\n"])
def test_a_file_without_waivers(text: str) -> None:
    assert parse(text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- check: gpudirekt\n  reason: r\n", ":1: no check or prefix 'gpudirekt', did you mean gpudirect?"),
        ("- reason: r\n  check: gpu.mig\n", ":2: no check or prefix 'gpu.mig', did you mean gpu.mig-disabled?"),
        ("- check: gpu\n", ":1: reason is missing"),
        ("- check: gpu\n  reason: \n", ":2: reason is missing"),
        ("- check: gpu\n  reason: '  '\n", ":2: reason is missing"),
        ("- reason: r\n", ":1: check is missing"),
        ("- check: gpu\n  reason: r\n  expires: 2026-13-01\n", ":3: expires '2026-13-01' is not a date"),
        ("- check: gpu\n  reason: r\n  expires: 20261201\n", ":3: expires '20261201' is not a date"),
        ("- check: gpu\n  reason: r\n  expires: next week\n", ":3: expires 'next week' is not a date"),
        ("- check: gpu\n  reason: r\n  expiry: 2026-12-01\n", ":3: unknown field 'expiry', did you mean expires?"),
        ("- check: gpu\n  reason: r\n  reason: s\n", ":3: reason is there twice"),
        ("- check: gpu\n  reason: [r]\n", ":2: reason must be a text"),
        ("- check: gpu\n  reason: r\n  nodes: {a: b}\n", ":3: nodes must be a text"),
        ("- check: gpu\n  reason: r\n  nodes: gpu[03\n", ':3: nodes: "[" is not closed'),
        ("- check: gpu\n  reason: r\n  nodes: 'a b;c'\n", ":3: nodes:"),
        ("- check: gpu\n  reason: r\n  nodes: '~('\n", ":3: nodes:"),
        ("- gpu\n", ":1: a waiver has the fields"),
        ("gpu: x\n", ":1: give a list of waivers"),
        ("just text\n", ":1: give a list of waivers"),
        ("- check: [gpu\n  reason: r\n", ":2: not YAML"),
        ("- check: gpu\n\treason: r\n", ":2: not YAML"),
        ("- check: *x\n", ":1: not YAML"),
        ("[" * 5000, "not YAML"),
        ("- check: !!python/object/apply:os.system [id]\n  reason: r\n", ":1: check must be a text"),
        ("<<: x\n", ":1: give a list of waivers"),
        ("#" * (2 << 20), "larger than 1 MiB"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(WaiverError) as caught:
        parse(text)
    assert str(caught.value).startswith("waivers.yaml:")
    assert said in str(caught.value)
    assert isinstance(caught.value, UsageError)


@given(st.binary(max_size=200) | hostile.map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_file_or_an_error(raw: bytes) -> None:
    with contextlib.suppress(WaiverError):
        parse_waivers(raw, "waivers.yaml", CHECKS, TODAY)


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("gpu03", ["gpu03"], ["gpu3", "gpu030"]),
        ("gpu[01-03],login", ["gpu01", "gpu03", "login"], ["gpu04"]),
        ("gpu*", ["gpu1", "gpu"], ["login"]),
        ("gpu0?", ["gpu01"], ["gpu10"]),
        ("~gpu0[12]$", ["gpu01"], ["gpu011"]),
        ("all,!gpu02", ["gpu01"], ["gpu02"]),
        ("!gpu02", ["gpu01"], ["gpu02"]),
        ("node-1.example.com", ["node-1.example.com"], ["node-1xexample.com"]),
    ],
)
def test_node_patterns(pattern: str, fits: list[str], does_not: list[str]) -> None:
    matcher = node_matcher(pattern)
    assert [name for name in fits if not matcher(name)] == []
    assert [name for name in does_not if matcher(name)] == []


@given(hostile, hostile)
@settings(max_examples=60, deadline=None)
def test_any_pattern_is_one_or_an_error(pattern: str, name: str) -> None:
    with contextlib.suppress(NodeNamesError):
        assert node_matcher(pattern)(name) in (True, False)


# ---------------------------------------------------------------- on findings


def fail(node: str, check_id: str = "gpu.mig-disabled", *problems: Problem) -> Finding:
    return Finding(check_id, Status.FAIL, Severity.ERROR, node, problems or (BAD,), blocks=("deepep_v2",))


def test_a_waiver_fits_by_id_prefix_and_node() -> None:
    findings = [fail("gpu01"), fail("gpu02"), fail("gpu01", "gpudirect.memory-registrable")]
    by_prefix = apply_waivers(findings, [Waiver("gpu", "r", "gpu01")])
    assert [finding.waived for finding in by_prefix] == ["r", "", ""]
    assert by_prefix[0].waiver == Waiver("gpu", "r", "gpu01")
    assert [f.waived for f in apply_waivers(findings, [Waiver("gpu.mig-disabled", "r")])] == ["r", "r", ""]
    assert apply_waivers(findings, []) == findings


def test_unknown_is_waived_too_and_our_own_bugs_are_not() -> None:
    unknown = Finding("gpu.a", Status.UNKNOWN, Severity.ERROR, "gpu01", reason="EACCES")
    bug = Finding("gpu.a", Status.ERROR, Severity.ERROR, "gpu01", reason="a bug in epdoctor")
    passed = Finding("gpu.a", Status.PASS, Severity.ERROR, "gpu01")
    assert [f.waived for f in apply_waivers([unknown, bug, passed], [Waiver("gpu", "r")])] == ["r", "", ""]


def test_an_expired_one_counts_again_and_is_named() -> None:
    old = Waiver("gpu", "r", expires="2026-11-21", expired=True)
    (finding,) = apply_waivers([fail("gpu01")], [old])
    assert (finding.waived, finding.waiver) == ("", old)
    assert apply_waivers([fail("gpu01")], [old, Waiver("gpu", "newer")])[0].waived == "newer"


def test_a_cluster_finding_is_waived_by_problem() -> None:
    one = Problem("1", "e", odd_nodes=("gpu01",))
    both = Problem("2", "e", odd_nodes=("gpu01", "gpu02"))
    finding = fail("", "drift.nccl-version", one, both)
    parts = apply_waivers([finding], [Waiver("drift", "r", "gpu01")])
    assert [(part.waived, part.problems) for part in parts] == [("r", (one,)), ("", (both,))]
    assert [p.waived for p in apply_waivers([finding], [Waiver("drift", "r")])] == ["r"]
    nameless = fail("", "drift.nccl-version", BAD)
    assert apply_waivers([nameless], [Waiver("drift", "r", "gpu01")])[0].waived == ""


def test_waived_fails_nothing_and_readiness_says_so() -> None:
    findings = apply_waivers([fail("gpu01")], [Waiver("gpu", "r")])
    outcomes = [NodeOutcome("gpu01")]
    from epdoctor.model import Goal

    report = Report(Goal(), outcomes, findings, {"gpu.mig-disabled": check("gpu.mig-disabled")})
    assert exit_code(report) == 0
    (row,) = readiness(["deepep_v2"], outcomes, findings, {"gpu01": True})
    assert (row.ready, row.waived) == (("gpu01",), ("gpu.mig-disabled",))
    report.expired_waivers = [Waiver("host", "r", expires="2020-01-01", expired=True)]
    assert exit_code(report) == 0
    report.fail_on_expired_waiver = True
    assert exit_code(report) == 1


def test_a_pattern_that_fits_no_node_is_said_where_it_matters() -> None:
    findings = [fail("gpu01")]
    stray = Waiver("gpu", "r", "workers", location=Location("w.yaml", 3))
    assert stray_warnings([stray], findings, ["gpu01"]) == [
        "w.yaml:3: nodes workers fits no node of this run (names and patterns, no groups)"
    ]
    assert stray_warnings([stray, Waiver("host", "r", "workers")], [], ["gpu01"]) == []
    assert stray_warnings([Waiver("gpu", "r", "gpu*")], findings, ["gpu01"]) == []


# ---------------------------------------------------------------- writing


words = st.text(st.characters(codec="utf-8"), max_size=40).map(lambda text: " ".join(text.split()))


@given(words.filter(bool), words)
@settings(max_examples=80, deadline=None)
def test_an_entry_is_read_back_as_it_was(reason: str, owner: str) -> None:
    waiver = Waiver("gpu.mig-disabled", reason, "gpu[01-03],!gpu02", "2026-12-01", owner)
    try:
        (back,) = parse(entry_text(waiver))
    except WaiverError:
        # YAML itself has no form for some characters; they are refused, not changed.
        return
    for field in FIELDS:
        assert getattr(back, field) == getattr(waiver, field)


NEW = Waiver("gpu.mig-disabled", "a: #b", "gpu01")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "# Findings that are known and accepted. They are shown in every report and fail no run.\n{new}"),
        ("# mine\n", "# mine\n{new}"),
        ("- check: host  # first\n  reason: r\n# last line\n", "- check: host  # first\n  reason: r\n{new}# last line\n"),
        ("- check: host\n  reason: r", "- check: host\n  reason: r\n{new}"),
        ("waivers:\n    # in here\n    - check: host\n      reason: r\n\n", "waivers:\n    # in here\n    - check: host\n      reason: r\n{new4}\n"),
        ("- check: host\n  reason: |\n    two\n    lines\n", "- check: host\n  reason: |\n    two\n    lines\n{new}"),
    ],
)  # fmt: skip
def test_a_new_entry_leaves_the_rest_as_it_is(before: str, after: str) -> None:
    wanted = after.format(new=entry_text(NEW), new4=entry_text(NEW, "    ")) if "{" in after else after
    text = with_entry(before, NEW, "waivers.yaml", dict.fromkeys(CHECKS), TODAY)  # type: ignore[arg-type]  # ids suffice
    assert text == wanted
    assert parse(text)[-1].reason == NEW.reason


def test_a_list_in_brackets_is_not_rewritten() -> None:
    with pytest.raises(WaiverError, match="brackets"):
        with_entry("[{check: host, reason: r}]", NEW, "waivers.yaml", dict.fromkeys(CHECKS), TODAY)  # type: ignore[arg-type]  # ids suffice


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words), catch_exceptions=True, standalone_mode=False)


def test_waive_writes_shows_and_check_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EPDOCTOR_NO_STATE", "1")
    done = run("waive", "host.memlock-unlimited", "--nodes", "gpu02", "--reason", "TICKET #1: later", "--expires", "30d", "--owner", "anna")  # fmt: skip
    assert done.return_value == 0, done.exception
    assert "waivers.yaml:2" in done.output
    assert "next: epdoctor check" in done.output
    assert "host.memlock-unlimited" in load_checks()
    shown = run("check", "--demo", "--select", "host.memlock-unlimited")
    assert shown.return_value == 0
    assert "PASS" in shown.output
    assert "1 waived" in shown.output
    assert "TICKET #1: later (until " in shown.output
    ready = run("check", "--demo", "--select", "host.memlock-unlimited", "--waivers", "/dev/null")
    assert ready.return_value == 1
    (tmp_path / "waivers.yaml").write_text("- check: host\n  reason: r\n  expires: 2020-01-01\n")
    for words, code in ((("--ignore", "host"), 0), (("--ignore", "host", "--fail-on-expired-waiver"), 1)):
        old = run("check", "--demo", "--select", "host,time", *words)
        assert old.return_value == code
        assert "waivers.yaml:1: the waiver of host expired on 2020-01-01" in " ".join(old.output.split())
    assert (
        "WAIVER EXPIRED  1 waiver"
        in run("check", "--demo", "--select", "time", "--fail-on-expired-waiver").output
    )
    config = tmp_path / "epdoctor.toml"
    config.write_text('[waivers]\nfile = "absent.yaml"\n')
    assert "absent.yaml: no such file" in str(run("check", "--demo").exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpudirct", "--reason", "r"], "no check or prefix 'gpudirct', did you mean gpudirect?"),
        (["gpu"], "--reason is missing"),
        (["gpu", "--reason", "r", "--expires", "2020-01-01"], "is past"),
        (["gpu", "--reason", "r", "--expires", "soon"], "neither a date"),
        (["gpu", "--reason", "r", "--expires", "9999m"], ""),
        (["gpu", "--reason", "r", "--nodes", "gpu[3-1]"], "runs backwards"),
        (["gpu", "--reason", "r", "--waivers", "/absent/w.yaml"], "/absent/w.yaml"),
    ],
)
def test_waive_refuses(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("waive", *words)
    if said:
        assert isinstance(done.exception, UsageError)
        assert said in str(done.exception)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["- check: nope\n  reason: r\n", "- check: gpu\n  reason: r\n  expires: soon\n"]
)
def test_a_wrong_file_stops_the_run_before_any_node(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("epdoctor.cli.gather.gather", lambda *a, **k: pytest.fail("a node was touched"))
    (tmp_path / "w.yaml").write_text(text)
    done = run("check", "--all-nodes", "-i", "localhost,", "--waivers", "w.yaml")
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith("w.yaml:")
