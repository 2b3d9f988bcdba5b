"""Layer 3: RDMA bandwidth and latency of host memory with perftest, on every rail between all pairs.

Same-rail pairs are judged: by the link's rate, and against the own pairs. From one rail to another is measured
between neighbours where time is left, and is a fault only for back ends that need the full mesh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from epdoctor.bench.causes import named
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._rdma import ACROSS, BANDWIDTH, LATENCY, RESENT, among_own, measured, settled
from epdoctor.bench.perftest_run import (
    Answer,
    Campaign,
    Job,
    cross_rail_steps,
    run_jobs,
    same_rail_steps,
)  # fmt: skip
from epdoctor.bench.rails import FULL_MESH, Rails, all_rails
from epdoctor.bench.results import LayerResult, Measurement
from epdoctor.model import Status

NUMBER, NAME, TITLE = "3", "rdma-bw", "RDMA bandwidth and latency, host memory"
CHECKS = (
    "rdma.rate-full",
    "rdma.error-counters-quiet",
    "network.mtu-same-on-rails",
    "network.one-route-between-nodes",
)
INSTALL = "sudo apt-get install perftest   # on each node; sudo dnf install perftest"
PACKAGE = "perftest brings it: apt install perftest, dnf install perftest"
CAUSE_OF_RESENT = "rdma-retry-timeout-fabric"


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    names = bench.alive
    rails = usable(all_rails(bench.nodes, names))
    if not rails.of:
        result.reason = rails.not_known or "no RDMA device on any node"
        result.status = Status.UNKNOWN if rails.unknown else Status.SKIP
        return result
    if len(rails.of) < 2:
        result.reason = rails.not_known or "one node with RDMA that works: nothing to connect to"
        result.status = Status.UNKNOWN if rails.unknown else Status.SKIP
        return result
    share = 0.5 if bench.gpu else 1.0
    steps = same_rail_steps(list(rails.of), rails, bench.pairs)
    found = run_jobs(bench, rails, steps, share=share, what="RDMA bandwidth")
    judge(bench, result, rails, found, "rdma_write_bw")
    if result.status is Status.PASS:
        _across(bench, result, rails, share)
    return result


def usable(rails: Rails) -> Rails:
    """Without nodes that have a rail which carries nothing: layer 2 has said so."""
    of = {name: own for name, own in rails.of.items() if not any(rail.problem for rail in own[: rails.count])}
    return Rails(of, rails.without, rails.unknown)


def judge(
    bench: Bench,
    result: LayerResult,
    rails: Rails,
    found: Campaign,
    row: str,
    words: Mapping[tuple[str, int], Sequence[str]] | None = None,
) -> None:
    """Measurements from answers; what was slow is measured again, once, before it counts."""
    soft = any(rail.software for own in rails.of.values() for rail in own)
    answers = {answer.job: answer for answer in found.answers}
    first = _measurements(bench, rails, answers, soft, row)
    slow = _slow_jobs(first, rails, answers)
    if slow and len(slow) <= max(4, len(answers) // 4):
        again = run_jobs(bench, rails, [[[job]] for job in slow], words=words, what="what was slow, again")
        answers |= {one.job: one for one in again.answers if not (one.unknown or one.missing)}
        first = _measurements(bench, rails, answers, soft, row)
    result.measurements = first
    missing = sorted({answer.missing for answer in found.answers if answer.missing})
    result.measurements += [
        Measurement(BANDWIDTH, name, status=Status.UNKNOWN, detail=why) for name, why in rails.unknown.items()
    ]
    settled(result)
    failed = {one.what for one in result.failures}
    # Layer 2 has written over this rail: packets that get lost are why a longer run comes to no end.
    if RESENT in failed or any(answer.timed_out_s for answer in answers.values()):
        result.causes = named([CAUSE_OF_RESENT])
    if missing and result.status is Status.UNKNOWN:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        result.reason = f"missing: {missing[0]}{more}; {PACKAGE}"
        result.next = INSTALL
    if found.left_out:
        said = f"{found.left_out} of {found.left_out + len(found.answers)} runs did not fit into the budget (--budget)"
        seen = {name for one in result.measurements for name in (one.a, one.b)}
        if (result.status is Status.PASS and seen < set(rails.of)) or not found.answers:
            result.status, result.reason = Status.UNKNOWN, said
        else:
            result.notes.append(said)


def _measurements(
    bench: Bench, rails: Rails, answers: dict[Job, Answer], soft: bool, row: str
) -> list[Measurement]:
    found = [one for answer in answers.values() for one in measured(answer, rails, bench.expect, row)]
    return among_own(found, soft, bench.expect)


def _slow_jobs(found: list[Measurement], rails: Rails, answers: dict[Job, Answer]) -> list[Job]:
    """Jobs whose number is short; what gave an error or never ended is not repeated."""
    bad = {
        (one.what, one.a, one.b, one.rail)
        for one in found
        if one.status is Status.FAIL and one.value is not None
    }
    tools = {"write_bw": {BANDWIDTH, RESENT}, "write_lat": {LATENCY}}
    return [
        job
        for job, answer in answers.items()
        if not answer.timed_out_s
        and any(
            (what, job.a, job.b, rails.label(job.rail_a, job.a, job.b)) in bad for what in tools[job.tool]
        )
    ]


def _across(bench: Bench, result: LayerResult, rails: Rails, share: float) -> None:
    steps = cross_rail_steps(list(rails.of), rails)
    if not steps:
        return
    found = run_jobs(bench, rails, steps, share=share / 2, what="RDMA across rails")
    needed = bench.goal.backend in FULL_MESH
    ones = [one for answer in found.answers for one in measured(answer, rails, bench.expect, "rdma_write_bw")]
    bad = [one for one in ones if one.status is Status.FAIL]
    if needed:
        result.measurements += ones
        settled(result)
    else:
        # A fabric that is fast along rails only is a choice.
        result.measurements += [one for one in ones if one.status is Status.PASS]
        if bad:
            result.notes.append(
                f"rail-only fabric: {len(bad)} of {len(ones)} runs from one rail to another fail or are slow; "
                f"{' and '.join(FULL_MESH)} need them"
            )
    if found.left_out:
        result.notes.append(f"{ACROSS}: {found.left_out} runs did not fit into the budget (--budget)")
