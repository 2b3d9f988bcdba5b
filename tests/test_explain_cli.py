"""`epdoctor explain` as it is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from epdoctor.cli import cli
from epdoctor.exceptions import UsageError
from epdoctor.explain.answer import explain_logs, explain_text
from epdoctor.report.explain_text import ExplainText

CQ = "ibgda.cpp:1454: non-zero status: 7 cannot register cq buf."


def _run(*words: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["explain", *words], input=stdin, standalone_mode=False)


def _json(*words: str, stdin: str | bytes | None = None) -> dict[str, object]:
    result = _run(*words, "--format", "json", stdin=stdin)
    assert result.exception is None, result.output
    value = json.loads(result.output)
    assert isinstance(value, dict)
    return value


def test_text_from_arguments() -> None:
    result = _run("cannot", "register", "cq", "buf")
    assert result.return_value == 0
    assert "memlock-limit" in "".join(result.output.splitlines()[:2]), (
        "the id stands beside or under the title"
    )
    assert result.output.splitlines()[-1].startswith("next")


def test_standard_input_and_json() -> None:
    value = _json(stdin=f"INFO fine\n{CQ}\n")
    first = value["results"][0]  # type: ignore[index]  # a list
    assert value["schema_version"] == 1
    assert first["id"] == "memlock-limit"
    assert first["evidence"][0] == {
        "file": "", "line": 2, "text": CQ, "strength": "strong", "program": first["evidence"][0]["program"], "count": 1,
    }  # fmt: skip
    assert {
        "title",
        "score",
        "confidence",
        "certainty",
        "also",
        "consequences",
        "fix",
        "checks",
        "action",
    } <= set(first)
    assert value["maybe"] == []


def test_unknown_is_one() -> None:
    result = _run(stdin="Traceback (most recent call last):\nNameError: name 'x' is not defined\n")
    assert result.return_value == 1
    assert "NOT KNOWN" in result.output
    assert "NameError" in result.output
    assert "epdoctor collect" in result.output
    assert _json("nothing that anyone knows")["results"] == []


def test_files(tmp_path: Path) -> None:
    (tmp_path / "rank0.log").write_text("fine\n")
    (tmp_path / "rank1.log").write_text(f"fine\n{CQ}\n")
    result = _run("-f", str(tmp_path / "rank*.log"))
    assert result.return_value == 0
    assert f"{tmp_path}/rank1.log:2" in result.output.replace("\n              ", "")
    assert "has it: 1 of 2" in result.output
    value = _json("-f", str(tmp_path))
    assert value["files"] == 2


def test_a_file_without_f(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text(f"{CQ}\n")
    assert "server.log:1" in _run(str(tmp_path / "server.log")).output.replace("\n              ", "")


@pytest.mark.parametrize("words", [("-f", "/nowhere.log"), ("-f", "/nowhere*.log"), ("",), ("a", "-f", "b")])
def test_usage(words: tuple[str, ...]) -> None:
    assert isinstance(_run(*words).exception, UsageError)


def test_empty_input_and_empty_folder_are_usage(tmp_path: Path) -> None:
    assert isinstance(_run(stdin="").exception, UsageError)
    assert isinstance(_run("-f", str(tmp_path)).exception, UsageError)


def test_pages() -> None:
    check = _run("gpudirect.memory-registrable")
    assert check.return_value == 0
    assert check.output.startswith("# ")
    assert "`gpudirect.memory-registrable`" in check.output
    cause = _run("memlock-limit")
    assert "`memlock-limit`" in cause.output
    assert isinstance(_run("gpudirect.memory-registrabel").exception, UsageError)


def test_top_and_output_file(tmp_path: Path) -> None:
    target = tmp_path / "answer.json"
    assert _run("cannot register cq buf", "--top", "1", "-o", f"json={target}").return_value == 0
    assert len(json.loads(target.read_text())["results"]) == 1


def test_hostile_text_is_harmless_on_the_terminal() -> None:
    output = _run(stdin=b"\x1b]0;owned\x07" + CQ.encode() + b" \x1b[2J\x1b[31m\xe2\x80\xae\x9b31m\n").output
    assert "\x1b" not in output
    assert "\u202e" not in output
    assert "\x9b" not in output


@pytest.mark.parametrize("width", [40, 80, 100])
def test_prose_keeps_the_width(width: int) -> None:
    text = ExplainText(explain_text(CQ.encode()), width=width).plain()
    for line in text.splitlines():
        prose = not any(
            mark in line for mark in ("now  ", "for good", "meanwhile", "next", "verify", "ulimit", "sudo")
        )
        assert len(line) <= width or not prose, line


def test_ascii_only_has_no_signs() -> None:
    answer = explain_logs([("a.log", [CQ.encode()]), ("b.log", [b"Too many open files"])])
    assert ExplainText(answer, unicode=False, verbose=True).plain().isascii()


def test_whole_process(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    argv = [sys.executable, "-m", "epdoctor", "explain"]
    codes = [
        subprocess.run([*argv, *words], env=env, capture_output=True, stdin=subprocess.DEVNULL).returncode
        for words in (
            ["cannot register cq buf"],
            ["no such thing at all"],
            ["-f", "/nowhere"],
            ["--format", "xml"],
        )
    ]
    assert codes == [0, 1, 2, 2]
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "epdoctor").iterdir()) == [
        "causes",
        "causes",
    ]


def test_a_log_in_constant_memory(tmp_path: Path) -> None:
    """Peak memory over 60 MB is that over 6 MB, give or take what an allocator keeps."""
    code = (
        "import re, sys\n"
        "from epdoctor.explain.answer import explain_logs\n"
        "line = b'(APIServer pid=3) INFO 11-21 10:02:02 [x.py:1] NCCL status size error failed nothing 12\\n'\n"
        "block = line * 6000\n"
        "explain_logs([('x', (block for _ in range(int(sys.argv[1]))))])\n"
        # Not ru_maxrss: over fork and exec it keeps the peak of the process that started this one.
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, count], capture_output=True, check=True).stdout)
        for count in ("12", "120")
    ]
    assert peaks[1] < 200_000
    assert peaks[1] - peaks[0] < 30_000


def test_one_line_is_quick() -> None:
    began = time.process_time()
    explain_text(CQ.encode())
    assert time.process_time() - began < 0.5


def test_the_shell_expands_a_glob_behind_f(tmp_path: Path) -> None:
    for rank in range(3):
        (tmp_path / f"rank{rank}.log").write_text("cannot register cq buf\n")
    result = _run("-f", *(str(tmp_path / f"rank{rank}.log") for rank in range(3)), "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["files"] == 3


def test_bytes_like_a_byte_order_mark_are_not_utf16(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_bytes(b"\xff\xfe\x80 cannot register cq buf \xff\n")
    assert _run("-f", str(tmp_path / "x.log")).exit_code == 0
