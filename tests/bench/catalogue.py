"""The catalogue's own cost: files compiled and read back, and one node judged by every check."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.measure import median, table

RECORDS = Path(__file__).parents[1] / "records"


CACHED = """
import time
from epdoctor.catalog import load_checks
from epdoctor.explain.causes import load_causes
began = time.process_time()
load_checks()
load_causes()
print((time.process_time() - began) * 1000)
"""


def _cpu_ms(call: Callable[[], object]) -> float:
    """CPU of this process, in ms."""
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1000


def _cached() -> float:
    """Check and cause files from the cache, as a command reads them: once, in a process of its own."""
    return float(subprocess.run([sys.executable, "-c", CACHED], capture_output=True, check=True).stdout)


def _files() -> dict[str, Callable[[], float]]:
    from epdoctor.catalog import compile_checks
    from epdoctor.explain import causes
    from epdoctor.paths import data_dir

    checks = data_dir("checks")
    return {
        "check and cause files from the cache": _cached,
        "check files from YAML": partial(_cpu_ms, partial(compile_checks, checks)),
        "cause files from YAML, with their index": partial(
            _cpu_ms, partial(causes._compile, checks / "errors")
        ),
    }


def _nodes(names: list[str]) -> dict[str, Callable[[], float]]:
    from epdoctor.catalog import load_checks
    from epdoctor.collect.store import parse_record
    from epdoctor.engine import Engine
    from epdoctor.facts.base import CollectOptions
    from epdoctor.judge import judge_record
    from epdoctor.model import Goal

    engine = Engine(load_checks(), Goal(multinode=True))
    found: dict[str, Callable[[], float]] = {}
    for name in names:
        record = parse_record((RECORDS / f"{name}.json").read_bytes(), name)
        judge = partial(judge_record, record, engine, CollectOptions())
        found[f"one node x all checks: {name}"] = partial(_cpu_ms, judge)
    return found


def catalogue(options: argparse.Namespace) -> int:
    """Measure and print; always 0."""
    with tempfile.TemporaryDirectory(prefix="epdbench-") as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        rows = []
        for name, measure in {**_files(), **_nodes(options.records.split(","))}.items():
            measure()
            costs = [measure() for _ in range(options.runs)]
            rows.append([name, f"{min(costs):.1f}", f"{median(costs):.1f}"])
    from epdoctor.catalog import load_checks

    print(f"{len(load_checks())} checks; CPU, {options.runs} runs, {os.cpu_count()} CPUs")
    print(table(["what", "fastest ms", "median ms"], rows))
    return 0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The ``catalogue`` command."""
    parser = commands.add_parser("catalogue", help="check and cause files; one node x all checks")
    parser.add_argument("--runs", type=int, default=9, help="default: %(default)s")
    parser.add_argument(
        "--records", default="8xh200-ib,h200x2", help="names under tests/records (default: %(default)s)"
    )
    parser.set_defaults(call=catalogue)
