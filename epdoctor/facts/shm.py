"""Shared memory (/dev/shm): size, space, and segments that programs left there."""

from __future__ import annotations

from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Probe, Script, Source, Stat

SHM = "/dev/shm"  # noqa: S108 - looked at, never written to
_PREFIXES = ("nccl-", "psm_", "sem.", "vllm", "cuda.shm", "ucx_shm")
"""What NCCL, Python's multiprocessing (vLLM's message queues), vLLM, CUDA and UCX leave there."""


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    return (
        Stat("shm.mount", globs=(SHM,), statvfs=True, timeout_s=5.0),
        Script("shm.segments", script="shm.py", params={"limit": 2000}, max_bytes=1 << 18, timeout_s=5.0),
    )


@dataclass(frozen=True)
class Segment:
    name: str
    size_bytes: int
    """Memory in use, not the nominal size (tmpfs files are sparse)."""
    age_seconds: int
    """Since the last write."""
    uid: int


@dataclass(frozen=True)
class SharedMemory:
    total_bytes: int | Unmeasured
    available_bytes: int | Unmeasured
    segments: tuple[Segment, ...] | Unmeasured
    """Segments named as communication libraries name theirs, largest first. Others are not listed."""


def parse(source: Source) -> SharedMemory:
    """Facts of `shm.mount` and `shm.segments`."""
    total: int | Unmeasured
    available: int | Unmeasured
    total = available = Unmeasured(f"{SHM} is not there")
    try:
        stat = source.stats("shm.mount").get(SHM)
        if stat is not None and isinstance(stat.total_bytes, int) and isinstance(stat.available_bytes, int):
            total, available = stat.total_bytes, stat.available_bytes
    except Unmeasured as reason:
        total = available = reason
    segments: tuple[Segment, ...] | Unmeasured
    try:
        rows = source.rows("shm.segments")
    except Unmeasured as reason:
        return SharedMemory(total, available, reason)
    failed = next((str(row[1]) for row in rows if row[0] == "error" and len(row) > 1), "")
    if failed:
        return SharedMemory(total, available, Unmeasured(f"{SHM}: {failed}"))
    found = []
    for row in rows:
        value = row[1] if row[0] == "segment" and len(row) > 1 else None
        if not (isinstance(value, list) and len(value) == 4 and isinstance(value[0], str)):
            continue
        if not all(isinstance(number, int) for number in value[1:]) or not value[0].startswith(_PREFIXES):
            continue
        found.append(Segment(value[0], value[1], value[2], value[3]))
    segments = tuple(sorted(found, key=lambda segment: (-segment.size_bytes, segment.name)))
    return SharedMemory(total, available, segments)
