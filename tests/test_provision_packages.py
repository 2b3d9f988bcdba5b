"""Provisioning packages on real systemd nodes that have no way out: debs and wheels of a site, nothing else."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.containers import ContainerNode, PodmanFleet
from tests.packages_lab import (
    DEBS,
    flat_mirror,
    link_into,
    make_venv,
    real_debs,
    real_wheels,
    stand_in_deb,
    stand_in_wheel,
    write_sums,
)  # fmt: skip
from tests.provision_lab import epdoctor, make_gpu_node

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

PYTHON = "3.11"  # Debian 12's, which the nodes run
LIST = "/etc/apt/sources.list.d/epdoctor.list"
CONSTRAINTS = "/etc/epdoctor/constraints.txt"


@pytest.fixture(scope="module")
def fleet() -> Iterator[PodmanFleet]:
    with PodmanFleet(3) as nodes:
        make_gpu_node(nodes.nodes[0])
        yield nodes


def changes(report: dict[str, object], part: str) -> set[tuple[str, str, str]]:
    run = report[part]
    assert isinstance(run, dict)
    return {(change["node"], change["component"], change["what"]) for change in run["changes"]}


def installed(node: ContainerNode, name: str) -> str:
    """Version of a deb, or ""."""
    done = node.run(["dpkg-query", "-W", "-f", "${Version}", name], check=False)
    return done.stdout if done.returncode == 0 else ""


def dists(node: ContainerNode) -> dict[str, str]:
    text = node.run(["/opt/vllm/bin/python", "-m", "pip", "list", "--format=freeze"]).stdout
    return dict(line.split("==", 1) for line in text.splitlines())


def gone(node: ContainerNode, path: str) -> bool:
    return node.run(["ls", path], check=False).returncode != 0


def test_debs_of_the_site(fleet: PodmanFleet, tmp_path: Path) -> None:
    """RDMA's user space, modules and a rail: plan, do, again, undo."""
    inventory, first = str(fleet.inventory), fleet.nodes[0]
    site = link_into(tmp_path / "site", real_debs(first))
    rails = "rdma_rails=[{interface: eth0, mtu: 1400}]"
    words = ("--tags", "rdma", "--source", f"packages={site}", "-e", rails, "--format", "json")

    plan = epdoctor(fleet, tmp_path, "provision", inventory, "--plan", *words)
    assert gone(first, "/var/cache/epdoctor")
    done = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", *words)
    assert done.rc in (0, 3), done.err + done.out
    applied = changes(done.json, "applied")
    assert applied == changes(plan.json, "plan")
    names = " ".join(sorted(set(DEBS) - {"libucx0", "ucx-utils"}))
    for node in fleet.nodes:
        assert (node.name, "rdma", f"Install packages: {names}") in applied
        assert installed(node, "perftest")
        assert "mtu 1400" in node.run(["ip", "link", "show", "eth0"]).stdout
        shown = node.run(["systemctl", "show", "multi-user.target", "--property=Wants"]).stdout
        assert "epdoctor-roce.service" in shown
    assert first.read("/etc/modules-load.d/epdoctor-rdma.conf").endswith("\nib_uverbs\nrdma_ucm\n")
    assert gone(fleet.nodes[1], "/etc/modules-load.d/epdoctor-rdma.conf")  # no HCA that needs it

    again = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", *words)
    assert changes(again.json, "plan") == set()
    assert again.json["applied"] is None

    undone = epdoctor(fleet, tmp_path, "rollback", inventory, "--yes")
    assert undone.rc in (0, 3), undone.err + undone.out
    assert "packages stay installed: " in undone.out
    assert all(gone(node, LIST) and gone(node, "/etc/epdoctor/roce.sh") for node in fleet.nodes)
    assert installed(first, "perftest")


def test_what_a_source_can_have_wrong(fleet: PodmanFleet, tmp_path: Path) -> None:
    """Every failure names the node, the task and what to do, and leaves nothing half done."""
    inventory = str(fleet.inventory)
    first, second, third = fleet.nodes
    site = link_into(tmp_path / "site", real_debs(first))
    flat_mirror(site)
    argv = [
        *fleet.exec_prefix,
        sys.executable,
        "-m",
        "http.server",
        "8099",
        "--bind",
        "10.97.255.1",
        "--directory",
        str(site),
    ]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Another apt runs on the third node.
    lock = "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(300)"
    holder = subprocess.Popen(["podman", "exec", third.name, "python3", "-c", lock], env=fleet.env)
    time.sleep(1)
    try:
        done = epdoctor(
            fleet, tmp_path, "provision", inventory, "--yes", "--format", "json", "--tags", "rdma",
            "--source", "mirror=http://10.97.255.1:8099", "-e", "rdma_packages=[libucx0]",
            "-e", "packages_lock_timeout_s=5", "--limit", f"{second.name},{third.name}",
        )  # fmt: skip
        assert done.rc == 1, done.err + done.out
        (failure,) = done.json["applied"]["failures"]
        assert failure["node"] == third.name
        assert failure["task"] == "Refuse to go on without them"
        assert "lock" in failure["error"]
        assert installed(second, "libucx0")
        assert not installed(third, "libucx0")
        assert second.read(LIST).endswith("deb [trusted=yes] http://10.97.255.1:8099 ./\n")

        absent = epdoctor(
            fleet, tmp_path, "provision", inventory, "--yes", "--format", "json", "--tags", "rdma",
            "--source", "mirror=http://10.97.255.1:8099", "-e", "rdma_packages=[no-such-package]", "--limit", second.name,
        )  # fmt: skip
        (failure,) = absent.json["applied"]["failures"]
        assert (
            "Unable to locate package no-such-package. Looked in http://10.97.255.1:8099" in failure["error"]
        )
    finally:
        server.kill()
        holder.kill()
        third.run(["pkill", "-f", "lock-frontend"], check=False)

    # The folder changed after its sums were written; the second node has no room for it.
    (site / "Packages").unlink()
    bad = next(site.glob("perftest_*.deb"))
    data = bad.read_bytes()
    bad.unlink()
    bad.write_bytes(data[:-1] + b"x")
    second.run(
        ["sh", "-c", "mkdir -p /var/cache/epdoctor && mount -t tmpfs -o size=400k none /var/cache/epdoctor"]
    )
    words = ("--tags", "rdma", "-e", f"source_packages={site}", "-e", "rdma_packages=[ucx-utils]")
    try:
        broken = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", "--format", "json", *words)
    finally:
        second.run(["umount", "/var/cache/epdoctor"])
    assert broken.rc == 1
    errors = {failure["node"]: failure["error"] for failure in broken.json["applied"]["failures"]}
    assert errors.keys() == {node.name for node in fleet.nodes}
    assert f"{bad.name} has a wrong checksum" in errors[first.name]
    assert "MiB were free there" in errors[second.name]
    assert not any(installed(node, "ucx-utils") for node in fleet.nodes)
    refused = epdoctor(
        fleet, tmp_path, "provision", inventory, "--yes", "--tags", "rdma", "--source", f"packages={site}"
    )
    assert refused.rc == 2
    assert bad.name in refused.err


def test_wheels_of_the_site(fleet: PodmanFleet, tmp_path: Path) -> None:
    """NCCL, NVSHMEM and NIXL into an environment that holds older ones, and no way back for pip."""
    inventory = str(fleet.inventory)
    first, second, third = fleet.nodes
    (pip,) = real_wheels(PYTHON, ["pip==25.3"])
    own = tmp_path / "own"
    own.mkdir()
    torch = stand_in_wheel(own, "torch", "2.14.0", ["nvidia-nccl-cu13==2.30.7"])
    old = [
        stand_in_wheel(own, "nvidia-nccl-cu13", "2.29.7"),
        stand_in_wheel(own, "nvidia-nvshmem-cu13", "3.6.5"),
        stand_in_wheel(own, "nvidia-nvshmem-cu12", "3.3.9"),
        stand_in_wheel(own, "nixl-cu12", "1.4.0"),
    ]
    drags = stand_in_wheel(own, "drags-nccl-back", "1.0", ["nvidia-nccl-cu13==2.29.7"])
    make_venv(first, pip, [torch, *old])
    make_venv(second, pip, [torch])
    house = link_into(tmp_path / "house", real_wheels(PYTHON))
    words = ("--format", "json", "--tags", "nccl,nvshmem,ucx_nixl", "--source", f"wheelhouse={house}")

    done = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", *words)
    assert done.rc == 1, done.err + done.out  # the third node has no environment
    (failure,) = done.json["applied"]["failures"]
    assert failure["node"] == third.name
    assert failure["error"].startswith(
        "there is no Python environment at /opt/vllm. Let the vllm component make it"
    )
    applied = changes(done.json, "applied")
    assert (first.name, "nvshmem", "Take out wheels: nvidia-nvshmem-cu12") in applied
    assert (first.name, "ucx_nixl", "Take out wheels: nixl-cu12") in applied
    for node in (first, second):
        have = dists(node)
        assert have["nvidia-nccl-cu13"] == "2.30.7"
        assert have["nvidia-nvshmem-cu13"] == "3.4.5"
        assert have["nixl"] == have["nixl-cu13"] == "1.5.0"
        assert not have.keys() & {"nvidia-nvshmem-cu12", "nixl-cu12"}
        node.run(["sh", "-c", "ls /opt/vllm/lib/python3*/site-packages/nvidia/nccl/lib/libnccl.so.2"])
        assert "nvidia-nvshmem-cu13>=3.3.9,<3.5.19\n" in node.read(CONSTRAINTS)

    # A later pip run may not undo it.
    subprocess.run(["podman", "cp", str(drags), f"{first.name}:/root/site/"], check=True)
    pip_run = [
        "/opt/vllm/bin/python",
        "-m",
        "pip",
        "install",
        "--no-index",
        "--find-links",
        "/root/site",
        "drags-nccl-back",
    ]
    later = first.run(pip_run, check=False)
    assert later.returncode != 0
    assert "nvidia-nccl-cu13>=2.30.4" in later.stdout + later.stderr  # the constraint is named
    assert dists(first)["nvidia-nccl-cu13"] == "2.30.7"

    limit = ("--limit", f"{first.name},{second.name}")
    again = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", *words, *limit)
    assert changes(again.json, "plan") == set()

    undone = epdoctor(fleet, tmp_path, "rollback", inventory, "--yes")
    assert "nvidia-nccl-cu13 (before 2.29.7)" in " ".join(undone.out.split())
    assert gone(first, CONSTRAINTS)
    assert gone(first, "/opt/vllm/pip.conf")
    first.run(pip_run)  # and now it may

    # Wheels of another kind: none for this Python, and one whose sum is wrong.
    poor = link_into(tmp_path / "poor", real_wheels(PYTHON, ["nixl==1.5.0"]))
    lacking = epdoctor(
        fleet, tmp_path, "provision", inventory, "--plan", "--format", "json", "--tags", "nvshmem", *limit[:1], first.name,
        "--source", f"wheelhouse={poor}", "-e", "nvshmem_version=3.3.24",
    )  # fmt: skip
    (failure,) = lacking.json["plan"]["failures"]
    assert f"pip download --no-deps -d {poor} nvidia-nvshmem-cu13==3.3.24" in failure["error"]
    (poor / "SHA256SUMS").write_text("0" * 64 + "  nixl-1.5.0-py3-none-any.whl\n")
    second.run(["/opt/vllm/bin/python", "-m", "pip", "uninstall", "--yes", "--quiet", "nixl"])
    (poor / "nixl_cu13-1.5.0-py3-none-any.whl").write_bytes(b"")
    wrong = epdoctor(
        fleet, tmp_path, "provision", inventory, "--yes", "--format", "json", "--tags", "ucx_nixl", *limit[:1], second.name,
        "-e", f"source_wheelhouse={poor}",
    )  # fmt: skip
    (failure,) = wrong.json["applied"]["failures"]
    assert "the checksum is not the one in" in failure["error"]
    assert "nixl" not in dists(second)


def test_gdrcopy_up_to_the_hardware(fleet: PodmanFleet, tmp_path: Path) -> None:
    """Packages and the file for the boot are real; the last task that can be reached here loads the module."""
    inventory = str(fleet.inventory)
    first, second, third = fleet.nodes
    site = tmp_path / "site"
    site.mkdir()
    stand_in_deb(site, "gdrdrv-dkms", "2.5.2-1", "/usr/src/gdrdrv-2.5.2/dkms.conf")
    stand_in_deb(site, "libgdrapi", "2.5.2-1", "/usr/lib/x86_64-linux-gnu/libgdrapi.so.2")
    write_sums(site)
    words = ("--yes", "--format", "json", "--tags", "gdrcopy", "--source", f"packages={site}")
    stub = first.read("/usr/sbin/modprobe")
    first.write("/usr/sbin/modprobe", '#!/bin/sh\necho "modprobe: FATAL: Module $1 not found" >&2\nexit 1\n')
    driver = (
        "mkdir -p /run/nvidia/driver/usr && mount -t tmpfs none /proc/driver && mkdir /proc/driver/nvidia"
    )
    second.run(["sh", "-c", f"{driver} && echo 'NVRM version: x 580.1' > /proc/driver/nvidia/version"])
    done = epdoctor(fleet, tmp_path, "provision", inventory, *words)
    assert done.rc == 1, done.err + done.out
    (failure,) = done.json["applied"]["failures"]
    assert (failure["node"], failure["task"]) == (first.name, "Load gdrdrv")
    assert failure["error"] == "modprobe gdrdrv ended with 1: modprobe: FATAL: Module gdrdrv not found"
    cells = done.json["applied"]["components"]["gdrcopy"]
    assert (cells[second.name], cells[third.name]) == ("left-alone", "absent")
    assert installed(first, "gdrdrv-dkms") == "2.5.2-1"

    first.write("/usr/sbin/modprobe", stub)
    on = epdoctor(fleet, tmp_path, "provision", inventory, *words)
    assert changes(on.json, "applied") == {(first.name, "gdrcopy", "Load gdrdrv")}
    again = epdoctor(fleet, tmp_path, "provision", inventory, *words)
    assert changes(again.json, "plan") == set()
    assert first.read("/etc/modules-load.d/epdoctor-gdrdrv.conf").endswith("\ngdrdrv\n")

    # From source it says what is missing before it changes anything.
    first.run(["dpkg", "--purge", "gdrdrv-dkms", "libgdrapi"])
    source = epdoctor(
        fleet,
        tmp_path,
        "provision",
        inventory,
        "--plan",
        "--format",
        "json",
        "--tags",
        "gdrcopy",
        "-e",
        "gdrcopy_source=git",
    )
    (failure,) = source.json["plan"]["failures"]
    assert failure["error"].startswith("GDRCopy cannot be built here without gcc, make, the kernel's headers")


def test_shared_memory_is_large_after_every_boot(fleet: PodmanFleet, tmp_path: Path) -> None:
    inventory, third = str(fleet.inventory), fleet.nodes[2]

    def size_mib() -> int:
        return int(third.run(["df", "--output=size", "-m", "/dev/shm"]).stdout.split()[-1])

    assert size_mib() < 1024
    words = ("--tags", "limits", "--limit", third.name, "--format", "json", "-e", "limits_shm_mib=2048")
    done = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", *words)
    assert (third.name, "limits", "Set the size of /dev/shm") in changes(done.json, "applied")
    assert size_mib() == 2048
    assert (
        "epdoctor-shm.service"
        in third.run(["systemctl", "show", "sysinit.target", "--property=Wants"]).stdout
    )
    # What a boot does: systemd mounts it small, then starts the unit.
    third.run(["mount", "-o", "remount,size=64m", "/dev/shm"])
    third.run(["systemctl", "restart", "epdoctor-shm.service"])
    assert size_mib() == 2048
    again = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", *words)
    assert changes(again.json, "plan") == set()
    undone = epdoctor(fleet, tmp_path, "rollback", inventory, "--yes", "--limit", third.name)
    assert "/dev/shm keeps its size until the next boot" in undone.out
    assert gone(third, "/etc/systemd/system/epdoctor-shm.service")
    third.run(["mount", "-o", "remount,size=64m", "/dev/shm"])
