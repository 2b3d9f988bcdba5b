"""Whole reports as they are printed: tests/golden/<what>.<exit code>.<format>.

`python -m tests.test_golden` writes them anew; read the difference before you commit it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner

from epdoctor.report.formats import format_names
from tests.launch_files import inside

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
RECORDS = "tests/records"
COMMANDS = {
    "demo": ["check", "--demo"],
    "demo-verbose": ["check", "--demo", "-v"],
    "demo-deepep-v2": ["check", "--demo", "--backend", "deepep_v2"],
    "h100x1": ["check", "--from", f"{RECORDS}/h100x1.json"],
    "h200x2": ["check", "--from", f"{RECORDS}/h200x2.json"],
    "h200x2-nobody-low-latency": [
        "check",
        "--from",
        f"{RECORDS}/h200x2-nobody.json",
        "--backend",
        "deepep_low_latency",
    ],
    "waived": [
        "check",
        "--demo",
        "--select",
        "host.memlock-unlimited,gpudirect.memory-registrable,drift.nccl-version",
        "--waivers",
        "tests/data/waivers.yaml",
    ],
    "8xh200-ib": ["check", "--from", f"{RECORDS}/8xh200-ib.json"],
}


def run(argv: list[str], format_: str) -> tuple[int, str]:
    """In this process: a process for each report would take ten times as long."""
    from epdoctor.cli import cli

    words = [*argv, "--format", format_]
    env = {"COLUMNS": "80", "EPDOCTOR_NO_STATE": "1", "NO_COLOR": "1", "GITHUB_STEP_SUMMARY": None}
    # What to type next is told with the words of the command line.
    with mock.patch.object(sys, "argv", ["epdoctor", *words]), inside(ROOT):
        done = CliRunner().invoke(cli, words, env=env, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    code = done.return_value if isinstance(done.return_value, int) else 0
    text = re.sub(r" in \d+\.\d s", " in 0.3 s", done.stdout)
    for timed in (
        r'("seconds": )',
        r'( time=")',
        r'("(?:duration|stop)": )',
        r"( time=)",
        r"(epdoctor_run_seconds )",
    ):
        text = re.sub(timed + r"[\d.e-]+", r"\g<1>0.0", text)
    return code, text


def cases() -> list[tuple[str, str]]:
    return [(name, "text") for name in COMMANDS] + [
        *(("waived", name) for name in format_names() if name not in ("text", "html")),
        ("demo", "json"),
        ("h200x2", "json"),
    ]


@pytest.mark.parametrize(("name", "format_"), cases(), ids=lambda value: value)
def test_report_is_as_it_was(name: str, format_: str) -> None:
    code, text = run(COMMANDS[name], format_)
    path = GOLDEN / f"{name}.{code}.{format_}"
    assert path.is_file(), f"exit code {code}, or a new report: python -m tests.test_golden"
    assert text == path.read_text(), "python -m tests.test_golden, then read the difference"


def test_no_golden_file_is_left_over() -> None:
    known = {f"{name}.{format_}" for name, format_ in cases()}
    assert {re.sub(r"\.\d+\.", ".", path.name) for path in GOLDEN.iterdir()} == known


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.iterdir():
        old.unlink()
    for name, format_ in cases():
        code, text = run(COMMANDS[name], format_)
        (GOLDEN / f"{name}.{code}.{format_}").write_text(text)
