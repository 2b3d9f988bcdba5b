"""Plant faults on virtual machines one at a time, run ``epdoctor check``, and say what it found.

``python -m tests.detection`` does it for every fault and writes docs/detection.md (five minutes on two idle
cores); ``python -m tests.detection ID...`` does some faults again and replaces their lines.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from epdoctor.explain.answer import explain_text
from tests.doctor import ROOT, Doctor, Done
from tests.lab import vm_tools
from tests.lab.vm import VmFleet
from tests.lab.vm_faults import FAULTS, PREPARED, Fault, prepare
from tests.lab.vm_machine import VirtualMachine

PAGE = ROOT / "docs" / "detection.md"
VICTIM = "vm2"
HEALTHY = {"rdma.mlx5-for-ibgda", "network.multi-homed-says-which"}
"""Notes that a healthy machine of the lab gets, and true: Soft-RoCE is no ConnectX, and there are two networks."""
NOT_HAD = {"vllm.installed", "deepep.installed", "nixl.installed", "drift.ucx-version"}
"""What is unknown on a healthy machine, and is: no vLLM environment is installed there."""


HEALTHY_TITLE = "none: a healthy lab"
BENCH_HEADING = "# What bench finds"
ONLY_BENCH = "only `epdoctor bench` can: nothing on the node shows it"
HEAD = (
    "# What check finds",
    "",
    "Written by `python -m tests.detection`: three virtual machines with Soft-RoCE (`python -m tests.lab up`), put in",
    "order, then one fault at a time on one of them, then `epdoctor check --all-nodes` over SSH. The machines are",
    "restored between faults. Seconds are of the whole check; the machines are emulated, without KVM, on two busy",
    "cores. Where a tool runs into the fault, `epdoctor explain` was given what it printed.",
    "",
    "| fault | found by | seconds | true consequences | false findings | explain names, from a tool's output |",
    "| --- | --- | ---: | --- | --- | --- |",
)


@dataclass(frozen=True)
class Detection:
    """What a check of all machines said about one fault."""

    fault: Fault | None
    """None: the healthy lab."""
    seconds: float
    """Wall time of the whole check."""
    found: tuple[str, ...] = ()
    """Checks of ``fault.found_by`` and ``fault.unknown`` that named the machine, or "node not reached"."""
    missed: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    """True consequences that were reported as well."""
    false: tuple[str, ...] = ()
    """``check on machine``: findings that are neither the fault nor its consequence."""
    explained: str = ""
    """The cause that explain named first from the output of ``fault.tool``."""
    printed: str = field(default="", repr=False)
    """That output."""
    done: Done | None = field(default=None, repr=False)


def prepare_fleet(fleet: VmFleet) -> None:
    """Put all machines in order and keep that state as PREPARED."""
    for node in fleet.nodes:
        prepare(node)
        node.save(PREPARED)


def doctor_for(fleet: VmFleet, folder: Path) -> Doctor:
    """epdoctor on this machine, where it reaches the fleet."""
    return Doctor(folder, prefix=fleet.exec_prefix)


def check(fleet: VmFleet, doctor: Doctor, user: str = "root", *words: str) -> tuple[Done, float]:
    """``epdoctor check --all-nodes`` as a user of the machines, and how long it took."""
    inventory = doctor.folder / f"{user}.ini"
    inventory.write_text(fleet.inventory_text(user=user))
    began = time.monotonic()
    done = doctor.check("--all-nodes", "-i", str(inventory), *words)
    return done, time.monotonic() - began


def healthy(fleet: VmFleet, doctor: Doctor, user: str = "root", *words: str) -> Detection:
    """Check a lab without a fault."""
    done, seconds = check(fleet, doctor, user, *words)
    return _judge(None, "", done, seconds, user if "--become" not in words else "root")


def clean(fleet: VmFleet, after: Fault | None) -> None:
    """Restore the machines that the fault was planted on."""
    if after is not None:
        for node in fleet.nodes if after.everywhere else (fleet[VICTIM],):
            node.restore(PREPARED)


def detect(fleet: VmFleet, doctor: Doctor, fault: Fault) -> Detection:
    """Plant ``fault`` on VICTIM of a prepared fleet and check. The fault stays."""
    victim = fleet[VICTIM]
    if fault.unreachable:
        done, seconds = _in_the_middle(fleet, doctor, fault, victim)
    else:
        for node in fleet.nodes if fault.everywhere else (victim,):
            fault.apply(node)
        done, seconds = check(fleet, doctor, fault.user)
    result = _judge(fault, victim.name, done, seconds, fault.user)
    if not fault.tool:
        return result
    _, printed = vm_tools.between(fleet["vm1"], victim, fault.tool, user=fault.user)
    named = [candidate.cause.id for candidate in explain_text(printed.encode()).results]
    return replace(result, explained=named[0] if named else "nothing", printed=printed)


def _in_the_middle(
    fleet: VmFleet, doctor: Doctor, fault: Fault, victim: VirtualMachine
) -> tuple[Done, float]:
    began = time.monotonic()
    running = doctor.start(
        "check", "--all-nodes", "-i", str(fleet.inventory), f"-ojson={doctor.folder}/report.json"
    )
    # The agent is there, and has not ended yet.
    victim.sh("for i in $(seq 200); do pgrep -f '[p]ython3 -IB' >/dev/null && break; sleep 0.05; done")
    fault.apply(victim)
    done = running.wait()
    return done, time.monotonic() - began


def _judge(fault: Fault | None, victim: str, done: Done, seconds: float, user: str) -> Detection:
    failed = {(check, node) for check, node in done.failed() if check not in HEALTHY}
    blind = {
        (finding["id"], node)
        for finding in done.report["findings"]
        if finding["status"] in ("unknown", "error") and finding["id"] not in NOT_HAD
        for node in finding["nodes"] or ["all nodes"]
    }
    wanted = {(check, victim) for check in (fault.found_by if fault else ())}
    wanted_blind = {(check, victim) for check in (fault.unknown if fault else ())}
    follows = {(check, victim) for check in (fault.follows if fault else ())}
    found = sorted(check for check, _ in (wanted & failed) | (wanted_blind & blind))
    missed = sorted(check for check, _ in (wanted - failed) | (wanted_blind - blind))
    unreached = set(done.nodes) - set(done.reached)
    if fault is not None and fault.unreachable:
        (found if victim in unreached else missed).append("node not reached")
        unreached.discard(victim)
        blind = {(check, node) for check, node in blind if node != victim}  # nothing can be known of it
    false = failed - wanted - follows
    if user == "root":  # without root some things cannot be seen: a line of the report says so
        false |= blind - wanted_blind - follows
    return Detection(
        fault,
        seconds,
        tuple(found),
        tuple(missed),
        tuple(sorted(check for check, _ in failed & follows)),
        tuple(sorted(f"{check} on {node}" for check, node in false))
        + tuple(f"{node} not reached" for node in sorted(unreached)),
        done=done,
    )


def page(results: Sequence[Detection], before: str = "") -> str:
    """The text of docs/detection.md: the lines of ``before`` with those of ``results`` in their place. What follows
    BENCH_HEADING stays (tests/bench_detection.py writes it)."""
    before, mark, bench = before.partition(BENCH_HEADING)
    known = {_title(line): line for line in before.splitlines() if line.startswith("| ")}
    rows = {**known, **{_title(line): line for line in map(_row, results)}}
    order = [HEALTHY_TITLE, *(fault.title for fault in FAULTS)]
    body = [rows[title] for title in order if title in rows]
    cells = [line.split(" | ") for line in body]
    faults = [row for row in cells if row[0] != f"| {HEALTHY_TITLE}" and row[1] != ONLY_BENCH]
    found = sum("**missed" not in row[1] for row in faults)
    false = sum(len(row[4].split(", ")) for row in cells if row[4] != "none")
    summary = f"{found} of {len(faults)} faults that check can see were found; {false} false findings."
    return "\n".join([*HEAD, *body, "", summary, "", *([mark + bench] if mark else [])])


def _title(line: str) -> str:
    return line.split(" | ")[0].removeprefix("| ")


def _row(result: Detection) -> str:
    fault = result.fault
    by = ", ".join(result.found) or ("" if fault else "nothing to find")
    if fault and not (fault.found_by or fault.unknown or fault.unreachable):
        by = ONLY_BENCH
    if result.missed:
        by = f"{by} **missed: {', '.join(result.missed)}**".strip()
    title = fault.title if fault else HEALTHY_TITLE
    follows, false = ", ".join(result.follows) or "-", ", ".join(result.false) or "none"
    return f"| {title} | {by} | {result.seconds:.0f} | {follows} | {false} | {_explained(result)} |"


def _explained(result: Detection) -> str:
    if result.fault is None or not result.fault.tool:
        return "-"
    right = result.explained == result.fault.cause
    return f"{result.fault.tool[0]}: {result.explained}" + ("" if right else f" **not {result.fault.cause}**")


def run(fleet: VmFleet, folder: Path, faults: Iterable[Fault] = FAULTS) -> list[Detection]:
    """The healthy lab and every fault, each from a restored lab."""
    doctor = doctor_for(fleet, folder)
    prepare_fleet(fleet)
    results = [healthy(fleet, doctor)]
    for fault in faults:
        clean(fleet, results[-1].fault)
        results.append(detect(fleet, doctor, fault))
        print(results[-1], file=sys.stderr, flush=True)
    return results


def main() -> int:
    """Write docs/detection.md; 1 when something was missed or false."""
    chosen = [fault for fault in FAULTS if not sys.argv[1:] or fault.id in sys.argv[1:]]
    with VmFleet(3) as fleet, tempfile.TemporaryDirectory() as folder:
        results = run(fleet, Path(folder), chosen)
    before = PAGE.read_text()
    PAGE.write_text(page(results, before if sys.argv[1:] else "".join(before.partition(BENCH_HEADING)[1:])))
    return int(any(result.missed or result.false or "**" in _explained(result) for result in results))


if __name__ == "__main__":
    sys.exit(main())
