"""Layer 5b: NCCL all-to-all (the pattern of expert parallelism) and all-reduce inside each node."""

from __future__ import annotations

from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import begin
from epdoctor.bench.layers._nccl import measure
from epdoctor.bench.results import LayerResult
from epdoctor.model import Status

NUMBER, NAME, TITLE, NEEDS_GPU = "5b", "nccl-node", "NCCL all-to-all and all-reduce inside a node", True
CHECKS = ("gpu.nvlinks-up", "nccl.p2p-not-disabled", "nccl.one-copy")


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    counts = begin(bench, result, gpus_per_node=2)
    if not counts:
        result.reason = result.reason or "no node with two GPUs"
        return result
    for name, count in counts.items():
        bench.watch(f"NCCL inside {name}")
        measure(bench, result, {name: count})
    return result
