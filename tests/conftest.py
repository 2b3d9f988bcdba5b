"""Fixtures that start the labs, and the gate that skips tests whose lab this machine cannot run.

A test marked ``fleet``, ``container``, ``slurm``, ``vm`` or ``browser`` is skipped with the name of what is missing.
With EPDOCTOR_LAB=required in the environment (as in CI) a missing program is a failure instead,
so that a green run cannot hide tests that never ran.
"""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.lab import browser, containers, netns, slurm, vm
from tests.lab.containers import PodmanFleet
from tests.lab.netns import NetnsFleet
from tests.lab.slurm import SlurmCluster
from tests.lab.vm import VmFleet

LABS: dict[str, Callable[[], str | None]] = {
    "fleet": netns.unavailable,
    "container": containers.unavailable,
    "slurm": slurm.unavailable,
    "vm": vm.unavailable,
    "browser": browser.unavailable,
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts `pytest &` with Ctrl-C ignored, and every program that a test starts and
    # interrupts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than CPUs: about a third of the tests wait for a deadline, a hang, a dead connection."""
    return len(os.sched_getaffinity(0)) + 1


def _need(lab: str) -> None:
    reason = LABS[lab]()
    if reason is None:
        return
    if os.environ.get("EPDOCTOR_LAB") == "required":
        pytest.fail(f"EPDOCTOR_LAB=required, but: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _lab_gate(request: pytest.FixtureRequest) -> None:
    for lab in LABS:
        if request.node.get_closest_marker(lab) is not None:
            _need(lab)


@pytest.fixture(scope="session")
def fleet() -> Iterator[NetnsFleet]:
    """Four healthy SSH nodes, gpu01 to gpu04, for tests that change nothing on them."""
    _need("fleet")
    with NetnsFleet(4) as nodes:
        yield nodes


@pytest.fixture
def make_fleet() -> Iterator[Callable[..., NetnsFleet]]:
    """``make_fleet(count, **options)``: fresh SSH nodes that the test may break; ended with it."""
    _need("fleet")
    started: list[NetnsFleet] = []

    def make(count: int, **options: object) -> NetnsFleet:
        nodes = NetnsFleet(count, **options)  # type: ignore[arg-type]  # NetnsFleet's own signature judges them
        started.append(nodes)
        return nodes.start()

    yield make
    for nodes in started:
        nodes.stop()


@pytest.fixture(scope="session")
def container_fleet() -> Iterator[PodmanFleet]:
    """Two container nodes with systemd."""
    _need("container")
    with PodmanFleet(2) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A Slurm cluster of two nodes, node1 and node2."""
    _need("slurm")
    with SlurmCluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def three_vm_fleet() -> Iterator[VmFleet]:
    """Virtual machines vm1, vm2 and vm3, for tests that change nothing on them."""
    _need("vm")
    with VmFleet(3) as machines:
        yield machines


@pytest.fixture
def three_vms(three_vm_fleet: VmFleet) -> VmFleet:
    """Three clean virtual machines that the test may break."""
    three_vm_fleet.restore()
    return three_vm_fleet


@pytest.fixture(scope="session")
def vm_fleet() -> Iterator[VmFleet]:
    """Virtual machines vm1 and vm2, for tests that change nothing on them."""
    _need("vm")
    with VmFleet(2) as machines:
        yield machines


@pytest.fixture
def vms(vm_fleet: VmFleet) -> VmFleet:
    """Two clean virtual machines that the test may break."""
    vm_fleet.restore()
    return vm_fleet
