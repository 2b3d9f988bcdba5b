"""`epdoctor fix` for real: container nodes over SSH, and this machine in a mount namespace of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.containers import PodmanFleet
from tests.provision_lab import ROOT, epdoctor, make_gpu_node, snapshot

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

OPTIONS = "/etc/modprobe.d/zz-epdoctor-nvidia.conf"
LIMITS = "/etc/security/limits.d/zz-epdoctor-limits.conf"

# Nothing reaches this machine's own /etc: it is the lower layer of an overlay that ends with the namespace.
HERE = """
set -e
scratch=$1; shift
mount -t tmpfs none "$scratch"
mkdir "$scratch/upper" "$scratch/work"
mount -t overlay none -o "lowerdir=/etc,upperdir=$scratch/upper,workdir=$scratch/work" /etc
mkdir -p /var/lib/epdoctor
mount -t tmpfs none /var/lib/epdoctor
rc=0; "$@" fix --yes --format json -e limits_shm_minimum_mib=0 host.nofile-enough || rc=$?
echo "@@ $rc"
head -c 33 /etc/security/limits.d/zz-epdoctor-limits.conf; echo
rc=0; "$@" rollback --yes --format json || rc=$?
echo "@@ $rc"
ls /etc/security/limits.d/zz-epdoctor-limits.conf 2>&1
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[PodmanFleet]:
    with PodmanFleet(2) as nodes:
        make_gpu_node(nodes.nodes[0])
        yield nodes


def test_findings_become_components_and_are_proved(fleet: PodmanFleet, tmp_path: Path) -> None:
    inventory = str(fleet.inventory)
    first, second = fleet.nodes
    # The second node has enough already: nothing fails there, and it is left alone.
    second.run(["mount", "-o", "remount,size=2g", "/dev/shm"])
    before = {node.name: snapshot(node) for node in fleet.nodes}
    words = ("fix", "-i", inventory, "host.shm-large-enough", "--restart-services")
    plan = epdoctor(fleet, tmp_path, *words, "--plan", "--format", "json")
    assert plan.rc == 0, plan.err + plan.out
    assert plan.json["plan"]["components"] == {"limits": {first.name: "change"}}
    assert before == {node.name: snapshot(node) for node in fleet.nodes}

    done = epdoctor(fleet, tmp_path, *words, "--yes", "--format", "json")
    assert done.rc == 0, done.err + done.out
    assert done.json["checks"] == [{"id": "host.shm-large-enough", "before": "1 fail", "after": "1 pass"}]
    assert before[second.name] == snapshot(second)
    again = epdoctor(fleet, tmp_path, *words, "--yes")
    assert again.rc == 0, again.err + again.out
    assert "NOTHING TO DO  nothing that a playbook mends fails" in again.out

    # What no playbook mends is told with its command.
    by_hand = epdoctor(fleet, tmp_path, "fix", "-i", inventory, "time.synchronised", "--yes")
    assert by_hand.rc == 0, by_hand.err + by_hand.out  # a warning
    assert "NOTHING TO DO  no playbook mends these findings" in by_hand.out
    assert by_hand.out.rstrip().endswith(f"next      on {first.name}: sudo timedatectl set-ntp true")
    assert epdoctor(fleet, tmp_path, "rollback", inventory, "--yes").rc == 0
    assert before == {node.name: snapshot(node) for node in fleet.nodes}


def test_a_component_goes_only_where_its_finding_is(fleet: PodmanFleet, tmp_path: Path) -> None:
    first, second = fleet.nodes
    first.run(["mount", "-o", "remount,size=2g", "/dev/shm"])
    second.run(["mount", "-o", "remount,size=64m", "/dev/shm"])
    # Written and not live: of a GPU, so of the first node alone.
    first.write("/etc/modprobe.d/site.conf", "options nvidia NVreg_EnableStreamMemOPs=1\n")
    before = {node.name: snapshot(node) for node in fleet.nodes}
    words = ("fix", "-i", str(fleet.inventory), "host.shm-large-enough", "driver.options-live")
    done = epdoctor(fleet, tmp_path, *words, "--yes", "--format", "json")
    assert done.json["applied"]["components"] == {
        "limits": {first.name: "not-asked", second.name: "change"},
        "ibgda_driver": {first.name: "change", second.name: "not-asked"},
    }, done.err + done.out
    assert first.run(["ls", LIMITS], check=False).returncode != 0
    assert second.run(["ls", OPTIONS], check=False).returncode != 0
    assert "PeerMappingOverride=1" in first.read(OPTIONS)
    assert epdoctor(fleet, tmp_path, "rollback", str(fleet.inventory), "--yes").rc in (0, 3)
    assert before == {node.name: snapshot(node) for node in fleet.nodes}


def test_a_container_of_this_machine_is_never_rebooted(fleet: PodmanFleet, tmp_path: Path) -> None:
    inventory, first = str(fleet.inventory), fleet.nodes[0]
    words = (
        "provision",
        inventory,
        "--yes",
        "--tags",
        "ibgda_driver",
        "--limit",
        first.name,
        "--format",
        "json",
    )
    done = epdoctor(fleet, tmp_path, *words, "--reboot", "when-needed", "--force")
    assert done.rc == 3, done.err + done.out
    kinds = {remark["kind"]: remark["text"] for remark in done.json["applied"]["remarks"]}
    assert "never reboots itself" in kinds["refused"]
    assert "reboot" in kinds
    assert "PeerMappingOverride=1" in first.read(OPTIONS)
    assert epdoctor(fleet, tmp_path, "rollback", inventory, "--yes").rc == 3


def test_this_machine_is_mended_and_put_back(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    argv = ["unshare", "--mount", "--propagation", "private", "prlimit", "--nofile=1000:1000"]
    argv += ["sh", "-c", HERE, "sh", str(tmp_path / "scratch"), sys.executable, "-m", "epdoctor"]
    done = subprocess.run(
        argv, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=280, stdin=subprocess.DEVNULL
    )
    assert done.returncode != 0  # the last `ls` finds nothing
    fixed, fixed_rc, undone, undone_rc = _parts(done.stdout)
    assert fixed_rc == 3, done.stderr + done.stdout  # this session keeps its limit
    assert LIMITS in {change["what"] for change in fixed["applied"]["changes"]}
    assert ("by-hand", "log in anew: this session keeps its old limits") in {
        (remark["kind"], remark["text"]) for remark in fixed["applied"]["remarks"]
    }
    assert "# Written by epdoctor provision" in done.stdout
    assert undone_rc == 0, done.stderr + done.stdout
    (files,) = undone["nodes"].values()
    assert {"path": LIMITS, "did": "removed"} in files
    assert not Path(LIMITS).exists()


def _parts(
    text: str,
) -> tuple[dict[str, dict[str, list[dict[str, str]]]], int, dict[str, dict[str, list[dict[str, str]]]], int]:
    reports, codes = [], []
    rest = text
    while "{" in rest and "@@ " in rest:
        report, end = json.JSONDecoder().raw_decode(rest[rest.index("{") :])
        rest = rest[rest.index("{") + end :]
        codes.append(int(rest.partition("@@ ")[2].split()[0]))
        rest = rest.partition("@@ ")[2]
        reports.append(report)
    assert len(reports) == 2, text
    return reports[0], codes[0], reports[1], codes[1]
