"""Layers 3 and 4 alike: from perftest's answers to measurements, and what they come to. No layer itself."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from epdoctor.bench.expect import Expectation, Expectations
from epdoctor.bench.perftest_run import BYTES, Answer
from epdoctor.bench.perftest_text import parse_bandwidth, parse_latency
from epdoctor.bench.rails import Rails
from epdoctor.bench.results import LayerResult, Measurement, count_of, judge_value, shown, spread
from epdoctor.bench.settle import and_more, settle
from epdoctor.bench.suspects import suspects_of_failed_kinds
from epdoctor.exceptions import Unmeasured
from epdoctor.model import Status

BANDWIDTH, LATENCY, RESENT = "write bandwidth", "write latency", "sent again"
ACROSS = "write bandwidth across rails"
WHAT = {"write_bw": BANDWIDTH, "write_lat": LATENCY}


def measured(answer: Answer, rails: Rails, expect: Expectations, bandwidth_row: str) -> list[Measurement]:
    """One run's numbers, each with its expectation where there is one of its own; status as it stands alone."""
    job = answer.job
    sender, receiver = rails.of[job.a][job.rail_a], rails.of[job.b][job.rail_b]
    across = job.rail_a != job.rail_b
    label = f"{sender.device} to {receiver.device}" if across else rails.label(job.rail_a, job.a, job.b)
    what = ACROSS if across else WHAT[job.tool]
    soft = sender.software or receiver.software
    blank = Measurement(what, job.a, job.b, label, unit="us" if job.tool == "write_lat" else "GB/s")
    if answer.unknown or answer.missing:
        return [replace(blank, status=Status.UNKNOWN, detail=answer.unknown or f"missing: {answer.missing}")]
    if answer.failed:
        return [replace(blank, status=Status.FAIL, detail=answer.failed, output=answer.output)]
    if job.tool == "write_bw":
        blank = _expected_bandwidth(blank, sender.rate_gbps, receiver.rate_gbps, soft, expect[bandwidth_row])
    else:
        row = expect["soft_roce_write_lat" if soft else "rdma_write_lat"]
        blank = replace(blank, expected=row.at_most, expected_from=row.source, lower_is_better=True)
    if answer.timed_out_s:
        return [_never_ended(blank, answer)]
    try:
        if job.tool == "write_bw":
            value = parse_bandwidth(answer.stdout).average_gbps / 8
        else:
            value = parse_latency(answer.stdout).typical_us
    except Unmeasured as reason:
        return [replace(blank, status=Status.UNKNOWN, detail=str(reason))]
    found = [replace(blank, value=value)]
    found[0] = replace(found[0], status=judge_value(found[0]))
    if answer.resent is not None and job.tool == "write_bw" and not across:
        again_row = expect["soft_roce_resent" if soft else "rdma_resent"]
        again = Measurement(
            RESENT, job.a, job.b, label, value=1000.0 * answer.resent / max(answer.iterations, 1),
            unit="per 1000 writes", expected=again_row.at_most,
            expected_from=again_row.source, lower_is_better=True,
        )  # fmt: skip
        found.append(replace(again, status=judge_value(again)))
    return found


def _never_ended(blank: Measurement, answer: Answer) -> Measurement:
    words = f"no end in {answer.timed_out_s:.0f} s"
    if answer.job.tool == "write_lat":
        return replace(blank, detail=words, status=Status.FAIL)
    most = answer.iterations * BYTES / 1e9 / answer.timed_out_s
    return replace(blank, value=most, detail=f"{words}, so it is slower than this", status=Status.FAIL)


def _expected_bandwidth(
    one: Measurement, sender: float | None, receiver: float | None, soft: bool, row: Expectation
) -> Measurement:
    if row.at_least is not None:
        return replace(one, expected=row.at_least, expected_from=row.source)
    if soft or not sender or not receiver or row.factor is None:
        return one
    rate = min(sender, receiver)
    return replace(
        one,
        expected=row.factor * rate / 8,
        expected_from=f"{row.factor:g} x link rate {rate:g} Gb/s; {row.source}",
    )


def among_own(found: Sequence[Measurement], soft: bool, expect: Expectations) -> list[Measurement]:
    """The same measurements, with those failed that are far slower than most of their like. From six on."""
    rates = sorted(one.value for one in found if one.what == BANDWIDTH and one.value is not None)
    if len(rates) < 6:
        return list(found)
    upper = rates[-(-3 * (len(rates) - 1) // 4)]
    row = expect["soft_roce_among_own" if soft else "rdma_among_own"]
    least = (row.factor or 0.0) * upper
    judged = []
    for one in found:
        if (
            one.what == BANDWIDTH
            and one.value is not None
            and one.value < least
            and one.status is Status.PASS
        ):
            one = replace(
                one, status=Status.FAIL, expected=least, detail="slow pair",
                expected_from=f"{row.factor:g} x the upper quartile of the own pairs, {upper:.3g} GB/s; {row.source}",
            )  # fmt: skip
        judged.append(one)
    return judged


def settled(result: LayerResult) -> None:
    """Status, suspects, texts."""
    settle(result, broken=_broken, summary=lambda: _summary(result), suspected=suspects_of_failed_kinds)


def _broken(failures: list[Measurement]) -> str:
    worst = min(failures, key=_share)
    return f"rail {worst.rail} between {worst.a} and {worst.b}: {shortfall(worst)}{and_more(failures)}"


def _summary(result: LayerResult) -> str:
    rates = [m.value for m in result.measurements if m.what == BANDWIDTH and m.value is not None]
    times = [m.value for m in result.measurements if m.what == LATENCY and m.value is not None]
    pairs = len({frozenset((m.a, m.b)) for m in result.measurements if m.what == BANDWIDTH})
    return (
        f"{count_of(pairs, 'pair')} both ways, {spread(rates, 'GB/s')} (median {shown(statistics.median(rates), 'GB/s')})"
        if rates
        else "no bandwidth"
    ) + (f", latency {shown(statistics.median(times), 'us')}" if times else "")


def _share(one: Measurement) -> float:
    """How much of what is expected; a run without a result counts least."""
    if one.value is None or not one.expected:
        return 0.0
    return one.expected / max(one.value, 1e-9) if one.lower_is_better else one.value / one.expected


def shortfall(one: Measurement) -> str:
    """ "write bandwidth 0.4 GB/s, expected at least 42.5 GB/s"."""
    if one.value is None:
        return f"{one.what}: {one.detail}"
    words = f"{one.what} {shown(one.value, one.unit)}"
    if one.expected is not None:
        bound = "at most" if one.lower_is_better else "at least"
        words += f", expected {bound} {shown(one.expected, one.unit)}"
    return words + (f" ({one.detail})" if one.detail else "")
