"""How long ``epdoctor --version`` takes beside the import of click alone."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.bench.measure import Cost, interleave, median, run, table


def startup(options: argparse.Namespace) -> int:
    """Measure and print; returns 1 when a command failed."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        'python -c "import click"': [sys.executable, "-c", "import click"],
        "epdoctor --version": [sys.executable, "-m", "epdoctor", "--version"],
    }
    costs: dict[str, list[Cost]] = {label: [] for label in commands}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        for argv in commands.values():
            run(argv, stdout=output)  # byte code is written once, unmeasured
        turns = [
            lambda label=label, argv=argv: costs[label].append(run(argv, stdout=output))
            for label, argv in commands.items()
        ]
        interleave(options.runs, turns)
    base = median(cost.wall_s for cost in costs['python -c "import click"'])
    rows = []
    for label, found in costs.items():
        wall = median(cost.wall_s for cost in found)
        cpu = median(cost.cpu_s for cost in found)
        rows.append([label, f"{wall * 1000:.0f}", f"{cpu * 1000:.0f}", f"{wall / base:.2f}"])
    print(f"median of {options.runs}, interleaved, {os.cpu_count()} CPUs")
    print(table(["", "wall ms", "CPU ms", "to import click"], rows))
    failed = [label for label, found in costs.items() if any(cost.returncode for cost in found)]
    for label in failed:
        print(f"! {label} failed", file=sys.stderr)
    return 1 if failed else 0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The ``startup`` command."""
    parser = commands.add_parser("startup", help="epdoctor --version beside import click")
    parser.add_argument("--runs", type=int, default=15, help="rounds (default: %(default)s)")
    parser.set_defaults(call=startup)
