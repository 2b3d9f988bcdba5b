"""A matrix of nodes in the terminal: who writes to whom, and how fast. Pure.

One cell is the worst of all rails between two nodes. 16 nodes fit 80 columns; above MAX_NODES only those that fail.
"""

from __future__ import annotations

from collections.abc import Sequence

from epdoctor.bench.results import Measurement
from epdoctor.model import Status
from epdoctor.report.sanitize import sanitize

WHATS = ("write bandwidth", "write")
SHADES = ((0.9, ("█", "#")), (0.7, ("▓", "+")), (0.5, ("▒", "-")), (0.0, ("░", ".")))
FAILED, NONE, SELF = ("✗", "X"), ("?", "?"), ("·", " ")
NAME_WIDTH, MAX_NODES = 16, 24


def heat_lines(measurements: Sequence[Measurement], *, unicode: bool = True) -> list[str]:
    """Empty for fewer than three nodes: the list of measurements says as much."""
    at = 0 if unicode else 1
    what = next((what for what in WHATS if any(one.what == what for one in measurements)), "")
    ones = [one for one in measurements if one.what == what and one.b]
    nodes = list(
        dict.fromkeys(name for one in sorted(ones, key=lambda m: (m.a, m.b)) for name in (one.a, one.b))
    )
    nodes.sort()
    if len(nodes) < 3:
        return []
    if len(nodes) > MAX_NODES:
        bad = {name for one in ones if one.status is Status.FAIL for name in (one.a, one.b)}
        nodes = [name for name in nodes if name in bad][:MAX_NODES]
        if len(nodes) < 2:
            return []
    best = max((one.value for one in ones if one.value is not None), default=0.0)
    cells: dict[tuple[str, str], tuple[float, str]] = {}
    for one in ones:
        found = _cell(one, best, at)
        key = (one.a, one.b)
        cells[key] = min(cells.get(key, found), found)
    rows = [
        f"{sanitize(a)[:NAME_WIDTH]:<{NAME_WIDTH}} "
        + " ".join(SELF[at] if a == b else cells[a, b][1] if (a, b) in cells else NONE[at] for b in nodes)
        for a in nodes
    ]
    scale = " ".join(f"{signs[at]} {share:.0%}" for share, signs in SHADES[:3])
    legend = (
        f"{scale} of the best, {FAILED[at]} fails, {NONE[at]} not measured" if best else f"{FAILED[at]} fails"
    )
    return [f"{what}, from row to column (same order), worst rail", *rows, legend]


def _cell(one: Measurement, best: float, at: int) -> tuple[float, str]:
    """(order, sign): the least order of several rails is shown."""
    if one.status is Status.FAIL:
        return (-1.0, FAILED[at])
    if one.status is not Status.PASS:
        return (0.0, NONE[at])
    if one.value is None or not best:
        return (1.0, SHADES[0][1][at])
    share = one.value / best
    return (share, next(signs[at] for least, signs in SHADES if share >= least))
