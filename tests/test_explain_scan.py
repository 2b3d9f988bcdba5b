"""Finding lines in logs: chunks, long lines, hostile bytes, floods; and literals of a regex."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.exceptions import UsageError
from epdoctor.explain.answer import explain_logs, explain_text
from epdoctor.explain.causes import Pattern, load_causes
from epdoctor.explain.literals import required_literals
from epdoctor.explain.logs import log_files, read_blocks
from epdoctor.explain.match import compile_regex
from epdoctor.explain.scan import Scan, Scanner

CQ = "ibgda.cpp:1454: non-zero status: 7 cannot register cq buf."
HEALTHY = "(APIServer pid=3) INFO 11-21 10:02:02 [loggers.py:257] Engine 000: Avg prompt throughput: 812.1 tokens/s\n"


def _names(blocks: list[bytes]) -> list[str]:
    return [candidate.cause.id for candidate in explain_logs([("x.log", blocks)]).results]


def _scan(blocks: list[bytes], *regexes: str) -> Scan:
    patterns = [Pattern(regex, required_literals(regex), ("a",), (), ()) for regex in regexes]
    return Scanner(patterns).scan("x", blocks)


@pytest.mark.parametrize(
    ("regex", "literals"),
    [
        ("cannot register (cq|wq) buf", ("cannot register cq buf", "cannot register wq buf")),
        (r"a.{0,9}Failed (to )?bind", ("failed bind", "failed to bind")),
        (r"\bXid\b.{0,20}: (79|94)", ("xid",)),
        (r"(foo|bar)?status", ("barstatus", "foostatus", "status")),
        (r"one(two)+three", ("three",)),
        (r"[Nn]o route", ("no route",)),
        (r"\d+ \S+", ()),
        (r"longtext|\d+", ()),
        (r"it's \[done\]\.", ("it's [done].",)),
        (r"(?:abc){2,3}x", ("abc",)),
    ],
)
def test_required_literals(regex: str, literals: tuple[str, ...]) -> None:
    assert required_literals(regex) == literals


@settings(deadline=None)
@given(st.text(alphabet="ab(|)*+?[]{}\\.^$xd1,", max_size=14), st.text(alphabet="abxd1 ,", max_size=12))
def test_a_match_always_holds_a_literal(regex: str, text: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "[[": Python 3.11 warns of a later meaning
            match = re.search(regex, text, re.IGNORECASE)
        compile_regex(regex)
    except (re.error, re2.error):
        return
    literals = required_literals(regex)
    if match and literals and compile_regex(regex).search(text.encode()):
        assert any(literal in text.lower() for literal in literals)


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(0, 3))
def test_chunks_change_nothing(size: int, lines_before: int) -> None:
    text = (HEALTHY * lines_before + CQ + "\n" + HEALTHY).encode()
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    scan = _scan(blocks, "cannot register (cq|wq) buf")
    assert [(hit.line, hit.text) for hit in scan.seen[0].hits] == [(lines_before + 1, CQ)]
    assert scan.lines == lines_before + 2


@pytest.mark.parametrize(
    "text",
    [
        CQ.encode(),
        CQ.encode() + b"\r\n",
        b"\x1b[31mibgda.cpp\x1b[0m: \x1b[1mcannot\x1b[0m \x1b[38;5;9mregister\x1b[m cq buf",
        b"Loading 1%\rLoading 50%\r" + CQ.encode() + b"\rLoading 99%",
        b"\xff\xfe\xfa broken \x80 bytes \xc3( " + CQ.encode(),
        b"\0\0\0binary\0 " + CQ.encode() + b" \0\0",
        b"x" * 1_000_000 + CQ.encode() + b"y" * 1_000_000,
        (CQ.upper() + "\n").encode(),
        ("\u200b" * 40 + CQ).encode(),
    ],
)
def test_hostile_lines(text: bytes) -> None:
    found = _names([text])
    assert found[:1] == ["memlock-limit"]


def test_line_numbers_are_an_editors() -> None:
    text = b"one\r\ntwo\rstill two\r\n" + CQ.encode() + b"\r\nfour"
    hits = _scan([text], "cannot register").seen[0].hits
    assert [hit.line for hit in hits] == [3]


def test_long_line_is_cut_with_overlap() -> None:
    for before in (64 * 1024 - 8, 128 * 1024 - 20, 512 * 1024 - 10):
        text = b"x" * before + CQ.encode() + b"z" * 300_000
        blocks = [text[i : i + 65536] for i in range(0, len(text), 65536)]
        assert 0 in _scan(blocks, "cannot register (cq|wq) buf").seen


def test_flood_keeps_little_and_finds_the_rest() -> None:
    flood = [((CQ + "\n") * 4000).encode()] * 60
    scan = _scan([*flood, b"Too many open files\n"], "cannot register (cq|wq) buf", "too many open files")
    assert len(scan.seen[0].hits) == 5
    assert scan.seen[0].count == 20
    assert scan.seen[1].hits[0].line == 240_001


def test_common_literal_is_still_found() -> None:
    noise = ("status: fine and well\n" * 20000).encode()
    scan = _scan([noise, noise, b"status: 12 broken\n"], r"status: \d+ broken|status=x")
    assert [hit.line for hit in scan.seen[0].hits] == [40_001]


def test_quoted_prompt_is_no_evidence() -> None:
    line = (
        f'INFO [logger.py:43] Received request chatcmpl-1: prompt: "user: {CQ}", params: SamplingParams(n=1)'
    )
    assert _names([line.encode()]) == []


def test_context_is_sought_around_a_hit_only() -> None:
    hit = "Failed to register memory 0x7ed180000000: Cannot allocate memory [12]\n"
    near = "docker inspect: no Ulimits configured\n"  # names nothing by itself
    with_context = explain_text((hit + near).encode()).results[0]
    assert with_context.cause.id == "memlock-limit"
    assert with_context.context >= 1
    far = explain_logs([("x", [(hit + HEALTHY * 3000 + near).encode()])]).results
    assert all(candidate.context == 0 for candidate in far if candidate.cause.id == "memlock-limit")
    assert explain_text(near.encode()).results == [] or not explain_text(near.encode()).results[0].strong


def test_compressed_and_growing_logs(tmp_path: Path) -> None:
    text = (HEALTHY * 50 + CQ + "\n").encode()
    packed = gzip.compress(text)
    (tmp_path / "whole.log.gz").write_bytes(packed)
    (tmp_path / "two.gz").write_bytes(gzip.compress(HEALTHY.encode()) + packed)
    (tmp_path / "utf16.log").write_bytes("\ufeff".encode("utf-16-le") + text.decode().encode("utf-16-le"))
    for name in ("whole.log.gz", "two.gz", "utf16.log"):
        assert _names(list(read_blocks(tmp_path / name)))[:1] == ["memlock-limit"], name
    big = gzip.compress(text + HEALTHY.encode() * 20_000, 1)
    (tmp_path / "growing.gz").write_bytes(big[: len(big) - 40])
    assert _names(list(read_blocks(tmp_path / "growing.gz")))[:1] == ["memlock-limit"]
    if shutil.which("zstd"):
        (tmp_path / "plain").write_bytes(text)
        subprocess.run(["zstd", "-q", str(tmp_path / "plain")], check=True)
        assert _names(list(read_blocks(tmp_path / "plain.zst")))[:1] == ["memlock-limit"]
        whole = (tmp_path / "plain.zst").read_bytes()
        (tmp_path / "broken.zst").write_bytes(whole[: len(whole) // 2])
        list(read_blocks(tmp_path / "broken.zst"))


def test_files_globs_and_folders(tmp_path: Path) -> None:
    for name in ("rank10.log", "rank2.log", "notes.md"):
        (tmp_path / name).write_text("x\n")
    assert [p.name for p in log_files((str(tmp_path),))] == ["rank2.log", "rank10.log"]
    assert [p.name for p in log_files((str(tmp_path / "rank*.log"),))] == ["rank2.log", "rank10.log"]
    (tmp_path / "empty").mkdir()
    for bad in (tmp_path / "empty", tmp_path / "none", tmp_path / "no*.log"):
        with pytest.raises(UsageError):
            log_files((str(bad),))
    with pytest.raises(UsageError):
        list(read_blocks(tmp_path / "empty"))


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_give_an_answer(data: bytes) -> None:
    answer = explain_text(data)
    assert answer.to_json()["schema_version"] == 1


@pytest.mark.parametrize(
    "line",
    [
        "cannot register " * 40_000,
        "failed: " * 80_000,
        "(" * 500_000,
        "a" * 500_000 + "!",
        "NCCL WARN " + "socket 10.0.0.1<" * 30_000,
        "ibv_reg_mr(" * 50_000 + "Cannot allocate memory",
        " " * 500_000 + "error",
        "error: " + "0x" * 250_000,
    ],
)
def test_no_line_takes_long(line: str) -> None:
    began = time.process_time()
    explain_text(line.encode())
    assert time.process_time() - began < 4.0


def test_every_pattern_on_a_hostile_line_is_linear() -> None:
    line = ("ab-12: failed (x=0x7f) not /a/b.c:1 [rank0] status=12 " * 1200).encode()
    for pattern in load_causes().patterns:
        began = time.process_time()
        compile_regex(pattern.regex).search(line)
        assert time.process_time() - began < 2.0, pattern.regex
