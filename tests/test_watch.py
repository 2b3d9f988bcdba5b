"""epdoctor check --watch, on this machine: draws, says what changed, ends as asked, and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from epdoctor.cli.check import Look
from epdoctor.cli.outputs import Output, Outputs
from epdoctor.cli.watch import watch
from epdoctor.exceptions import UsageError
from epdoctor.model import Finding, Goal, NodeOutcome, Problem, Report, Severity, Status
from tests.reports import check
from tests.test_diff import run

EPDOCTOR = Path(sys.executable).parent / "epdoctor"
SCREEN = Outputs((Output("text", ""),), "", "", False, False)


def looks(*statuses: Status) -> Iterator[Look]:
    kept: list[int] = []
    for number, status in enumerate(statuses):
        problems = (Problem("8 MiB", "unlimited"),) if status is Status.FAIL else ()
        finding = Finding("gpu.a", status, Severity.ERROR, "gpu01", problems=problems)
        report = Report(Goal(), [NodeOutcome("gpu01")], [finding], {"gpu.a": check("gpu.a")}, selected=True)
        yield Look(report, lambda number=number: kept.append(number))  # type: ignore[misc]  # default binds the number
    raise KeyboardInterrupt


def test_appends_blocks_says_what_changed_and_ends_when_green(capsys: pytest.CaptureFixture[str]) -> None:
    seen = looks(Status.FAIL, Status.FAIL, Status.UNKNOWN, Status.PASS)
    assert watch(lambda: next(seen), SCREEN, 0.0, until_pass=True) == 0
    text = capsys.readouterr().out
    assert text.count("no change: NOT READY, 1 error") == 1
    assert "unknown now: gpu.a on gpu01" in text
    assert "known now: gpu.a on gpu01" in text
    assert text.index("NOT READY") < text.index("CANNOT TELL") < text.index("PASS")
    assert text.rstrip().endswith("nothing is left to mend")


def test_unknown_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    seen = looks(Status.UNKNOWN, Status.UNKNOWN)
    assert watch(lambda: next(seen), SCREEN, 0.0, until_pass=True) == 130
    assert "CANNOT TELL" in capsys.readouterr().out


def test_only_looks_that_differ_are_kept() -> None:
    kept = []
    statuses = [Status.FAIL, Status.FAIL, Status.PASS, Status.PASS, Status.FAIL]

    def numbered() -> Iterator[Look]:
        for number, look in enumerate(looks(*statuses)):
            yield Look(look.report, lambda number=number: kept.append(number))  # type: ignore[misc]  # default binds the number

    seen = numbered()
    assert watch(lambda: next(seen), SCREEN, 0.0, until_pass=False) == 130
    assert kept == [0, 2, 4]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--until-pass",), "goes with --watch"),
        (("--watch", "30s", "--demo"), "stays as it is"),
        (("--watch", "30s", "--format", "json"), "draws text"),
        (("--watch", "30s", "-o", "github=/dev/null"), "does not go with github"),
    ],
)
def test_words_that_do_not_go_together(words: tuple[str, ...], says: str) -> None:
    error = run("check", *words).exception
    assert isinstance(error, UsageError)
    assert says in str(error)


def test_ctrl_c_on_a_terminal_ends_with_130_and_the_last_report(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1", "XDG_STATE_HOME": str(tmp_path)}
    argv = [str(EPDOCTOR), "check", "--watch", "1s", "--select", "host.kernel-recent"]
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    ) as process:
        os.close(theirs)
        text, deadline, sent = "", time.monotonic() + 60, False
        while time.monotonic() < deadline:
            ready, _, _ = select.select([ours], [], [], 0.5)
            try:
                piece = os.read(ours, 65536).decode() if ready else ""
            except OSError:
                break  # the other end has closed
            text += piece
            if text.count("next look in 1 s") >= 2 and not sent:
                process.send_signal(signal.SIGINT)
                sent = True
        assert process.wait(10) == 130
    os.close(ours)
    assert "since the last look: no change" in text
    last = text.rpartition("\x1b[H\x1b[2J")[2]
    assert "PASS" in last
    assert "Traceback" not in text
    assert len(list((tmp_path / "epdoctor" / "recordings").glob("*.tar.gz"))) == 1


def test_many_looks_hold_no_more_memory_and_no_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing on this machine: after the first looks, memory and threads stay."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    script = (
        "import sys, time, threading, types, re\n"
        "from pathlib import Path\n"
        "from epdoctor.cli import cli, watch\n"
        "sizes = []\n"
        "def sleep(seconds):\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    sizes.append((int(re.search(r'VmRSS:\\s+(\\d+)', status)[1]), threading.active_count()))\n"
        "    if len(sizes) == 14:\n"
        "        raise KeyboardInterrupt\n"
        "watch.time = types.SimpleNamespace(sleep=sleep, strftime=time.strftime)\n"
        "try:\n"
        "    cli.main(['check', '--watch', '1s', '--no-state', '--select', 'host.kernel-recent'], standalone_mode=False)\n"
        "finally:\n"
        "    print('SIZES', sizes)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    sizes = [
        tuple(map(int, pair)) for pair in re.findall(r"\((\d+), (\d+)\)", done.stdout.rpartition("SIZES")[2])
    ]
    assert len(sizes) == 14, done.stderr
    assert sizes[-1][1] <= sizes[3][1], sizes
    assert sizes[-1][0] < sizes[3][0] * 1.05, sizes
