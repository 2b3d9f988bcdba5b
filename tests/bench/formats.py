"""Write a report of hundreds of nodes in every format: time, peak memory, size."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.measure import median, run, table

_ONE = """
import sys, time
from pathlib import Path
from epdoctor.cli.outputs import Output, Outputs
from epdoctor.report.formats import format_names
from tests.reports import large_report
nodes, checks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
names = sys.argv[4:] or format_names()
report = large_report(nodes, checks)
started = time.perf_counter()
code = Outputs(tuple(Output(name, str(folder / name)) for name in names), "", "", False, False).write(report)
print(time.perf_counter() - started)
"""


def formats(options: argparse.Namespace) -> int:
    """Measure and print; returns 1 when a format was not written."""
    from epdoctor.report.formats import format_names

    rows, failed = [], 0
    size = [str(options.nodes), str(options.checks), os.devnull]
    build = _ONE.replace("code =", "sys.exit(); code =")
    base = median(
        run([sys.executable, "-c", build, *size], stdout=Path(os.devnull)).cpu_s for _ in range(options.runs)
    )
    with tempfile.TemporaryDirectory(prefix="epdbench-") as scratch:
        for names in [[], *([name] for name in format_names())]:
            folder = Path(scratch) / (names[0] if names else "all")
            folder.mkdir()
            size = [str(options.nodes), str(options.checks), str(folder)]
            seconds, costs = [], []
            for _ in range(options.runs):
                output = Path(scratch) / "seconds"
                started = time.perf_counter()
                costs.append(run([sys.executable, "-c", _ONE, *size, *names], stdout=output))
                text = output.read_text().strip()
                seconds.append(float(text) if text else time.perf_counter() - started)
            failed |= any(cost.returncode for cost in costs)
            written = sum(path.stat().st_size for path in folder.iterdir())
            rows.append(
                [
                    names[0] if names else "all of them",
                    f"{median(seconds):.2f}",
                    f"{median(cost.cpu_s for cost in costs) - base:.2f}",
                    f"{max(cost.max_rss_mib for cost in costs):.0f}",
                    f"{written / 1e6:.2f}",
                ]
            )
    print(f"{options.nodes} nodes x {options.checks} checks, median of {options.runs}, {os.cpu_count()} CPUs")
    print("CPU is without starting and building the report itself, which is in peak RSS")
    print(table(["format", "wall s", "CPU s", "peak RSS MiB", "MB"], rows))
    return int(failed)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The ``formats`` command."""
    parser = commands.add_parser("formats", help="a report of a big cluster in every format")
    parser.add_argument("--nodes", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--checks", type=int, default=150, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="medians are printed (default: %(default)s)")
    parser.set_defaults(call=formats)
