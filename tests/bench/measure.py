"""Run a command and see what it cost."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What one run of a command took."""

    wall_s: float
    cpu_s: float
    """User and system CPU of the process and of all descendants that were waited for."""
    max_rss_mib: float
    """Largest resident set of the process or of one descendant."""
    returncode: int


def run(
    argv: Sequence[str],
    *,
    stdout: Path,
    stdin: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Cost:
    """Run a command with stdout and stderr in one file; never raises for its return code."""
    with stdout.open("wb") as out, (stdin or Path(os.devnull)).open("rb") as source:
        began = time.monotonic()
        process = subprocess.Popen(argv, stdin=source, stdout=out, stderr=out, env=env)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, process.returncode)


def interleave(runs: int, contestants: Iterable[Callable[[], None]]) -> None:
    """Call each contestant once per round, so that a slow minute of the machine hits all alike."""
    rounds = list(contestants)
    for _ in range(runs):
        for contestant in rounds:
            contestant()


def median(values: Iterable[float]) -> float:
    """Median; nan of nothing."""
    found = list(values)
    return statistics.median(found) if found else float("nan")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned first column, right-aligned others."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
