"""Rows of probes/nvml.py into GPUs. Number meanings: nvml.h (nvidia-ml-py 13.615)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.gpu_model import Fabric, Gpu, GpuProcess, NvLink
from epdoctor.facts.pci import normalise_bus_id

COMPUTE_MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}
REMOTES = {0: "gpu", 1: "npu", 2: "switch"}
FABRIC_STATES = {0: "not supported", 1: "not started", 2: "in progress", 3: "completed"}
P2P = {0: "OK", 1: "CNS", 2: "GNS", 3: "TNS", 4: "DR", 5: "NS"}
NOT_SUPPORTED = "Not Supported"


class Row:
    """One `gpu.<index>` row: typed reads that never raise."""

    def __init__(self, value: Any) -> None:
        self._values: Mapping[str, Any] = value if isinstance(value, dict) else {}
        errors = self._values.get("errors")
        self.errors: Mapping[str, Any] = errors if isinstance(errors, dict) else {}

    def raw(self, name: str) -> Any:
        return self._values.get(name)

    def missing(self, name: str) -> Unmeasured:
        said = self.errors.get(name, self.errors.get("handle", "not in this recording"))
        return Unmeasured(f"NVML {name}: {str(said)[:120]}")

    def text(self, name: str) -> str | Unmeasured:
        value = self.raw(name)
        return value[:128] if isinstance(value, str) and value else self.missing(name)

    def number(self, name: str) -> int | Unmeasured:
        return whole(self.raw(name), self.missing(name))

    def item(self, name: str, place: int) -> int | Unmeasured:
        value = self.raw(name)
        return whole(
            value[place] if isinstance(value, list) and len(value) > place else None, self.missing(name)
        )

    def flag(self, name: str, place: int | None = None) -> bool | Unmeasured:
        value = self.number(name) if place is None else self.item(name, place)
        return value if isinstance(value, Unmeasured) else value != 0


def whole(value: Any, otherwise: Unmeasured) -> int | Unmeasured:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64
        else otherwise
    )


def _links(row: Row) -> tuple[NvLink, ...] | Unmeasured:
    rows = row.raw("links")
    if not isinstance(rows, list):
        if NOT_SUPPORTED in str(row.errors.get("links", "")):
            return ()
        return row.missing("links")
    unknown = Unmeasured("NVML: not told for this link")
    found = []
    for values in rows[:64]:
        if (
            not isinstance(values, list)
            or len(values) < 2
            or isinstance(whole(values[0], unknown), Unmeasured)
        ):
            continue
        index, active, speed, remote, version = (*values, None, None, None)[:5]
        if active is None:
            return Unmeasured(f"NVML: no state of NVLink {index}")
        kind = REMOTES.get(remote, unknown) if isinstance(remote, int) else unknown
        found.append(NvLink(index, active in (1, True), whole(speed, unknown), whole(version, unknown), kind))
    return tuple(found)


def _fabric(row: Row) -> Fabric | Unmeasured:
    value = row.raw("fabric")
    if not isinstance(value, dict):
        if NOT_SUPPORTED in str(row.errors.get("fabric", "")):
            return Fabric("not supported", "", Unmeasured("no fabric"), Unmeasured("no fabric"))
        return row.missing("fabric")
    state = value.get("state")
    name = FABRIC_STATES.get(state) if isinstance(state, int) else None
    if name is None:
        return Unmeasured("NVML fabric: unknown state")
    status = value.get("status")
    cluster = value.get("cluster")
    return Fabric(
        name,
        "success" if status == 0 else f"NVML error {str(status)[:8]}",
        whole(value.get("clique"), row.missing("fabric")),
        cluster[:36] if isinstance(cluster, str) else row.missing("fabric"),
    )


def _processes(row: Row) -> tuple[GpuProcess, ...] | Unmeasured:
    rows = row.raw("processes")
    if not isinstance(rows, list):
        return row.missing("processes")
    unknown = Unmeasured("NVML: memory of the process not told")
    pairs = [values for values in rows[:64] if isinstance(values, list) and len(values) == 2]
    return tuple(
        GpuProcess(pid, whole(memory, unknown)) for pid, memory in pairs if isinstance(pid, int) and pid > 0
    )


def _capability(row: Row) -> tuple[int, int] | Unmeasured:
    major, minor = row.item("compute_capability", 0), row.item("compute_capability", 1)
    if isinstance(major, Unmeasured):
        return major
    return minor if isinstance(minor, Unmeasured) else (major, minor)


def gpu(index: int, value: Any) -> Gpu:
    """One GPU of a `gpu.<index>` row; whatever is not there is Unmeasured with NVML's own words."""
    row = Row(value)
    bus_id = row.text("bus_id")
    if not isinstance(bus_id, Unmeasured):
        try:
            bus_id = normalise_bus_id(bus_id)
        except Unmeasured as reason:
            bus_id = reason
    mode = row.number("compute_mode")
    return Gpu(
        index=index,
        name=row.text("name"),
        uuid=row.text("uuid"),
        bus_id=bus_id,
        minor=row.number("minor"),
        vbios=row.text("vbios"),
        memory_total_bytes=row.number("memory_total_bytes"),
        bar1_total_bytes=row.number("bar1_total_bytes"),
        compute_capability=_capability(row),
        ecc_enabled=row.flag("ecc", 0),
        ecc_volatile_uncorrected=row.number("ecc_volatile"),
        ecc_aggregate_uncorrected=row.number("ecc_aggregate"),
        remapped_correctable=row.item("remapped_rows", 0),
        remapped_uncorrectable=row.item("remapped_rows", 1),
        remap_pending=row.flag("remapped_rows", 2),
        remap_failed=row.flag("remapped_rows", 3),
        # A GPU without MIG says Not Supported.
        mig_enabled=False if NOT_SUPPORTED in str(row.errors.get("mig", "")) else row.flag("mig", 0),
        compute_mode=mode
        if isinstance(mode, Unmeasured)
        else COMPUTE_MODES.get(mode, row.missing("compute_mode")),
        persistence=row.flag("persistence"),
        pcie_gen=row.number("pcie_gen"),
        pcie_gen_max=row.number("pcie_gen_max"),
        pcie_width=row.number("pcie_width"),
        pcie_width_max=row.number("pcie_width_max"),
        event_reasons=row.number("event_reasons"),
        processes=_processes(row),
        nvlinks=_links(row),
        fabric=_fabric(row),
    )


def gpus(values: Mapping[str, Any]) -> tuple[Gpu, ...]:
    """GPUs in index order. Raises Unmeasured where NVML did not come as far as counting them."""
    count = whole(values.get("count"), Unmeasured("NVML: did not count the GPUs"))
    if isinstance(count, Unmeasured):
        raise count
    return tuple(
        gpu(index, values[f"gpu.{index}"]) for index in range(min(count, 64)) if f"gpu.{index}" in values
    )


def p2p(values: Mapping[str, Any]) -> tuple[dict[tuple[int, int], str], bool]:
    """Read status by pair, and whether it was measured at all."""
    rows = values.get("p2p")
    if not isinstance(rows, list):
        return {}, False
    found = {}
    for row in rows[:4096]:
        if isinstance(row, list) and len(row) == 3 and all(isinstance(value, int) for value in row):
            found[row[0], row[1]] = P2P.get(row[2], "unknown")
    return found, bool(found)
