"""The lab itself: what its fixtures promise is so, and nothing stays behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import eight_gpus, stub_gpu
from tests.lab.containers import PodmanFleet
from tests.lab.netns import NetnsFleet, NodeOptions
from tests.lab.node import NetnsNode, can_be_stuck
from tests.lab.requirements import LabError, missing
from tests.lab.skeleton import SUDO_PASSWORD
from tests.lab.slurm import SlurmCluster

MakeFleet = Callable[..., NetnsFleet]
ROOT = Path(__file__).parents[1]


def remote(fleet: NetnsFleet, node: NetnsNode, command: str, *, user: str = "root") -> str:
    done = fleet.ssh(node, command, user=user)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_missing_names_the_program_and_its_package() -> None:
    if os.geteuid() != 0:
        assert missing([("sh", "dash")]) == "needs root (network namespaces and mounts)"
        return
    assert missing([("sh", "dash")]) is None
    assert missing([("no-such-program", "its-package")]) == (
        "missing no-such-program: apt-get install -y --no-install-recommends its-package"
    )
    assert missing([], kernel=["no-such-fs"]) == "this kernel has no no-such-fs"


def test_recordings_are_complete() -> None:
    h200, h100 = stub_gpu.load("h200x2"), stub_gpu.load("h100x1")
    assert set(h200.smi) >= {
        "",
        "-q",
        "topo -m",
        "topo -p2p r",
        "topo -p2p w",
        "topo -p2p n",
        "nvlink -s",
        "nvlink -c",
    }
    assert h200.smi["nvlink -s"].count("26.562 GB/s") == 36
    assert h200.smi["nvlink -c"].count("Link is supported") == 36
    assert h100.smi["nvlink -s"] == ""
    assert h200.proc["version"].startswith("NVRM version: NVIDIA UNIX Open Kernel Module")
    assert "EnableStreamMemOPs: 0\n" in h200.proc["params"]
    assert h200.devices["/dev/nvidia1"] == (195, 1)
    assert h200.pci["0000:00:06.0/current_link_speed"] == "32.0 GT/s PCIe\n"
    for machine in (h200, h100):
        for text in machine.smi.values():
            assert not text.startswith("$")
            assert "\nrc=" not in text
    assert stub_gpu.hca_files()["mlx5_0/ports/1/rate"] == b"400 Gb/sec (4X NDR)"


@pytest.mark.fleet
def test_nodes_are_machines_of_their_own(fleet: NetnsFleet) -> None:
    for node in fleet.nodes:
        assert remote(fleet, node, "hostname").strip() == node.name
        assert remote(fleet, node, "ls /sys/class/net").split() == ["eth0", "lo"]
    first, second = fleet.nodes[:2]
    first.write("/etc/modprobe.d/epdlab.conf", "options nvidia NVreg_EnableStreamMemOPs=1\n")
    try:
        assert "NVreg" in remote(fleet, first, "cat /etc/modprobe.d/epdlab.conf")
        assert not second.exists("/etc/modprobe.d/epdlab.conf")
        assert not Path("/etc/modprobe.d/epdlab.conf").exists()
    finally:
        first.remove("/etc/modprobe.d/epdlab.conf")
    assert remote(fleet, first, "ls -A /root /tmp").split() == ["/root:", ".bashrc", ".profile", "/tmp:"]


@pytest.mark.fleet
def test_ansible_reads_the_inventory(fleet: NetnsFleet) -> None:
    ansible = Path(sys.executable).with_name("ansible")
    if not ansible.exists():
        pytest.skip("ansible is not installed beside this Python")
    done = fleet.run([str(ansible), "nodes", "-i", str(fleet.inventory), "-m", "ping"])
    assert done.stdout.count('"ping": "pong"') == len(fleet.nodes), done.stdout + done.stderr


@pytest.mark.fleet
def test_users_and_sudo(fleet: NetnsFleet) -> None:
    node = fleet.nodes[0]
    assert remote(fleet, node, "sudo -n id -u", user="admin").strip() == "0"
    refused = fleet.ssh(node, "sudo -n id -u", user="operator")
    assert refused.returncode != 0
    assert "password is required" in refused.stderr
    with_password = f"echo {SUDO_PASSWORD} | sudo -S -p '' id -u"
    assert remote(fleet, node, with_password, user="operator").strip() == "0"


@pytest.mark.fleet
def test_no_way_out(fleet: NetnsFleet) -> None:
    # A default route as on any host, to a hub that has one network and no route further.
    assert "default via 10.99.255.1 dev eth0" in remote(fleet, fleet.nodes[0], "ip route")
    hub = fleet.run(["ip", "route"]).stdout.split()
    assert hub[:3] == ["10.99.0.0/16", "dev", "br0"]
    assert "default" not in hub
    began = time.monotonic()
    assert fleet.ssh(fleet.nodes[0], "getent hosts no-such-name.example").returncode == 2
    assert time.monotonic() - began < 4, "a lookup waits for a name server"
    refused = fleet.run(["ip", "route", "get", "192.0.2.1"])
    assert refused.returncode != 0
    assert "unreachable" in refused.stderr


@pytest.mark.fleet
def test_options_of_a_node(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, options={1: NodeOptions(memlock_kib=64), 2: NodeOptions(hostname_on_loopback=True)})
    low, loopback, plain = fleet.nodes
    assert remote(fleet, low, "ulimit -l").strip() == "64"
    assert remote(fleet, plain, "ulimit -l").strip() != "64"
    assert remote(fleet, loopback, "getent hosts gpu02").split() == ["127.0.1.1", "gpu02"]
    assert remote(fleet, plain, "getent hosts gpu03").split() == [plain.address, "gpu03"]
    plain.login_limit("memlock", "128")
    assert remote(fleet, plain, "ulimit -l").strip() == "128"
    low.stop_sshd()
    low.start_sshd()
    assert remote(fleet, low, "ulimit -l").strip() == "64"


@pytest.mark.fleet
def test_read_only_and_without_pam(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(1, writable=False, pam=False)
    node = fleet.nodes[0]
    done = fleet.ssh(node, "touch /etc/x")
    assert "Read-only file system" in done.stderr
    node.run(["touch", "/tmp/x"])


@pytest.mark.fleet
def test_faults_of_ssh_and_network(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(6, prefix="bad")
    refused, key, frozen, hole, unplugged, noisy = fleet.nodes
    refused.stop_sshd()
    assert "Connection refused" in fleet.ssh(refused, "true").stderr
    refused.start_sshd()
    assert fleet.ssh(refused, "true").returncode == 0

    old = fleet.known_hosts.read_text()
    assert key.change_host_key() not in old
    assert "Host key verification failed" in fleet.ssh(key, "true").stderr

    frozen.freeze()
    assert "timed out during banner exchange" in fleet.ssh(frozen, "true", connect_timeout_s=1).stderr
    frozen.thaw()
    assert fleet.ssh(frozen, "true").returncode == 0

    hole.black_hole()
    assert "Connection timed out" in fleet.ssh(hole, "true", connect_timeout_s=1).stderr
    hole.reconnect()
    assert fleet.ssh(hole, "true").returncode == 0

    unplugged.link_down()
    assert "No route to host" in fleet.ssh(unplugged, "true").stderr
    unplugged.reconnect()
    assert fleet.ssh(unplugged, "true").returncode == 0

    noisy.bashrc_noise("Welcome to $HOME `id`\n{\n")
    assert remote(fleet, noisy, "echo answer") == "Welcome to $HOME `id`\n{\nanswer\n"


@pytest.mark.fleet
def test_freezing_a_session_leaves_logins_alive(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(1)
    node = fleet.nodes[0]
    argv = [*fleet.exec_prefix, "ssh", "-F", str(fleet.ssh_config), node.name, "sleep 0.5; echo late"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as session:
        deadline = time.monotonic() + 5
        while not any("late" in " ".join(p.argv) for p in node.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        node.freeze("sessions")
        assert {p.state for p in node.processes()} == {"T"}
        time.sleep(1)
        assert session.poll() is None
        assert remote(fleet, node, "echo new") == "new\n"
        node.thaw()
        assert session.communicate(timeout=10)[0] == "late\n"


@pytest.mark.fleet
def test_faults_of_commands(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3)
    hangs, without, full = fleet.nodes
    hangs.hang_python()
    done = fleet.ssh(hangs, "timeout -k 0.3 0.3 python3 -c pass; echo rc $?")
    assert done.stdout == "rc 137\n"  # SIGTERM is ignored, SIGKILL is not
    without.remove_python()
    assert "not found" in fleet.ssh(without, "python3 -c pass").stderr
    full.fill_disk()
    for folder in ("/etc", "/root", "/tmp", "/run"):
        assert "No space left on device" in fleet.ssh(full, f"echo text >{folder}/new").stderr
    # the session's own processes may still be on their way out
    deadline = time.monotonic() + 5
    while full.processes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert full.processes() == ()


@pytest.mark.fleet
@pytest.mark.skipif(not can_be_stuck(), reason="no cgroup version 1 freezer here")
def test_a_stuck_command_survives_sigkill(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(1)
    node = fleet.nodes[0]
    node.stuck_command("/usr/bin/wedged")
    argv = [
        *fleet.exec_prefix,
        "ssh",
        "-F",
        str(fleet.ssh_config),
        node.name,
        "wedged & sleep 0.3; kill -9 $!; wait",
    ]
    with subprocess.Popen(argv) as session:
        time.sleep(1.5)
        assert [p.state for p in node.processes() if "/usr/bin/wedged" in p.argv] == ["D"]
        assert session.poll() is None
        node.release_stuck()
        session.wait(10)
    node.stuck_command("/usr/bin/wedged")
    with subprocess.Popen(argv) as session:
        time.sleep(1)
        fleet.stop()  # a stuck process must not keep the lab from ending
        session.wait(30)


@pytest.mark.fleet
def test_a_node_that_looks_like_a_gpu_machine(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2)
    node, plain = fleet.nodes
    machine = stub_gpu.load("h200x2")
    stub_gpu.install_gpus(node, machine)
    stub_gpu.install_hcas(node)
    assert remote(fleet, node, "nvidia-smi -q") == machine.smi["-q"]
    assert remote(fleet, node, "nvidia-smi") == machine.smi[""]
    assert remote(fleet, node, "nvidia-smi topo -p2p n") == machine.smi["topo -p2p n"]
    assert fleet.ssh(node, "nvidia-smi --gom=0").returncode == 64
    assert remote(fleet, node, "cat /proc/driver/nvidia/params") == machine.proc["params"]
    assert remote(fleet, node, "cat /sys/bus/pci/devices/0000:00:06.0/vendor") == "0x10de\n"
    assert remote(fleet, node, "cat /sys/class/infiniband/mlx5_0/ports/1/link_layer").strip() == "InfiniBand"
    assert remote(fleet, node, "ls /sys/class/net").split() == ["eth0", "lo"]
    assert "No such device" in fleet.ssh(node, "cat /dev/nvidia0").stderr
    assert remote(fleet, plain, "ls /proc/driver; ls -d /dev/nvidia* /dev/infiniband 2>/dev/null; true") == ""
    with pytest.raises(LabError, match="nothing below /proc"):
        node.fake_tree("/proc/nowhere", {"x": ""})


@pytest.mark.fleet
def test_a_node_with_eight_gpus_and_eight_hcas(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(1)
    node = fleet.nodes[0]
    eight_gpus.install(node)
    said = remote(fleet, node, "nvidia-smi -q")
    assert said.count("\nGPU 00000000:") == 8
    assert len(set(re.findall(r"GPU UUID +: (GPU-\S+)", said))) == 8
    assert remote(fleet, node, "nvidia-smi nvlink -s").count("26.562 GB/s") == 8 * 18
    matrix = [line.split() for line in remote(fleet, node, "nvidia-smi topo -m").splitlines()]
    assert [line.count("PIX") for line in matrix if line and re.match(r"GPU\d", line[0])] == [1] * 8
    assert len(remote(fleet, node, "cat /sys/class/infiniband/mlx5_*/ports/1/state").split("ACTIVE")) == 10
    numa = remote(fleet, node, "cat /sys/class/infiniband/mlx5_?/device/numa_node").split()
    assert numa == ["0"] * 4 + ["1"] * 4
    # A GPU and its HCA meet below one switch, as their paths in /sys say.
    gpu, hca = remote(
        fleet, node, "realpath /sys/bus/pci/devices/0000:1b:00.0 /sys/class/infiniband/mlx5_0/device"
    ).split()
    assert os.path.commonpath([gpu, hca]).endswith("/0000:14:01.0/0000:15:00.0")
    assert remote(fleet, node, "ls /sys/bus/pci/devices | wc -l").strip() == str(8 * 6 + 4)
    assert remote(fleet, node, "cat /sys/module/nvidia/version").strip() == "580.159.04"
    assert remote(fleet, node, "ls /sys/class/net").split() == ["eth0", "lo"]


def _namespaces() -> list[str]:
    folder = Path("/run/netns")
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


@pytest.mark.fleet
def test_nothing_stays_behind_when_killed() -> None:
    code = (
        "import sys, time\nfrom tests.lab.netns import NetnsFleet\nfleet = NetnsFleet(2).start()\n"
        "print(fleet.hub, *(node.pid for node in fleet.nodes), flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        hub, *pids = child.stdout.readline().split()
        child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/root/etc").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}/root/etc").exists() for pid in pids)
    with NetnsFleet(1) as fleet:  # the next fleet sweeps the names away
        assert hub not in _namespaces()
        mine = fleet.hub
    assert mine not in _namespaces()


@pytest.mark.container
def test_containers_have_systemd_and_ssh(container_fleet: PodmanFleet) -> None:
    for node in container_fleet.nodes:
        assert node.run(["systemctl", "is-active", "ssh"]).stdout.strip() == "active"
        assert node.run(["python3", "-IB", "-"], text="print(6 * 7)").stdout == "42\n"
        done = container_fleet.run(["ssh", "-F", str(container_fleet.ssh_config), node.name, "hostname"])
        assert done.stdout.strip() == node.name, done.stderr
        inside = container_fleet.run(["podman", "exec", "-i", node.name, "hostname"])
        assert inside.stdout.strip() == node.name, inside.stderr
    first, second = container_fleet.nodes
    first.write("/etc/epdlab", "x\n")
    assert second.run(["test", "-e", "/etc/epdlab"], check=False).returncode == 1


@pytest.mark.slurm
def test_srun_reaches_each_node(slurm_cluster: SlurmCluster) -> None:
    for name in slurm_cluster.names:
        done = subprocess.run(
            ["srun", "-N1", "-w", name, "python3", "-IB", "-"],
            input="import os; print(os.environ['SLURMD_NODENAME'])",
            text=True, capture_output=True, env=slurm_cluster.env, timeout=30,
        )  # fmt: skip
        assert done.stdout.strip() == name, done.stderr


@pytest.mark.slurm
def test_a_job_has_the_limits_of_slurmd() -> None:
    with SlurmCluster(1, memlock_kib=64) as cluster:
        done = cluster.run(["srun", "-N1", "sh", "-c", "ulimit -l"])
        assert done.stdout.strip() == "64", done.stderr
