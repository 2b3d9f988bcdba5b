"""Layer 5: copies between the GPUs inside each node, every direction, bytes compared."""

from __future__ import annotations

from dataclasses import replace

from epdoctor.bench.gpu_ranks import gpu_counts, run_ranks
from epdoctor.bench.gpu_rates import between
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import finish, refuse
from epdoctor.bench.results import LayerResult, Measurement, judge_value
from epdoctor.exceptions import Unmeasured
from epdoctor.model import Status

NUMBER, NAME, TITLE, NEEDS_GPU = "5", "gpu-copy", "Copies between the GPUs of a node", True
CHECKS = ("gpu.nvlinks-up", "gpu.p2p-available", "pci.acs-off-on-bridges")
BYTES = 256 << 20


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    counts, refused = gpu_counts(bench)
    refuse(result, refused)
    counts = {name: count for name, count in counts.items() if count > 1}
    if not counts:
        result.reason = result.reason or "no node with two GPUs"
        return result
    expect = bench.expect["gpu_copy"]
    for name, count in counts.items():
        bench.watch(f"copies between the {count} GPUs of {name}")
        outcome = run_ranks(
            bench,
            {name: count},
            {"bytes": BYTES, "rounds": 7, "copies": 4},
            python="p2p.py",
            one_process=True,
        )
        for _, _, value in outcome.values:
            if "a" not in value:
                continue
            a, b = int(value["a"]), int(value["b"])
            found = Measurement("copy", name, rail=f"GPU{a}-GPU{b}", unit="GB/s")
            if "error" in value:
                found = replace(found, status=Status.FAIL, detail=str(value["error"]))
            elif not value.get("right"):
                found = replace(found, status=Status.FAIL, detail="the bytes that arrived are not those sent")
            else:
                found = replace(found, value=float(value["gb_s"]))
                try:
                    rate, how = between(bench.nodes[name], a, b)
                    factor = expect.factor or 0.0
                    found = replace(
                        found, expected=factor * rate, expected_from=f"{factor:g} x {how}; {expect.source}"
                    )
                except (Unmeasured, IndexError):
                    pass
                found = replace(found, status=judge_value(found))
            result.measurements.append(found)
        finish(result, outcome, "copy")
    if result.status is Status.PASS:
        rates = [one.value for one in result.measurements if one.value is not None]
        result.summary = f"{len(rates)} directions, {min(rates):.0f} to {max(rates):.0f} GB/s"
    return result
