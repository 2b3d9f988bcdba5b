"""``epdoctor check --all-nodes`` beside plain OpenSSH and Ansible on real sshd in network namespaces.

Client and nodes share this machine's CPUs, so wall time is bound by the sum of both sides:
ratios between contestants of one run mean something, seconds do not travel.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.measure import Cost, interleave, median, run, table
from tests.lab.netns import NetnsFleet, unavailable

END_LINE = re.compile(r"^@@epdoctor-end \S+ (\{.*\})$", re.MULTILINE)
DEFAULT_COMMAND = (
    f"{shlex.quote(sys.executable)} -m epdoctor check --all-nodes"
    " -i {inventory} --forks {forks} -o json={report}"
)
"""A command of your own should keep ``-o json={report}``: the nodes that answered are counted there."""
AGENT_CPU_MS = 250
"""What the agent and its probes may cost a node; printed beside the figure, never asserted."""


@dataclass
class Contestant:
    """One way to ask all nodes, and what its runs cost."""

    label: str
    start: Callable[[Path], Cost]
    """Run it once with this file for its output."""
    answered: Callable[[Path], int]
    """How many nodes answered, from that file and what lies beside it."""
    costs: list[Cost] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    tail: str = ""

    def once(self, folder: Path) -> None:
        """One run, in an empty folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        output = folder / "output"
        self.costs.append(self.start(output))
        self.answers.append(self.answered(output))
        self.tail = output.read_text(errors="replace").strip()[-400:]

    def complete(self, count: int) -> bool:
        """Whether every node answered in every run; the time of another run says nothing."""
        return min(self.answers) == count

    @property
    def wall_s(self) -> float:
        """Median wall time of a run."""
        return median(cost.wall_s for cost in self.costs)

    @property
    def cpu_s(self) -> float:
        """Median CPU time of the client."""
        return median(cost.cpu_s for cost in self.costs)


def agent_cpu_ms(folder: Path) -> list[float]:
    """The agents' own reports in the files of a folder; empty where they report none."""
    found = []
    for path in folder.glob("node-*"):
        for text in END_LINE.findall(path.read_text(errors="replace")):
            value = json.loads(text).get("cpu_s")
            if isinstance(value, (int, float)):
                found.append(value * 1000)
    return found


def payload() -> bytes:
    """What a node's python3 gets on stdin."""
    argv = [sys.executable, "-m", "epdoctor.collect.plan", "--print-payload"]
    done = subprocess.run(argv, capture_output=True)
    if done.returncode != 0 or not done.stdout:
        raise SystemExit(f"bench: {shlex.join(argv)} failed:\n{done.stderr.decode(errors='replace')[-800:]}")
    return done.stdout


def _loop(fleet: NetnsFleet, forks: int, remote: str, stdin: Path) -> Callable[[Path], Cost]:
    """An OpenSSH loop, ``forks`` at a time, each node's output in ``node-NAME``."""
    names = fleet.dir / "names"
    names.write_text("".join(f"{node.name}\n" for node in fleet.nodes))
    script = 'exec ssh -F "$1" -o BatchMode=yes "$4" "$2" <"$3" >"node-$4" 2>&1'
    words = ["sh", "-c", script, "sh", str(fleet.ssh_config), remote, str(stdin), "{}"]

    def start(output: Path) -> Cost:
        inner = shlex.join(["xargs", "-P", str(forks), "-I", "{}", *words])
        argv = [*fleet.exec_prefix, "sh", "-c", f"cd {shlex.quote(str(output.parent))} && exec {inner}"]
        return run(argv, stdout=output, stdin=names)

    return start


def _ansible(fleet: NetnsFleet, forks: int, program: str, state: Path) -> Callable[[Path], Cost]:
    env = {
        **os.environ,
        "ANSIBLE_LOCAL_TEMP": str(state),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(state / "cp"),
        "LC_ALL": "C.UTF-8",
    }

    def start(output: Path) -> Cost:
        argv = [program, "all", "-i", str(fleet.inventory), "-m", "setup", "-f", str(forks)]
        cost = run([*fleet.exec_prefix, *argv], stdout=output, env=env)
        for socket in (state / "cp").glob("*"):  # the next run must connect anew
            close = ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "x"]
            subprocess.run(close, capture_output=True)
        return cost

    return start


def _contestants(fleet: NetnsFleet, options: argparse.Namespace, scratch: Path) -> list[Contestant]:
    forks, count = options.forks, len(fleet.nodes)
    agent = scratch / "payload"
    python = f"{shlex.quote(options.node_python)} -IB"

    def product(output: Path) -> Cost:
        report = output.with_name("report.json")
        text = options.command.format(inventory=fleet.inventory, forks=forks, report=report)
        env = {**os.environ, "XDG_STATE_HOME": str(scratch / "state")}
        return run([*fleet.exec_prefix, *shlex.split(text)], stdout=output, env=env)

    def product_answers(output: Path) -> int:
        report = output.with_name("report.json")
        if not report.exists():
            return 0
        return sum(node["reached"] for node in json.loads(report.read_text())["nodes"])

    def loop_answers(output: Path) -> int:
        return sum(bool(END_LINE.search(p.read_text(errors="replace"))) for p in output.parent.glob("node-*"))

    def silent(output: Path) -> int:
        return sum(p.stat().st_size == 0 for p in output.parent.glob("node-*"))

    found = [
        Contestant("epdoctor", product, product_answers),
        Contestant(
            "(a) ssh loop, same agent and plan", _loop(fleet, forks, f"{python} -", agent), loop_answers
        ),
        Contestant(
            "(b) ssh loop, python -c pass", _loop(fleet, forks, f"{python} -c pass", Path(os.devnull)), silent
        ),
    ]
    program = Path(sys.executable).with_name("ansible")
    if program.exists() and not options.without_ansible:
        state = scratch / f"ansible-{count}"
        (state / "cp").mkdir(parents=True)
        setup = _ansible(fleet, forks, str(program), state)
        found.append(Contestant("(c) ansible -m setup", setup, lambda o: o.read_text().count("| SUCCESS =>")))
    return found


def _report(count: int, forks: int, contestants: list[Contestant], agent_ms: list[float]) -> None:
    first = contestants[0]
    rows = []
    for one in contestants:
        codes = ",".join(sorted({str(cost.returncode) for cost in one.costs}))
        rows.append(
            [
                one.label,
                f"{one.wall_s:.2f}",
                "/".join(f"{cost.wall_s:.2f}" for cost in one.costs),
                _ratio(first, one, count),
                f"{one.cpu_s / count * 1000:.0f}",
                f"{max(cost.max_rss_mib for cost in one.costs):.0f}",
                f"{min(one.answers)}/{count}",
                codes,
            ]
        )
    print(f"\n{count} nodes, {forks} at once, median of {len(first.costs)}, {os.cpu_count()} CPUs")
    head = ["", "wall s", "runs", "epdoctor/this", "client CPU ms/node", "RSS MiB", "answers", "rc"]
    print(table(head, rows))
    cpu = f"{median(agent_ms):.0f}, largest {max(agent_ms):.0f}" if agent_ms else "n/a"
    print(f"agent CPU ms a node: {cpu} (aimed at <= {AGENT_CPU_MS})")
    for one in contestants:
        if not one.complete(count):
            print(f"! {one.label}: {min(one.answers)} of {count} answered; its output ends:\n{one.tail}")


def _ratio(first: Contestant, other: Contestant, count: int) -> str:
    if not (first.complete(count) and other.complete(count)):
        return "n/a"
    return f"{first.wall_s / other.wall_s:.2f}"


def fanout(options: argparse.Namespace) -> int:
    """Measure, print the tables, return 0; 2 where no fleet can be started."""
    reason = unavailable()
    if reason is not None:
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    counts = [int(word) for word in options.nodes.split(",")]
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="epdbench-")))
        (scratch / "payload").write_bytes(payload())
        print(
            f"payload {(scratch / 'payload').stat().st_size / 1024:.0f} KiB; starting {counts} nodes",
            flush=True,
        )
        fields: dict[int, list[Contestant]] = {}
        agent_ms: dict[int, list[float]] = {count: [] for count in counts}
        for count in counts:
            fields[count] = _contestants(stack.enter_context(NetnsFleet(count)), options, scratch)

        def turn(count: int, one: Contestant) -> Callable[[], None]:
            def once() -> None:
                folder = scratch / "run"
                one.once(folder)
                agent_ms[count] += agent_cpu_ms(folder)
                print(
                    f"  {count} nodes  {one.label}: {one.costs[-1].wall_s:.2f} s", file=sys.stderr, flush=True
                )

            return once

        interleave(options.runs, [turn(count, one) for count in counts for one in fields[count]])
        for count in counts:
            _report(count, options.forks, fields[count], agent_ms[count])
        for few, many in itertools.pairwise(counts):
            print(f"\ntime a node at {many} nodes relative to {few}:")
            for small, large in zip(fields[few], fields[many], strict=True):
                whole = small.complete(few) and large.complete(many)
                growth = (large.wall_s / many) / (small.wall_s / few)
                print(f"  {small.label}: {f'{growth:.2f}' if whole else 'n/a'}")
    return 0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The ``fanout`` command."""
    parser = commands.add_parser("fanout", help="epdoctor over SSH beside an OpenSSH loop and Ansible")
    parser.add_argument("--nodes", default="64", help="how many, e.g. 64 or 64,200 (default: %(default)s)")
    parser.add_argument("--forks", type=int, default=32, help="how many at once (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=3, help="rounds; medians are printed (default: %(default)s)"
    )
    parser.add_argument(
        "--command", default=DEFAULT_COMMAND, help="epdoctor's command (default: %(default)s)"
    )
    parser.add_argument("--node-python", default="/usr/bin/python3", help="interpreter on the nodes")
    parser.add_argument("--without-ansible", action="store_true", help="leave (c) out")
    parser.set_defaults(call=fanout)
