"""``epdoctor check`` over SSH on virtual machines: a healthy lab is clean, every planted fault is found where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import detection
from tests.doctor import Doctor, need, no_traceback
from tests.lab import vm
from tests.lab.vm import VmFleet
from tests.lab.vm_faults import FAULTS, Fault

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@dataclass
class Prepared:
    """Three machines in order, and a user of epdoctor beside them."""

    fleet: VmFleet
    doctor: Doctor
    planted: Fault | None = None
    """The fault of the test before."""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    need(vm.unavailable())
    with VmFleet(3) as fleet:
        detection.prepare_fleet(fleet)
        yield Prepared(fleet, detection.doctor_for(fleet, tmp_path_factory.mktemp("detection")))


@pytest.fixture
def prepared(machines: Prepared) -> Prepared:
    detection.clean(machines.fleet, machines.planted)
    machines.planted = None
    return machines


@pytest.mark.parametrize(("user", "words"), [("root", ()), ("tester", ()), ("tester", ("--become",))])
def test_healthy_machines_have_no_finding(machines: Prepared, user: str, words: tuple[str, ...]) -> None:
    result = detection.healthy(machines.fleet, machines.doctor, user, *words)
    assert result.false == ()
    assert result.done is not None
    assert result.done.rc == 0
    assert result.done.broken() == []
    assert result.done.reached == ["vm1", "vm2", "vm3"]
    no_traceback(result.done)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_fault_is_found_where_it_is(prepared: Prepared, fault: Fault) -> None:
    prepared.planted = fault
    result = detection.detect(prepared.fleet, prepared.doctor, fault)
    assert (result.missed, result.false) == ((), ())
    assert result.explained == fault.cause, result.printed
    assert result.done is not None
    assert result.done.broken() == []
    no_traceback(result.done)


def test_faults_can_be_undone(prepared: Prepared) -> None:
    """All that undo each other's traces in one go: afterwards the machine is as healthy as before."""
    victim = prepared.fleet[detection.VICTIM]
    for fault in FAULTS:
        prepared.planted = fault
        fault.apply(victim)
        fault.undo(victim)
    victim.set_clock()
    result = detection.healthy(prepared.fleet, prepared.doctor)
    assert result.false == ()


def test_check_leaves_nothing_behind(prepared: Prepared) -> None:
    elsewhere = "".join(
        f" -not -path '{path}/*'" for path in ("/run", "/var/log", "/var/lib/systemd", "/var/lib/chrony")
    )
    looks = (
        "lsmod | awk '{print $1}' | sort",
        f"find / -xdev -type f -newer /tmp/lab-mark {elsewhere} | sort",
        "ps -eo comm --no-headers | grep -E '^(python3|nft)$' | sort",
    )
    node = prepared.fleet[detection.VICTIM]
    node.sh("touch /tmp/lab-mark; sleep 1")
    before = [node.sh(look, check=False) for look in looks]
    done, _ = detection.check(prepared.fleet, prepared.doctor)
    assert done.reached == ["vm1", "vm2", "vm3"]
    assert [node.sh(look, check=False) for look in looks] == before
