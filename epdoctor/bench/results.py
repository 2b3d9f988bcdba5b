"""What a layer of the ladder measured, and what it comes to. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from epdoctor.model import Status


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number, or one failure, between two ends or at one."""

    what: str
    """"port 29550", "write bandwidth", "all-to-all 64 MiB": with the ends it names the measurement."""
    a: str
    """Node that acted (client, sender)."""
    b: str = ""
    """Node at the other end; empty: inside `a`."""
    rail: str = ""
    """HCA, GPU pair or interface that it went over: "mlx5_2", "GPU0-GPU1"; empty: not of one rail."""
    value: float | None = None
    unit: str = ""
    expected: float | None = None
    """Least value that counts as right (most, where `lower_is_better`); None: no expectation, never a failure."""
    expected_from: str = ""
    """"0.9 x link rate 400 Gb/s (perftest; table of 2026-11-22)"."""
    status: Status = Status.PASS
    detail: str = ""
    """Why it failed or is unknown: "connection refused", "registering 64 KiB: ENOMEM"."""
    output: str = ""
    """What a tool printed when it failed: goes through explain."""
    lower_is_better: bool = False
    percentile: float | None = None
    """Of the own measurements of its kind, 0 (the worst) to 100; None: no number, or too few of its kind."""
    of_kind: int = 0
    """How many of its kind have a number."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """What would explain the failures, most likely first."""

    kind: str
    """node | rail | node-rail | pair | rail of pair | port | port of node | all"""
    name: str
    failing: int
    of: int
    """Failing measurements among those that touch it."""
    sentence: str


@dataclass
class LayerResult:
    """One layer's outcome."""

    number: str
    name: str
    title: str
    status: Status
    measurements: list[Measurement] = field(default_factory=list)
    reason: str = ""
    """Why skipped or unknown."""
    summary: str = ""
    """When it passes: "12 pairs, 5 ports, both ways; 0.2 ms; path MTU 9000"."""
    broken: str = ""
    """When it fails: "port 29550 from gpu07 to gpu12: connection refused"."""
    suspects: list[Suspect] = field(default_factory=list)
    causes: list[tuple[str, str]] = field(default_factory=list)
    """(id, title) of causes that explain names from what the tools printed."""
    checks: tuple[str, ...] = ()
    """Ids of checks that would explain a failure."""
    next: str = ""
    """Command to type after a failure."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    not_run: bool = False
    """The ladder passed over it; `reason` says why."""

    @property
    def failures(self) -> list[Measurement]:
        return [one for one in self.measurements if one.status is Status.FAIL]


@dataclass(frozen=True)
class LadderReport:
    """A whole run, for every form of output."""

    nodes: tuple[str, ...]
    layers: Sequence[LayerResult]
    missing: Mapping[str, str]
    """Node -> why nothing, or nothing more, came from it."""
    seconds: float
    budget_s: float
    exit_code: int
    interrupted: bool
    next: str
    """Command to type; empty: nothing is left to do."""
    ended_at: str
    """ISO 8601, UTC."""


MIN_OF_KIND = 5


def with_percentiles(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Each number with its place among the own of its kind: what of nodes that are alike stands out, whatever the
    table expects. Kinds of fewer than MIN_OF_KIND numbers, or all equal, get none."""
    kinds: dict[tuple[str, str], list[float]] = {}
    for one in measurements:
        if one.value is not None:
            kinds.setdefault((one.what, one.unit), []).append(one.value)
    for values in kinds.values():
        values.sort()
    found = []
    for one in measurements:
        values = kinds.get((one.what, one.unit), []) if one.value is not None else []
        if one.value is not None and len(values) >= MIN_OF_KIND and values[0] != values[-1]:
            below, equal = bisect_left(values, one.value), bisect_right(values, one.value)
            share = (below + (equal - below - 1) / 2) / (len(values) - 1)
            share = 1 - share if one.lower_is_better else share
            one = replace(one, percentile=round(100 * share, 1), of_kind=len(values))
        found.append(one)
    return found


def judge_value(measurement: Measurement) -> Status:
    """Against its expectation."""
    if measurement.value is None:
        return Status.UNKNOWN
    if measurement.expected is None:
        return Status.PASS
    if measurement.lower_is_better:
        return Status.PASS if measurement.value <= measurement.expected else Status.FAIL
    return Status.PASS if measurement.value >= measurement.expected else Status.FAIL


def overall(measurements: list[Measurement]) -> Status:
    """A failure counts most; something unknown is never green."""
    found = {one.status for one in measurements}
    for status in (Status.FAIL, Status.UNKNOWN, Status.PASS):
        if status in found:
            return status
    return Status.SKIP


def shown(value: float, unit: str) -> str:
    """A number for people, in the unit that suits it: "48.5 GB/s", "4.3 MB/s", "5.7 ms"."""
    if unit == "GB/s" and 0 < value < 0.1:
        value, unit = value * 1000, "MB/s"
    elif unit == "us" and value >= 1000:
        value, unit = value / 1000, "ms"
    return f"{value:.3g} {unit}".rstrip() if value < 1000 else f"{value:.0f} {unit}".rstrip()


def spread(values: list[float], unit: str) -> str:
    """ "48.1 GB/s to 49 GB/s", or the one value."""
    ends = list(dict.fromkeys((shown(min(values), unit), shown(max(values), unit))))
    return " to ".join(ends)


def count_of(number: int, noun: str) -> str:
    """ "1 pair", "3 pairs"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
