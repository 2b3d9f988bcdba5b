"""Drift among sixteen nodes: what differs on one is found there, and nothing else is said; equal nodes are silent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from epdoctor.catalog import load_checks
from epdoctor.collect.record import Recording
from epdoctor.collect.store import parse_record, save
from epdoctor.judge import build_report, judge_recording
from epdoctor.model import Finding, Goal, Severity, Status
from tests.cluster16 import BASES, NODES, ODD, OPTIONS, RAILS, Base, Edit, infiniband, judge, roce
from tests.demo_cluster import BASE, Probes, edit_file, rows, set_file

EQUAL: dict[str, dict[str, str]] = {
    "infiniband": {
        "host.ptrace-allows-peers": "ptrace_scope is 1 there, which root passes: said for the back ends that need it",
        "host.removeipc-off": "systemd's default, RemoveIPC=yes: harmless for services",
        "nixl.installed": "NIXL is not in that environment; only nixl_ep needs it",
        "rdma.link-not-flapping": "mlx5_1 counted 255 link downs on the recorded machine, the counter's end",
    },
}
EQUAL["roce"] = EQUAL["infiniband"] | {
    "network.multi-homed-says-which": "nine interfaces with addresses, and Gloo is not told which",
    "nvshmem.without-ah-bug": "NVSHMEM 3.4.5 over RoCE is the version with that bug",
}
"""What is true of every one of the sixteen, all of it information."""


@pytest.mark.parametrize("backend", ["", "allgather_reducescatter", "deepep_low_latency", "deepep_v2"])
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_sixteen_equal_nodes_are_silent(base: Base, backend: str) -> None:
    bad = judge(base, backend=backend).bad()
    assert [finding for finding in bad if finding.check.startswith("drift.")] == []
    assert [finding for finding in bad if finding.severity is not Severity.INFO] == []
    assert {finding.check for finding in bad} <= EQUAL[base.__name__].keys()


# ------------------------------------------------------------- one fact that differs, by the check that compares it


def text(old: str, new: str, *only: str) -> Edit:
    """Another text in every probe, or in those named. The old text must be there."""

    def edit(probes: Probes) -> None:
        found = 0
        for name in only or tuple(probes):
            raw = json.dumps(probes[name], ensure_ascii=False)
            found += raw.count(old)
            probes[name] = json.loads(raw.replace(old, new))
        assert found, f"{old!r} is in none of {only or 'the probes'}"

    return edit


def file(probe: str, path: str, old: str, new: str) -> Edit:
    """Another text in one file. The old text must be there."""

    def change(content: str) -> str:
        assert old in content, (path, old)
        return content.replace(old, new)

    return lambda probes: edit_file(probes, probe, path, change)


def ep_env(old: str, new: str) -> Edit:
    return file("environment.files", "/etc/epdoctor/ep.env", old, new)


def package(name: str, number: str, **more: Any) -> Edit:
    """Another version of a wheel in vLLM's environment."""

    def edit(probes: Probes) -> None:
        candidate = rows(probes, "python_env.scan")[0][1]
        candidate["packages"][name] = number
        candidate.update(more)

    return edit


def macros(library: str, **values: str) -> Edit:
    """What the library's own header or strings say of its version."""

    def edit(probes: Probes) -> None:
        for path, found in rows(probes, "python_env.scan")[0][1]["libraries"]:
            if library in path:
                found.update(values)

    return edit


def gpu(key: str, value: Any) -> Edit:
    def edit(probes: Probes) -> None:
        for row in rows(probes, "gpu.nvml"):
            if row[0].startswith("gpu."):
                row[1][key] = value

    return edit


def nvml(key: str, value: Any) -> Edit:
    def edit(probes: Probes) -> None:
        for row in rows(probes, "gpu.nvml"):
            if row[0] == key:
                row[1] = value

    return edit


def without_hca(hca: str) -> Edit:
    """The card is gone from the bus: nothing in sysfs names it."""

    def edit(probes: Probes) -> None:
        for name, entry in probes.items():
            if name.startswith("rdma."):
                entry["data"] = [row for row in entry["data"] if hca not in json.dumps(row)]
        matrix = probes["topology.matrix"]
        lines = [line.split("\t") for line in matrix["stdout"].splitlines()]
        matrix["stdout"] = "\n".join("\t".join(line) for line in lines if hca not in "".join(line))

    return edit


def system_ucx(version: str) -> Edit:
    major, minor, _ = version.split(".")
    copy = [
        "ldconfig", "libucp.so.0", "/usr/lib/libucp.so.0", "/usr/lib/libucp.so.0.0.0",
        {"UCP_API_MAJOR": major, "UCP_API_MINOR": minor, "UCX_VERSION": version},
    ]  # fmt: skip
    return lambda probes: rows(probes, "libraries.loader").insert(0, ["copy", copy])


def gid_index(probes: Probes) -> None:
    """A second address came first: the RoCE v2 IPv4 GID moved from index 3 to 5."""
    for row in rows(probes, "rdma.gids"):
        if row[0].endswith(("/gids/2", "/gids/3")):
            row[0] = row[0][:-1] + str(int(row[0][-1]) + 2)
        if row[0].endswith("/scanned") and "bond" not in row[0]:
            row[1] = 6


def default_mtu(probes: Probes) -> None:
    for row in rows(probes, "network.addresses"):
        if row[0] == "link" and row[1]["name"] == "eth0":
            row[1]["mtu"] = 1500


def also(*edits: Edit) -> Edit:
    def edit(probes: Probes) -> None:
        for one in edits:
            one(probes)

    return edit


LIMITS = ("limits.files", "/proc/self/limits")


def partition(key: str) -> Edit:
    """Entry 0 of every port's P_Key table."""

    def edit(probes: Probes) -> None:
        for rail in RAILS:
            set_file(probes, "rdma.sysfs", f"/sys/class/infiniband/{rail}/ports/1/pkeys/0", f"{key}\n")

    return edit


def imex_nodes(*addresses: str) -> Edit:
    """/etc/nvidia-imex/nodes_config.cfg, which only machines with multi-node NVLink have."""

    def edit(probes: Probes) -> None:
        text = "".join(f"{address}\n" for address in addresses)
        probes["imex.files"] = {
            "status": "ran",
            "rc": 0,
            "data": [["/etc/nvidia-imex/nodes_config.cfg", text]],
        }

    return edit


def uar_space(sizes: Mapping[str, int]) -> Edit:
    """BAR 0 of each rail, 32 MiB as ConnectX-7 comes, or as given. The base was recorded before they were read."""

    def edit(probes: Probes) -> None:
        texts = {hca: f"0x0 0x{sizes.get(hca, 32 << 20) - 1:016x} 0x14220c\n" for hca in RAILS}
        probes["rdma.bars"] = {
            "status": "ran",
            "rc": 0,
            "data": [[f"/sys/class/infiniband/{hca}/device/resource", text] for hca, text in texts.items()],
        }

    return edit


def c_runtime(glibc: str) -> Edit:
    def edit(probes: Probes) -> None:
        data = probes["libraries.loader"]["data"]
        data[:] = [row for row in data if row[0] not in ("glibc", "libstdcxx")]
        data += [["glibc", glibc], ["libstdcxx", "/usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.33"]]

    return edit


def traffic_class(number: int) -> Edit:
    """What MLNX_OFED's driver shows of each rail; the base was recorded with the kernel's own."""

    def edit(probes: Probes) -> None:
        probes["qos.files"] = {
            "status": "ran",
            "rc": 0,
            "data": [
                [f"/sys/class/infiniband/{hca}/tc/1/traffic_class", f"Global tclass={number}\n"]
                for hca in RAILS
            ],
        }

    return edit


PLANTS: dict[str, tuple[Edit, ...]] = {
    "drift.boot-options": (file("system.files", "/proc/cmdline", " iommu=pt", " iommu=pt pci=realloc"),),
    "drift.cuda-driver": (nvml("cuda_driver_version", 13010),),
    "drift.cuda-toolkit": (file("cuda.versions", "/usr/local/cuda-13.0/version.json", "13.0.3", "13.0.1"),),
    "drift.deepep-version": (
        also(package("deep-ep", "2.0.0+0bf26ad"), text("2.0.0+d4f41e4", "2.0.0+0bf26ad", "python_env.scan")),
    ),
    "drift.driver-flavour": (
        file(
            "modules.nvidia",
            "/proc/driver/nvidia/version",
            "NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build",
            "NVIDIA UNIX x86_64 Kernel Module  580.159.04  Thu Aug 27 20:11:52 UTC 2026",
        ),
    ),
    "drift.driver-options": (
        also(
            file(
                "modules.nvidia",
                "/proc/driver/nvidia/params",
                "EnableStreamMemOPs: 1",
                "EnableStreamMemOPs: 0",
            ),
            file("modules.modprobe", "/etc/modprobe.d/nvidia.conf", "NVreg_EnableStreamMemOPs=1 ", ""),
        ),
    ),
    "drift.driver-version": (text("580.159.04", "580.126.20"),),
    "drift.env-nccl": (
        ep_env("NCCL_IB_TIMEOUT=22", "NCCL_IB_TIMEOUT=20"),
        ep_env("NCCL_IB_TIMEOUT=22\n", ""),
    ),
    "drift.env-nvshmem": (ep_env("SIZE=2147483648", "SIZE=1073741824"),),
    "drift.env-ucx": (ep_env("UCX_RC_TIMEOUT=1s", "UCX_RC_TIMEOUT=2s"),),
    "drift.env-vllm": (ep_env("VLLM_LOGGING_LEVEL=INFO", "VLLM_LOGGING_LEVEL=DEBUG"),),
    "drift.gid-index": (gid_index,),
    "drift.gpu-models": (gpu("name", "NVIDIA H200 NVL"),),
    "drift.gpu-vbios": (gpu("vbios", "96.00.CF.00.02"),),
    "drift.hca-count": (without_hca("mlx5_9"),),
    "drift.hca-names": (text("mlx5_9", "mlx5_2"),),
    "drift.kernel": (file("system.files", "/proc/sys/kernel/osrelease", "6.8.0-87", "6.8.0-90"),),
    "drift.link-rates": (
        file(
            "rdma.sysfs",
            "/sys/class/infiniband/mlx5_6/ports/1/rate",
            "400 Gb/sec (4X NDR)",
            "200 Gb/sec (2X NDR)",
        ),
    ),
    "drift.memlock": (
        file(*LIMITS, "Max locked memory         unlimited ", "Max locked memory         8388608   "),
    ),
    "drift.mtu": (default_mtu,),
    "drift.nccl-version": (also(package("nvidia-nccl-cu13", "2.30.4"), macros("nccl", NCCL_PATCH="4")),),
    "drift.nic-firmware": (text("28.41.1000", "28.43.2026", "rdma.sysfs"),),
    "drift.nixl-version": (package("nixl-cu13", "1.5.0"),),
    "drift.nofile": (
        file(*LIMITS, "Max open files            1048576 ", "Max open files            524288  "),
    ),
    "drift.nvshmem-version": (
        also(
            package("nvidia-nvshmem-cu13", "3.3.24"),
            macros("nvshmem", NVSHMEM_VENDOR_MINOR_VERSION="3", NVSHMEM_VENDOR_PATCH_VERSION="24"),
        ),
    ),
    "drift.ofed": (
        lambda probes: set_file(probes, "rdma.sysfs", "/sys/module/mlx5_core/version", "25.07-0.9.7\n"),
    ),
    "drift.os": (text("Ubuntu 24.04.3 LTS", "Ubuntu 24.04.1 LTS", "system.files"),),
    "drift.imex-nodes": (imex_nodes("10.0.0.1", "10.0.0.3"),),
    "drift.pkey": (partition("0x8012"),),
    "drift.python-version": (package("torch", "2.14.0+cu130", version="3.12.11"),),
    "drift.rdma-core": (text("libibverbs.so.1.14.50.0", "libibverbs.so.1.14.56.0", "rdma.links"),),
    "drift.roce-qos": (traffic_class(0),),
    "drift.torch-version": (package("torch", "2.14.1+cu130"),),
    "drift.transparent-huge-pages": (
        file(
            "system.files",
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise]",
            "[always] madvise",
        ),
    ),
    "drift.ucx-version": (system_ucx("1.18.0"),),
    "drift.uar-space": (uar_space({"mlx5_4": 16 << 20}), uar_space(dict.fromkeys(RAILS, 16 << 20))),
    "drift.c-runtime": (c_runtime("glibc 2.35"),),
    "drift.vllm-version": (package("vllm", "0.33.1"),),
}
FABRIC: dict[str, Base] = {"drift.gid-index": roce, "drift.roce-qos": roce, "drift.pkey": infiniband}
"""Where the fact exists over one kind of fabric only; all others are planted over InfiniBand and over RoCE."""
EVERYWHERE: dict[str, Edit] = {
    "drift.imex-nodes": imex_nodes("10.0.0.1", "10.0.0.2"),
    "drift.pkey": partition("0xffff"),
    "drift.roce-qos": traffic_class(106),
    "drift.uar-space": uar_space({}),
    "drift.c-runtime": c_runtime("glibc 2.39"),
    "drift.nixl-version": package("nixl-cu13", "1.5.1"),
    "drift.ucx-version": system_ucx("1.19.0"),
}
"""What all sixteen have for that plant: the base record has neither."""
FOLLOWS: dict[str, dict[str, str]] = {
    "drift.deepep-version": {"deepep.revision-as-pinned": "vLLM 0.33.0 builds d4f41e4"},
    "drift.driver-options": {"driver.ibgda-options": "that option is also wrong by itself"},
    "drift.gpu-models": {"drift.gpu-vbios": "a VBIOS is compared together with its model"},
    "drift.hca-count": {
        "drift.hca-names": "the lost card's name is gone, too",
        "rdma.hcas-match-gpus": "seven HCAs for eight GPUs",
        "topology.gpu-nic-affinity": "the eighth GPU's nearest NIC is further away",
        "topology.gpus-share-nics-evenly": "not judged: the eighth GPU has no NIC of its own",
    },
    "drift.link-rates": {"rdma.rate-full": "the port is also slower than its neighbours"},
    "drift.memlock": {"host.memlock-unlimited": "a limit is also wrong by itself; root's does not count"},
    "drift.nccl-version": {"cudalib.torch-nccl-pin": "torch 2.14.0 pins 2.30.7"},
    "drift.nixl-version": {"drift.ucx-version": "NIXL's wheel brings its own UCX"},
    "drift.torch-version": {"vllm.torch-as-pinned": "vLLM 0.33.0 was built against 2.14.0"},
}
"""What else the planted difference makes true on that node; never an error."""


def odd_nodes(finding: Finding) -> set[str]:
    return (
        {finding.node}
        if finding.node
        else {node for problem in finding.problems for node in problem.odd_nodes}
    )


def planted() -> list[Any]:
    return [
        pytest.param(check, edit, base, id=f"{check}-{number}-{base.__name__}")
        for check, edits in PLANTS.items()
        for number, edit in enumerate(edits)
        for base in ([FABRIC[check]] if check in FABRIC else BASES)
    ]


@pytest.mark.parametrize(("check", "edit", "base"), planted())
def test_a_difference_is_found_on_the_right_node_and_nothing_else_fails(
    check: str, edit: Edit, base: Base
) -> None:
    before = {(f.check, f.node) for f in judge(base, everywhere=EVERYWHERE.get(check)).bad()}
    after = judge(base, [edit], everywhere=EVERYWHERE.get(check)).bad()
    new = [finding for finding in after if (finding.check, finding.node) not in before]
    assert check in {finding.check for finding in new if finding.status is Status.FAIL}
    for finding in new:
        assert finding.status is not Status.ERROR, finding.traceback
        assert odd_nodes(finding) == {ODD}, finding
    others = [finding for finding in new if finding.check != check]
    assert {finding.check for finding in others} == FOLLOWS.get(check, {}).keys(), others
    assert Severity.ERROR not in {finding.severity for finding in others}


def test_every_drift_check_is_planted() -> None:
    compared = {check_id for check_id in load_checks() if check_id.startswith("drift.")}
    assert compared == PLANTS.keys()


def test_several_differences_in_one_recording_go_to_their_nodes(tmp_path: Path) -> None:
    """The way that `epdoctor check --from` takes: sixteen records in an archive."""
    plan = {
        "gpu03": "drift.kernel",
        "gpu07": "drift.nccl-version",
        "gpu12": "drift.mtu",
        "gpu16": "drift.env-nccl",
    }
    raw = json.loads(BASE.read_text())
    records = []
    for name in NODES:
        probes = infiniband(name)
        if name in plan:
            PLANTS[plan[name]][0](probes)
        content = {**raw, "node": name, "probes": probes, "outcome": {"seconds": 0.5}}
        records.append(parse_record(json.dumps(content).encode(), name))
    path = tmp_path / "cluster.tar.gz"
    save(path, Recording("inventory.ini", OPTIONS, "2026-11-22T02:00:00Z"), records)
    checks = dict(load_checks())
    engine, _, judged = judge_recording(path, checks, Goal(), None, {})
    report = build_report(judged, engine, checks, source="recording", fail_on=Severity.ERROR)
    assert [outcome.node for outcome in report.outcomes] == list(NODES)
    found = {
        finding.check: odd_nodes(finding)
        for finding in report.findings
        if finding.status is Status.FAIL and not finding.node
    }
    assert found == {check: {name} for name, check in plan.items()}
