"""The real command line, run as a user would beside a lab's nodes: own HOME, own XDG folders, real exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    """One run of epdoctor that ended."""

    rc: int
    out: bytes
    """Standard output, as it came."""
    err: str
    report: dict[str, Any]
    """The JSON report; empty where there was none."""

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """What became of each node, by name."""
        return {node["name"]: node for node in self.report["nodes"]}

    @property
    def reached(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node["reached"]]

    def finding(self, check: str, node: str = "") -> dict[str, Any]:
        """The finding of a check on a node, or the cluster's. Raises StopIteration where there is none."""
        return next(
            found
            for found in self.report["findings"]
            if found["id"] == check and (not node or node in found["nodes"])
        )

    def statuses(self, check: str) -> dict[str, str]:
        """Status by node."""
        return {
            node: found["status"]
            for found in self.report["findings"]
            if found["id"] == check
            for node in found["nodes"]
        }

    def failed(self) -> set[tuple[str, str]]:
        """(check, node) of everything that failed; a cluster finding counts for each node that it names."""
        return {
            (found["id"], node)
            for found in self.report["findings"]
            if found["status"] == "fail"
            for node in found["nodes"]
        }

    def broken(self) -> list[str]:
        """Tracebacks of bugs of our own."""
        return [found.get("traceback", "") for found in self.report["findings"] if found["status"] == "error"]

    def of_node(self, node: str) -> list[str]:
        """All findings of one node's own checks as comparable text: without times, cluster findings left out."""
        return sorted(
            json.dumps({**found, "seconds": 0, "nodes": [node]}, sort_keys=True)
            for found in self.report["findings"]
            if node in found["nodes"] and not _of_cluster(found)
        )

    def all_findings(self) -> list[str]:
        return sorted(
            json.dumps({**found, "seconds": 0}, sort_keys=True) for found in self.report["findings"]
        )


def _of_cluster(found: Mapping[str, Any]) -> bool:
    return any(problem["odd_nodes"] for problem in found.get("problems", ()))


class Doctor:
    """A user of epdoctor with a home of their own. ``prefix`` are the words that lead to where the nodes are."""

    def __init__(
        self, folder: Path, *, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.prefix = list(prefix)
        for name in ("home", "tmp", "work"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "LD_LIBRARY_PATH") if key in os.environ}
        self.env = {
            **kept,
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "PYTHONPATH": str(ROOT),
            "PYTHONUTF8": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **(env or {}),
        }

    def argv(self, *words: str) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "epdoctor", *words]

    def run(self, *words: str, timeout: float = 120, **env: str) -> Done:
        """Any command; ``-o json=FILE`` is read back."""
        return self.start(*words, **env).wait(timeout)

    def check(self, *words: str, timeout: float = 120, **env: str) -> Done:
        """``epdoctor check``: the screen on standard output and the JSON report beside it."""
        return self.start("check", *words, f"-ojson={self.folder}/report.json", **env).wait(timeout)

    def start(self, *words: str, **env: str) -> Running:
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        process = subprocess.Popen(
            self.argv(*words),
            env={**self.env, **env},
            cwd=self.folder / "work",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_hears_interrupts,
        )
        return Running(process, report)

    def on_terminal(self, *words: str, streams: Sequence[str] = ("stdout",)) -> tuple[int, bytes, bytes]:
        """Run with some streams on a terminal: exit code, what the terminal got, what the other stream got."""
        main, end = pty.openpty()
        process = subprocess.Popen(
            self.argv(*words),
            env={**self.env, "TERM": "xterm-256color"},
            cwd=self.folder / "work",
            stdin=end,
            stdout=end if "stdout" in streams else subprocess.PIPE,
            stderr=end if "stderr" in streams else subprocess.PIPE,
            start_new_session=True,
        )
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the last writer has closed the other end
            while part := os.read(main, 65536):
                shown += part
        os.close(main)
        out, err = process.communicate(timeout=60)
        return process.returncode, shown, out or err or b""

    def recordings(self) -> list[Path]:
        """What check kept, oldest first."""
        return sorted((self.folder / "state" / "epdoctor" / "recordings").glob("*.tar.gz"))


def _hears_interrupts() -> None:
    """A shell starts background jobs with SIGINT ignored, which their children inherit (POSIX, sh, section 2.11)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Running:
    """An epdoctor under way."""

    process: subprocess.Popen[bytes]
    report: Path

    def interrupt(self) -> float:
        """Ctrl-C; returns time.monotonic()."""
        self.process.send_signal(signal.SIGINT)
        return time.monotonic()

    def wait(self, timeout: float = 120) -> Done:
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        data = json.loads(self.report.read_text()) if self.report.exists() else {}
        return Done(self.process.returncode, out, err.decode(errors="replace"), data)


def until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """Wait for something; False when it did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def need(reason: str | None) -> None:
    """For fixtures of a module, which start before the gate in conftest.py: skip, or fail where it must run."""
    if reason is not None:
        if os.environ.get("EPDOCTOR_LAB") == "required":
            pytest.fail(f"EPDOCTOR_LAB=required, but: {reason}", pytrace=False)
        pytest.skip(reason)


def without_style(data: bytes) -> bytes:
    """What a terminal got, without colour and with plain line ends."""
    return re.sub(rb"\x1b\[[0-9;]*m", b"", data).replace(b"\r\n", b"\n")


def raw_controls(data: bytes) -> list[str]:
    """Control characters in what was printed, other than line ends: none is wanted in plain text."""
    text = data.decode("utf-8", "surrogateescape")
    return sorted(
        {repr(char) for char in text if (ord(char) < 32 or 127 <= ord(char) < 160) and char != "\n"}
    )


def no_traceback(done: Done) -> None:
    """What no user may see, on either stream, and no bug of ours in the report."""
    for stream in (done.text, done.err):
        for needle in ("Traceback (most recent call last)", "bug in epdoctor", "internal error"):
            assert needle not in stream, stream
    assert done.broken() == [] if done.report else True
