"""What counters did during `--sample 10s`: two readings in one session of the agent.

Names: kernel Documentation/ABI/stable/sysfs-class-infiniband and testing/sysfs-class-net, and, for mlx5,
Documentation/networking/device_drivers/ethernet/mellanox/mlx5/counters.rst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import CollectOptions, Probe, Script, Source

_READING_S = 5.0
"""More than two readings of eight ports take; statistics of a busy driver answer slowly."""


@dataclass(frozen=True)
class Movement:
    """One port or netdev over the interval."""

    kind: str
    """port | netdev"""
    name: str
    """"mlx5_0/1", "eth2"."""
    counters_read: int
    moved: Mapping[str, int]
    """Counter -> by how much it grew."""
    cleared: tuple[str, ...]
    """Counters that went down: the driver was loaded again, or somebody cleared them."""


@dataclass(frozen=True)
class Sample:
    seconds: float
    """Between the first and the second reading."""
    movements: tuple[Movement, ...]


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    if options.sample_s <= 0:
        return ()
    return (
        Script(
            "sample.counters",
            script="sample.py",
            params={"seconds": options.sample_s},
            timeout_s=options.sample_s + _READING_S,
        ),
    )


def parse(source: Source) -> Sample | None:
    """None where no --sample was asked for. Raises Unmeasured where the second reading is not there."""
    if source.status("sample.counters") == "absent":
        return None
    seconds: float | None = None
    movements: list[Movement] = []
    for key, value in source.values("sample.counters").items():
        kind, _, name = key.partition("/")
        if key == "seconds" and isinstance(value, (int, float)) and 0 < value < 1e6:
            seconds = float(value)
        elif kind in ("port", "netdev") and isinstance(value, dict):
            moved, cleared, read = value.get("moved"), value.get("cleared"), value.get("read")
            if not isinstance(moved, dict) or not isinstance(cleared, list) or not isinstance(read, int):
                continue
            steps = {
                str(counter): step
                for counter, step in moved.items()
                if isinstance(step, int) and not isinstance(step, bool) and step > 0
            }
            movements.append(Movement(kind, name, read, steps, tuple(str(item) for item in cleared)))
    if seconds is None:
        raise Unmeasured("sample.counters: no second reading")
    return Sample(seconds, tuple(movements))
