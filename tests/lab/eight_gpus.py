"""A node with eight GPUs and eight InfiniBand HCAs, made by hand from recorded pieces.

source: by hand. The text of each GPU is that of a recorded H200 (tests/records/raw/machines/h200x2)
under another bus id, UUID, serial and minor number; the ports and counters of the HCAs are recorded
(public/h100-8hca-sys-class-infiniband.tar.gz). Added by hand: bus numbers (those of NVIDIA's DGX
H100/H200 User Guide), one PCIe switch per GPU and HCA pair, the matrix of ``nvidia-smi topo -m``
that follows from it, port GUIDs and GIDs (IBTA: default prefix fe80::/64 and the port GUID).
``nvidia-smi`` without arguments is left out: it was not recorded for eight GPUs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tests.lab import stub_gpu
from tests.lab.node import Content, Link, NetnsNode
from tests.lab.stub_gpu import Machine, split_at

GPU_BUSES = (0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF)
HCA_BUSES = (0x18, 0x40, 0x4F, 0x5E, 0x9A, 0xC0, 0xCE, 0xDC)
BOND_BUS = 0x29
BOND = "mlx5_bond_0"
NODES_PER_SOCKET = 4
_HOST_BRIDGE_OFFSET = 4
"""A pair's root complex has a bus number this much below its HCA's."""


@dataclass(frozen=True)
class EightGpus:
    """What to show on a node."""

    machine: Machine
    devices: Mapping[str, Content]
    """Files and links below /sys/devices: the PCI tree with the HCAs' RDMA and network devices."""
    pci: Mapping[str, Content]
    """Links below /sys/bus/pci/devices."""
    hcas: Mapping[str, Content]
    """Links below /sys/class/infiniband."""


def _slot(bus: int, device: int = 0) -> str:
    return f"0000:{bus:02x}:{device:02x}.0"


def _uuid(index: int) -> str:
    return f"GPU-0000000{index}-0000-4000-8000-00000000000{index}"


def _renamed(block: str, index: int) -> str:
    """One GPU's part of ``nvidia-smi -q`` under the identity of GPU ``index``."""
    bus = GPU_BUSES[index]
    values = {
        "Bus": f"0x{bus:02X}",
        "Device": "0x00",
        "Bus Id": f"00000000:{bus:02X}:00.0",
        "Board ID": f"0x{bus << 8:x}",
        "GPU UUID": _uuid(index),
        "Serial Number": f"165000000000{index}",
        "Minor Number": str(index),
        "Module Id": str(index + 1),
        "Virtualization Mode": "None",
    }
    lines = [f"GPU 00000000:{bus:02X}:00.0\n"]
    for line in block.splitlines(keepends=True)[1:]:
        key = line.partition(":")[0].strip()
        if key in values and " : " in line:
            line = f"{line.partition(':')[0]}: {values[key]}\n"
        lines.append(line)
    return "".join(lines)


def _topology(hcas: list[str]) -> str:
    """``nvidia-smi topo -m``: a GPU and its HCA meet at one switch, others at their CPU or across."""

    def socket(index: int) -> int:
        return index // NODES_PER_SOCKET

    def far(row: int, column: int) -> str:
        return "NODE" if socket(row) == socket(column) else "SYS"

    names = [f"GPU{i}" for i in range(8)] + [f"NIC{i}" for i in range(len(hcas))]
    # Which pair a NIC belongs to; the bond stands alone on the first socket.
    pair = {f"GPU{i}": i for i in range(8)}
    plain = [name for name in hcas if name != BOND]
    pair.update({f"NIC{number}": plain.index(name) for number, name in enumerate(hcas) if name != BOND})
    lines = ["\t\x1b[4m" + "\t".join(names) + "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m"]
    for row in names:
        cells = []
        for column in names:
            if row == column:
                cells.append(" X ")
            elif row.startswith("GPU") and column.startswith("GPU"):
                cells.append("NV18")
            elif row in pair and column in pair:
                cells.append("PIX" if pair[row] == pair[column] else far(pair[row], pair[column]))
            else:
                cells.append(far(pair.get(row, 0), pair.get(column, 0)))
        tail = ""
        if row.startswith("GPU"):
            node = socket(pair[row])
            tail = f"\t{node * 56}-{node * 56 + 55}\t{node}\t\tN/A"
        lines.append(f"{row}\t" + "\t".join(cells) + tail)
    legend = stub_gpu.load("h200x2").smi["topo -m"].partition("\n\nLegend:")[2]
    nics = "".join(f"  NIC{number}: {name}\n" for number, name in enumerate(hcas))
    return "\n".join(lines) + f"\n\nLegend:{legend}\nNIC Legend:\n\n{nics}\n"


def _matrix(recorded: str) -> str:
    names = [f"GPU{i}" for i in range(8)]
    head = " \t\x1b[4m" + "\t".join(names) + "\t\x1b[0m"
    rows = [f" {row}\t" + "\t".join("X" if row == other else "OK" for other in names) + "\t" for row in names]
    return "\n".join([head, *rows]) + "\n\nLegend:" + recorded.partition("\n\nLegend:")[2]


def _smi(base: Machine, hcas: list[str]) -> dict[str, str]:
    head, block, *_ = split_at(base.smi["-q"], "GPU 0000")
    head = re.sub(r"(Attached GPUs +: )\d+", r"\g<1>8", head)
    answers = {"-q": head + "".join(_renamed(block, index) for index in range(8))}
    for kind in ("p", "r", "w", "n"):
        answers[f"topo -p2p {kind}"] = _matrix(base.smi[f"topo -p2p {'r' if kind == 'p' else kind}"])
    answers["topo -m"] = _topology(hcas)
    for words in ("nvlink -s", "nvlink --status", "nvlink -c"):
        first = split_at(base.smi[words], "GPU ")[0]
        title, _, links = first.partition("\n")
        model = title.partition(": ")[2].partition(" (UUID")[0]
        answers[words] = "".join(f"GPU {i}: {model} (UUID: {_uuid(i)})\n{links}" for i in range(8))
    return answers


def _proc(base: Machine) -> dict[str, str]:
    files = {path: text for path, text in base.proc.items() if not path.startswith("gpus/")}
    parts = {
        path.rpartition("/")[2]: text for path, text in base.proc.items() if "gpus/0000:00:06.0/" in path
    }
    for index, bus in enumerate(GPU_BUSES):
        for name, text in parts.items():
            text = re.sub(r"GPU-[0-9a-f-]+", _uuid(index), text).replace("0000:00:06.0", _slot(bus))
            text = re.sub(r"(Device Minor:\s+)\d+", rf"\g<1>{index}", text)
            files[f"gpus/{_slot(bus)}/{name}"] = text
    return files


def _function(path: str, ids: tuple[str, str, str], numa: int, driver: str, link: str) -> dict[str, Content]:
    vendor, device, kind = ids
    up = "../" * (path.count("/") + 2)
    files: dict[str, Content] = {
        f"{path}/vendor": f"{vendor}\n",
        f"{path}/device": f"{device}\n",
        f"{path}/class": f"{kind}\n",
        f"{path}/numa_node": f"{numa}\n",
        f"{path}/driver": Link(f"{up}bus/pci/drivers/{driver}"),
    }
    for which in ("current", "max"):
        files[f"{path}/{which}_link_speed"] = f"{link}\n"
        files[f"{path}/{which}_link_width"] = "16\n"
    return files


def _rdma(path: str, name: str, recorded: Mapping[str, Content], number: int) -> dict[str, Content]:
    root = f"{path}/infiniband/{name}"
    files = {
        f"{path}/infiniband/{leaf}": text for leaf, text in recorded.items() if leaf.startswith(f"{name}/")
    }
    files[f"{root}/device"] = Link(f"../../../{path.rpartition('/')[2]}")
    guid = f"0c42:a103:0000:{number:04x}"
    files[f"{root}/node_guid"] = f"{guid}\n"
    files[f"{root}/ports/1/sm_lid"] = "0x0\n" if name == BOND else "0x1\n"
    netdev = "bond0" if name == BOND else f"ib{number}"
    files[f"{path}/net/{netdev}/mtu"] = "1500\n" if name == BOND else "2044\n"
    if name != BOND:
        files[f"{root}/ports/1/gids/0"] = f"fe80:0000:0000:0000:{guid}\n"
        files[f"{root}/ports/1/gid_attrs/types/0"] = "IB/RoCE v1\n"
    return files


def build() -> EightGpus:
    """The whole node. Raises LabError, OSError when a recording is missing."""
    base, recorded = stub_gpu.load("h200x2"), stub_gpu.hca_files()
    hcas = sorted({path.partition("/")[0] for path in recorded})
    tree: dict[str, Content] = {}
    paths: list[str] = []
    ib: dict[str, str] = {}
    compute = [name for name in hcas if name != BOND]
    bridge, gen5 = ("0x1000", "0xc030", "0x060400"), "32.0 GT/s PCIe"
    pairs = [*zip(HCA_BUSES, compute, strict=True), (BOND_BUS, BOND)]
    for index, (bus, name) in enumerate(pairs):
        numa = 0 if name == BOND else index // NODES_PER_SOCKET
        top = bus - _HOST_BRIDGE_OFFSET
        port = f"pci0000:{top:02x}/{_slot(top, 1)}"
        switch = f"{port}/{_slot(top + 1)}"
        hca = f"{switch}/{_slot(top + 2)}/{_slot(bus)}"
        inner = [port, switch, f"{switch}/{_slot(top + 2)}"]
        paths += [*inner, hca]
        tree.update(_function(hca, ("0x15b3", "0x1021", "0x020700"), numa, "mlx5_core", gen5))
        tree.update(_rdma(hca, name, recorded, index))
        ib[name] = hca
        if name != BOND:
            gpu = f"{switch}/{_slot(top + 2, 1)}/{_slot(GPU_BUSES[index])}"
            inner.append(f"{switch}/{_slot(top + 2, 1)}")
            paths += [inner[-1], gpu]
            tree.update(_function(gpu, ("0x10de", "0x2335", "0x030200"), numa, "nvidia", gen5))
        for path in inner:
            tree.update(_function(path, bridge, numa, "pcieport", gen5))
    nodes = {
        path: number for path, number in base.devices.items() if not re.fullmatch(r"/dev/nvidia\d+", path)
    }
    nodes.update({f"/dev/nvidia{index}": (195, index) for index in range(8)})
    return EightGpus(
        machine=Machine(_smi(base, hcas), _proc(base), base.modules, nodes, {}),
        devices=tree,
        pci={path.rpartition("/")[2]: Link(f"../../../devices/{path}") for path in paths},
        hcas={name: Link(f"../../devices/{path}/infiniband/{name}") for name, path in ib.items()},
    )


def install(node: NetnsNode, content: EightGpus | None = None) -> None:
    """Show all of it on a node; change the ``content`` of build() first to plant a fault."""
    shown = content or build()
    stub_gpu.install_gpus(node, shown.machine)
    node.fake_tree("/sys/devices", shown.devices, keep=True)
    node.fake_tree("/sys/bus/pci/devices", shown.pci)
    stub_gpu.install_hcas(node, shown.hcas)
