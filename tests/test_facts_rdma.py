"""RDMA devices from recorded sysfs trees, and the choice of the compute HCAs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node, rdma
from epdoctor.facts.base import CollectOptions, Files, Source, require
from epdoctor.model import Goal

RAW = Path(__file__).parent / "records" / "raw" / "rdma"
NAMES = tuple(f"mlx5_{number}" for number in (0, 1, 4, 5, 6, 7, 8, 9))


def tree(name: str) -> dict[str, str]:
    lines = (RAW / name / "sys-class-infiniband.tsv").read_text().splitlines()
    return dict(line.split("\t", 1) for line in lines)


def probes(files: dict[str, str], **more: Any) -> dict[str, Any]:
    """As the agent would bring the files of a tree."""
    rows = [[rdma.ROOT + path, text + "\n"] for path, text in files.items()]
    counters = [row for row in rows if "counters/" in row[0]]
    return {
        "rdma.sysfs": {"status": "ran", "data": [row for row in rows if row not in counters]},
        "rdma.counters": {"status": "ran", "data": counters},
        **more,
    }


def node(
    files: dict[str, str], more: dict[str, Any] | None = None, *, goal: Goal | None = None, env: str = ""
) -> Node:
    source = Source(probes(files, **(more or {})), root=True)
    return Node("n1", source, goal or Goal(multinode=True), CollectOptions(env_file_text=env))


def gpu_rows(count: int) -> dict[str, Any]:
    rows = [["count", count], *([f"gpu.{n}", {"name": "NVIDIA H100 80GB HBM3"}] for n in range(count))]
    return {"status": "ran", "data": rows}


def test_recorded_eight_hcas_and_a_bond() -> None:
    facts = rdma.parse(Source(probes(tree("h100-8hca"))))
    assert [device.name for device in facts.devices] == [*NAMES, "mlx5_bond_0"]
    first, bond = facts.devices[0], facts.devices[-1]
    assert (first.kind, first.hca_type, first.board_id, first.firmware) == (
        "mlx5",
        "MT4129",
        "MT_0000000838",
        "28.41.1000",
    )
    port = first.ports[0]
    assert (port.state, port.phys_state, port.rate_gbps, port.link_layer) == (
        "ACTIVE",
        "LinkUp",
        400.0,
        "InfiniBand",
    )
    assert port.sm_lid is None
    assert port.gid_slots_read is None
    assert bond.ports[0].rate_gbps == 200.0
    assert facts.devices[1].ports[0].counters["link_downed"] == 255


def test_rxe_lacks_what_hardware_has() -> None:
    device = rdma.parse(Source(probes(tree("rxe")))).devices[0]
    assert (device.kind, device.board_id, device.hca_type, device.pci_address) == ("rxe", "", "", "")
    assert device.is_software
    assert device.netdevs == ("eth1",)
    assert device.ports[0].rate_gbps == 2.5


def test_the_bond_is_no_compute_hca() -> None:
    chosen = node(tree("h100-8hca")).compute_hcas
    assert chosen.names == NAMES
    assert chosen.others == ("mlx5_bond_0",)
    assert "fastest" in chosen.how


@pytest.mark.parametrize("down", [("mlx5_5",), NAMES])
def test_a_compute_hca_that_is_down_stays(down: tuple[str, ...]) -> None:
    files = tree("h100-8hca")
    for name in down:
        files[f"{name}/ports/1/state"] = "1: DOWN"
        files[f"{name}/ports/1/rate"] = "10 Gb/sec (4X SDR)"
    assert node(files).compute_hcas.names == NAMES
    assert node(files, {"gpu.nvml": gpu_rows(8)}).compute_hcas.names == NAMES


def test_slow_compute_hcas_beside_faster_storage() -> None:
    files = tree("h100-8hca")
    for name in NAMES:
        files[f"{name}/ports/1/rate"] = "100 Gb/sec (4X EDR)"
    assert node(files, {"gpu.nvml": gpu_rows(8)}).compute_hcas.names == NAMES


def test_a_replaced_card_with_another_board_is_one_of_them() -> None:
    files = tree("h100-8hca")
    files["mlx5_9/board_id"] = "NVD0000000099"
    assert node(files, {"gpu.nvml": gpu_rows(8)}).compute_hcas.names == NAMES


def test_variables_win_and_say_where_they_come_from() -> None:
    chosen = node(tree("h100-8hca"), env="NCCL_IB_HCA==mlx5_0,mlx5_1\n").compute_hcas
    assert (chosen.names, chosen.how) == (("mlx5_0", "mlx5_1"), "NCCL_IB_HCA==mlx5_0,mlx5_1 from --env-file")
    site = node(tree("h100-8hca"), goal=Goal(compute_hcas="=mlx5_4"), env="NCCL_IB_HCA=mlx5\n").compute_hcas
    assert site.names == ("mlx5_4",)
    prefix = node(tree("h100-8hca"), env="NCCL_IB_HCA=mlx5\n").compute_hcas
    assert prefix.names == NAMES
    wrong = node(tree("h100-8hca"), env="NCCL_IB_HCA=ibp\n").compute_hcas
    assert wrong.names == NAMES
    assert "names no HCA here" in wrong.how


def test_nvshmem_list_counts_only_when_it_takes_effect() -> None:
    listed = "NVSHMEM_HCA_LIST=mlx5_0:1\n"
    assert node(tree("h100-8hca"), env=listed).compute_hcas.names == NAMES
    chosen = node(tree("h100-8hca"), env=listed + "NVSHMEM_ENABLE_NIC_PE_MAPPING=1\n").compute_hcas
    assert chosen.ports == (("mlx5_0", 1),)


def test_nearest_by_topology() -> None:
    text = (
        "\tGPU0\tGPU1\tNIC0\tNIC1\tNIC2\tCPU Affinity\tNUMA Affinity\n"
        "GPU0\t X \tNV18\tPIX\tSYS\tNODE\t0-47\t0\n"
        "GPU1\tNV18\t X \tSYS\tPIX\tNODE\t48-95\t1\n"
        "NIC0\tPIX\tSYS\t X \tSYS\tNODE\n"
        "NIC1\tSYS\tPIX\tSYS\t X \tNODE\n"
        "NIC2\tNODE\tNODE\tNODE\tNODE\t X \n\n"
        "NIC Legend:\n\n  NIC0: mlx5_0\n  NIC1: mlx5_9\n  NIC2: mlx5_bond_0\n"
    )
    topology = {"status": "ran", "rc": 0, "argv": ["nvidia-smi", "topo", "-m"], "stdout": text, "stderr": ""}
    chosen = node(tree("h100-8hca"), {"gpu.nvml": gpu_rows(2), "topology.matrix": topology}).compute_hcas
    assert (chosen.names, chosen.how) == (("mlx5_0", "mlx5_9"), "nearest to each GPU by nvidia-smi topo -m")


def test_ports_that_nobody_cabled_are_left_out() -> None:
    files: dict[str, str] = {}
    links = []
    for number in range(4):
        name = f"mlx5_{number}"
        state = "4: ACTIVE" if number % 2 == 0 else "1: DOWN"
        for path, text in tree("h100-8hca").items():
            if path.startswith("mlx5_0/"):
                files[path.replace("mlx5_0/", name + "/", 1)] = text
        files[f"{name}/ports/1/state"] = state
        links.append([f"{rdma.ROOT}{name}/device", f"../../../0000:{0x18 + number // 2:02x}:00.{number % 2}"])
    chosen = node(files, {"rdma.links": {"status": "ran", "data": links}}).compute_hcas
    assert chosen.names == ("mlx5_0", "mlx5_2")


def test_no_device() -> None:
    chosen = node({}).compute_hcas
    assert (chosen.names, chosen.how) == ((), "no RDMA device")


def test_versions() -> None:
    links = {
        "status": "ran",
        "data": [["/usr/lib/x86_64-linux-gnu/libibverbs.so.1", "libibverbs.so.1.14.44.0"]],
    }
    facts = rdma.parse(Source(probes(tree("rxe"), **{"rdma.links": links})))
    assert require(facts.rdma_core_version) == "44.0"
    assert facts.ofed_version == ""
    none = rdma.parse(Source(probes(tree("rxe"))))
    with pytest.raises(Unmeasured):
        require(none.rdma_core_version)


def test_gid_of_an_ipv4_address() -> None:
    gid = rdma.Gid(1, "0000:0000:0000:0000:0000:ffff:0a4d:000b", "RoCE v2", "eth1")
    assert gid.ipv4 == "10.77.0.11"
    assert rdma.Gid(0, "fe80:0000:0000:0000:5054:00ff:fe77:010b", "RoCE v2", "eth1").ipv4 == ""


def test_every_counter_that_is_judged_is_collected() -> None:
    globs = [
        glob for probe in rdma.probes(CollectOptions()) if isinstance(probe, Files) for glob in probe.globs
    ]
    collected = {glob.rpartition("/")[2] for glob in globs}
    assert {"local_ack_timeout_err", "symbol_error", "link_downed", "retry_exceeded_err"} <= collected


value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
path = st.lists(
    st.sampled_from(
        ["mlx5_0", "ports", "1", "x", "state", "rate", "gids", "hw_counters", "scanned", "sm_lid", ""]
    ),
    max_size=6,
).map("/".join)
rows = st.lists(
    st.lists(value, max_size=3) | st.tuples(path.map(lambda p: rdma.ROOT + p) | path, value).map(list)
)
entry = st.fixed_dictionaries(
    {"status": st.sampled_from(["ran", "timeout", "skipped"]), "data": rows | value}
)


@given(st.dictionaries(st.sampled_from([p.name for p in rdma.probes(CollectOptions())]), entry))
def test_garbage_is_a_value_or_unmeasured(record: dict[str, Any]) -> None:
    try:
        rdma.parse(Source(record))
        _ = Node("n1", Source(record), Goal(), CollectOptions()).compute_hcas
    except Unmeasured:
        pass
