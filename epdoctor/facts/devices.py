"""Device nodes under /dev that GPUs, GDRCopy, IMEX and RDMA need."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from epdoctor.facts.base import CollectOptions, PathStat, Probe, Source, Stat

GDRDRV = "/dev/gdrdrv"

_GPU_NODE = re.compile(r"/dev/nvidia([0-9]{1,4})")


def probes(options: CollectOptions) -> tuple[Probe, ...]:
    """One stat of each node; opens none of them."""
    del options
    return (
        Stat(
            name="devices.nodes",
            globs=(
                "/dev/nvidia*",
                "/dev/nvidia-caps/*",
                "/dev/nvidia-caps-imex-channels/*",
                "/dev/gdrdrv",
                "/dev/infiniband/*",
            ),
        ),
    )


@dataclass(frozen=True)
class Devices:
    """What exists under /dev, as seen by the user the agent ran as."""

    nodes: Mapping[str, PathStat]
    """Character devices by path."""

    def node(self, path: str) -> PathStat | None:
        """The device node, or None where there is none."""
        return self.nodes.get(path)

    @property
    def gpu_minors(self) -> dict[int, PathStat]:
        """/dev/nvidia<N> by N. N is the GPU's minor number, not its NVML index."""
        found = {}
        for path, facts in self.nodes.items():
            match = _GPU_NODE.fullmatch(path)
            if match:
                found[int(match.group(1))] = facts
        return found

    @property
    def imex_channels(self) -> dict[str, PathStat]:
        """/dev/nvidia-caps-imex-channels/channel* by path."""
        return {path: facts for path, facts in self.nodes.items() if "/nvidia-caps-imex-channels/" in path}

    @property
    def uverbs(self) -> dict[str, PathStat]:
        """/dev/infiniband/uverbs* by path."""
        return {
            path: facts for path, facts in self.nodes.items() if path.startswith("/dev/infiniband/uverbs")
        }


def parse(source: Source) -> Devices:
    """Unmeasured where /dev could not be listed."""
    found = source.stats("devices.nodes")
    return Devices({path: facts for path, facts in found.items() if stat.S_ISCHR(facts.mode)})
