"""What the host has and the container lacks: on records, and on a real namespace of this machine."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from epdoctor.container_table import FACTS, Row, compare, run_options, same_machine
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions, Source
from epdoctor.model import Goal
from tests.case_files import RECORDS, edited

HOST = json.loads((RECORDS / "8xh200-ib.json").read_text())
CAPS = ["CapEff:\t000001fffeffffff", "CapEff:\t000001fffeffbfff"]
"""The host's, and the same without CAP_IPC_LOCK, bit 14."""
LIMITED = "Max locked memory         8388608              8388608              bytes     \n"


def node(probes: dict[str, Any]) -> Node:
    return Node("gpu01", Source(probes, root=True), Goal(), CollectOptions())


def contained(**without: Any) -> dict[str, Any]:
    """The host's record as a default `docker run` would leave it; `without` are edits by probe, "_" for "."."""
    probes: dict[str, Any] = copy.deepcopy(HOST["probes"])
    limits = dict(probes["limits.files"]["data"])["/proc/self/limits"].splitlines(keepends=True)
    text = "".join(LIMITED if line.startswith("Max locked") else line for line in limits)
    status = dict(probes["container.files"]["data"])["/proc/self/status"]
    caps = next(line for line in status.splitlines() if line.startswith("CapEff"))
    edits: dict[str, Any] = {
        "limits.files": {"set": [["/proc/self/limits", text]]},
        # docker's default capabilities and filter: capabilities(7), moby profiles/seccomp/default.json
        "container.files": {
            "replace": [
                ["/proc/self/status", [caps, "CapEff:\t00000000a80425fb"], ["Seccomp:\t0", "Seccomp:\t2"]]
            ]
        },
        "devices.nodes": {"drop": ["/dev/infiniband/*"]},
        "shm.mount": {"merge": [["/dev/shm", {"total": 64 << 20, "available": 64 << 20}]]},
        "rdma.gids": {"drop": ["*/gids/*"]},
        **{name.replace("_", ".", 1): edit for name, edit in without.items()},
    }
    for name, edit in edits.items():
        if edit:
            probes[name] = edited(probes[name], edit, name)
    return probes


def lacking(rows: list[Row]) -> set[str]:
    return {row.name for row in rows if row.state == "lacks"}


def test_a_host_lacks_nothing_of_itself() -> None:
    rows = compare(node(HOST["probes"]), node(HOST["probes"]))
    assert {row.name for row in rows if row.state != "ok"} == {"/dev/gdrdrv"}
    assert {row.state for row in rows if row.name == "/dev/gdrdrv"} == {"host-lacks"}


def test_a_default_container_lacks_what_expert_parallel_serving_needs() -> None:
    rows = compare(node(HOST["probes"]), node(contained()))
    assert lacking(rows) == {
        "locked memory",
        "/dev/infiniband/uverbs*",
        "RoCE and IB addresses (GIDs)",
        "/dev/shm",
        "CAP_SYS_PTRACE or no seccomp",
        "CAP_SYS_NICE",
    }
    (memlock,) = [row for row in rows if row.name == "locked memory"]
    assert (memlock.host, memlock.container, memlock.severity) == ("unlimited", "8 MiB", "error")
    flags = run_options(rows, "docker")
    assert "--ulimit memlock=-1:-1" in flags
    assert "--device /dev/infiniband" in flags
    assert "securityContext.capabilities.add: [IPC_LOCK]" in run_options(rows, "kubernetes")


@pytest.mark.parametrize(
    ("probe", "name"),
    [
        ("limits.files", "locked memory"),
        ("devices.nodes", "/dev/infiniband/uverbs*"),
        ("rdma.gids", "RoCE and IB addresses (GIDs)"),
        ("shm.mount", "/dev/shm"),
    ],
)
def test_each_row_follows_its_own_fact(probe: str, name: str) -> None:
    edits: dict[str, Any] = {
        "limits_files": {},
        "container_files": {},
        "devices_nodes": {},
        "shm_mount": {},
        "rdma_gids": {},
    }
    edits.pop(probe.replace(".", "_"))
    if probe == "limits.files":
        # With CAP_IPC_LOCK the limit does not count: that alone goes, the other capabilities stay.
        edits["container_files"] = {"replace": [["/proc/self/status", CAPS]]}
    assert lacking(compare(node(HOST["probes"]), node(contained(**edits)))) == {name}


def test_what_could_not_be_seen_is_unknown_and_never_ok() -> None:
    probes = contained()
    for name in ("limits.files", "shm.mount", "devices.nodes", "container.files"):
        probes[name] = {"status": "denied", "seconds": 0.0}
    states = {row.name: row.state for row in compare(node(HOST["probes"]), node(probes))}
    assert {states[name] for name in ("locked memory", "/dev/shm", "/dev/infiniband/uverbs*")} == {"unknown"}


def test_two_machines_are_no_host_and_container() -> None:
    other = copy.deepcopy(HOST["probes"])
    text = dict(other["system.files"]["data"])["/proc/sys/kernel/osrelease"]
    other["system.files"] = edited(
        other["system.files"], {"replace": [["/proc/sys/kernel/osrelease", [text, "5.15.0\n"]]]}, "kernel"
    )
    assert "the host runs kernel" in same_machine(node(HOST["probes"]), node(other))


def test_every_row_says_what_breaks_and_how_to_give_it() -> None:
    assert all(fact.so.endswith(".") and fact.flags and fact.pod for fact in FACTS)


def epdoctor(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "epdoctor", "container", "--no-state", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def record(path: Path, probes: dict[str, Any]) -> Path:
    path.write_text(json.dumps({**HOST, "probes": probes}))
    return path


def test_recordings_give_the_table(tmp_path: Path) -> None:
    host, inside = record(tmp_path / "h.json", HOST["probes"]), record(tmp_path / "c.json", contained())
    done = epdoctor("--from", str(host), "--against", str(inside))
    assert done.returncode == 1, done.stderr
    assert "✗ locked memory" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next       epdoctor check --from")
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 100
    as_json = json.loads(epdoctor("--from", str(host), "--against", str(inside), "--format", "json").stdout)
    assert {row["state"] for row in as_json["pairs"][0]["rows"]} >= {"ok", "lacks"}
    assert epdoctor("--from", str(host), "--against", str(host)).returncode == 0


@pytest.mark.parametrize("argv", [(), ("--from", "x.json"), ("--via", "podman exec -i {node}")])
def test_half_an_order_is_refused_with_a_hint(argv: tuple[str, ...]) -> None:
    done = epdoctor(*argv)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_a_real_namespace_is_seen_beside_its_host() -> None:
    """unshare(1) makes the kernel's side of a container; prlimit(1) its limit."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "--user", "true"], check=False).returncode
    ):
        pytest.skip("no user namespaces here")
    done = epdoctor(
        "--via", "prlimit --nofile=512:512 unshare --user --pid --fork --mount-proc --", "--format", "json"
    )
    (pair,) = json.loads(done.stdout)["pairs"]
    states = {row["name"]: row for row in pair["rows"]}
    assert states["open files"]["container"] == "512"
    assert states["host's user namespace"]["container"] == "no"
