"""``epdoctor bench`` over SSH on virtual machines with Soft-RoCE: healthy ones pass layers 1 to 3, each planted fault
is found at its layer and machine, and nothing stays when the ladder is cut off."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests import bench_detection
from tests.detection import VICTIM, doctor_for, prepare_fleet
from tests.doctor import Doctor, need, until
from tests.lab import vm
from tests.lab.vm import VmFleet
from tests.lab.vm_faults import FAULTS, PREPARED, Fault

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VmFleet, Doctor]]:
    need(vm.unavailable())
    with VmFleet(3) as fleet:
        prepare_fleet(fleet)
        yield fleet, doctor_for(fleet, tmp_path_factory.mktemp("bench"))


def test_healthy_machines_pass_three_layers_in_their_budget(machines: tuple[VmFleet, Doctor]) -> None:
    fleet, doctor = machines
    fleet.restore(PREPARED)
    found = bench_detection.bench(fleet, doctor, "root", "-l", "vm1,vm2")
    layers = {layer["number"]: layer["status"] for layer in found.report["layers"]}
    assert layers == {"1": "pass", "2": "pass", "2b": "skip", "3": "pass"}, found.broken
    assert found.report["exit_code"] == 0
    assert until(lambda: left_on(fleet) == "")


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.id in bench_detection.FOUND_BY_BENCH], ids=lambda fault: fault.id
)
def test_fault_breaks_its_layer_at_its_machine(machines: tuple[VmFleet, Doctor], fault: Fault) -> None:
    fleet, doctor = machines
    fleet.restore(PREPARED)
    for node in fleet.nodes if fault.everywhere else (fleet[VICTIM],):
        fault.apply(node)
    found = bench_detection.bench(fleet, doctor, fault.user)
    assert found.wrong(bench_detection.FOUND_BY_BENCH[fault.id]) == "", found.broken


def left_on(fleet: VmFleet) -> str:
    """Programs of the ladder that still run on the machines."""
    return "".join(
        node.sh("pgrep -a 'ib_write|python3' | grep -v unattended || true", check=False)
        for node in fleet.nodes
    ).strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_stays_on_the_machines(machines: tuple[VmFleet, Doctor], number: signal.Signals) -> None:
    fleet, doctor = machines
    fleet.restore(PREPARED)
    running = doctor.start("bench", "-i", str(fleet.inventory), "--layers", "3", "--no-state")
    try:
        assert until(lambda: "ib_write" in left_on(fleet), 120)
        time.sleep(0.5)
    finally:
        running.process.send_signal(number)
    running.wait(60)
    assert until(lambda: left_on(fleet) == "", 40), left_on(fleet)
