"""Layer 2b: register 64 KiB of each GPU's memory on its nearest HCA: the errno tells memlock, peermem and
permission apart, also where the distribution's perftest has no CUDA."""

from __future__ import annotations

from collections import Counter

from epdoctor.bench.causes import named
from epdoctor.bench.fleet import Call, OperationFailed, WorkerLost
from epdoctor.bench.gpu_memory import decide
from epdoctor.bench.gpu_ranks import gpu_counts
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import refuse
from epdoctor.bench.rails import Rail, all_rails
from epdoctor.bench.results import LayerResult, Measurement, count_of
from epdoctor.bench.settle import and_more, settle
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.model import Status

NUMBER, NAME, TITLE, NEEDS_GPU = "2b", "gpu-mr", "Register GPU memory on the HCAs", True
CHECKS = ("gpudirect.memory-registrable", "host.memlock-unlimited", "rdma.uverbs-accessible")
BYTES = 64 << 10
LIMIT_S = 30.0


def nearest(node: Node, gpu: int, rails: tuple[Rail, ...]) -> Rail:
    """The GPU's own rail: the nearest HCA by `nvidia-smi topo -m`, of several the one of its number.

    Raises Unmeasured where the matrix is not known."""
    _, names = node.topology.best_nics(f"GPU{gpu}", tuple(rail.device for rail in rails))
    near = [rail for rail in rails if rail.device in names]
    peers = [
        index
        for index in range(len(node.gpu.gpus))
        if node.topology.best_nics(f"GPU{index}", tuple(rail.device for rail in rails))[1] == names
    ]
    return near[peers.index(gpu) % len(near)]


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    counts, refused = gpu_counts(bench)
    rails = all_rails(bench.nodes, list(counts)).of if counts else {}
    if not rails:
        result.reason = "no node with a GPU and an RDMA device"
        return result
    refuse(result, refused)
    calls: dict[str, Call] = {}
    for name in rails:
        plans = []
        for gpu in range(counts[name]):
            try:
                plans.append({"index": gpu, "device": nearest(bench.nodes[name], gpu, rails[name]).device})
            except Unmeasured as reason:
                result.measurements.append(
                    Measurement(
                        "GPU memory", name, rail=f"GPU{gpu}", status=Status.UNKNOWN, detail=str(reason)
                    )
                )
        if plans:
            params = {"gpus": plans, "bytes": BYTES}
            limit_s = max(1.0, min(LIMIT_S, bench.left_s()))
            try:
                calls[name] = bench.fleet[name].start("verbs_gpu_mr", params, timeout_s=limit_s)
            except WorkerLost as lost:
                result.measurements.append(
                    Measurement("GPU memory", name, status=Status.UNKNOWN, detail=str(lost))
                )
    causes: Counter[str] = Counter()
    for name, call in calls.items():
        try:
            for answer in call.each():
                result.measurements.append(_measurement(name, answer, causes))
        except (OperationFailed, WorkerLost) as failed:
            result.measurements.append(
                Measurement("GPU memory", name, status=Status.UNKNOWN, detail=str(failed))
            )
    settle(result, broken=_broken, summary=lambda: _summary(result))
    if result.failures:
        result.causes = named(cause for cause, _ in causes.most_common())
    return result


def _measurement(name: str, answer: object, causes: Counter[str]) -> Measurement:
    blank = Measurement("GPU memory", name, status=Status.UNKNOWN, detail="an answer that makes no sense")
    if not isinstance(answer, dict):
        return blank
    if "missing" in answer:
        return Measurement(
            "GPU memory", name, status=Status.UNKNOWN, detail=f"missing: {str(answer['missing'])[:200]}"
        )
    found = decide(answer)
    if found is None:
        return blank
    causes.update([found.cause] if found.cause else [])
    return Measurement(
        "GPU memory", name, rail=f"GPU{answer.get('index', '?')} on {answer.get('device', '?')}",
        status=Status.PASS if found.ways else Status.FAIL,
        detail=f"by {' and '.join(found.ways)}" if found.ways else found.detail,
    )  # fmt: skip


def _broken(failures: list[Measurement]) -> str:
    return f"{failures[0].rail} of {failures[0].a}: {failures[0].detail}{and_more(failures)}"


def _summary(result: LayerResult) -> str:
    ways = Counter(one.detail.removeprefix("by ") for one in result.measurements)
    return ", ".join(f"{count_of(count, 'GPU')} by {way}" for way, count in ways.most_common())
