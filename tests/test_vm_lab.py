"""The virtual machines themselves: what their fixtures promise is so, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import detection
from tests.doctor import ROOT, until
from tests.lab import vm_image, vm_tools
from tests.lab.life import PREFIX
from tests.lab.vm import VmFleet
from tests.lab.vm_faults import FAULTS


def _qemus(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "qemu-system" in line.split("\0")[0] and word in line:
            found.append(entry.name)
    return found


def test_addresses_and_hardware_addresses_differ() -> None:
    pairs = {(vm_image.address(i, n), vm_image.mac(i, n)) for i in range(1, 9) for n in (0, 1)}
    assert len({address for address, _ in pairs}) == len({mac for _, mac in pairs}) == 16
    assert vm_image.address(1, 0) == "10.78.0.11"
    assert vm_image.address(8, 1) == "10.77.0.18"


def test_every_fault_is_told_apart_and_judged_once() -> None:
    assert len({fault.id for fault in FAULTS}) == len({fault.title for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert not set(fault.follows) & (set(fault.found_by) | set(fault.unknown)), fault.id


def test_page_has_a_line_for_every_fault() -> None:
    text = (ROOT / "docs" / "detection.md").read_text()
    lines = text.partition("# What bench finds")[0].splitlines()
    titles = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert titles[2:] == ["none: a healthy lab", *(fault.title for fault in FAULTS)]


def test_page_says_what_was_missed_and_what_is_false() -> None:
    fault = FAULTS[0]
    text = detection.page(
        [
            detection.Detection(None, 4.2),
            detection.Detection(
                fault, 5.0, found=("a.b",), missed=("c.d",), false=("e.f on vm1",), explained="x-y"
            ),
        ]
    )
    assert f"| {fault.title} | a.b **missed: c.d** | 5 | - | e.f on vm1 | " in text
    assert f"ib_write_bw: x-y **not {fault.cause}**" in text
    assert "0 of 1 faults that check can see were found; 1 false findings." in text


@pytest.mark.vm
def test_machines_are_what_the_readme_says(vms: VmFleet) -> None:
    one, two = vms.nodes
    assert vms.ssh(one, "hostname", user="tester").stdout == "vm1\n"
    assert vms.ssh(one, "sudo -n id -u", user="tester").stdout == "0\n"
    assert "state ACTIVE" in one.sh("rdma link show rxe0/1")
    assert one.sh("getent hosts vm2").split() == [two.address, "vm2"]
    assert abs(float(two.sh("date +%s.%N")) - time.time()) < 5
    served, said = vm_tools.between(one, two, vm_tools.PINGPONG)
    assert "5 iters in" in said
    assert "5 iters in" in served


@pytest.mark.vm
def test_restore_takes_back_files_memory_and_cables(vms: VmFleet) -> None:
    one = vms["vm1"]
    one.write("/etc/lab-test", "x")
    one.cable("data", plugged=False)
    one.freeze()
    vms.restore()
    assert one.run(["test", "-e", "/etc/lab-test"], check=False).returncode == 1
    assert one.sh("cat /sys/class/net/eth1/carrier") == "1"


@pytest.mark.vm
@pytest.mark.timeout(400)
def test_reboot_goes_through_the_machines_own_menu(vms: VmFleet) -> None:
    one = vms["vm1"]
    before = one.boot_id()
    one.sh(
        "sed -i 's/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT=\"lab.mark=7\"/' /etc/default/grub"
    )
    one.sh("update-grub", timeout_s=120)
    one.reboot()
    assert one.boot_id() != before
    assert "lab.mark=7" in one.read("/proc/cmdline")
    assert "state ACTIVE" in one.sh("rdma link show rxe0/1")


@pytest.mark.vm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_no_machine_outlives_its_owner(number: signal.Signals) -> None:
    argv = [sys.executable, "-m", "tests.lab", "vm", "run", "-n", "1", "--own", "--", "sleep", "600"]
    owner = subprocess.Popen(
        argv,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores it
    )
    assert owner.stderr is not None
    assert b"up in" in owner.stderr.readline()
    assert _qemus(f"{PREFIX}-{owner.pid}-")
    os.killpg(owner.pid, number)
    owner.wait(60)
    assert until(lambda: not _qemus(f"{PREFIX}-{owner.pid}-"), 20)
    if number == signal.SIGINT:
        assert not [
            entry for entry in Path("/run/netns").iterdir() if entry.name.startswith(f"{PREFIX}-{owner.pid}-")
        ]
