"""How long ``epdoctor lint`` takes for the scripts of many nodes, beside the imports of yaml and click."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.bench.measure import Cost, interleave, median, run, table

_SCRIPT = """#!/bin/bash
export GLOO_SOCKET_IFNAME=eth0
export NVSHMEM_QP_DEPTH=$(( (TOKENS + 1) * 2 ))
vllm serve deepseek-ai/DeepSeek-V3-0324 \\
  --tensor-parallel-size 1 --enable-expert-parallel --all2all-backend deepep_low_latency \\
  --data-parallel-size {size} --data-parallel-size-local 8 --data-parallel-start-rank {start} \\
  --data-parallel-address 10.0.0.1 --data-parallel-rpc-port 13345 --max-num-batched-tokens $TOKENS \\
  --enable-eplb --eplb-config '{{"num_redundant_experts": {redundant}}}' {head}
"""


def write_scripts(folder: Path, nodes: int) -> list[str]:
    """One script a node; the head first."""
    paths = []
    for node in range(nodes):
        path = folder / f"node{node:03d}.sh"
        text = _SCRIPT.format(
            size=8 * nodes, start=8 * node, redundant=-256 % (8 * nodes), head="--headless" if node else ""
        )
        path.write_text(text.replace("#!/bin/bash\n", "#!/bin/bash\nTOKENS=256\n"))
        paths.append(str(path))
    return paths


def lint(options: argparse.Namespace) -> int:
    """Measure and print; returns 1 when a command failed."""
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scripts = write_scripts(Path(folder), options.nodes)
        output = Path(folder, "output")
        commands = {
            'python -c "import yaml, click"': [sys.executable, "-c", "import yaml, click"],
            f"epdoctor lint ({options.nodes} scripts)": [sys.executable, "-m", "epdoctor", "lint", *scripts],
        }
        for label, argv in commands.items():
            costs[label] = []
            run(argv, stdout=output)  # byte code and the catalogue's cache are written once, unmeasured
        turns = [
            lambda label=label, argv=argv: costs[label].append(run(argv, stdout=output))
            for label, argv in commands.items()
        ]
        interleave(options.runs, turns)
    rows = [
        [
            label,
            f"{median(cost.wall_s for cost in found) * 1000:.0f}",
            f"{median(cost.cpu_s for cost in found) * 1000:.0f}",
        ]
        for label, found in costs.items()
    ]
    print(f"median of {options.runs}, interleaved, {os.cpu_count()} CPUs")
    print(table(["", "wall ms", "CPU ms"], rows))
    failed = [label for label, found in costs.items() if any(cost.returncode not in (0, 1) for cost in found)]
    for label in failed:
        print(f"! {label} failed", file=sys.stderr)
    return 1 if failed else 0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The ``lint`` command."""
    parser = commands.add_parser("lint", help="epdoctor lint of many nodes' scripts")
    parser.add_argument("--nodes", type=int, default=64, help="scripts (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=15, help="rounds (default: %(default)s)")
    parser.set_defaults(call=lint)
