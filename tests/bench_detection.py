"""What ``epdoctor bench`` says of a fault that is planted on a virtual machine: the layer, the machine, the cause.

``python -m tests.bench_detection`` runs it for every fault and writes its part of docs/detection.md (half an hour on
two idle cores); ``python -m tests.bench_detection ID...`` does some faults again and replaces their lines.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.detection import BENCH_HEADING, HEALTHY_TITLE, PAGE, VICTIM, doctor_for, prepare_fleet
from tests.doctor import Doctor
from tests.lab.vm import VmFleet
from tests.lab.vm_faults import FAULTS, PREPARED

HEALTHY = "healthy"
HEAD = (
    BENCH_HEADING,
    "",
    "Written by `python -m tests.bench_detection`: the same machines and faults, `epdoctor bench --layers 1-3` over SSH.",
    "Seconds are of the whole run with its collection of facts. Faults that are not of the network are not tried.",
    "",
    "| fault | first broken layer, first suspect, cause that it names | seconds | what it says |",
    "| --- | --- | ---: | --- |",
)


@dataclass(frozen=True)
class Expected:
    """Where the ladder must break."""

    layer: str
    causes: tuple[str, ...] = ()
    """The first cause named must be one of these; empty: none is expected."""
    somewhere: bool = False
    """No machine can be told: the fault is on all of them."""


FOUND_BY_BENCH = {
    "memlock-64": Expected("2", ("memlock-limit",)),
    "link-down": Expected("2", ("rdma-port-down",)),
    "cable-pulled": Expected("2", ("rdma-port-down",)),
    "gid-index": Expected("2", ("roce-wrong-gid-index",)),
    "mtu": Expected("2", ("rdma-mtu-mismatch",)),
    "mtu-path": Expected("2", ("rdma-retry-timeout-fabric",), somewhere=True),
    "loss": Expected("3", ("rdma-retry-timeout-fabric",)),
    "delay": Expected("3"),
    "udp-4791": Expected("2", ("rdma-retry-timeout-fabric",)),
    "vllm-ports": Expected("1"),
    "module": Expected("2", ("rdma-kernel-modules-not-loaded",)),
    "permission": Expected("2", ("rdma-uverbs-permission-denied",)),
}
"""Faults by id; a ladder over the others must pass."""


@dataclass(frozen=True)
class BenchFound:
    """What the ladder said."""

    layer: str
    """The first broken one; "" where all passed."""
    broken: str
    suspects: tuple[str, ...]
    causes: tuple[str, ...]
    seconds: float
    """Wall time with the collection of facts."""
    report: dict[str, Any]

    def wrong(self, expected: Expected | None) -> str:
        """What is not as it should be; "" where all is."""
        if expected is None:
            return f"breaks at layer {self.layer}: {self.broken}" if self.layer else ""
        if self.layer != expected.layer:
            return f"breaks at layer {self.layer or 'none'}, not {expected.layer}"
        if not expected.somewhere and not (self.suspects and VICTIM in self.suspects[0]):
            return f"suspects {', '.join(self.suspects) or 'nobody'}, not {VICTIM}"
        if expected.causes and self.causes[:1] not in {(cause,) for cause in expected.causes}:
            return f"names {', '.join(self.causes) or 'no cause'}, not {' or '.join(expected.causes)}"
        return ""

    def cell(self, expected: Expected | None) -> str:
        """For the table in docs/detection.md."""
        if not self.layer:
            unknown = [one["number"] for one in self.report["layers"] if one["status"] == "unknown"]
            lost = ", ".join(self.report["missing"])
            said = f"layer {unknown[0]} unknown" if unknown else "passes"
            wrong = f" **{self.wrong(expected)}**" if self.wrong(expected) else ""
            return said + (f", {lost} not reached" if lost else "") + wrong
        who = f", {self.suspects[0]}" if self.suspects else ""
        why = f", {self.causes[0]}" if self.causes else ""
        wrong = self.wrong(expected)
        return f"layer {self.layer}{who}{why}" + (f" **{wrong}**" if wrong else "")


def bench(fleet: VmFleet, doctor: Doctor, user: str = "root", *words: str) -> BenchFound:
    """Layers 1 to 3 between all machines."""
    inventory = doctor.folder / f"{user}.ini"
    inventory.write_text(fleet.inventory_text(user=user))
    began = time.monotonic()
    done = doctor.run(
        "bench", "-i", str(inventory), "--layers", "1-3", "--budget", "150s", "--format", "json", *words,
        timeout=500,
    )  # fmt: skip
    seconds = time.monotonic() - began
    assert "Traceback" not in done.err, done.err
    report = json.loads(done.out)
    broken = next((layer for layer in report["layers"] if layer["status"] == "fail"), None)
    return BenchFound(
        broken["number"] if broken else "",
        broken["broken"] if broken else "",
        tuple(one["name"] for one in broken["suspects"]) if broken else (),
        tuple(one[0] for one in broken["causes"]) if broken else (),
        seconds,
        report,
    )


def _titles() -> dict[str, str]:
    return {HEALTHY: HEALTHY_TITLE, **{fault.id: fault.title for fault in FAULTS}}


def section(results: Mapping[str, BenchFound], before: str = "") -> str:
    """The page with the lines of ``results`` (by fault id) in its part on bench."""
    first, _, own = before.partition(BENCH_HEADING)
    known = {
        line.split(" | ")[0].removeprefix("| "): line for line in own.splitlines() if line.startswith("| ")
    }
    titles = _titles()
    for name, result in results.items():
        words = " ".join(result.broken.replace("|", "/").split())
        known[titles[name]] = (
            f"| {titles[name]} | {result.cell(FOUND_BY_BENCH.get(name))} | {result.seconds:.0f} | {words or '-'} |"
        )
    body = [known[title] for title in titles.values() if title in known]
    faults = [line for line in body if not line.startswith(f"| {HEALTHY_TITLE} ")]
    right = sum("**" not in line for line in faults)
    summary = f"{right} of {len(faults)} faults were found at the right layer and machine."
    return "\n".join([first.rstrip(), "", *HEAD, *body, "", summary, ""])


def run(fleet: VmFleet, folder: Path, ids: Iterable[str]) -> dict[str, BenchFound]:
    """The ladder on prepared machines, for the healthy lab and each fault, from a restored lab every time."""
    doctor = doctor_for(fleet, folder)
    results: dict[str, BenchFound] = {}
    wanted = list(ids)
    for fault in (None, *FAULTS):
        name = fault.id if fault else HEALTHY
        if name not in wanted:
            continue
        fleet.restore(PREPARED)
        if fault is not None:
            for node in fleet.nodes if fault.everywhere else (fleet[VICTIM],):
                fault.apply(node)
        results[name] = bench(fleet, doctor, fault.user if fault else "root")
        wrong = results[name].wrong(FOUND_BY_BENCH.get(name))
        print(name, results[name].broken or "passes", wrong, sep="\n  ", file=sys.stderr, flush=True)
    return results


def main() -> int:
    """Write the part of docs/detection.md; 1 when the ladder was wrong."""
    ids = sys.argv[1:] or [HEALTHY, *FOUND_BY_BENCH]
    with VmFleet(3) as fleet, tempfile.TemporaryDirectory() as folder:
        prepare_fleet(fleet)
        results = run(fleet, Path(folder), ids)
    PAGE.write_text(section(results, PAGE.read_text()))
    return int(any(result.wrong(FOUND_BY_BENCH.get(name)) for name, result in results.items()))


if __name__ == "__main__":
    sys.exit(main())
