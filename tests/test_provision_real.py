"""Provisioning real systemd nodes over SSH: converge, again, undo, one node away, a failure in the middle."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.containers import ContainerNode, PodmanFleet
from tests.provision_lab import OPEN, epdoctor, make_gpu_node, snapshot

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

LIMITS = "/etc/security/limits.d/zz-epdoctor-limits.conf"
SSH = "/etc/systemd/system/ssh.service.d/zz-epdoctor-memlock.conf"
OPTIONS = "/etc/modprobe.d/zz-epdoctor-nvidia.conf"
PEERMEM = "/etc/modules-load.d/epdoctor-peermem.conf"
ENV = "/etc/epdoctor/ep.env"
BY_HAND = 'options nvidia NVreg_RegistryDwords="RMForce=1;"\n'


@pytest.fixture(scope="module")
def fleet() -> Iterator[PodmanFleet]:
    with PodmanFleet(3) as nodes:
        first, second, _ = nodes.nodes
        make_gpu_node(first)
        make_gpu_node(second, OPEN)
        # Somebody was here before: a driver option of their own, and a low limit.
        first.write("/etc/modprobe.d/nvidia-graphics.conf", BY_HAND)
        first.run(["sh", "-c", "echo '* - memlock 64' >> /etc/security/limits.conf"])
        # systemctl edit writes override.conf, which ours is read after; the other one wins.
        for unit, name in (("ssh", "override"), ("slurmd", "zzz-site")):
            first.write(
                f"/etc/systemd/system/{unit}.service.d/{name}.conf", "[Service]\nLimitMEMLOCK=65536\n"
            )
        first.write("/etc/systemd/system/slurmd.service", "[Service]\nExecStart=/bin/sleep infinity\n")
        first.run(["systemctl", "daemon-reload"])
        first.write(OPTIONS, "# an older file of this name\n")
        first.run(["chmod", "600", OPTIONS])
        yield nodes


def changes(report: dict[str, object], part: str) -> set[tuple[str, str, str]]:
    run = report[part]
    assert isinstance(run, dict)
    return {(change["node"], change["component"], change["what"]) for change in run["changes"]}


def read(node: ContainerNode, path: str) -> str:
    return node.read(path)


def test_the_whole_way(fleet: PodmanFleet, tmp_path: Path) -> None:
    others = set(Path("/tmp").glob("epd-*/cp/*"))  # of runs beside this one
    inventory = str(fleet.inventory)
    first, second, third = fleet.nodes
    before = {node.name: snapshot(node) for node in fleet.nodes}

    # The plan changes nothing.
    plan = epdoctor(fleet, tmp_path, "provision", inventory, "--plan", "--format", "json")
    assert plan.rc == 0, plan.err + plan.out
    planned = changes(plan.json, "plan")
    assert before == {node.name: snapshot(node) for node in fleet.nodes}
    assert first.run(["ls", "/var/lib/epdoctor"], check=False).returncode != 0

    # Without a terminal and without --yes nothing happens.
    silent = epdoctor(fleet, tmp_path, "provision", inventory)
    assert silent.rc == 2
    assert "--yes" in silent.err

    # Converge: what was planned is what was done.
    done = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", "--format", "json")
    assert done.rc == 3, done.err + done.out  # ssh still runs with its old limit, the options wait for a boot
    assert changes(done.json, "applied") == planned
    assert (first.name, "ibgda_driver", "Rebuild the initramfs") in planned
    assert (first.name, "gpudirect", "Load nvidia_peermem") in planned

    # The nodes themselves.
    assert 'NVreg_EnableStreamMemOPs=1 NVreg_RegistryDwords="RMForce=1;PeerMappingOverride=1;"' in read(
        first, OPTIONS
    )
    assert 'NVreg_RegistryDwords="PeerMappingOverride=1;"' in read(second, OPTIONS)
    assert read(first, "/etc/modprobe.d/nvidia-graphics.conf") == BY_HAND
    assert "* hard memlock unlimited" in read(first, LIMITS)
    limit = ["systemctl", "show", "--property=LimitMEMLOCK", "ssh"]
    assert first.run(limit).stdout == "LimitMEMLOCK=infinity\n"
    said = [remark["text"] for remark in done.json["applied"]["remarks"] if remark["node"] == first.name]
    weaker = "/etc/systemd/system/slurmd.service.d/zzz-site.conf (LimitMEMLOCK=65536)"
    assert f"still smaller for a service, remove the line there: {weaker}" in said
    assert read(first, PEERMEM).endswith("\nnvidia_peermem\n")
    # Open kernel modules: DMA-BUF does it (this machine's Linux decides).
    assert second.run(["ls", PEERMEM], check=False).returncode != 0
    assert third.run(["ls", OPTIONS], check=False).returncode != 0
    for index, node in enumerate(fleet.nodes, 1):
        assert f"VLLM_HOST_IP=10.97.0.{index}\n" in read(node, ENV)
        shown = node.run(["systemctl", "show", "ssh", "--property=LimitMEMLOCK,NeedDaemonReload"]).stdout
        assert "LimitMEMLOCK=infinity" in shown
        assert "NeedDaemonReload=no" in shown
        assert node.run(["stat", "-c", "%a %U", OPTIONS if node is first else LIMITS]).stdout == "644 root\n"
    assert first.run(["cat", "/root/initramfs.log"]).stdout == "-u -k all\n"
    assert first.run(["bash", "-lc", "echo $GLOO_SOCKET_IFNAME"]).stdout == "eth0\n"

    # Again: nothing.
    configured = {node.name: snapshot(node) for node in fleet.nodes}
    again = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", "--format", "json")
    assert again.rc == 3
    assert changes(again.json, "plan") == set()
    assert again.json["applied"] is None
    assert configured == {node.name: snapshot(node) for node in fleet.nodes}

    # The restart that was asked for; ssh keeps our session and is then in order.
    restart = epdoctor(
        fleet,
        tmp_path,
        "provision",
        inventory,
        "--yes",
        "--tags",
        "limits",
        "--restart-services",
        "--format",
        "json",
    )
    assert restart.rc == 0, restart.err + restart.out
    assert {what for _, _, what in changes(restart.json, "applied")} == {"Restart the service: ssh"}
    calm = epdoctor(
        fleet, tmp_path, "provision", inventory, "--yes", "--tags", "limits,env", "--restart-services"
    )
    assert calm.rc == 0, calm.err + calm.out
    assert "NOTHING TO DO" in calm.out

    # Back, byte for byte; the run that only restarted has no journal.
    undone = epdoctor(fleet, tmp_path, "rollback", inventory, "--yes", "--format", "json")
    assert undone.rc == 3, undone.err + undone.out  # the driver keeps its options until the next boot
    assert before == {node.name: snapshot(node) for node in fleet.nodes}
    assert first.run(["cat", "/root/initramfs.log"]).stdout == "-u -k all\n" * 2
    nothing = epdoctor(fleet, tmp_path, "rollback", inventory, "--yes")
    assert nothing.rc == 0
    assert "NOTHING TO UNDO" in nothing.out

    # No shared SSH connection and no folder of the run is left.
    assert set(Path("/tmp").glob("epd-*/cp/*")) <= others


def test_rollback_keeps_what_somebody_changed_since(fleet: PodmanFleet, tmp_path: Path) -> None:
    inventory, third = str(fleet.inventory), fleet.nodes[2]
    limit = ("--limit", third.name)
    done = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", "--tags", "env", *limit)
    assert done.rc == 0, done.err + done.out
    third.write(ENV, "MINE=1\n")
    kept = epdoctor(fleet, tmp_path, "rollback", inventory, "--yes", *limit)
    assert kept.rc == 1
    assert "somebody changed it since" in kept.out
    assert third.read(ENV) == "MINE=1\n"
    # A file that is not ours is left alone by provision too.
    alone = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", "--tags", "env", *limit)
    assert alone.rc == 0
    assert "was not written by epdoctor and stays" in alone.out
    forced = epdoctor(fleet, tmp_path, "rollback", inventory, "--yes", "--force", *limit)
    assert forced.rc == 0, forced.out
    assert third.run(["ls", "/etc/epdoctor"], check=False).returncode != 0


def test_a_failure_in_the_middle_and_going_on(fleet: PodmanFleet, tmp_path: Path) -> None:
    inventory, first = str(fleet.inventory), fleet.nodes[0]
    before = {node.name: snapshot(node) for node in fleet.nodes}
    first.run(["cp", "/usr/sbin/update-initramfs", "/root/update-initramfs.good"])
    first.write("/usr/sbin/update-initramfs", "#!/bin/sh\necho 'No space left on device' >&2\nexit 28\n")
    broken = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", "--format", "json")
    assert broken.rc == 1
    (failure,) = broken.json["applied"]["failures"]
    assert failure["node"] == first.name
    assert "No space left on device" in failure["error"]
    assert failure["where"].startswith("roles/ibgda_driver/tasks/configure.yml:")
    cells = broken.json["applied"]["components"]
    assert cells["env"][first.name] == "not-tried"
    assert {cells["env"][node.name] for node in fleet.nodes[1:]} == {"change"}

    # The image of an installed kernel is older than the options: going on rebuilds it.
    first.run(["mkdir", "-p", "/lib/modules/6.1.0-1-amd64", "/boot"])
    first.run(["touch", "-d", "2020-01-01", "/boot/initrd.img-6.1.0-1-amd64"])
    good = '#!/bin/sh\necho "$@" >> /root/initramfs.log\ntouch /boot/initrd.img-6.1.0-1-amd64\n'
    first.write("/usr/sbin/update-initramfs", good)
    first.run(["chmod", "755", "/usr/sbin/update-initramfs"])
    resumed = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", "--format", "json")
    assert resumed.rc == 3, resumed.err + resumed.out
    done = changes(resumed.json, "applied")
    assert {node for node, _, _ in done} == {first.name}
    assert (first.name, "ibgda_driver", "Rebuild the initramfs") in done
    assert (first.name, "env", ENV) in done
    again = epdoctor(fleet, tmp_path, "provision", inventory, "--yes", "--format", "json")
    assert changes(again.json, "plan") == set()

    # Two runs to undo, the later one first.
    assert epdoctor(fleet, tmp_path, "rollback", inventory, "--yes").rc == 0
    assert epdoctor(fleet, tmp_path, "rollback", inventory, "--yes").rc == 3
    assert before == {node.name: snapshot(node) for node in fleet.nodes}


def test_unsupported_managed_and_unreachable_nodes(fleet: PodmanFleet, tmp_path: Path) -> None:
    first, second, third = fleet.nodes
    before = {node.name: snapshot(node) for node in (second, third)}
    release = third.read("/etc/os-release")
    text = fleet.inventory.read_text()
    inventory = tmp_path / "inventory.ini"
    # Nothing listens on 10.97.0.99.
    inventory.write_text(text.replace("[nodes]\n", "[nodes]\nghost ansible_host=10.97.0.99\n"))
    third.write("/usr/lib/os-release", release.replace('VERSION_ID="12"', 'VERSION_ID="11"'))
    second.run(["mkdir", "-p", "/run/nvidia/driver/usr"])
    try:
        done = epdoctor(
            fleet,
            tmp_path,
            "provision",
            str(inventory),
            "--yes",
            "--tags",
            "ibgda_driver,gpudirect",
            "--format",
            "json",
        )
    finally:
        third.write("/usr/lib/os-release", release)
        second.run(["rm", "-r", "/run/nvidia"])
    assert done.rc == 1, done.err + done.out
    applied = done.json["applied"]
    assert set(applied["not_reached"]) == {"ghost"}
    (failure,) = applied["failures"]
    assert failure["node"] == third.name
    assert "is not supported; nothing was changed" in failure["error"]
    cells = applied["components"]["ibgda_driver"]
    assert cells == {first.name: "change", second.name: "left-alone", third.name: "failed"}
    said = [remark["text"] for remark in applied["remarks"] if remark["node"] == second.name]
    assert any("driver.kernelModuleConfig.name" in line for line in said)
    assert before == {node.name: snapshot(node) for node in (second, third)}
    assert epdoctor(fleet, tmp_path, "rollback", str(inventory), "--yes").rc == 3
