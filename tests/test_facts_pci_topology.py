"""PCI, topology, device node and CUDA facts: real outputs, and garbage that gives Unmeasured at worst."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import cuda, devices, pci, topology
from epdoctor.facts.base import CollectOptions, Source

RAW = Path(__file__).parent / "records" / "raw" / "gpu"


def ran(**entry: Any) -> dict[str, Any]:
    return {"status": "ran", "rc": 0, **entry}


def test_a_real_matrix_with_ansi_codes() -> None:
    found = topology.parse_matrix((RAW / "h200x2" / "topo.txt").read_text())
    assert found.gpus == ("GPU0", "GPU1")
    assert found.nics == ()
    assert found.nvlinks("GPU0", "GPU1") == 18
    assert found.affinity["GPU1"] == topology.Affinity("0-31", "0")


# Layout of nvidia-smi topo -m with NICs; blanks instead of tabs, as in a text copied from a terminal, and the
# older form without "GPU NUMA ID".
COPIED = """\
        GPU0    GPU1    NIC0    NIC1    NIC2    CPU Affinity    NUMA Affinity
GPU0     X      NV18    PIX     NODE    SYS     0-47            0
GPU1    NV18     X      SYS     SYS     PXB     48-95           1
NIC0    PIX     SYS      X      NODE    SYS
NIC1    NODE    SYS     NODE     X      SYS
NIC2    SYS     PXB     SYS     SYS      X

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_bond_0
  NIC2: mlx5_4
"""


@pytest.mark.parametrize("text", [COPIED, COPIED.replace("NODE    SYS     0-47", "NODE  SYS  0-47")])
def test_nics_by_their_legend(text: str) -> None:
    found = topology.parse_matrix(text)
    assert found.nics == ("mlx5_0", "mlx5_bond_0", "mlx5_4")
    assert found.best_nics("GPU0") == ("PIX", ("mlx5_0",))
    assert found.best_nics("GPU0", ("mlx5_bond_0",)) == ("NODE", ("mlx5_bond_0",))
    assert found.best_nics("GPU1") == ("PXB", ("mlx5_4",))
    assert found.affinity["GPU1"].numa == "1"


def test_no_hca_of_the_matrix_is_unmeasured() -> None:
    with pytest.raises(Unmeasured):
        topology.parse_matrix(COPIED).best_nics("GPU0", ("mlx5_9",))


def test_missing_cells_are_unmeasured_not_wrong() -> None:
    cut = "\n".join(line[:20] for line in COPIED.splitlines())
    found = topology.parse_matrix(cut)
    with pytest.raises(Unmeasured):
        found.relation("GPU1", "NIC9")


def test_probe_of_the_matrix_is_guarded() -> None:
    (probe,) = topology.probes(CollectOptions())
    assert probe.only_if_exists == "/proc/driver/nvidia/version"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("00000000:00:06.0", "0000:00:06.0"), ("0000:AF:00.1", "0000:af:00.1"), ("3b:00.0", "0000:3b:00.0")],
)
def test_bus_ids(text: str, wanted: str) -> None:
    assert pci.normalise_bus_id(text) == wanted


def test_a_chain_of_bridges() -> None:
    bus = "/sys/bus/pci/devices/"
    path = "../../../devices/pci0000:40/0000:40:01.1/0000:41:00.0/0000:42:00.0/0000:43:00.0"
    data = [[bus + "0000:43:00.0/vendor", "0x10de\n"], [bus + "0000:43:00.0/class", "0x030200\n"]]
    links = [[bus + "0000:43:00.0/current_link_speed", "32.0 GT/s PCIe\n"]]
    found = pci.parse(
        Source(
            {
                "pci.devices": ran(data=data),
                "pci.links": ran(data=links),
                "pci.paths": ran(data=[[bus + "0000:43:00.0", path]]),
            }
        )
    )
    (device,) = found.gpus
    assert device.upstream == ("0000:40:01.1", "0000:41:00.0", "0000:42:00.0")
    assert (device.root, device.speed_gtps) == ("pci0000:40", 32.0)
    assert isinstance(device.width, Unmeasured)
    assert isinstance(found.iommu_active, Unmeasured)


def test_acs_of_a_configuration_space() -> None:
    """The probe finds ACS behind another extended capability."""
    script = (Path(pci.__file__).parent.parent / "probes" / "acs.py").read_text()
    scope: dict[str, Any] = {"emit": lambda key, value: None, "PARAMS": {}}
    exec(compile(script.replace("\nmain()\n", "\n"), "acs.py", "exec"), scope)
    data = bytearray(4096)
    # AER (0x0001) at 0x100 with the next capability at 0x148: ACS, capability 0x5f, control 0x1d.
    data[0x100:0x104] = (0x148 << 20 | 1 << 16 | 0x0001).to_bytes(4, "little")
    data[0x148:0x150] = (0x00010000 | 0x000D).to_bytes(4, "little") + bytes((0x5F, 0, 0x1D, 0))
    assert scope["acs_of"](data) == {"capability": 0x5F, "control": 0x1D}
    assert scope["acs_of"](bytearray(4096)) is None
    random.seed(1)
    for _ in range(200):
        scope["acs_of"](bytearray(random.randbytes(4096)))


def test_a_toolkit_behind_two_links() -> None:
    stat = {"mode": 0o100755, "uid": 0, "gid": 0, "size": 1, "major": 0, "minor": 0,
            "readable": True, "writable": True}  # fmt: skip
    source = Source(
        {
            "cuda.files": ran(data=[["/usr/local/cuda/bin/nvcc", stat]]),
            "cuda.links": ran(
                data=[
                    ["/usr/local/cuda", "/etc/alternatives/cuda"],
                    ["/etc/alternatives/cuda", "/usr/local/cuda-13.0"],
                ]
            ),
            "cuda.versions": ran(data=[["/usr/local/cuda/version.json", '{"cuda": {"version": "13.0.1"}}']]),
        }
    )
    default = cuda.parse(source).default
    assert default is not None
    assert (default.real_path, default.version, default.nvcc) == ("/usr/local/cuda-13.0", "13.0.1", True)


PATHS = ("/sys/bus/pci/devices/0000:43:00.0", "/usr/local/cuda", "/dev/nvidia0", "/sys/kernel/iommu_groups/7")
texts = st.text(max_size=30) | st.sampled_from(
    ["0x10de", "0x030200", "{", '{"cuda": []}', "32.0 GT/s", "-1", "nan"]
)
tails = st.sampled_from(
    ["", "/class", "/vendor", "/version.json", "/bin/nvcc", "/type", "/current_link_width"]
)
values = (
    texts | st.none() | st.integers() | st.dictionaries(st.sampled_from(["mode", "control", "uid"]), texts)
)
garbage = st.lists(
    st.builds(lambda head, tail, value: [head + tail, value], st.sampled_from(PATHS) | texts, tails, values),
    max_size=6,
)
NAMES = (
    "pci.devices", "pci.links", "pci.paths", "pci.drivers", "pci.iommu", "pci.iommu-types", "pci.iommu-of",
    "pci.acs", "cuda.versions", "cuda.links", "cuda.files", "devices.nodes",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), garbage, min_size=4))
def test_garbage_gives_values_or_unmeasured(given_rows: dict[str, Any]) -> None:
    source = Source({name: ran(data=data) for name, data in given_rows.items()})
    for parse in (pci.parse, cuda.parse, devices.parse):
        try:
            parse(source)
        except Unmeasured:
            continue


@settings(max_examples=60)
@given(st.lists(st.sampled_from(COPIED.splitlines()) | st.text(max_size=60), max_size=30))
def test_garbage_matrix(lines: list[str]) -> None:
    try:
        found = topology.parse_matrix("\n".join(lines))
        for name in found.gpus:
            found.best_nics(name)
    except Unmeasured:
        return
