"""Builds the demo: `python -m tests.demo_cluster` writes epdoctor/demo/demo.tar.gz.

Four nodes from one record (tests/records/8xh200-ib.json; its `source` says what is recorded in it and what is
made by hand), each under its own name and addresses, with eight faults planted as the text that such a node
would give. tests/test_cli.py asserts what epdoctor finds in it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from epdoctor.collect.record import Recording
from epdoctor.collect.store import parse_record, save
from epdoctor.facts.base import CollectOptions

ROOT = Path(__file__).parent.parent
BASE = ROOT / "tests" / "records" / "8xh200-ib.json"
DEMO = ROOT / "epdoctor" / "demo" / "demo.tar.gz"
NODES = {f"gpu0{number}": f"10.40.0.1{number}" for number in range(1, 5)}
COLLECTED_AT = "2026-11-22T02:00:00Z"

Probes = dict[str, Any]


def rows(probes: Probes, name: str) -> list[list[Any]]:
    found: list[list[Any]] = probes[name]["data"]
    return found


def set_file(probes: Probes, name: str, path: str, text: str) -> None:
    data = rows(probes, name)
    data[:] = [row for row in data if row[0] != path] + [[path, text]]


def edit_file(probes: Probes, name: str, path: str, edit: Callable[[str], str]) -> None:
    for row in rows(probes, name):
        if row[0] == path:
            row[1] = edit(row[1])
            return
    raise KeyError(path)


def healthy(name: str, nodes: Mapping[str, str] = NODES) -> Probes:
    """The base node under another name and address; names resolve to every node's address."""
    number = int(name.lstrip("gpu"))
    probes: Probes = copy.deepcopy(json.loads(BASE.read_text())["probes"])
    text = json.dumps(probes).replace("10.99.0.3", nodes[name]).replace('"gpu01\\n"', f'"{name}\\n"')
    probes = json.loads(text)
    probes["network.names"]["data"] = [["", name]] + [
        [node, {"addresses": [ip]}] for node, ip in nodes.items()
    ]
    for row in rows(probes, "network.addresses"):
        if row[0] == "link" and row[1]["name"] == "eth0":
            row[1]["mac"] = f"3c:ec:ef:00:00:{number:02x}"
        if row[0] == "address" and row[1]["address"].startswith("fe80"):
            row[1]["address"] = f"fe80::3eec:efff:fe00:{number:x}"
    probes["controller.clock"]["data"] = [["offset_s", 0.001], ["uncertainty_s", 0.013]]
    return probes


def no_peermem(probes: Probes) -> None:
    """Proprietary kernel modules and nvidia_peermem not loaded: nothing registers GPU memory."""
    edit_file(
        probes, "modules.loaded", "/proc/modules", lambda text: re.sub(r"(?m)^nvidia_peermem .*\n", "", text)
    )
    data = rows(probes, "modules.sysfs")
    data[:] = [row for row in data if "nvidia_peermem" not in row[0]]
    rows(probes, "modules.load").clear()
    edit_file(
        probes,
        "modules.nvidia",
        "/proc/driver/nvidia/version",
        lambda text: (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Thu Aug 27 20:11:52 UTC 2026\n"
        ),
    )


def low_memlock(probes: Probes) -> None:
    """systemd's default in a login session: 8 MiB."""
    edit_file(
        probes,
        "limits.files",
        "/proc/self/limits",
        lambda text: re.sub(
            r"Max locked memory .*",
            "Max locked memory         8388608              8388608              bytes     ",
            text,
        ),
    )
    # Not root there, so no CAP_IPC_LOCK: the kernel counts the limit.
    edit_file(
        probes,
        "container.files",
        "/proc/self/status",
        lambda text: re.sub(r"(Cap(?:Prm|Eff)):\t[0-9a-f]+", r"\1:\t0000000000000000", text),
    )


def port_down(probes: Probes) -> None:
    """One rail without link: a pulled or broken cable."""
    for leaf, text in (
        ("state", "1: DOWN\n"),
        ("phys_state", "2: Polling\n"),
        ("rate", "10 Gb/sec (4X SDR)\n"),
    ):
        set_file(probes, "rdma.sysfs", f"/sys/class/infiniband/mlx5_6/ports/1/{leaf}", text)


def nvlink_down(probes: Probes) -> None:
    """One of GPU 5's eighteen links is not up."""
    for row in rows(probes, "gpu.nvml"):
        if row[0] == "gpu.5":
            row[1]["links"][7] = [7, 0, None, None, None]


def other_nccl(probes: Probes) -> None:
    """pip went back to an older NCCL here."""
    candidate = rows(probes, "python_env.scan")[0][1]
    candidate["packages"]["nvidia-nccl-cu13"] = "2.28.9"
    for path, macros in candidate["libraries"]:
        if "nccl" in path:
            macros.update(NCCL_MINOR="28", NCCL_PATCH="9")


def newer_nvshmem(probes: Probes) -> None:
    """The wheel was upgraded to a version whose queue pairs legacy DeepEP does not know."""
    candidate = rows(probes, "python_env.scan")[0][1]
    candidate["packages"]["nvidia-nvshmem-cu13"] = "3.6.5"
    for path, macros in candidate["libraries"]:
        if "nvshmem" in path:
            macros.update(NVSHMEM_VENDOR_MINOR_VERSION="6", NVSHMEM_VENDOR_PATCH_VERSION="5")


def name_on_loopback(probes: Probes) -> None:
    """Debian's installer writes 127.0.1.1 beside the node's own name."""
    name = rows(probes, "network.names")[0][1]
    for row in rows(probes, "network.names"):
        if row[0] == name:
            row[1] = {"addresses": ["127.0.1.1"]}


FAULTS: dict[str, tuple[Callable[[Probes], None], ...]] = {
    "gpu01": (newer_nvshmem,),
    "gpu02": (low_memlock, nvlink_down),
    "gpu03": (no_peermem, other_nccl),
    "gpu04": (port_down, name_on_loopback),
}
# The eighth is in the launch, on every node: the queue depth that 1024 tokens need is not set.
OPTIONS = CollectOptions(
    node_names=(*NODES, *NODES.values()),
    env_file_text="NCCL_SOCKET_IFNAME=eth0\nNVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME=eth0\n",
    max_num_batched_tokens=1024,
    token_limit_source="--max-num-batched-tokens",
)


def build(path: Path = DEMO) -> None:
    base = json.loads(BASE.read_text())
    records = []
    for name in NODES:
        probes = healthy(name)
        for plant in FAULTS[name]:
            plant(probes)
        started = {**base["started_as"], "hostname": name}
        if low_memlock in FAULTS[name]:
            started.update(user="infer", uid=1000)
        outcome = {"seconds": 0.9, "slowest_probe": "gpu.nvml", "slowest_probe_s": 0.31}
        raw = {
            **base,
            "node": name,
            "collected_at": COLLECTED_AT,
            "started_as": started,
            "probes": probes,
            "outcome": outcome,
        }
        records.append(parse_record(json.dumps(raw).encode(), name))
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, Recording("inventory.ini", OPTIONS, COLLECTED_AT), records)


if __name__ == "__main__":
    build()
