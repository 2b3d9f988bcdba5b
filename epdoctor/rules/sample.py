"""Counters that grew during `--sample`: what goes wrong now, and not what went wrong since boot."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.sample import Movement
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, node_rule
from epdoctor.rules.rdma import compute_devices, compute_ports


def _is_judged(node: Node, movement: Movement) -> bool:
    if movement.kind == "port":
        return movement.name in {f"{port.device}/{port.number}" for port in compute_ports(node)}
    return any(movement.name in device.netdevs for device in compute_devices(node))


@node_rule
def counters_still(node: Node, *, counters: list[str], expected: str) -> Iterator[Problem]:
    """None of these counters (names, or patterns with *) grew on a compute port or its netdev."""
    sample = node.sample
    if sample is None:
        raise NotApplicable("not asked for: --sample 10s")
    judged = [movement for movement in sample.movements if _is_judged(node, movement)]
    if not any(movement.counters_read for movement in judged):
        raise Unmeasured("counters of the compute HCAs: none could be read twice")
    for movement in judged:
        grown = {
            name: step
            for name, step in movement.moved.items()
            if any(fnmatchcase(name, pattern) for pattern in counters)
        }
        if grown:
            device = movement.name.partition("/")[0]
            most = sorted(grown, key=lambda name: (-grown[name], name))
            yield Problem(
                f"{movement.name}: {', '.join(f'{name} +{grown[name]}' for name in most[:4])}"
                f"{f' and {len(most) - 4} more' if len(most) > 4 else ''} in {sample.seconds:g} s",
                expected,
                tuple(f"{movement.kind} {movement.name}: {name} +{grown[name]}" for name in most),
                now=(f"sudo mlxlink -d {device} -m -c -e",)
                if movement.kind == "port"
                else (f"ethtool -S {device} | grep -v ': 0$'",),
                subject=device,
            )
