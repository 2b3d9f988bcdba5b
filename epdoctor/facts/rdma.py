"""RDMA devices and their ports, from sysfs alone: ibstat and perfquery can load ib_umad, sysfs cannot.

Reference: kernel Documentation/ABI/stable/sysfs-class-infiniband; rdma_rxe and siw leave out board_id,
hca_type, the `device` link and counters/.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Files, Links, Probe, Script, Source, Stat

ROOT = "/sys/class/infiniband/"
GID_SLOTS = 64
"""Slots read per port; mlx5 fills its table from the start, four slots an address."""

HW_COUNTERS = (
    "rnr_nak_retry_err", "packet_seq_err", "local_ack_timeout_err", "implied_nak_seq_err", "out_of_sequence",
    "out_of_buffer", "roce_adp_retrans", "np_cnp_sent", "rp_cnp_handled", "req_transport_retries_exceeded",
    "retry_exceeded_err", "completer_retry_err",
)  # fmt: skip
COUNTERS = (
    "symbol_error", "link_downed", "link_error_recovery", "port_rcv_errors", "port_xmit_discards",
    "local_link_integrity_errors", "port_xmit_packets", "port_rcv_packets",
)  # fmt: skip

_DRIVERS = {
    "mlx5_core": "mlx5", "mlx4_core": "mlx4", "efa": "efa", "irdma": "irdma", "ice": "irdma", "i40e": "irdma",
    "bnxt_en": "bnxt_re", "bnxt_re": "bnxt_re", "ionic": "ionic", "hns3": "hns", "erdma": "erdma",
    "mana": "mana", "qede": "qedr", "cxgb4": "iw_cxgb4", "gve": "irdma", "idpf": "irdma",
}  # fmt: skip
_PREFIXES = ("mlx5", "mlx4", "efa", "irdma", "bnxt_re", "ionic", "hns", "erdma", "mana", "qedr", "rxe", "siw")


@dataclass(frozen=True)
class Gid:
    index: int
    gid: str
    """As sysfs prints it, 8 groups of 4 hex digits."""
    type: str
    """"RoCE v2", "IB/RoCE v1", or "" where the kernel does not say."""
    netdev: str

    @property
    def ipv4(self) -> str:
        """The IPv4 address that a mapped GID carries, or ""."""
        try:
            mapped = ipaddress.IPv6Address(self.gid).ipv4_mapped
        except ValueError:
            return ""
        return str(mapped) if mapped else ""

    @property
    def is_v2(self) -> bool:
        return self.type == "RoCE v2"


@dataclass(frozen=True)
class Port:
    device: str
    number: int
    state: str
    """ACTIVE, INIT, DOWN, ARMED...; "" where not measured."""
    phys_state: str
    """LinkUp, Polling, Disabled..."""
    rate_gbps: float | None
    """Of the link as it is now; a port that is down shows its lowest."""
    rate_text: str
    link_layer: str
    """InfiniBand | Ethernet | ""."""
    sm_lid: int | None
    """LID of the subnet manager; 0: none seen."""
    gids: tuple[Gid, ...]
    gid_slots_read: int | None
    """None: the table was not read."""
    counters: dict[str, int]
    """Since the driver was loaded or the counter was cleared."""
    pkeys: tuple[int, ...] = ()
    """The first ten entries of the P_Key table, empty ones (0) too. Bit 15: full member."""
    pkeys_unread: str = ""
    """Why there are none: the table could not be read."""

    @property
    def name(self) -> str:
        return f"{self.device}:{self.number}"

    @property
    def active(self) -> bool:
        return self.state == "ACTIVE"


@dataclass(frozen=True)
class RdmaDevice:
    name: str
    kind: str
    """mlx5, mlx4, efa, irdma, bnxt_re, rxe, siw, ... or "" where neither driver nor name tells."""
    firmware: str
    board_id: str
    """PSID; "" where the driver has none."""
    hca_type: str
    """mlx5: "MT4129" (ConnectX-7)."""
    node_guid: str
    pci_address: str
    is_virtual_function: bool
    numa_node: int | None
    netdevs: tuple[str, ...]
    ports: tuple[Port, ...]
    uar_bytes: int | None = None
    """Size of PCI BAR 0, where mlx5 has its doorbell pages (UARs); None: not read."""

    @property
    def is_software(self) -> bool:
        return self.kind in ("rxe", "siw")

    @property
    def model(self) -> tuple[str, str]:
        """What devices of one kind share: adapter type and board."""
        return (self.hca_type or self.kind, self.board_id)


@dataclass(frozen=True)
class Rdma:
    devices: tuple[RdmaDevice, ...]
    rdma_core_version: str | Unmeasured
    """Release of the system's rdma-core, "44.0", from libibverbs.so.1's file name (1.14.44.0)."""
    ofed_version: str
    """MLNX_OFED or DOCA driver version; "" for the kernel's own driver."""
    uverbs: dict[str, tuple[bool, bool]] | Unmeasured
    """/dev/infiniband/uverbs* -> (readable, writable) for the user that looked."""
    uverbs_of: dict[str, str]
    """RDMA device -> its uverbs name ("uverbs3")."""
    links_unread: str
    """Why driver, PCI address and physfn are not known; "" where they are."""

    def device(self, name: str) -> RdmaDevice | None:
        return next((device for device in self.devices if device.name == name), None)

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(port for device in self.devices for port in device.ports)


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    ports = ROOT + "*/ports/*/"
    return (
        Files(
            "rdma.sysfs",
            globs=(
                *(ROOT + "*/" + leaf for leaf in ("fw_ver", "board_id", "hca_type", "node_guid", "parent")),
                ROOT + "*/device/numa_node",
                *(
                    ports + leaf
                    for leaf in ("state", "phys_state", "rate", "link_layer", "sm_lid", "pkeys/?")
                ),
                "/sys/module/mlx5_core/version",
                "/sys/class/infiniband_verbs/*/ibdev",
            ),
            max_file_bytes=512,
        ),
        Files(
            "rdma.counters",
            globs=(
                *(ports + "hw_counters/" + name for name in HW_COUNTERS),
                *(ports + "counters/" + name for name in COUNTERS),
            ),
            max_file_bytes=512,
        ),
        Links(
            "rdma.links",
            globs=(
                ROOT + "*/device",
                ROOT + "*/device/driver",
                ROOT + "*/device/physfn",
                "/usr/lib/*/libibverbs.so.1",
                "/usr/lib64/libibverbs.so.1",
                "/usr/lib/libibverbs.so.1",
            ),
        ),
        Files("rdma.bars", globs=(ROOT + "*/device/resource",), max_file_bytes=256),
        Stat("rdma.netdevs", globs=(ROOT + "*/device/net/*",)),
        Stat("rdma.uverbs", globs=("/dev/infiniband/uverbs*",)),
        Script("rdma.gids", script="gids.py", params={"slots": GID_SLOTS}, only_if_exists=ROOT.rstrip("/")),
    )


def _number(text: str) -> int | None:
    """Decimal or 0x number of a sysfs file."""
    text = text.strip()
    try:
        return int(text[:40], 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        return None


def _after_colon(text: str) -> str:
    return text.partition(":")[2].strip() or text.strip()


def rate_gbps(text: str) -> float | None:
    """ "400 Gb/sec (4X NDR)" -> 400.0"""
    try:
        rate = float(text.split()[0][:12])
    except (IndexError, ValueError):
        return None
    return rate if 0 <= rate < 1e6 else None


def _kind(name: str, driver: str, hca_type: str) -> str:
    if driver in _DRIVERS:
        return _DRIVERS[driver]
    if hca_type.startswith("MT") and hca_type[2:].isdecimal() and len(hca_type) < 10:
        # MT4113 (Connect-IB) is the first adapter of the mlx5 driver; older ones are mlx4's.
        return "mlx5" if int(hca_type[2:]) >= 4113 else "mlx4"
    return next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")


def rdma_core(library: str) -> str:
    """Release of rdma-core in the file name of libibverbs: "libibverbs.so.1.14.44.0" -> "44.0"."""
    parts = library.rpartition("libibverbs.so.")[2].split(".")
    return ".".join(parts[2:4]) if len(parts) >= 4 and parts[2].isdecimal() else ""


def _gids(source: Source) -> tuple[dict[str, list[Gid]], dict[str, int]]:
    tables: dict[str, list[Gid]] = {}
    scanned: dict[str, int] = {}
    try:
        rows = source.values("rdma.gids")
    except Unmeasured:
        return tables, scanned
    for key, value in rows.items():
        parts = key.split("/")
        if len(parts) == 3 and parts[2] == "scanned" and isinstance(value, int):
            scanned["/".join(parts[:2])] = value
        elif len(parts) == 4 and isinstance(value, dict) and (index := _number(parts[3])) is not None:
            gid = Gid(
                index, str(value.get("gid", "")), str(value.get("type", "")), str(value.get("netdev", ""))
            )
            tables.setdefault("/".join(parts[:2]), []).append(gid)
    return tables, scanned


def _counters(source: Source) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    try:
        texts = source.files("rdma.counters").under(ROOT)
    except Unmeasured:
        return found
    for path, text in texts.items():
        parts = path.split("/")
        if len(parts) == 5 and (value := _number(text)) is not None:
            found.setdefault(f"{parts[0]}/{parts[2]}", {})[parts[4]] = value
    return found


def _links(source: Source) -> tuple[dict[str, str], str]:
    """Links, and why there are none."""
    try:
        return source.links("rdma.links"), ""
    except Unmeasured as reason:
        return {}, str(reason)


def _bars(source: Source) -> dict[str, int]:
    """Device -> size of its BAR 0: the first line of `resource`, "start end flags"."""
    try:
        texts = source.files("rdma.bars").under(ROOT)
    except Unmeasured:
        return {}
    found = {}
    for path, text in texts.items():
        words = text.split(None, 2)
        start, end = (_number(words[0]), _number(words[1])) if len(words) == 3 else (None, None)
        if start is not None and end is not None and end > start:
            found[path.partition("/")[0]] = end - start + 1
    return found


def _pkeys(texts: dict[str, str], folder: str) -> tuple[int, ...]:
    found: list[int] = []
    while (text := texts.get(f"{folder}{len(found)}")) is not None and (value := _number(text)) is not None:
        found.append(value)
    return tuple(found)


def _version(links: dict[str, str], unread: str) -> str | Unmeasured:
    if unread:
        return Unmeasured(f"libibverbs: {unread}")
    for path, target in links.items():
        if path.endswith("/libibverbs.so.1") and (version := rdma_core(target.rpartition("/")[2])):
            return version
    return Unmeasured("libibverbs.so.1: not in the system's library folders")


def _uverbs(source: Source) -> dict[str, tuple[bool, bool]] | Unmeasured:
    try:
        stats = source.stats("rdma.uverbs")
    except Unmeasured as reason:
        return reason
    return {path.rpartition("/")[2]: (stat.readable, stat.writable) for path, stat in stats.items()}


def parse(source: Source) -> Rdma:
    """Raises Unmeasured where sysfs was not read."""
    files = source.files("rdma.sysfs")
    texts = files.under(ROOT)
    links, unread = _links(source)
    gids, scanned = _gids(source)
    counters, bars = _counters(source), _bars(source)
    netdevs: dict[str, list[str]] = {}
    try:
        for path in source.stats("rdma.netdevs"):
            parts = path.removeprefix(ROOT).split("/")
            if path.startswith(ROOT) and len(parts) == 4:
                netdevs.setdefault(parts[0], []).append(parts[3])
    except Unmeasured:
        pass

    names = sorted({path.split("/")[0] for path in texts if "/" in path}, key=_natural)
    devices: list[RdmaDevice] = []
    for name in names:

        def leaf(tail: str, name: str = name) -> str:
            return texts.get(f"{name}/{tail}", "").strip()

        numbers = sorted(
            {
                n
                for path in texts
                if path.startswith(f"{name}/ports/") and (n := _number(path.split("/")[2])) is not None
            }
        )
        ports: list[Port] = []
        for number in numbers:
            base, key = f"ports/{number}/", f"{name}/{number}"
            ports.append(
                Port(
                    name,
                    number,
                    _after_colon(leaf(base + "state")),
                    _after_colon(leaf(base + "phys_state")),
                    rate_gbps(leaf(base + "rate")),
                    leaf(base + "rate"),
                    leaf(base + "link_layer"),
                    _number(leaf(base + "sm_lid")),
                    tuple(sorted(gids.get(key, []), key=lambda g: g.index)),
                    scanned.get(key),
                    counters.get(key, {}),
                    _pkeys(texts, f"{name}/{base}pkeys/"),
                    files.errors.get(f"{ROOT}{name}/{base}pkeys/0", ""),
                )
            )
        own = {gid.netdev for port in ports for gid in port.gids if gid.netdev} | set(netdevs.get(name, []))
        if leaf("parent"):
            own.add(leaf("parent"))
        hca_type = leaf("hca_type")
        driver = links.get(f"{ROOT}{name}/device/driver", "").rpartition("/")[2]
        devices.append(
            RdmaDevice(
                name,
                _kind(name, driver, hca_type),
                leaf("fw_ver"),
                leaf("board_id"),
                hca_type,
                leaf("node_guid"),
                links.get(f"{ROOT}{name}/device", "").rpartition("/")[2],
                f"{ROOT}{name}/device/physfn" in links,
                _number(leaf("device/numa_node")),
                tuple(sorted(own)),
                tuple(ports),
                bars.get(name),
            )
        )
    verbs = files.under("/sys/class/infiniband_verbs/")
    return Rdma(
        tuple(devices),
        _version(links, unread),
        files.get("/sys/module/mlx5_core/version", "").strip(),
        _uverbs(source),
        {text.strip(): path.split("/")[0] for path, text in verbs.items() if path.endswith("/ibdev")},
        unread,
    )


def _natural(name: str) -> tuple[str, int, str]:
    stem = name.rstrip("0123456789")
    return (stem, int(name[len(stem) :][:9] or 0), name)
