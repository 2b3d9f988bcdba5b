"""Provisioning virtual machines: what a container cannot show. Limits that hold, an initramfs, a boot, RDMA."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.doctor import need
from tests.lab import vm
from tests.lab.vm import VmFleet
from tests.lab.vm_machine import VirtualMachine
from tests.provision_lab import Outcome, epdoctor

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

PATIENT = ("-e", "node_state_timeout_s=300")
"""Emulated machines on a busy one are slow."""
OPTIONS = "/etc/modprobe.d/zz-epdoctor-nvidia.conf"

# A stand-in for the NVIDIA driver: at boot it shows the options that modprobe reads, as the driver would. The
# first line of version is by hand, in the form that epdoctor/facts/modules.py documents.
STAND_IN = """#!/bin/sh
set -e
mountpoint -q /proc/driver || mount -t tmpfs none /proc/driver
mkdir -p /proc/driver/nvidia
echo 'NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb 24 22:53:42 UTC 2024' >/proc/driver/nvidia/version
options=$(modprobe -c | grep '^options nvidia ' || true)
case $options in *NVreg_EnableStreamMemOPs=1*) mem=1;; *) mem=0;; esac
case $options in *PeerMappingOverride=1*) words='PeerMappingOverride=1;';; *) words=;; esac
printf 'EnableStreamMemOPs: %s\\nRegistryDwords: "%s"\\n' "$mem" "$words" >/proc/driver/nvidia/params
"""
UNIT = """[Unit]
After=systemd-modules-load.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/root/stand-in-driver
[Install]
WantedBy=multi-user.target
"""
CONTAINERD = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
LIMIT_OF = "grep 'Max locked memory' /proc/$(systemctl show -p MainPID --value {unit})/limits"
JOB = """cp /bin/sleep /root/rank0; rm -f /dev/nvidia0; mknod /dev/nvidia0 c 1 3
setsid /root/rank0 3000 <>/dev/nvidia0 >/dev/null 2>&1 &"""


@dataclass
class Provisioned:
    """Two machines: vm1 has the stand-in driver, both a service named containerd. Both were put in order."""

    fleet: VmFleet
    boots: dict[str, str]
    """Boot ids before."""
    first: Outcome
    """A run with --reboot while the GPU of vm1 was in use."""
    second: Outcome
    """The same with --force."""
    before: dict[str, str]
    state: Path

    @property
    def vm1(self) -> VirtualMachine:
        return self.fleet["vm1"]


def limit(node: VirtualMachine, unit: str) -> str:
    """Soft limit of the locked memory of a service's main process."""
    return node.sh(LIMIT_OF.format(unit=unit)).split()[3]


@pytest.fixture(scope="module")
def provisioned(vm_fleet: VmFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provisioned]:
    need(vm.unavailable())
    vm_fleet.restore()
    state = tmp_path_factory.mktemp("provision")
    vm1, vm2 = vm_fleet.nodes
    for node in vm_fleet.nodes:
        node.write("/etc/systemd/system/containerd.service", CONTAINERD)
        node.sh("systemctl daemon-reload; systemctl -q enable --now containerd", timeout_s=300)
    vm1.write("/root/stand-in-driver", STAND_IN)
    vm1.write("/etc/systemd/system/stand-in-driver.service", UNIT)
    vm1.sh(
        "chmod 755 /root/stand-in-driver; systemctl daemon-reload; systemctl -q enable --now stand-in-driver",
        timeout_s=300,
    )
    vm1.sh(JOB, timeout_s=300)
    vm2.sh("DEBIAN_FRONTEND=noninteractive apt-get remove -qq -y perftest >/dev/null 2>&1", timeout_s=120)
    before = {node.name: limit(node, "containerd") for node in vm_fleet.nodes}
    boots = {node.name: node.boot_id() for node in vm_fleet.nodes}
    inventory = str(vm_fleet.inventory)
    words = ("--yes", "--format", "json", "--reboot", "when-needed", *PATIENT)
    first = epdoctor(
        vm_fleet, state, "provision", inventory, *words, "--tags", "rdma,ibgda_driver",
        "-e", "rdma_modules=[ib_umad, null_blk]", timeout_s=900,
    )  # fmt: skip
    second = epdoctor(
        vm_fleet, state, "provision", inventory, *words, "--tags", "ibgda_driver", "--force", timeout_s=900
    )
    yield Provisioned(vm_fleet, boots, first, second, before, state)
    vm_fleet.restore()


def test_a_node_whose_gpus_are_in_use_stays_up(provisioned: Provisioned) -> None:
    first = provisioned.first
    assert first.rc == 3, first.err + first.out
    said = {(remark["node"], remark["kind"]): remark["text"] for remark in first.json["applied"]["remarks"]}
    assert "(pid, name). Stop them, or give --force" in said["vm1", "refused"]
    assert "rank0" in said["vm1", "refused"]
    assert ("vm1", "reboot") in said
    assert not [change for change in first.json["applied"]["changes"] if change["component"] == "reboot"]


def test_only_the_node_that_waits_is_rebooted_and_then_it_is_right(provisioned: Provisioned) -> None:
    second = provisioned.second
    assert second.rc in (0, 3), second.err + second.out
    report = second.json
    changed = {(change["node"], change["component"]) for change in report["applied"]["changes"]}
    assert changed == {("vm1", "reboot")}
    now = {node.name: node.boot_id() for node in provisioned.fleet.nodes}
    assert now["vm1"] != provisioned.boots["vm1"]
    assert now["vm2"] == provisioned.boots["vm2"]
    rows = {row["id"]: (row["before"], row["after"]) for row in report["checks"]}
    assert rows["driver.options-live"] == ("1 fail", "1 pass")
    waiting = {(remark["node"], remark["kind"]) for remark in report["applied"]["remarks"]}
    assert ("vm1", "reboot") not in waiting


def test_the_options_are_in_the_initramfs(provisioned: Provisioned) -> None:
    vm1 = provisioned.vm1
    name = OPTIONS.lstrip("/")
    # initramfs-tools copies every file of /etc/modprobe.d, whichever modules the image has (mkinitramfs).
    assert name in vm1.sh("lsinitramfs /boot/initrd.img-$(uname -r)").split()
    script = f"d=$(mktemp -d); unmkinitramfs /boot/initrd.img-$(uname -r) $d; find $d -path '*/{name}' -exec cmp {{}} {OPTIONS} \\; -print"
    assert name in vm1.sh(script, timeout_s=120)


def test_modules_are_loaded_at_boot(provisioned: Provisioned) -> None:
    text = provisioned.vm1.read("/etc/modules-load.d/epdoctor-rdma.conf")
    assert "null_blk" in text.split()
    assert set(provisioned.vm1.sh("ls -d /sys/module/null_blk /sys/module/ib_umad").split()) == {
        "/sys/module/null_blk",
        "/sys/module/ib_umad",
    }


def test_memory_can_be_locked_in_sessions_and_services(provisioned: Provisioned) -> None:
    fleet = provisioned.fleet
    assert provisioned.before == {"vm1": "8388608", "vm2": "8388608"}
    assert all(fleet.ssh(node, "ulimit -l", user="tester").stdout.strip().isdigit() for node in fleet.nodes)
    done = epdoctor(
        fleet, provisioned.state, "provision", str(fleet.inventory), "--yes", "--format", "json",
        "--tags", "limits", "--restart-services", *PATIENT, timeout_s=900,
    )  # fmt: skip
    assert done.rc == 0, done.err + done.out
    changed = {(change["node"], change["what"]) for change in done.json["applied"]["changes"]}
    assert {(node.name, "Restart the service: containerd") for node in fleet.nodes} <= changed
    for node in fleet.nodes:
        session = fleet.ssh(node, "ulimit -l; ulimit -Hl", user="tester")
        assert session.stdout.split() == ["unlimited", "unlimited"], session.stderr
        assert limit(node, "containerd") == "unlimited"


def test_rdma_writes_between_the_machines(provisioned: Provisioned) -> None:
    vm1, vm2 = provisioned.fleet.nodes
    installed = [
        change for change in provisioned.first.json["applied"]["changes"] if change["component"] == "rdma"
    ]
    assert any(change["node"] == "vm2" and "perftest" in json.dumps(change) for change in installed), (
        installed
    )
    vm1.sh(
        "for try in $(seq 60); do grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state && break; sleep 1; done"
    )
    options = "-d rxe0 -x 1 -n 200 -s 65536 --report_gbits -F"
    vm1.sh(f"setsid timeout 100 ib_write_bw {options} >/root/bw.log 2>&1 </dev/null &")
    vm1.sh("for try in $(seq 60); do ss -Hltn 'sport = :18515' | grep -q . && break; sleep 0.5; done")
    done = vm2.sh(f"timeout 90 ib_write_bw {options} {vm1.data_address}", timeout_s=120)
    (row,) = [line.split() for line in done.splitlines() if line.strip().startswith("65536")]
    assert float(row[3]) > 0
