"""Layer 5c: NCCL over all GPUs of all nodes; where that fails, between pairs of nodes, to name the odd one."""

from __future__ import annotations

from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import begin
from epdoctor.bench.layers._nccl import measure
from epdoctor.bench.pairs import rounds
from epdoctor.bench.results import LayerResult
from epdoctor.bench.suspects import suspects
from epdoctor.model import Status

NUMBER, NAME, TITLE, NEEDS_GPU = "5c", "nccl", "NCCL all-to-all and all-reduce across nodes", True
CHECKS = ("network.nccl-interface-resolves", "network.nccl-hca-resolves", "drift.nccl-version")


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    counts = begin(bench, result)
    if len(counts) < 2:
        result.reason = result.reason or "no two nodes with GPUs"
        return result
    bench.watch(f"NCCL over {sum(counts.values())} GPUs")
    measure(bench, result, counts)
    if result.status is not Status.FAIL or len(counts) < 3:
        return result
    # The whole says only that it fails: pairs tell between whom.
    pairwise = LayerResult(NUMBER, NAME, TITLE, Status.SKIP)
    for one in rounds(list(counts), "full"):
        for a, b in one:
            if bench.left_s() < 10:
                result.notes.append("the budget ended before all pairs were tried")
                break
            bench.watch(f"NCCL between {a} and {b}")
            measure(bench, pairwise, {a: counts[a], b: counts[b]})
    result.measurements += pairwise.measurements
    result.suspects = suspects(pairwise.measurements)
    return result
