"""Judge a recording of thousands of nodes: time and memory of ``epdoctor check --from``."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.measure import median, run, table

EPDOCTOR = [sys.executable, "-m", "epdoctor"]


def record_this_machine(folder: Path) -> Path:
    """A recording of the machine we run on. Raises SystemExit when epdoctor cannot make one."""
    target = folder / "one"
    done = subprocess.run([*EPDOCTOR, "collect", "-o", str(target)], capture_output=True, text=True)
    if not (target / "cluster.json").exists():
        raise SystemExit(f"bench: epdoctor collect failed:\n{done.stderr[-800:]}")
    return target


def multiply(source: Path, target: Path, count: int) -> int:
    """Write ``count`` nodes, copies of those in a recording in turn under new names; return their bytes.

    A node's old name is replaced wherever it stands as a JSON string of its own and in the
    outcome; texts that hold it within a line stay.
    """
    cluster: dict[str, Any] = json.loads((source / "cluster.json").read_text())
    originals = [path.read_text() for path in sorted(source.glob("*.json")) if path.name != "cluster.json"]
    if not originals:
        raise SystemExit(f"bench: {source} holds no node")
    width = len(str(count))
    names = [f"bench{number:0{width}d}" for number in range(1, count + 1)]
    options = cluster.get("options")
    if isinstance(options, dict) and "node_names" in options:
        options["node_names"] = names
    target.mkdir()
    (target / "cluster.json").write_text(json.dumps(cluster))
    total = 0
    for number, name in enumerate(names):
        text = originals[number % len(originals)]
        old = json.loads(text)["node"]
        total += (target / f"{name}.json").write_text(text.replace(json.dumps(old), json.dumps(name)))
    return total


def judge(options: argparse.Namespace) -> int:
    """Measure and print; returns 1 when the command did not judge all nodes."""
    with tempfile.TemporaryDirectory(prefix="epdbench-") as scratch:
        folder = Path(scratch)
        source = options.record or record_this_machine(folder)
        rows, failed = [], 0
        for count in [int(word) for word in options.nodes.split(",")]:
            many = folder / f"recording-{count}"
            size = multiply(source, many, count)
            output = folder / "report"
            argv = [*EPDOCTOR, "check", "--from", str(many), *shlex.split(options.words)]
            costs = [run(argv, stdout=output) for _ in range(options.runs)]
            text = output.read_text(errors="replace")
            codes = sorted({cost.returncode for cost in costs})
            if not set(codes) <= {0, 1, 3}:
                failed = 1
                print(f"! {shlex.join(argv)} ended with {codes}:\n{text[-800:]}", file=sys.stderr)
            rows.append(
                [
                    str(count),
                    f"{size / 1e6:.0f}",
                    f"{median(cost.wall_s for cost in costs):.2f}",
                    f"{median(cost.cpu_s for cost in costs):.2f}",
                    f"{max(cost.max_rss_mib for cost in costs):.0f}",
                    f"{output.stat().st_size / 1e6:.2f}",
                    ",".join(map(str, codes)),
                ]
            )
        print(f"epdoctor check --from DIR {options.words}: median of {options.runs}, {os.cpu_count()} CPUs")
        print("RSS is that of the largest process")
        head = ["nodes", "recording MB", "wall s", "CPU s", "peak RSS MiB", "report MB", "rc"]
        print(table(head, rows))
    return failed


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The ``judge`` command."""
    parser = commands.add_parser("judge", help="epdoctor check --from a recording of thousands of nodes")
    parser.add_argument("--nodes", default="2000", help="how many, e.g. 64,2000 (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="medians are printed (default: %(default)s)")
    parser.add_argument("--record", type=Path, help="recording to multiply (a folder; default: this machine)")
    parser.add_argument("--words", default="--format json", help="further words (default: %(default)s)")
    parser.set_defaults(call=judge)
