"""Layer 7: DeepEP dispatch and combine against a reference, inside a node and across.

Buffer (DeepEP 1 and 2.x): normal and low-latency, over NVLink and NVSHMEM. ElasticBuffer (2.x): over NVLink and NCCL
GIN. What runs is decided by the back end, and by the classes that the installed package has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from epdoctor.bench.gpu_ranks import Outcome, run_ranks
from epdoctor.bench.gpu_rates import between
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import begin, finish
from epdoctor.bench.results import LayerResult, Measurement, judge_value, shown
from epdoctor.exceptions import Unmeasured
from epdoctor.model import Status

NUMBER, NAME, TITLE, NEEDS_GPU = "7", "deepep", "DeepEP dispatch and combine", True
CHECKS = ("deepep.installed", "gpudirect.memory-registrable", "nvshmem.version-fits-deepep")
V2_CHECKS = ("deepep.elastic-buffer-there", "nccl.version-fits-deepep-v2", "nccl.gin-not-disabled")
NVLINK_PEERS = 8
"""DeepEP v1.2.1 csrc/config: NUM_MAX_NVL_PEERS; it takes every 8 ranks for one node."""
PARAMS = {
    # DeepEP README's own setting: hidden 7168, top 8; 128 tokens is its low-latency example.
    "hidden": 7168, "top": 8, "tokens": 4096, "low_latency_tokens": 128, "buffer_bytes": 1 << 30,
}  # fmt: skip
MODES = {"normal": "Buffer", "low-latency": "Buffer", "v2": "ElasticBuffer"}
"""Mode -> class of deep_ep that it needs."""
OF_BACKEND = {
    "deepep_high_throughput": ("normal",),
    "deepep_low_latency": ("low-latency",),
    "deepep_v2": ("v2",),
}
V2_ENOUGH_S = 120.0
"""ElasticBuffer compiles its kernels with nvcc at their first use, which a budget may not leave time for."""


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    counts = begin(bench, result)
    if sum(counts.values()) < 2:
        result.reason = result.reason or "no two GPUs"
        return result
    modes = OF_BACKEND.get(bench.goal.backend, tuple(MODES))
    package = ""
    classes: Sequence[str] | None = None
    for mode in modes:
        why = _not_for(mode, counts)
        if why:
            result.notes.append(f"{mode} not tried: {why}")
            continue
        if classes is not None and MODES[mode] not in classes:
            continue
        outcome = _measure(bench, result, mode, counts)
        for _, _, value in outcome.values:
            if isinstance(value.get("classes"), list):
                classes = [str(name) for name in value["classes"]]
                package = f"DeepEP {value.get('version', '')}".strip()
                break
        finish(result, outcome, f"DeepEP {mode}")
        if result.status is Status.FAIL and not bench.keep_going:
            result.checks = V2_CHECKS if mode == "v2" else CHECKS
            break
    if classes is not None and not any(MODES[mode] in classes for mode in modes):
        result.measurements.append(_without(modes[0], package, classes, next(iter(counts))))
        finish(result, Outcome(), "DeepEP")
    if result.status is Status.PASS:
        words = [_words(one) for one in result.measurements if one.value is not None]
        result.summary = ", ".join(words) + (f" ({package}: {', '.join(classes or ())})" if package else "")
    return result


def _not_for(mode: str, counts: Mapping[str, int]) -> str:
    """Why these nodes cannot run it; empty: they can."""
    if len(counts) == 1:
        return ""
    if mode == "normal" and any(count != NVLINK_PEERS for count in counts.values()):
        return "across nodes DeepEP wants 8 GPUs on each"
    if mode == "v2" and len(set(counts.values())) > 1:
        # dd758ca csrc/kernels/backend/nccl.cu: num_ranks % num_nvl_ranks == 0
        return "across nodes DeepEP wants as many GPUs on each"
    return ""


def _measure(bench: Bench, result: LayerResult, mode: str, counts: Mapping[str, int]) -> Outcome:
    """Run one mode and add what it measured."""
    bench.watch(f"DeepEP {mode}")
    world = sum(counts.values())
    params = {
        **PARAMS,
        # They divide among the ranks; 32 on each is what the yardstick was measured with.
        "experts": 32 * world,
        "modes": [mode],
    }
    v2 = mode == "v2"
    env = {}
    if v2 and len(counts) == 1 and _no_rdma(bench, next(iter(counts))):
        # Without it DeepEP 2.1 refuses a node that has NVLink only (dd758ca csrc/kernels/backend/nccl.cu).
        env = {"EP_DISABLE_GIN": "1"}
    outcome = run_ranks(
        bench, counts, params, python="deepep.py", modules=("torch", "deep_ep"), env=env,
        tmp_env=("EP_JIT_CACHE_DIR", "TMPDIR") if v2 else (),
        timeout_s=240.0 if v2 else 120.0, enough_s=V2_ENOUGH_S if v2 else 60.0,
    )  # fmt: skip
    if env and outcome.of(started=mode):
        result.notes.append("v2 over NVLink only: no RDMA device, so it ran with EP_DISABLE_GIN=1")
    for what in ("dispatch", "combine"):
        ranks = [value for _, _, value in outcome.of(what=what, mode=mode)]
        if not ranks:
            continue
        found = Measurement(
            f"{mode} {what}", next(iter(counts)), value=max(float(v["us"]) for v in ranks), unit="us",
            lower_is_better=True,
        )  # fmt: skip
        if not all(value.get("right") for value in ranks):
            found = replace(
                found, value=None, status=Status.FAIL, detail="the result differs from the reference"
            )
        else:
            if len(counts) == 1:
                found = _expected(found, bench, mode, ranks)
            speed = min(float(v["gb_s"]) for v in ranks)
            detail = "" if mode == "low-latency" else f"{shown(speed, 'GB/s')}"
            found = replace(found, status=judge_value(found), detail=detail)
        result.measurements.append(found)
    return outcome


def _expected(found: Measurement, bench: Bench, mode: str, ranks: Sequence[Mapping[str, Any]]) -> Measurement:
    """With the longest time that counts as right inside a node: a fixed one, or by what the links carry."""
    if mode == "low-latency":
        row = bench.expect["deepep_low_latency_us"]
        return replace(found, expected=row.at_most, expected_from=row.source)
    row = bench.expect[f"deepep_{mode}"]
    try:
        rate, how = between(bench.nodes[found.a], 0, 1)
    except (Unmeasured, IndexError):
        return found
    factor = row.factor or 0.0
    if not rate or not factor:
        return found
    most_us = max(float(v["us"]) * float(v["gb_s"]) for v in ranks) / (factor * rate)
    return replace(found, expected=most_us, expected_from=f"its bytes at {factor:g} x {how}; {row.source}")


def _no_rdma(bench: Bench, name: str) -> bool:
    """Whether the facts say that the node has no RDMA device; not known is no."""
    try:
        return not bench.nodes[name].rdma.devices
    except (KeyError, Unmeasured):
        return False


def _without(mode: str, package: str, classes: Sequence[str], node: str) -> Measurement:
    """A package that lacks the class."""
    offers = f"{package} offers {' and '.join(classes) or 'no buffer'}"
    needs = f"not {MODES[mode]}" + (", which --backend deepep_v2 needs" if mode == "v2" else "")
    if "EPBuffer" in classes:
        needs += ": generation 2.5, which vLLM up to 0.33 cannot use"
    return Measurement(f"DeepEP {mode}", node, status=Status.UNKNOWN, detail=f"{offers}, {needs}")


def _words(one: Measurement) -> str:
    """ "normal dispatch 470 us (249 GB/s)"."""
    return f"{one.what} {one.value:.0f} us" + (f" ({one.detail})" if one.detail else "")
