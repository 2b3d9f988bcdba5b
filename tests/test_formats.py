"""Every format is read back by a library that is not ours, whatever the text in the report is."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from junitparser import JUnitXml
from markdown_it import MarkdownIt
from prometheus_client.parser import text_string_to_metric_families

from epdoctor.model import (
    Finding,
    Location,
    NodeOutcome,
    Problem,
    Readiness,
    Report,
    Severity,
    Status,
    Waiver,
)
from epdoctor.nodenames import fold
from epdoctor.report.formats import Style, format_names, render, summary
from epdoctor.report.formats.csv_ import COLUMNS
from epdoctor.report.formats.nagios import nagios_code
from epdoctor.report.saved import load_report
from epdoctor.report.summary import exit_code
from epdoctor.report.verdict import Mark, mark, node_verdicts
from tests.reports import check, large_report, reports

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def written(name: str, report: Report, **style: Any) -> str:
    return "".join(render(name, report, Style(**style)))


@cache
def schema(name: str) -> Any:
    path = DATA / name if (DATA / name).exists() else ROOT / "epdoctor" / "report" / name
    value = json.loads(path.read_text())
    kind = jsonschema.validators.validator_for(value)
    kind.check_schema(value)
    return kind(value, format_checker=kind.FORMAT_CHECKER)


def test_formats_are_found_by_their_files() -> None:
    assert {
        "text",
        "json",
        "junit",
        "sarif",
        "markdown",
        "github",
        "nagios",
        "prometheus",
        "ctrf",
        "csv",
    } <= set(format_names())
    for name in format_names():
        assert summary(name)
        assert written(name, large_report(2, 6, spread=1)).strip(), name


# ---------------------------------------------------------------- hostile text, form by form


@quick
@given(reports())
def test_json_fits_its_schema_and_comes_back_the_same(report: Report) -> None:
    text = written("json", report)
    schema("report_schema.json").validate(json.loads(text))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        again = load_report(Path(file.name))
    assert json.loads(written("json", again)) == json.loads(text)
    assert written("json", again) == text
    for name in ("text", "junit", "sarif", "markdown", "csv"):
        assert written(name, again)


@quick
@given(reports())
def test_junit_is_read_by_junitparser(report: Report) -> None:
    xml = JUnitXml.fromstring(written("junit", report).encode())
    suites = list(xml)
    results = Counter(type(result).__name__ for suite in suites for case in suite for result in case.result)
    for suite in suites:
        assert suite.tests == len(list(suite))
    marks = Counter(mark(finding, report) for finding in report.findings)
    expired = len(report.expired_waivers) if report.fail_on_expired_waiver else 0
    missed = sum(1 for outcome in report.outcomes if outcome.error)
    assert results["Failure"] == marks[Mark.FAILED] + expired
    assert results["Error"] == marks[Mark.UNKNOWN] + missed
    assert results["Skipped"] == sum(marks[m] for m in (Mark.NOTED, Mark.UNSEEN, Mark.WAIVED, Mark.SKIPPED))
    assert sum(len(list(suite)) for suite in suites) == len(report.findings) + missed + expired
    # A run that does not end with 0 is not green in CI either, and the other way round.
    if not report.interrupted:
        assert bool(results["Failure"] + results["Error"]) == (exit_code(report) != 0)


@quick
@given(reports())
def test_sarif_fits_the_official_schema(report: Report) -> None:
    data = json.loads(written("sarif", report))
    schema("sarif-schema-2.1.0.json").validate(data)
    run = data["runs"][0]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert not re.search(r"(?<!\\)\]\(", result["message"]["text"])
    suppressed = sum(1 for result in run["results"] if result["suppressions"])
    assert suppressed == sum(len(f.problems) or 1 for f in report.findings if f.waived)
    json.dumps(data, ensure_ascii=False).encode()  # no lone surrogate


@quick
@given(reports())
def test_ctrf_fits_its_schema(report: Report) -> None:
    data = json.loads(written("ctrf", report))
    schema("ctrf.schema.json").validate(data)
    counts = Counter(test["status"] for test in data["results"]["tests"])
    for status in ("passed", "failed", "skipped", "pending", "other"):
        assert data["results"]["summary"][status] == counts[status]
    assert counts["passed"] == sum(1 for f in report.findings if f.status is Status.PASS)


@quick
@given(reports())
def test_csv_holds_no_formula(report: Report) -> None:
    text = written("csv", report)
    text.encode()
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert tuple(rows[0]) == COLUMNS
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert len(rows) - 1 == sum(len(f.problems) or 1 for f in report.findings) + sum(
        1 for outcome in report.outcomes if outcome.error
    )
    for row in rows[1:]:
        for cell in row:
            assert not cell.strip() or cell.strip()[0] not in "=+-@\uff1d\uff0b\uff0d\uff20", cell
            assert "\t" not in cell
            assert "\n" not in cell


@quick
@given(reports())
def test_markdown_shows_text_and_runs_none(report: Report) -> None:
    report.checks["gpu.b"] = check("gpu.b")
    tokens = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(written("markdown", report, verbose=True))
    )
    kinds = {token.type for token in tokens} | {c.type for t in tokens for c in t.children or ()}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open"}
    outside = "".join(c.content for t in tokens for c in t.children or () if c.type == "text")
    assert "evil.example" not in "".join(
        text
        for text in [outside]
        if not any("evil.example" in c.why + c.title for c in report.checks.values())
    )


COMMAND = re.compile(r"::(error|warning|notice) ((?:[a-z]+=[^,:\r\n]*,?)+)::[^\r\n]*\Z")


@quick
@given(reports())
def test_github_lines_are_commands_of_ours(report: Report) -> None:
    text = written("github", report)
    lines = text.split("\n")
    assert lines.pop() == ""
    assert lines.pop().startswith("epdoctor: ")
    for line in lines:
        match = COMMAND.match(line)
        assert match, line
        names = [item.partition("=")[0] for item in match[2].split(",")]
        assert set(names) <= {"file", "line", "col", "title"}
        assert not re.search(r"%(?!25|0D|0A|3A|2C)", line)


@quick
@given(reports())
def test_nagios_is_one_line_with_performance_data(report: Report) -> None:
    text = written("nagios", report)
    assert text.count("\n") == 1
    assert text.count("|") == 1
    state, _, numbers = text.partition("|")
    assert state.split()[1] == ("OK", "WARNING", "CRITICAL", "UNKNOWN")[nagios_code(report)]
    for item in numbers.split():
        assert re.fullmatch(r"[a-z_]+=[0-9.]+s?(;[0-9]*){0,4}", item), item


@quick
@given(reports())
def test_prometheus_labels_are_words_of_ours(report: Report) -> None:
    report.collected_at = report.collected_at if len(report.collected_at) < 30 else ""
    families = list(text_string_to_metric_families(written("prometheus", report)))
    assert {"epdoctor_findings", "epdoctor_nodes", "epdoctor_exit_code"} <= {
        family.name for family in families
    }
    allowed = {s.value for s in Status} | {s.value for s in Severity} | set(report.checks) | {
        "waived", "passed", "failed", "unknown", "not_reached", "ready", "not_ready", "deepep_v2", "2026-11-22",
    }  # fmt: skip
    series = set()
    for family in families:
        for sample in family.samples:
            assert set(sample.labels.values()) - {sample.labels.get("version")} <= allowed
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in series
            series.add(key)


@quick
@given(reports())
def test_text_holds_no_control_character(report: Report) -> None:
    text = written("text", report, verbose=True)
    assert not [c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160]
    text.encode()


# ---------------------------------------------------------------- what they say


def of_launch() -> Report:
    problem = Problem(
        "16",
        "a divisor of 64",
        subject="--tensor-parallel-size",
        location=Location("jobs/serve a,b.sh", 12, 5),
    )
    finding = Finding("launch.x", Status.FAIL, Severity.ERROR, "", (problem,))
    from epdoctor.model import Goal

    return Report(
        Goal(), [], [finding], {"launch.x": check("launch.x", scope="launch")}, source="jobs/serve.sh"
    )


def test_a_finding_in_a_file_is_shown_at_its_line() -> None:
    report = of_launch()
    result = json.loads(written("sarif", report))["runs"][0]["results"][0]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "jobs/serve%20a%2Cb.sh", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 12, "startColumn": 5}
    assert "::error file=jobs/serve a%2Cb.sh,line=12,col=5,title=" in written("github", report)
    suite = next(iter(JUnitXml.fromstring(written("junit", report).encode())))
    assert suite.name == "launch"
    assert "jobs/serve a,b.sh:12:5: --tensor-parallel-size: 16" in next(iter(suite)).result[0].message
    row = next(csv.DictReader(io.StringIO(written("csv", report))))
    assert (row["node"], row["location"]) == ("launch", "jobs/serve a,b.sh:12:5")
    assert "jobs/serve a,b.sh:12:5: --tensor-parallel-size: 16" in written("text", report)
    test = json.loads(written("ctrf", report))["results"]["tests"][0]
    assert (test["filePath"], test["line"]) == ("jobs/serve a,b.sh", 12)


def waived_report() -> Report:
    report = large_report(3, 4, spread=1)
    waiver = Waiver("area0", "TICKET-311, swap on the 12th", "gpu0001", "2099-12-12", "anna")
    report.findings[0] = Finding(
        "area0.check-000", Status.FAIL, Severity.ERROR, "gpu0001", report.findings[0].problems,
        waiver=waiver, waived=waiver.reason,
    )  # fmt: skip
    return report


@pytest.mark.parametrize("name", format_names())
def test_a_waiver_is_shown_in_every_format(name: str) -> None:
    text = written(name, waived_report())
    if name in ("nagios", "prometheus"):
        assert re.search(r"waived=1|waived\"} 1", text)
    else:
        assert "TICKET-311" in text, text
    if name in ("text", "json", "sarif", "csv", "junit", "ctrf", "markdown", "github"):
        assert "2099-12-12" in text
        assert "anna" in text


def test_unknown_is_never_green() -> None:
    report = large_report(2, 1, spread=0)
    report.findings[0] = Finding(
        "area0.check-000", Status.UNKNOWN, Severity.ERROR, "gpu0001", reason="EACCES"
    )
    assert exit_code(report) == 3
    assert nagios_code(report) == 3
    assert written("nagios", report).startswith("EPDOCTOR UNKNOWN")
    assert JUnitXml.fromstring(written("junit", report).encode()).errors == 1
    assert json.loads(written("sarif", report))["runs"][0]["results"][0]["kind"] == "open"
    assert json.loads(written("ctrf", report))["results"]["summary"]["other"] == 1
    assert node_verdicts(report) == {"gpu0001": Mark.UNKNOWN, "gpu0002": Mark.PASSED}
    report.findings[0] = Finding("area0.check-000", Status.UNKNOWN, Severity.INFO, "gpu0001", reason="EACCES")
    assert JUnitXml.fromstring(written("junit", report).encode()).errors == 0
    assert written("junit", report).count("<skipped") == 1


def test_nagios_states() -> None:
    def state(**change: Any) -> int:
        report = large_report(2, 1, spread=0)
        for key, value in change.items():
            setattr(report, key, value)
        return nagios_code(report)

    bad = Problem("f", "e")
    warning = [Finding("area0.check-000", Status.FAIL, Severity.WARNING, "gpu0001", (bad,))]
    assert state() == 0
    assert state(findings=warning) == 1
    assert state(findings=warning, fail_on=Severity.WARNING) == 1
    assert (
        state(findings=warning, outcomes=[NodeOutcome("gpu0001"), NodeOutcome("gpu0002", error="refused")])
        == 3
    )
    assert state(findings=[Finding("area0.check-000", Status.FAIL, Severity.ERROR, "gpu0001", (bad,))]) == 2
    assert state(interrupted=True) == 3
    expired = [Waiver("area0", "r", expires="2020-01-01", expired=True)]
    assert state(expired_waivers=expired) == 0
    assert state(expired_waivers=expired, fail_on_expired_waiver=True) == 1


def test_a_fault_on_300_of_512_nodes_fits_a_screen() -> None:
    text = written("text", large_report(), width=80)
    assert len(text.splitlines()) <= 60, text
    assert "gpu[0001-0300]" in text


def test_a_fault_on_300_scattered_nodes_fits_a_screen_too() -> None:
    report = large_report()
    names = [outcome.node for outcome in report.outcomes]
    chosen = set(random.Random(1).sample(names, 300))
    bad = next(finding for finding in report.findings if finding.status is Status.FAIL)
    report.findings = [
        replace(
            bad if f.node in chosen else f,
            node=f.node,
            status=Status.FAIL if f.node in chosen else Status.PASS,
            problems=bad.problems if f.node in chosen else (),
        )
        if f.check == bad.check
        else f
        for f in report.findings
    ]
    report.readiness = [
        Readiness(
            "deepep_v2", tuple(n for n in names if n not in chosen), tuple(sorted(chosen)), (), (bad.check,)
        )
    ]
    text = written("text", report, width=80)
    assert len(text.splitlines()) <= 60, text
    assert "and 299 more" in text
    assert fold(chosen)[:200] in "".join(written("text", report, width=80, verbose=True).split())
