"""Layer 5: copies between the GPUs inside each node, every direction, bytes compared."""

from __future__ import annotations

from dataclasses import replace

from epdoctor.bench.gpu_ranks import run_ranks
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import against_links, begin, finish
from epdoctor.bench.results import LayerResult, Measurement, spread
from epdoctor.model import Status

NUMBER, NAME, TITLE, NEEDS_GPU = "5", "gpu-copy", "Copies between the GPUs of a node", True
CHECKS = ("gpu.nvlinks-up", "gpu.p2p-available", "pci.acs-off-on-bridges")
BYTES = 256 << 20


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    counts = begin(bench, result, gpus_per_node=2)
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
                found = against_links(found, bench, name, (a, b), expect)
            result.measurements.append(found)
        finish(result, outcome, "copy")
    if result.status is Status.PASS:
        rates = [one.value for one in result.measurements if one.value is not None]
        result.summary = f"{len(rates)} directions, {spread(rates, 'GB/s')}"
    return result
