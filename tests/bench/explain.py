"""What ``epdoctor explain`` costs: one line, a healthy log, one full of common words, one where a third of the lines hit."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from epdoctor.explain.causes import load_causes
from tests.bench.measure import Cost, interleave, median, run, table

_HEALTHY = (
    (
        "(EngineCore_DP{n} pid={p}) INFO 11-21 10:02:{s:02d} [core.py:123] Initializing a V1 LLM engine (v0.33.0) with "
        "config: model='/models/DeepSeek-V3.1', tensor_parallel_size=1, data_parallel_size=16, quantization=fp8"
    ),
    (
        "(APIServer pid={p}) INFO 11-21 10:02:{s:02d} [loggers.py:257] Engine 00{n}: Avg prompt throughput: 812.{s} "
        "tokens/s, Avg generation throughput: {p}.4 tokens/s, Running: {s} reqs, Waiting: 0 reqs, GPU KV cache usage: 3{n}.2%"
    ),
    "gpu-node-{n}:{p}:{p} [{n}] NCCL INFO Channel {s:02d}/0 : {n}[{n}] -> 1[1] [send] via NET/IB/{n}/GDRDMA",
    '(APIServer pid={p}) INFO:     10.0.0.{s}:31{s:02d} - "POST /v1/completions HTTP/1.1" 200 OK',
)


_COMMON = [
    "gpu",
    "nccl",
    "driver",
    "using",
    "plugin",
    "error",
    "warning",
    "device",
    "cuda",
    "rank",
    "timeout",
    "memory",
    "version",
    "worker",
    "connection",
    "network",
    "rdma",
    "library",
    "kernel",
    "process",
    "engine",
    "socket",
    "init",
    "no",
    "for",
    "on",
]
KINDS = ("healthy", "dense in common words", "a third of the lines hit")


def _line(number: int, kind: str, examples: list[str]) -> str:
    if kind == KINDS[2] and number % 3 == 0:
        return examples[number // 3 % len(examples)]
    if kind == KINDS[1]:
        words = " ".join(_COMMON[(number * step + step) % len(_COMMON)] for step in range(1, 13))
        return f"(EngineCore_DP{number % 8} pid={4000 + number % 997}) INFO 11-21 10:02:{number % 60:02d} {words} {number}"
    return _HEALTHY[number % len(_HEALTHY)].format(n=number % 8, p=4000 + number % 997, s=number % 60)


def write_log(path: Path, size_bytes: int, kind: str) -> None:
    """A log of about this size; of the last kind every third line is an example of the catalogue."""
    causes = load_causes()
    examples = [
        s.example.split("\n")[0]
        for c in causes
        for s in causes[c].signatures
        if s.strength in ("strong", "weak")
    ]
    block = "".join(
        _line(number, kind, examples) + "\n" for number in range(3 * max(4000, len(examples)))
    ).encode()
    with path.open("wb") as stream:
        written = 0
        while written < size_bytes:
            written += stream.write(block)


def _literals(path: Path) -> int:
    found = sorted({literal for pattern in load_causes().patterns for literal in pattern.literals})
    path.write_text("\n".join(_escaped(literal) for literal in found) + "\n")
    return len(found)


def _escaped(literal: str) -> str:
    return "".join("\\" + c if c in r"\.[]{}()*+?|^$" else c for c in literal)


def _rows(costs: dict[str, list[Cost]], size_bytes: int) -> Iterator[list[str]]:
    for label, found in costs.items():
        cpu = median(cost.cpu_s for cost in found)
        wall = median(cost.wall_s for cost in found)
        rate = f"{size_bytes / 1e6 / cpu:.0f}" if size_bytes and cpu else ""
        rss = max(cost.max_rss_mib for cost in found)
        yield [label, f"{wall:.2f}", f"{cpu:.2f}", rate, f"{rss:.0f}"]


def _measure(into: list[Cost], argv: list[str], output: Path) -> None:
    into.append(run(argv, stdout=output))


def explain(options: argparse.Namespace) -> int:
    """Measure and print; nothing is asserted but that the programs ran."""
    epdoctor = [sys.executable, "-m", "epdoctor", "explain"]
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        output = Path(folder, "output")
        line: dict[str, list[Cost]] = {"epdoctor explain TEXT": [], "python -c pass": []}
        one = {
            "epdoctor explain TEXT": [*epdoctor, "cannot register cq buf"],
            "python -c pass": [sys.executable, "-c", "pass"],
        }
        run(one["epdoctor explain TEXT"], stdout=output)  # writes the compiled catalogue, unmeasured
        interleave(options.runs, [partial(_measure, line[k], a, output) for k, a in one.items()])
        print(f"{os.cpu_count()} CPUs, medians; a line, {options.runs} runs")
        print(table(["", "wall s", "CPU s", "", "MiB"], _rows(line, 0)))
        patterns = Path(folder, "literals")
        count = _literals(patterns)
        failed = False
        for kind in KINDS:
            log = Path(folder, "log")
            write_log(log, options.megabytes * 1_000_000, kind)
            contestants = {
                "read the file": ["cat", str(log)],
                "epdoctor explain -f": [*epdoctor, "--format", "json", "-f", str(log)],
            }
            if shutil.which("grep") and options.grep:
                contestants["grep -c -i -E -f"] = ["grep", "-c", "-i", "-E", "-f", str(patterns), str(log)]
            costs: dict[str, list[Cost]] = {label: [] for label in contestants}
            target = {label: Path(os.devnull) if "read" in label else output for label in contestants}
            interleave(
                options.rounds,
                [partial(_measure, costs[k], a, target[k]) for k, a in contestants.items()],
            )
            print(f"\n{options.megabytes} MB, {kind}; {count} literals, {options.rounds} rounds")
            print(table(["", "wall s", "CPU s", "MB/s of CPU", "MiB"], _rows(costs, log.stat().st_size)))
            failed |= any(c.returncode not in (0, 1) for found in costs.values() for c in found)
            if kind == KINDS[2]:
                run(contestants["epdoctor explain -f"], stdout=output)
                print("causes named:", [r["id"] for r in json.loads(output.read_bytes())["results"]])
    return int(failed)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The ``explain`` command."""
    parser = commands.add_parser("explain", help="epdoctor explain beside grep and reading the file")
    parser.add_argument("--megabytes", type=int, default=250, help="size of the logs (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="runs of one line (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over the logs (default: %(default)s)")
    parser.add_argument("--dir", help="where to write the logs (default: the temporary folder)")
    parser.add_argument("--no-grep", dest="grep", action="store_false", help="leave grep out: it is slow")
    parser.set_defaults(call=explain)
