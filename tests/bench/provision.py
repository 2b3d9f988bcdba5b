"""A run of `site.yml` that changes nothing, beside Ansible's own ping and setup on the same container nodes.

The nodes are in order: vLLM's environment holds wheels of the right names and versions (empty ones of our own), the
services were restarted, and the driver shows its options as live.

Client and nodes share this machine's CPUs: ratios between contestants of one run mean something, seconds do not
travel."""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.measure import Cost, interleave, median, run, table
from tests.lab.containers import PodmanFleet, unavailable

ROOT = Path(__file__).parents[2]
SYSTEM = (
    "rdma-core",
    "libibverbs1",
    "ibverbs-providers",
    "ibverbs-utils",
    "librdmacm1",
    "perftest",
    "infiniband-diags",
)
"""What the role rdma wants of Debian."""
WHEELS = {
    "vllm": "0.33.0",
    "torch": "2.14.0",
    "nvidia_nccl_cu13": "2.30.7",
    "nvidia_nvshmem_cu13": "3.4.5",
    "nixl": "1.5.0",
    "nixl_cu13": "1.5.0",
    "deep_ep": "2.0.0",
}
"""Of playbooks/roles/versions/defaults/main.yml for that vLLM."""
SETUP_RATIO = 4
"""What a run that changes nothing may take, in times of `ansible -m setup`; printed beside, never asserted."""
LIVE = 'EnableStreamMemOPs: 1\nRegistryDwords: "PeerMappingOverride=1;"\n'
"""/proc/driver/nvidia/params after the boot that the driver options wait for."""
_RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass
class Contestant:
    """One way to run, and what its runs cost."""

    label: str
    argv: Sequence[str]
    complete: Callable[[str], int]
    """How many nodes were in order, by the output."""
    costs: list[Cost] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    tail: str = ""

    @property
    def wall_s(self) -> float:
        """Median wall time of a run."""
        return median(cost.wall_s for cost in self.costs)


def _unchanged(text: str) -> int:
    """Nodes on which nothing was changed and nothing failed, by the recap of every playbook."""
    rows = _RECAP.findall(text)
    return len({row[0] for row in rows} - {row[0] for row in rows if row[1:] != ("0", "0", "0")})


def _right(text: str) -> int:
    """Nodes of epdoctor's JSON plan on which every component was right, or does not apply."""
    try:
        plan = json.loads(text[text.index("{") :])["plan"]
    except (ValueError, KeyError):
        return 0
    wrong = {
        node
        for cells in plan["components"].values()
        for node, state in cells.items()
        if state not in ("right", "absent", "left-alone")
    }
    return len(set(plan["nodes"]) - wrong)


def _wheelhouse(folder: Path) -> Path:
    """Empty wheels, so that pip has nothing to fetch."""
    folder.mkdir()
    for name, version in WHEELS.items():
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            needs = f"Requires-Dist: torch=={WHEELS['torch']}\n" if name == "vllm" else ""
            head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            wheel.writestr(f"{info}/METADATA", head + needs)
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            names = ("METADATA", "WHEEL", "RECORD")
            wheel.writestr(f"{info}/RECORD", "".join(f"{info}/{file},,\n" for file in names))
    return folder


def _contestants(fleet: PodmanFleet, forks: int, wheelhouse: Path, words: Sequence[str]) -> list[Contestant]:
    programs = Path(sys.executable).parent
    inventory, playbooks = str(fleet.inventory), ROOT / "playbooks"
    adhoc = [str(programs / "ansible"), "all", "-i", inventory, "-f", str(forks), "-m"]
    site = [str(programs / "ansible-playbook"), "-i", inventory, "-f", str(forks)]
    site += ["-e", f"source_wheelhouse={wheelhouse}", "-e", "vllm_space_gb=1"]
    tags = ["--tags", "limits,ibgda_driver,gpudirect"]
    product = [sys.executable, "-m", "epdoctor", "provision", inventory, "--format", "json", "-f", str(forks)]
    stack = ["--vllm", WHEELS["vllm"], "--source", f"wheelhouse={wheelhouse}", "-e", "vllm_space_gb=1"]

    def successes(text: str) -> int:
        return text.count("| SUCCESS =>")

    return [
        Contestant("ansible -m ping", [*adhoc, "ping"], successes),
        Contestant("ansible -m setup", [*adhoc, "setup"], successes),
        Contestant("site.yml", [*site, str(playbooks / "site.yml")], _unchanged),
        Contestant("site.yml, limits to gpudirect", [*site, str(playbooks / "site.yml"), *tags], _unchanged),
        Contestant("epdoctor provision --plan", [*product, *words, "--plan"], _right),
        Contestant("epdoctor provision --vllm --plan", [*product, *stack, *words, "--plan"], _right),
    ]


def _once(fleet: PodmanFleet, one: Contestant, scratch: Path, count: int) -> None:
    output = scratch / "output"
    env = {
        **fleet.env,
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(scratch / "state"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "ANSIBLE_CONFIG": str(ROOT / "playbooks" / "ansible.cfg"),
        "ANSIBLE_LOCAL_TEMP": str(scratch / "tmp"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(scratch / "cp"),
        "LC_ALL": "C.UTF-8",
    }
    one.costs.append(run([*fleet.exec_prefix, *one.argv], stdout=output, env=env))
    for socket in (scratch / "cp").glob("*"):  # the next run must connect anew
        subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "x"], capture_output=True)
    text = output.read_text(errors="replace")
    one.answers.append(one.complete(text))
    if one.answers[-1] != count:
        one.tail = text.strip()[-1500:]
    print(f"  {one.label}: {one.costs[-1].wall_s:.2f} s", file=sys.stderr, flush=True)


def _report(contestants: Sequence[Contestant], count: int, forks: int) -> None:
    base = {label: next(one.wall_s for one in contestants if one.label == f"ansible -m {label}") for label in ("ping", "setup")}  # fmt: skip
    rows = [
        [
            one.label,
            f"{one.wall_s:.2f}",
            "/".join(f"{cost.wall_s:.2f}" for cost in one.costs),
            f"{one.wall_s / base['ping']:.2f}",
            f"{one.wall_s / base['setup']:.2f}",
            f"{median(cost.cpu_s for cost in one.costs) / count * 1000:.0f}",
            f"{min(one.answers)}/{count}",
        ]
        for one in contestants
    ]
    runs = len(contestants[0].costs)
    print(
        f"\n{count} container nodes, {forks} at once, nothing to change, median of {runs}, {os.cpu_count()} CPUs"
    )
    print(table(["", "wall s", "runs", "x ping", "x setup", "client CPU ms/node", "in order"], rows))
    print(f"aimed at: site.yml <= {SETUP_RATIO} x setup")
    for one in contestants:
        if one.tail:
            print(f"! {one.label}: not every node was in order; its output ends:\n{one.tail}")


def _converge(fleet: PodmanFleet, contestants: Sequence[Contestant], scratch: Path, count: int) -> None:
    """By the product, with everything; the playbook by itself has no environment to write, which the product computes."""
    *words, _ = contestants[-1].argv
    argv = [*words, "--yes", "--restart-services"]
    _once(fleet, Contestant("converge", argv, lambda text: count), scratch, count)


def provision(options: argparse.Namespace) -> int:
    """Measure, print the table, return 0; 2 where no fleet can be started."""
    reason = unavailable()
    if reason is not None:
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    from tests.provision_lab import make_gpu_node

    count, packages = options.nodes, (*SYSTEM, "python3-venv")
    with (
        tempfile.TemporaryDirectory(prefix="epdb-") as folder,
        PodmanFleet(count, packages=packages) as fleet,
    ):
        scratch = Path(folder)
        (scratch / "cp").mkdir()
        for node in fleet.nodes:
            make_gpu_node(node)
            node.write("/proc/driver/nvidia/params", LIVE)
        contestants = _contestants(fleet, options.forks, _wheelhouse(scratch / "wheels"), options.words)
        _converge(fleet, contestants, scratch, count)
        calls = [functools.partial(_once, fleet, one, scratch, count) for one in contestants]
        interleave(options.runs, calls)
        _report(contestants, count, options.forks)
    return 0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The ``provision`` command."""
    parser = commands.add_parser(
        "provision", help="a run that changes nothing, beside Ansible's ping and setup"
    )
    parser.add_argument("--nodes", type=int, default=8, help="container nodes (default: %(default)s)")
    parser.add_argument("--forks", type=int, default=32, help="how many at once (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=3, help="rounds; medians are printed (default: %(default)s)"
    )
    parser.add_argument("words", nargs="*", help="more words for epdoctor provision")
    parser.set_defaults(call=provision)
