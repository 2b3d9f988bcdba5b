"""`epdoctor check --all-nodes` on real sshd nodes that look like eight-GPU machines: healthy, drifted, faulty."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import gpu_cluster
from tests.doctor import Doctor, Done, need, no_traceback, raw_controls, without_style
from tests.lab import netns
from tests.lab.netns import NetnsFleet, NodeOptions

pytestmark = pytest.mark.fleet

ALL = [f"gpu{number:02}" for number in range(1, 9)]


@dataclass
class Cluster:
    """A fleet, its user, and what the first check of all nodes said."""

    fleet: NetnsFleet
    doctor: Doctor
    done: Done

    def again(self, *words: str, inventory: str = "") -> Done:
        """Another check of all nodes; with ``inventory``: through another inventory.ini of this text."""
        path = self.fleet.inventory
        if inventory:
            path = self.doctor.folder / "inventory.ini"
            path.write_text(inventory)
        return self.doctor.check("--all-nodes", "-i", str(path), *words)


def _check(fleet: NetnsFleet, folder: Path) -> Cluster:
    doctor = Doctor(folder, prefix=fleet.exec_prefix)
    done = doctor.check("--all-nodes", "-i", str(fleet.inventory))
    return Cluster(fleet, doctor, done)


def _logins(fleet: NetnsFleet) -> dict[str, int]:
    """Connections that each node's sshd has seen, by its log."""
    seen = {}
    for index, node in enumerate(fleet.nodes, 1):
        log = (fleet.dir / f"log-{index}").read_text(errors="replace")
        seen[node.name] = len(re.findall(r"^(?:Accepted|Connection|Received)", log, re.MULTILINE))
    return seen


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Eight equal nodes."""
    need(netns.unavailable())
    with NetnsFleet(8) as fleet:
        gpu_cluster.install(fleet, gpu_cluster.plants(fleet))
        yield _check(fleet, tmp_path_factory.mktemp("equal"))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The same eight nodes with one or more faults in each but gpu01."""
    options = {6: NodeOptions(hostname_on_loopback=True), 7: NodeOptions(memlock_kib=64)}
    need(netns.unavailable())
    with NetnsFleet(8, options=options) as fleet:
        planted = gpu_cluster.plants(fleet)
        planted["gpu02"].smi("-q", "580.159.04", "580.65.06")
        planted["gpu02"].proc("version", "580.159.04", "580.65.06")
        planted["gpu02"].hca("mlx5_0", "ports/1/state", "1: DOWN\n")
        planted["gpu03"].hca("mlx5_4", "ports/1/state", "1: DOWN\n")
        planted["gpu03"].hca("mlx5_4", "ports/1/phys_state", "3: Disabled\n")
        planted["gpu03"].version("nvidia_nccl_cu12", "2.26.2")
        planted["gpu04"].proc("version", "UNIX Open Kernel Module for x86_64", "UNIX x86_64 Kernel Module")
        planted["gpu04"].version("torch", "2.8.0")
        planted["gpu05"].smi("nvlink -s", "Link 5: 26.562 GB/s", "Link 5: <inactive>", 1)
        planted["gpu05"].hca("mlx5_7", "fw_ver", "28.36.1010\n")
        planted["gpu06"].hca("mlx5_8", "ports/1/state", "2: INIT\n")
        planted["gpu07"].proc("params", "EnableStreamMemOPs: 0", "EnableStreamMemOPs: 1")
        planted["gpu07"].hca("mlx5_9", "ports/1/rate", "200 Gb/sec (4X HDR)\n")
        for name, version in (("vllm", "0.11.0"), ("deep_ep", "1.2.0"), ("nvidia_nvshmem_cu12", "3.3.20")):
            planted["gpu08"].version(name, version)
        planted["gpu08"].smi_field("Compute Mode", "Exclusive_Process")
        gpu_cluster.install(fleet, planted)
        fleet["gpu02"].write("/etc/os-release", 'ID=ubuntu\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n')
        fleet["gpu06"].write("/etc/nccl.conf", "NCCL_IB_GID_INDEX=3\n")
        fleet["gpu08"].run(["ip", "link", "set", "eth0", "mtu", "1400"])
        fleet["gpu08"].fake_file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 iommu=off\n")
        yield _check(fleet, tmp_path_factory.mktemp("faulty"))


FAULTS = [
    # check, node, what the report says about it
    ("drift.driver-version", "gpu02", "580.65.06 (7 x 580.159.04)"),
    ("drift.os", "gpu02", "Ubuntu 22.04.5 LTS (7 x "),
    ("rdma.port-active", "gpu02", "mlx5_0"),
    ("drift.nccl-version", "gpu03", "2.26.2 (7 x 2.28.9)"),
    ("rdma.phys-link-up", "gpu03", "mlx5_4:1 has no link (Disabled)"),
    ("drift.driver-flavour", "gpu04", "proprietary (7 x open)"),
    ("drift.torch-version", "gpu04", "2.8.0 (7 x 2.9.0)"),
    ("gpudirect.memory-registrable", "gpu04", "nvidia_peermem not loaded; DMA-BUF no (proprietary"),
    ("gpudirect.gdaki-registrable", "gpu04", "nvidia_peermem not loaded; DMA-BUF no (proprietary"),
    ("gpu.nvlinks-up", "gpu05", "17 NVLinks active, down: 5"),
    ("drift.nic-firmware", "gpu05", "28.36.1010"),
    ("rdma.firmware-same-on-node", "gpu05", "mlx5_7 run firmware 28.36.1010"),
    ("drift.env-nccl", "gpu06", "NCCL_IB_GID_INDEX: 3 (7 x not set)"),
    ("names.own-name-not-loopback", "gpu06", "gpu06 resolves to 127.0.1.1 on itself"),
    ("rdma.subnet-manager", "gpu06", "mlx5_8"),
    ("drift.driver-options", "gpu07", "EnableStreamMemOPs=1"),
    ("drift.memlock", "gpu07", "64 KiB (7 x "),
    ("drift.link-rates", "gpu07", "200"),
    ("rdma.rate-full", "gpu07", "mlx5_9"),
    ("drift.boot-options", "gpu08", "iommu=off (7 x "),
    ("drift.deepep-version", "gpu08", "1.2.0"),
    ("drift.mtu", "gpu08", "main 1400 (7 x main 1500)"),
    ("drift.nvshmem-version", "gpu08", "3.3.20 (7 x 3.4.5)"),
    ("drift.vllm-version", "gpu08", "0.11.0 (7 x 0.12.0)"),
    ("gpu.compute-mode-default", "gpu08", "compute mode exclusive process"),
    ("gpudirect.gdrdrv-loaded", "gpu08", "NVSHMEM 3.3.20"),
]


def test_equal_nodes_are_ready_and_show_no_drift(equal: Cluster) -> None:
    done = equal.done
    no_traceback(done)
    assert (done.rc, done.err) == (0, "")
    assert done.reached == ALL
    assert not [pair for pair in done.failed() if pair[0].startswith(("drift.", "names."))]
    assert not [
        found
        for found in done.report["findings"]
        if (found["status"], found["severity"]) == ("fail", "error")
    ]
    by_check: dict[str, set[str]] = {}
    for check, node in done.failed():
        by_check.setdefault(check, set()).add(node)
    assert all(nodes == set(ALL) for nodes in by_check.values()), "a finding on some of eight equal nodes"
    for check in ("drift.driver-version", "drift.nccl-version", "drift.nic-firmware", "gpu.nvlinks-up"):
        assert done.finding(check)["status"] == "pass"


def test_screen_of_equal_nodes(equal: Cluster) -> None:
    text = equal.done.text
    assert text.startswith("8 nodes in ")
    assert "\nREADY for allgather_reducescatter" in text
    assert "gpu[01-08]" in text
    assert "gpu01, gpu02" not in text
    assert text.splitlines()[-1].startswith("next")
    assert raw_controls(equal.done.out) == []


def test_fail_on_warning_makes_warnings_count(equal: Cluster) -> None:
    assert equal.again("--fail-on", "warning", "--limit", "gpu[01-02]").rc == 1


def test_limit_and_one_fork(equal: Cluster) -> None:
    before = _logins(equal.fleet)
    done = equal.again("--limit", "gpu[02-03],gpu08", "--forks", "1")
    assert (done.rc, done.reached) == (0, ["gpu02", "gpu03", "gpu08"])
    assert "gpu[02,03,08]" in done.text or "gpu[02-03,08]" in done.text
    after = _logins(equal.fleet)
    assert {name for name in ALL if after[name] > before[name]} == {"gpu02", "gpu03", "gpu08"}
    assert "gpu01" not in json.dumps(done.report["findings"])


def test_json_on_standard_output_is_json_alone(equal: Cluster) -> None:
    argv = ["check", "-i", str(equal.fleet.inventory), "--format", "json", "--limit", "gpu01:gpu02"]
    done = equal.doctor.run(*argv)
    assert [node["name"] for node in json.loads(done.out)["nodes"]] == ["gpu01", "gpu02"]
    assert done.err == ""


def test_kept_recording_gives_the_same_findings(equal: Cluster, faulty: Cluster) -> None:
    for cluster in (equal, faulty):
        oldest = cluster.doctor.recordings()[0]
        offline = cluster.doctor.check("--from", str(oldest))
        no_traceback(offline)
        assert offline.all_findings() == cluster.done.all_findings()
        assert offline.nodes == cluster.done.nodes
        assert offline.report["readiness"] == cluster.done.report["readiness"]
        assert offline.rc == cluster.done.rc


@pytest.mark.parametrize("name", ["bundle", "bundle.tar.gz"])
def test_collect_then_judge_elsewhere(faulty: Cluster, name: str) -> None:
    path = faulty.doctor.folder / "work" / name
    done = faulty.doctor.run("collect", "-i", str(faulty.fleet.inventory), "-o", str(path))
    assert (done.rc, done.err) == (0, "")
    assert "8 of 8 nodes recorded" in done.text
    assert f"next: epdoctor check --from {path}" in done.text
    elsewhere = Doctor(faulty.doctor.folder / f"elsewhere-{name}")
    judged = elsewhere.check("--from", str(path))
    assert judged.failed() == faulty.done.failed()
    assert judged.rc == faulty.done.rc


def test_faults_are_those_planted_and_no_others(equal: Cluster, faulty: Cluster) -> None:
    no_traceback(faulty.done)
    assert faulty.done.rc == 1
    assert faulty.done.reached == ALL
    assert equal.done.failed() - faulty.done.failed() == set()
    new = faulty.done.failed() - equal.done.failed()
    assert new == {(check, node) for check, node, _ in FAULTS}


@pytest.mark.parametrize(("check", "node", "found"), FAULTS, ids=[f"{c}-{n}" for c, n, _ in FAULTS])
def test_fault_is_attributed_to_its_node(faulty: Cluster, check: str, node: str, found: str) -> None:
    finding = faulty.done.finding(check, node)
    assert finding["nodes"] == [node]
    assert found in finding["actual"]
    assert finding["why"]
    shown = (
        next(line for line in faulty.done.text.splitlines() if line.endswith(f"  {check}"))
        if (finding["severity"] != "info")
        else f"{node}  {check}"
    )
    assert shown.split()[-2:] == [node, check]


def test_a_healthy_node_beside_faulty_ones_is_judged_as_before(equal: Cluster, faulty: Cluster) -> None:
    assert faulty.done.of_node("gpu01") == equal.done.of_node("gpu01")


def test_screen_names_worst_first_and_what_still_serves(faulty: Cluster) -> None:
    text = faulty.done.text
    assert re.search(r"^NOT READY  \d+ errors, \d+ warnings on 8 of 8 nodes$", text, re.MULTILINE)
    marks = [line[0] for line in text.splitlines() if line[:2] in ("✗ ", "! ")]
    assert marks == sorted(marks, key="✗!".index)
    assert re.search(r"^partly +allgather_reducescatter on gpu\[", text, re.MULTILINE)
    assert text.splitlines()[-1].startswith("next")
    assert raw_controls(faulty.done.out) == []


def test_low_memlock_stops_a_user_without_privileges(faulty: Cluster) -> None:
    """As root the kernel does not count; the same limit is an error for another user.

    A lab node has a process namespace of its own, so that it is judged as a container is.
    """
    done = faulty.again("--limit", "gpu01,gpu07", inventory=faulty.fleet.inventory_text(user="admin"))
    finding = done.finding("container.ipc-lock", "gpu07")
    assert (finding["status"], finding["severity"]) == ("fail", "error")
    assert "64 KiB" in finding["actual"]
    assert faulty.done.finding("container.ipc-lock", "gpu07")["status"] == "pass"
    assert done.rc == 1


def test_openssh_finds_the_same(faulty: Cluster) -> None:
    done = faulty.again("--transport", "openssh")
    assert (done.rc, done.err) == (1, "")
    assert done.all_findings() == faulty.done.all_findings()


def test_sudo_without_password_sees_what_root_sees(equal: Cluster) -> None:
    text = equal.fleet.inventory_text(user="admin")
    limit = ("--limit", "gpu01,gpu02")
    without, become = equal.again(*limit, inventory=text), equal.again(*limit, "--become", inventory=text)
    assert "not seen without root" in without.text
    assert "--become" in without.text
    assert without.finding("kernel.no-xid", "gpu01")["needs_root"] is True
    assert "not seen without root" not in become.text
    assert (become.rc, become.err) == (0, "")
    as_root = equal.again(*limit)
    assert become.of_node("gpu01") == as_root.of_node("gpu01")


def test_through_a_jump_host(equal: Cluster) -> None:
    fleet = equal.fleet
    names = ("gpu02", "gpu03")
    words = dict.fromkeys(names, "ansible_ssh_extra_args='-o ProxyJump=gpu01'")
    text = fleet.inventory_text(host_vars=words)
    for name in names:
        fleet[name].black_hole()  # for the hub alone: gpu01 still reaches them
    try:
        for transport in ("fabric", "openssh"):
            done = equal.again("--limit", "gpu[01-03]", "--transport", transport, inventory=text)
            assert done.reached == ["gpu01", "gpu02", "gpu03"], done.text
            assert done.of_node("gpu02") == equal.done.of_node("gpu02")
    finally:
        for name in names:
            fleet[name].reconnect()


def test_sudo_that_wants_a_password_is_said_for_each_node(equal: Cluster) -> None:
    text = equal.fleet.inventory_text(user="operator")
    done = equal.again("--limit", "gpu01,gpu02", "--become", inventory=text)
    assert (done.rc, done.reached) == (3, [])
    assert {node["kind"] for node in done.nodes.values()} == {"sudo"}
    assert "wants a password" in done.text
    no_traceback(done)


def test_on_a_terminal(faulty: Cluster) -> None:
    """Colour and nothing else: our own attributes, no cursor movement in the report."""
    words = ("check", "-i", str(faulty.fleet.inventory), "--limit", "gpu[01-03]")
    code, shown, err = faulty.doctor.on_terminal(*words)
    assert (code, err) == (1, b"")
    assert b"\x1b[" in shown
    assert raw_controls(without_style(shown)) == []


def test_progress_is_live_on_standard_error_alone(faulty: Cluster) -> None:
    words = ("check", "-i", str(faulty.fleet.inventory), "--limit", "gpu[01-03]")
    _, shown, out = faulty.doctor.on_terminal(*words, streams=("stderr",))
    assert b"nodes done" in shown
    assert shown.endswith(b"\r\x1b[K"), "the line is taken away at the end"
    assert out.startswith(b"3 nodes in ")
    assert raw_controls(out) == []
