"""`--via`: the same agent in containers (podman) and in Slurm steps, where the workload will run."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctor import Doctor, Done, need, no_traceback, raw_controls, until
from tests.lab import slurm
from tests.lab.containers import PodmanFleet
from tests.lab.slurm import SlurmCluster


def _record(doctor: Doctor, node: str) -> str:
    """One node's record of the last kept recording, as text."""
    with tarfile.open(doctor.recordings()[-1]) as archive:
        member = next(
            name for name in archive.getnames() if name.endswith(f"/{node}.json") or name == f"{node}.json"
        )
        stream = archive.extractfile(member)
        assert stream is not None
        return stream.read().decode()


@pytest.fixture
def podman(container_fleet: PodmanFleet, tmp_path: Path) -> Doctor:
    """A user beside the containers; ``nodes`` in the working folder names them."""
    doctor = Doctor(tmp_path, env={"CONTAINERS_CONF": container_fleet.env["CONTAINERS_CONF"]})
    names = "".join(f"{node.name}\n" for node in container_fleet.nodes)
    (tmp_path / "work" / "nodes").write_text(names)
    return doctor


@pytest.mark.container
def test_podman_exec_looks_inside_the_containers(container_fleet: PodmanFleet, podman: Doctor) -> None:
    first, second = container_fleet.nodes
    first.write("/etc/nccl.conf", "NCCL_IB_GID_INDEX=3\n")
    try:
        done = podman.check("-i", "nodes", "--via", "podman exec -i {node}")
    finally:
        first.run(["rm", "/etc/nccl.conf"])
    no_traceback(done)
    assert done.reached == [first.name, second.name]
    assert done.finding("drift.env-nccl")["status"] == "fail"
    assert "NCCL_IB_GID_INDEX" in done.finding("drift.env-nccl")["actual"]
    # podman-run(1), --shm-size: 64 MiB by default
    assert set(done.statuses("host.shm-large-enough").values()) == {"fail"}
    assert "62.5 MiB" in done.finding("host.shm-large-enough", first.name)["actual"]
    assert done.rc == 1
    assert raw_controls(done.out) == []
    offline = podman.check("--from", str(podman.recordings()[-1]))
    assert offline.all_findings() == done.all_findings()


@pytest.mark.container
def test_podman_sees_what_ssh_into_the_container_sees(container_fleet: PodmanFleet, podman: Doctor) -> None:
    """Two ways into the same containers agree on all that does not depend on the way."""
    through = podman.check("-i", "nodes", "--via", "podman exec -i {node}")
    over_ssh = Doctor(podman.folder / "ssh", prefix=container_fleet.exec_prefix)
    done = over_ssh.check("-i", str(container_fleet.inventory))
    assert done.reached == through.reached
    differ = through.failed() ^ done.failed()
    assert {check for check, _ in differ} <= {"host.nofile-enough", "names.own-name-not-loopback"}


@pytest.mark.container
def test_one_container_without_an_inventory(container_fleet: PodmanFleet, podman: Doctor) -> None:
    name = container_fleet.nodes[0].name
    done = podman.check("--via", f"podman exec -i {name}")
    no_traceback(done)
    assert done.reached == [name]
    assert done.report["goal"]["multinode"] is False


@pytest.mark.container
def test_a_container_that_is_not_there_costs_itself(container_fleet: PodmanFleet, podman: Doctor) -> None:
    names = [node.name for node in container_fleet.nodes]
    healthy = podman.check("-i", "nodes", "--via", "podman exec -i {node}")
    (podman.folder / "work" / "nodes").write_text("\n".join([*names, "absent"]))
    done = podman.check("-i", "nodes", "--via", "podman exec -i {node}")
    absent = done.nodes["absent"]
    assert (absent["reached"], absent["kind"]) == (False, "via-failed")
    assert "no such container" in absent["error"]
    assert absent["hint"] == "podman exec -i absent python3 --version"
    assert absent["hint"] in done.text
    host_checks = ("host.shm-large-enough", "time.synchronised", "network.default-route-present")
    for check in host_checks:
        assert done.statuses(check) == healthy.statuses(check)


@pytest.mark.container
def test_nothing_stays_in_a_container(container_fleet: PodmanFleet, podman: Doctor) -> None:
    node = container_fleet.nodes[1]
    listing = [
        "find",
        "/",
        "-xdev",
        "-newer",
        "/run/mark",
        "-not",
        "-path",
        "/proc/*",
        "-not",
        "-path",
        "/sys/*",
    ]
    node.write("/run/mark", "")
    processes = ["ps", "-eo", "args="]
    before = sorted(set(node.run(processes).stdout.splitlines()))
    podman.check("-i", "nodes", "--via", "podman exec -i {node}")
    assert until(lambda: sorted(set(node.run(processes).stdout.splitlines())) == before)
    journal = ("/var/log/journal", "/run/log/journal")
    changed = [path for path in node.run(listing).stdout.splitlines() if not path.startswith(journal)]
    assert changed == []


@pytest.mark.container
def test_a_container_that_hangs_costs_itself(container_fleet: PodmanFleet, podman: Doctor) -> None:
    """One container never answers: its podman exec is ended at the deadline, with its whole process group."""
    node, other = container_fleet.nodes
    via = (
        "podman exec -i {node} timeout 4 sh -c 'test $(hostname) = "
        + other.name
        + ' || sleep 60; exec "$@"\' -'
    )
    done = podman.check("-i", "nodes", "--via", via, "--timeout", "3")
    assert done.reached == [other.name]
    assert done.nodes[node.name]["kind"] == "timeout"
    assert "within 3 s" in done.nodes[node.name]["error"]


@pytest.fixture(scope="module")
def low() -> Iterator[SlurmCluster]:
    """Slurm whose slurmd was started with a locked-memory limit of 64 KiB."""
    need(slurm.unavailable())
    with SlurmCluster(2, memlock_kib=64) as cluster:
        yield cluster


def _slurm(cluster: SlurmCluster, folder: Path) -> Doctor:
    return Doctor(folder, env={"SLURM_CONF": cluster.env["SLURM_CONF"]})


def _via_srun(doctor: Doctor, *words: str) -> Done:
    return doctor.check("-i", "node[1-2]", "--via", "srun -N1 -w {node}", *words)


@pytest.mark.slurm
def test_srun_looks_inside_a_step(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    doctor = _slurm(slurm_cluster, tmp_path)
    done = _via_srun(doctor)
    no_traceback(done)
    assert done.reached == ["node1", "node2"]
    assert raw_controls(done.out) == []
    for name in done.reached:
        assert "SLURM_JOB_ID" in _record(doctor, name), "the agent ran outside the step"
    # Both Slurm nodes are this machine, and the report says so.
    assert "the same machine twice?" in done.finding("network.addresses-unique")["actual"]
    assert done.finding("drift.kernel")["status"] == "pass"


@pytest.mark.slurm
def test_limits_are_those_of_the_step_and_not_of_this_shell(low: SlurmCluster, tmp_path: Path) -> None:
    doctor = _slurm(low, tmp_path)
    done = _via_srun(doctor)
    assert done.reached == ["node1", "node2"]
    record = _record(doctor, "node1")
    assert "Max locked memory         65536                65536" in record


@pytest.mark.slurm
def test_a_node_that_slurm_does_not_know(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    doctor = _slurm(slurm_cluster, tmp_path)
    done = doctor.check("-i", "node1,node9,", "--via", "srun -N1 -w {node}", "--timeout", "20")
    no_traceback(done)
    assert done.reached == ["node1"]
    assert done.nodes["node9"]["kind"] == "via-failed"
    assert "node9" in done.nodes["node9"]["error"]
    assert done.nodes["node9"]["hint"] == "srun -N1 -w node9 python3 --version"
