"""A node that is lost in the middle of a run stops for itself; the same command again goes on where it stopped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.containers import ContainerNode, PodmanFleet
from tests.provision_lab import epdoctor, make_gpu_node, snapshot

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

ENV = "/etc/epdoctor/ep.env"
OPTIONS = "/etc/modprobe.d/zz-epdoctor-nvidia.conf"
GOOD = '#!/bin/sh\necho "$@" >> /root/initramfs.log\ntouch /boot/initrd.img-6.1.0-1-amd64\n'
# The task's own program takes the node off the network, as a crash in the middle would.
LOST = "#!/bin/sh\nsystemctl stop ssh\npkill -KILL sshd\nsleep 60\n"
# As a pulled cable does: no packet says that it is gone.
SILENT = "#!/bin/sh\nip link set eth0 down\nsleep 60\n"
# What a site may set: the node is given up after two seconds.
SOON = {"ANSIBLE_SSH_EXTRA_ARGS": "-o ServerAliveInterval=1 -o ServerAliveCountMax=2"}


@pytest.fixture(scope="module")
def fleet() -> Iterator[PodmanFleet]:
    with PodmanFleet(3) as nodes:
        for node in nodes.nodes:
            make_gpu_node(node)
            # An installed kernel and its image, older than what will be written.
            node.run(["mkdir", "-p", "/lib/modules/6.1.0-1-amd64", "/boot"])
            node.run(["touch", "-d", "2020-01-01", "/boot/initrd.img-6.1.0-1-amd64"])
            rebuild(node, GOOD)
        yield nodes


def rebuild(node: ContainerNode, script: str) -> None:
    node.write("/usr/sbin/update-initramfs", script)
    node.run(["chmod", "755", "/usr/sbin/update-initramfs"])


def test_a_node_is_lost_in_the_middle_and_the_run_goes_on(fleet: PodmanFleet, tmp_path: Path) -> None:
    inventory, lost = str(fleet.inventory), fleet.nodes[1:]
    others = [fleet.nodes[0]]
    before = {node.name: snapshot(node) for node in fleet.nodes}
    words = ("provision", inventory, "--yes", "--tags", "limits,ibgda_driver,env", "--format", "json")
    rebuild(lost[0], LOST)
    rebuild(lost[1], SILENT)
    broken = epdoctor(fleet, tmp_path, *words, env=SOON)
    lost[0].run(["systemctl", "start", "ssh"])
    lost[1].run(["ip", "link", "set", "eth0", "up"])
    for node in lost:
        rebuild(node, GOOD)
    assert broken.rc == 3, broken.err + broken.out
    applied = broken.json["applied"]
    assert set(applied["not_reached"]) == {node.name for node in lost}
    assert applied["failures"] == []
    cells = applied["components"]
    for component in ("limits", "ibgda_driver", "env"):
        assert {cells[component][node.name] for node in others} == {"change"}
        word = "change" if component == "limits" else "unreachable"
        assert {cells[component][node.name] for node in lost} == {word}
    where = {"component": "ibgda_driver", "task": "Rebuild the initramfs"}
    assert applied["lost_in"] == {node.name: where for node in lost}
    # What was written before is whole; what comes later is not there.
    for node in lost:
        assert "PeerMappingOverride=1" in node.read(OPTIONS)
        assert node.run(["ls", ENV], check=False).returncode != 0

    done = {node.name: snapshot(node) for node in others}
    again = epdoctor(fleet, tmp_path, *words)
    assert again.rc == 3, again.err + again.out  # the options wait for a boot
    changes = {(change["node"], change["what"]) for change in again.json["applied"]["changes"]}
    assert {node for node, _ in changes} == {node.name for node in lost}
    assert {what for _, what in changes} == {"Rebuild the initramfs", ENV, "/etc/profile.d/epdoctor-ep.sh"}
    assert done == {node.name: snapshot(node) for node in others}

    third = epdoctor(fleet, tmp_path, *words)
    assert third.json["plan"]["changes"] == []
    assert third.json["applied"] is None

    # Two runs to undo, the later one first.
    assert epdoctor(fleet, tmp_path, "rollback", inventory, "--yes").rc in (0, 3)
    assert epdoctor(fleet, tmp_path, "rollback", inventory, "--yes").rc in (0, 3)
    assert before == {node.name: snapshot(node) for node in fleet.nodes}
