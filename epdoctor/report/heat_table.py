"""Matrices of measurements for a page: node by node, and GPU by GPU inside a node. Pure.

A cell is the worst of all that was measured between its two ends; its title lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from epdoctor.bench.results import Measurement, shown
from epdoctor.model import Status
from epdoctor.report.bench_text import outcome

MAX_ENDS = 64
"""Above it only the ends with a failure are drawn."""
TITLE_LINES = 12
_GPUS = re.compile(r"(GPU\d{1,3})-(GPU\d{1,3})\Z")


@dataclass(frozen=True)
class Cell:
    kind: str
    """fail | unknown | h0 (below half of the best) .. h3 (0.9 of it and more) | none"""
    text: str
    title: str
    """One line for each measurement."""


@dataclass
class HeatTable:
    caption: str
    ends: list[str]
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    """(from, to)."""
    left_out: int = 0
    """Ends that are not drawn."""


def heat_tables(measurements: Sequence[Measurement]) -> Iterator[HeatTable]:
    """One for each kind of measurement between nodes, and one for each kind inside a node between its GPUs."""
    groups: dict[str, dict[tuple[str, str], list[Measurement]]] = {}
    for one in measurements:
        gpus = _GPUS.match(one.rail) if not one.b else None
        if one.b:
            kind = "connect to ports" if "port" in one.what.split() else one.what
            groups.setdefault(kind, {}).setdefault((one.a, one.b), []).append(one)
        elif gpus is not None:
            groups.setdefault(f"{one.what} on {one.a}", {}).setdefault((gpus[1], gpus[2]), []).append(one)
    for caption, cells in groups.items():
        yield _table(caption, cells)


def _table(caption: str, found: dict[tuple[str, str], list[Measurement]]) -> HeatTable:
    every = sorted({end for pair in found for end in pair}, key=_natural)
    ends = every
    if len(every) > MAX_ENDS:
        bad = {end for pair, ones in found.items() if _failed(ones) for end in pair}
        ends = [end for end in every if end in bad][:MAX_ENDS]
    values = [one.value for ones in found.values() for one in ones if one.value is not None]
    units = {one.unit for ones in found.values() for one in ones if one.value is not None}
    unit = f" ({units.pop()})" if len(units) == 1 else ""
    table = HeatTable(
        f"{caption}{unit}, from row to column, the worst", ends, left_out=len(every) - len(ends)
    )
    kept = set(ends)
    for (a, b), ones in found.items():
        if a in kept and b in kept:
            table.cells[a, b] = _cell(ones, values)
    return table


def _cell(ones: Sequence[Measurement], values: Sequence[float]) -> Cell:
    lines = [f"{one.what}{outcome(one)} {one.status.value}" for one in ones]
    more = [f"and {len(lines) - TITLE_LINES} more"] if len(lines) > TITLE_LINES else []
    title = "\n".join(lines[:TITLE_LINES] + more)
    failed = [one for one in ones if one.status is Status.FAIL]
    judged = [one for one in ones if one.value is not None]
    worst = min(judged, key=lambda one: _goodness(one, values), default=None)
    text = shown(worst.value, "") if worst is not None and worst.value is not None else ""
    if failed:
        numbers = [one for one in failed if one.value is not None]
        value = min(numbers, key=lambda one: _goodness(one, values)).value if numbers else None
        return Cell("fail", shown(value, "") if value is not None else "✗", title)
    if any(one.status is not Status.PASS for one in ones):
        return Cell("unknown", "?", title)
    if worst is None:
        return Cell("h3", "✓", title)
    share = _goodness(worst, values)
    return Cell(
        next(f"h{at}" for at, least in ((3, 0.9), (2, 0.7), (1, 0.5), (0, -1)) if share >= least), text, title
    )


def _goodness(one: Measurement, values: Sequence[float]) -> float:
    """Share of the best of its kind: 1 is the best."""
    value = one.value or 0.0
    if one.lower_is_better:
        # Times differ by a lot where nothing is wrong: what meets its expectation counts as good.
        return 1.0 if one.expected is not None and value <= one.expected else min(values) / max(value, 1e-9)
    return value / max(*values, 1e-9)


def _failed(ones: Sequence[Measurement]) -> bool:
    return any(one.status is Status.FAIL for one in ones)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """gpu2 before gpu10."""
    return [
        (0, int(part), "") if part.isascii() and part.isdecimal() else (1, 0, part)
        for part in re.split(r"([0-9]{1,18})", name)
    ]
