"""Layer 7: DeepEP dispatch and combine, normal and low-latency, against a reference, inside a node and across."""

from __future__ import annotations

from dataclasses import replace

from epdoctor.bench.gpu_ranks import run_ranks
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import begin, finish
from epdoctor.bench.results import LayerResult, Measurement, judge_value
from epdoctor.model import Status

NUMBER, NAME, TITLE, NEEDS_GPU = "7", "deepep", "DeepEP dispatch and combine", True
CHECKS = ("deepep.installed", "gpudirect.memory-registrable", "nvshmem.version-fits-deepep")
NVLINK_PEERS = 8
"""DeepEP v1.2.1 csrc/config: NUM_MAX_NVL_PEERS; it takes every 8 ranks for one node."""
PARAMS = {
    # DeepEP README's own setting: hidden 7168, top 8; 128 tokens is its low-latency example.
    "hidden": 7168, "top": 8, "tokens": 4096, "low_latency_tokens": 128, "buffer_bytes": 1 << 30,
}  # fmt: skip


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    counts = begin(bench, result)
    if sum(counts.values()) < 2:
        result.reason = result.reason or "no two GPUs"
        return result
    world = sum(counts.values())
    # They divide among the ranks; 32 on each is what the yardstick was measured with.
    experts = 32 * world
    expect = bench.expect["deepep_low_latency_us"]
    seen: list[str] = []
    for mode in ("normal", "low-latency"):
        if mode == "normal" and len(counts) > 1 and any(count != NVLINK_PEERS for count in counts.values()):
            result.notes.append("normal mode not tried: across nodes DeepEP wants 8 GPUs on each")
            continue
        bench.watch(f"DeepEP {mode}")
        params = {**PARAMS, "experts": experts, "modes": [mode]}
        outcome = run_ranks(bench, counts, params, python="deepep.py", modules=("torch", "deep_ep"))
        absent = next((str(value["absent"]) for _, _, value in outcome.values if "absent" in value), "")
        if absent:
            result.measurements.append(
                Measurement(f"DeepEP {mode}", next(iter(counts)), status=Status.UNKNOWN, detail=absent)
            )
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
                if mode == "low-latency" and len(counts) == 1:
                    found = replace(found, expected=expect.at_most, expected_from=expect.source)
                found = replace(found, status=judge_value(found))
                speed = min(float(v["gb_s"]) for v in ranks)
                seen.append(
                    f"{found.what} {found.value:.0f} us"
                    + (f" ({speed:.0f} GB/s)" if mode == "normal" else "")
                )
            result.measurements.append(found)
        finish(result, outcome, f"DeepEP {mode}")
        if result.status is Status.FAIL and not bench.keep_going:
            break
    if result.status is Status.PASS:
        result.summary = ", ".join(seen)
    return result
