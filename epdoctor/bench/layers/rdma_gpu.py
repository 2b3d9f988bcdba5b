"""Layer 4: as layer 3, on GPU memory: perftest with --use_cuda, over dma-buf where nvidia-peermem is not loaded."""

from __future__ import annotations

from epdoctor.bench.gpu_ranks import gpu_counts
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import refuse
from epdoctor.bench.layers.gpu_mr import nearest
from epdoctor.bench.layers.rdma_bw import judge, usable
from epdoctor.bench.perftest_run import NO_CUDA, run_jobs, same_rail_steps
from epdoctor.bench.rails import Rails, all_rails
from epdoctor.bench.results import LayerResult
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.model import Status

NUMBER, NAME, TITLE, NEEDS_GPU = "4", "rdma-gpu", "RDMA bandwidth and latency, GPU memory", True
CHECKS = ("gpudirect.memory-registrable", "pci.acs-off-on-bridges", "rdma.rate-full")


def gpu_words(node: Node, gpus: int, rails: Rails, name: str) -> dict[tuple[str, int], list[str]]:
    """(node, rail) -> perftest's words for the GPU next to it. Raises Unmeasured."""
    found: dict[tuple[str, int], list[str]] = {}
    peermem = node.modules.has("nvidia_peermem")
    for gpu in range(gpus):
        rail = nearest(node, gpu, rails.of[name])
        words = [f"--use_cuda={gpu}", *([] if peermem else ["--use_cuda_dmabuf"])]
        found.setdefault((name, rail.number), words)
    return found


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    counts, refused = gpu_counts(bench)
    rails = usable(all_rails(bench.nodes, list(counts))) if counts else Rails({}, {}, {})
    if len(rails.of) < 2:
        result.reason = "needs two nodes with a GPU and an RDMA device"
        return result
    words: dict[tuple[str, int], list[str]] = {}
    for name in rails.of:
        try:
            words |= gpu_words(bench.nodes[name], counts[name], rails, name)
        except Unmeasured as reason:
            result.status, result.reason = Status.UNKNOWN, f"{name}: {reason}"
            return result
    steps = [
        [[job for job in row if (job.a, job.rail_a) in words and (job.b, job.rail_b) in words] for row in one]
        for one in same_rail_steps(list(rails.of), rails, bench.pairs)
    ]
    # One run tells whether perftest has CUDA at all.
    first = next((row[:1] for one in steps for row in one if row), None)
    if first is None:
        result.reason = "no HCA has a GPU next to it"
        return result
    tried = run_jobs(bench, rails, [[first]], words=words, what="RDMA on GPU memory")
    lacking = next((a.missing for a in tried.answers if a.missing.startswith(NO_CUDA)), "")
    if lacking:
        result.reason = f"{lacking} (the distributions' are; build it with CUDA_H_PATH, or trust layer 2b)"
        return result
    found = run_jobs(bench, rails, steps, words=words, share=0.5, what="RDMA on GPU memory")
    judge(bench, result, rails, found, "rdma_gpu_write_bw", words)
    if refused and result.status is Status.PASS:
        refuse(result, refused)
    return result
