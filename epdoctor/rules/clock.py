"""Clocks: disciplined on each node, and close to one another."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.cluster import Cluster
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, cluster_rule, node_rule


@node_rule
def clock_synchronised(node: Node) -> Iterator[Problem]:
    """Something disciplines the kernel's clock (STA_UNSYNC is clear)."""
    clock = require(node.system.clock)
    if not clock.synchronised:
        yield Problem(
            "nothing disciplines the clock",
            "chrony, systemd-timesyncd or ptp4l keeps it",
            (f"adjtimex: STA_UNSYNC, maximum error {clock.max_error_s:.3g} s",),
            subject="clock",
        )


@cluster_rule
def clocks_agree(cluster: Cluster, *, max_difference_s: float) -> Iterator[Problem]:
    """No clock is further from the median than allowed, beyond what the measurement itself may be off."""
    offsets = cluster.measured("time.offset")
    if len(cluster.nodes) < 2:
        raise NotApplicable("One node")
    if len(offsets) < 2:
        reasons = sorted(set(cluster.unmeasured("time.offset").values()))
        raise Unmeasured(
            f"the clocks of fewer than two nodes were measured{': ' + reasons[0] if reasons else ''}"
        )
    ordered = sorted(offset for offset, _ in offsets.values())
    # The lower of the two middle ones: with two nodes, the one that is behind is taken as right.
    median = ordered[(len(ordered) - 1) // 2]
    odd = {
        node: offset - median
        for node, (offset, uncertainty) in offsets.items()
        if abs(offset - median) - uncertainty > max_difference_s
    }
    if not odd:
        return
    two = len(offsets) == 2
    named = sorted(offsets) if two else sorted(odd, key=lambda node: (-abs(odd[node]), node))
    if two:
        found = f"{named[0]} and {named[1]} differ by {ordered[1] - ordered[0]:.3g} s"
    else:
        found = ", ".join(f"{node} {odd[node]:+.3g} s" for node in named[:5])
        found += f" and {len(named) - 5} more" if len(named) > 5 else ""
    yield Problem(
        found,
        f"within {max_difference_s:g} s of each other",
        tuple(
            f"{node}: {offset:+.3f} s against this machine, measured to {uncertainty:.3f} s"
            for node, (offset, uncertainty) in sorted(offsets.items())
            if node in named
        ),
        odd_nodes=tuple(named),
    )
