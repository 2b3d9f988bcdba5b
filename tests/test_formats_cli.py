"""-o, --format, --exit-code and `epdoctor report`, as a user types them: real processes, real files."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from epdoctor.cli import cli
from epdoctor.exceptions import UsageError
from epdoctor.model import Finding, Goal, NodeOutcome, Problem, Report, Severity, Status
from epdoctor.report.formats import Style, render
from tests.reports import check

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "epdoctor" / "demo" / "demo.tar.gz"
FEW = ("--select", "host.memlock-unlimited,gpudirect.memory-registrable,drift.nccl-version")


def run(
    folder: Path, *words: str, stdout: int = subprocess.PIPE, file_bytes: int = 0, **env: str
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.run(
        [sys.executable, "-m", "epdoctor", *words],
        cwd=folder, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, preexec_fn=limit,
        env={**os.environ, "PYTHONPATH": str(ROOT), "EPDOCTOR_NO_STATE": "1", "COLUMNS": "80", "PYTHONUTF8": "1", **env},
    )  # fmt: skip


def inside(*words: str) -> Result:
    """The same in this process, where nothing of the process itself is looked at."""
    env = {"EPDOCTOR_NO_STATE": "1", "COLUMNS": "80"}
    return CliRunner().invoke(cli, list(words), standalone_mode=False, env=env)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "junitt"], "--format junitt: no such format, did you mean junit?"),
        (["-o", "sariff=x"], "no format 'sariff', did you mean sarif?"),
        (["-o", "json=a", "-o", "junit=./a"], "two formats on one file"),
        (["-o", "json=a", "--nodes-fail", "a"], "two formats on one file"),
        (["-o", "json=/absent/a"], "-o /absent/a: cannot be written (No such file or directory)"),
        (["--nodes-pass", "/absent/a"], "--nodes-pass /absent/a: cannot be written"),
        (["-o", "json=/dev/fd/987"], "-o /dev/fd/987: cannot be written (Bad file descriptor)"),
        (["--format", "csv", "-o", "json=/dev/stdout"], "two formats on one file"),
        (["--format", "csv", "--nodes-fail", "/proc/self/fd/1"], "--nodes-fail /proc/self/fd/1: two formats"),
        (["-o", "csv=/dev/stderr", "-o", "json=/dev/stderr"], "two formats on one file"),
        (["-o", "json=."], "cannot be written (Is a directory)"),
        (["-o", "json=" + "x" * 300], "cannot be written (File name too long)"),
        (["-o", "json="], "no file is named"),
        (["-o", "json=-"], "no file is named"),
        (["-o", "report.json"], "in which format? The name says json"),
        (["-o", "junit"], "in which format? The name says junit"),
        (["-o", "a", "-o", "b"], "use -o FORMAT=FILE for more than one"),
        (["--waivers", "absent.yaml"], "--waivers absent.yaml: no such file"),
    ],
)
def test_wrong_outputs_are_found_before_the_run(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # An inventory that would be an error of its own, were it looked at.
    done = inside("check", "-i", "absent.ini", *words)
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)
    assert "absent.ini" not in str(done.exception)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_cannot_be_written_is_found_before_any_node() -> None:
    done = inside("collect", "-i", "absent.ini", "-o", "/proc/bundle.tar.gz")
    assert isinstance(done.exception, UsageError)
    assert "-o /proc/bundle.tar.gz: cannot be written" in str(done.exception)


def test_many_formats_at_once_and_back_again(tmp_path: Path) -> None:
    names = ("json", "junit", "sarif", "markdown", "csv", "ctrf", "prometheus", "nagios", "github")
    outputs = [word for name in names for word in ("-o", f"{name}=r.{name}")]
    done = run(tmp_path, "check", "--demo", *FEW, *outputs, "--nodes-pass", "good", "--nodes-fail", "bad")
    assert done.returncode == 1
    assert "NOT READY" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {f"r.{name}" for name in names} | {"good", "bad"}
    assert (tmp_path / "bad").read_text() == "gpu02\ngpu03\n"
    assert (tmp_path / "good").read_text() == "gpu01\ngpu04\n"
    again = run(tmp_path, "report", "--from", "r.json", "-o", "json=again.json", *(w.replace("=r.", "=s.") for w in outputs[2:]))  # fmt: skip
    assert again.returncode == 1
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    # Rules that found nothing are the catalogue's, which a saved report does not hold.
    for name in set(names) - {"json", "sarif"}:
        assert _untimed(tmp_path / f"s.{name}") == _untimed(tmp_path / f"r.{name}"), name
    # The screen too, but for the time it took.
    assert again.stdout.partition("\n")[2] == done.stdout.partition("\n")[2]
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _untimed(path: Path) -> str:
    """Without each finding's time: what is alike on several nodes is one entry of the JSON, with one time;
    failures come first there."""
    text = re.sub(r'(time="|"duration": )[0-9.]+', r"\1", path.read_text())
    return "\n".join(sorted(line.rstrip(",") for line in text.splitlines()))


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_report_judges_a_recording_as_check_does(tmp_path: Path) -> None:
    words = ("--from", str(DEMO), "--backend", "deepep_low_latency", *FEW)
    checked = run(tmp_path, "check", *words, "--format", "csv")
    reported = run(tmp_path, "report", *words, "--format", "csv")
    assert (reported.returncode, reported.stdout) == (checked.returncode, checked.stdout)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such"),
        ("", "not JSON"),
        ('{"schema_version": 1}', "does not fit the report's schema"),
        ('{"schema_version": 99}', "schema 99 is newer"),
        ('{"schema_version": "x"}', "no schema_version"),
        ('{"schema_version": 1, "nodes": ' + "[" * 100000, "not JSON"),
        ('{"schema": 1}', "not a node's record"),
    ],
)
def test_a_report_that_is_none(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    done = inside("report", "--from", str(path))
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_a_saved_report_is_not_judged_again(tmp_path: Path) -> None:
    path = str(tmp_path / "r.json")
    inside("check", "--demo", "--select", "time", "-o", f"json={path}")
    done = inside("report", "--from", path, "--backend", "deepep_v2")
    assert "judged already" in str(done.exception)


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    old = tmp_path / "r.json"
    old.write_text("old")
    done = run(tmp_path, "check", "--demo", "--select", "time", "-o", "json=r.json", file_bytes=1000)
    assert done.returncode == 3  # nothing is wrong but the report itself
    assert "r.json: File too large; the old file is as it was" in done.stderr
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert "PASS" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110 - a device
@pytest.mark.parametrize("format_", ["text", "json"])
def test_standard_output_that_is_full(format_: str, tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = run(tmp_path, "check", "--demo", "--select", "time", "--format", format_, stdout=full)
    finally:
        os.close(full)
    assert done.returncode == 3
    assert done.stderr == "epdoctor: standard output: No space left on device\n"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    run(tmp_path, "check", "--demo", "--select", "time", "-o", f"json={pipe}")
    out, _ = reader.communicate(timeout=20)
    assert json.loads(out)["exit_code"] == 0
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("words", "out", "err"),
    [
        ("-o json=/dev/stdout", "{", ""),
        ("-o nagios=/proc/self/fd/2", "4 nodes in", "EPDOCTOR OK"),
        ("--format nagios -o text=/dev/stderr", "EPDOCTOR OK", "4 nodes in"),
        ("--nodes-pass /dev/stdout", "gpu01\ngpu02", ""),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_what_is_open_already_is_written_to(
    words: str, out: str, err: str, kind: str, tmp_path: Path
) -> None:
    argv = ("check", "--demo", "--select", "time", *words.split())
    if kind == "pipe":
        done = run(tmp_path, *argv)
        found = [done.stdout, done.stderr]
        assert done.returncode == 0
    else:
        # As a shell's ">> log" has it: what stands there already stays.
        paths = [tmp_path / "out", tmp_path / "err"]
        for path in paths:
            path.write_text("before\n")
        command = f"{shlex.quote(sys.executable)} -m epdoctor {shlex.join(argv)} >> out 2>> err"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "EPDOCTOR_NO_STATE": "1"}
        assert subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env=env).returncode == 0
        assert all(path.read_text().startswith("before\n") for path in paths)
        found = [path.read_text().removeprefix("before\n") for path in paths]
    assert found[0].startswith(out)
    assert found[1].startswith(err) if err else not found[1]
    assert not (out == "{" and json.loads(found[0])["exit_code"])


def test_a_reader_that_leaves_changes_no_exit_code(tmp_path: Path) -> None:
    """`epdoctor check | head -1` under pipefail: findings are findings."""
    read, write = os.pipe()
    os.close(read)
    for words in (("check", "--demo", *FEW, "--format", "json"), ("check", "--demo", *FEW, "-v")):
        done = run(tmp_path, *words, stdout=write)
        assert (done.returncode, done.stderr) == (1, "")
    os.close(write)


@pytest.mark.parametrize(
    "words",
    [
        ["diff", str(DEMO), str(DEMO), "-o", "json=null"],
        ["explain", "cannot register cq buf", "-o", "json=null"],
        ["baseline", "save", "--from", str(DEMO), "-o", "null"],
    ],
    ids=["diff", "explain", "baseline"],
)
def test_a_device_is_never_replaced(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "null")  # what anyone may make here of /dev/null's kind
    with subprocess.Popen(["cat", "null"], stdout=subprocess.PIPE, text=True) as reader:
        try:
            done = inside(*words)
            assert done.exception is None, done.output
            out, _ = reader.communicate(timeout=20)
        finally:
            reader.kill()
    assert json.loads(out)
    assert (tmp_path / "null").is_fifo()


def test_node_lists_hold_every_name_but_none_that_a_shell_reads(tmp_path: Path) -> None:
    names = ["gpu01", "user@gpu02", "ns/pod-0", "::1", "a;reboot", "-o", "$(id)", "two words", "x\nroot"]
    bad = Problem("8 MiB", "unlimited")
    report = Report(
        Goal(multinode=True),
        [NodeOutcome(name) for name in names],
        [Finding("gpu.a", Status.FAIL, Severity.ERROR, name, problems=(bad,)) for name in names],
        {"gpu.a": check("gpu.a")},
    )
    (tmp_path / "r.json").write_text("".join(render("json", report, Style())))
    done = run(tmp_path, "report", "--from", "r.json", "--nodes-fail", "bad", "--nodes-pass", "good")
    assert (tmp_path / "bad").read_text().split("\n") == [*names[:4], ""]
    assert (tmp_path / "good").read_text() == ""
    assert done.stderr.count("not in bad, since it is no node's name") == 3
    assert done.returncode == 1


@pytest.mark.parametrize("hostile", ["::error::x", "   ::stop-commands::t", "a ##[add-path]/x", "::::"])
def test_no_line_of_the_text_is_a_command_of_githubs_runner(hostile: str, tmp_path: Path) -> None:
    bad = Problem(f"{'w ' * 30}{hostile}", "unlimited")
    finding = Finding("gpu.a", Status.FAIL, Severity.ERROR, "n1", problems=(bad,))
    report = Report(Goal(), [NodeOutcome("n1")], [finding], {"gpu.a": check("gpu.a")})
    (tmp_path / "r.json").write_text("".join(render("json", report, Style())))
    done = run(tmp_path, "report", "--from", "r.json", GITHUB_ACTIONS="true")
    assert done.returncode == 1
    assert "##[" not in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.strip().startswith("::")]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    run(tmp_path, "check", "--demo", "--select", "time", "-o", "nagios=link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text().startswith("EPDOCTOR OK")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["check", "--demo", *FEW, "--exit-code", "nagios"], 2),
        (["check", "--demo", *FEW, "--format", "nagios"], 2),
        (["check", "--demo", *FEW, "--format", "nagios", "--exit-code", "standard"], 1),
        (["check", "--demo", "--select", "time", "--format", "nagios"], 0),
        (["check", "--demo", "--select", "drift.memlock", "--format", "nagios"], 1),
        (["check", "--format", "nagios", "-i", "absent.ini"], 3),
        (["check", "--exit-code=nagios", "--fail-on", "nonsense"], 3),
        (["report", "--from", "absent", "--exit-code", "nagios"], 3),
    ],
)
def test_exit_codes_for_monitoring(
    words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = inside(*words)
    assert done.return_value == code, done.exception
    if code == 3:
        assert done.stdout.startswith("EPDOCTOR UNKNOWN - ")


def test_github_writes_the_job_summary(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    done = run(tmp_path, "check", "--demo", *FEW, "--format", "github", GITHUB_STEP_SUMMARY=str(summary))
    assert done.stdout.startswith("::error title=")
    text = summary.read_text()
    assert text.startswith("before\n## epdoctor: NOT READY\n")
    missing = run(
        tmp_path, "check", "--demo", "--select", "time", "--format", "github", GITHUB_STEP_SUMMARY="/absent/x"
    )
    assert missing.returncode == 3
    assert "GITHUB_STEP_SUMMARY /absent/x" in missing.stderr


def test_the_formats_are_listed() -> None:
    assert "junit       JUnit XML" in inside("report", "--formats").output
