"""One NCCL run over some nodes, as measurements. No layer itself: it has no NUMBER."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from epdoctor.bench.gpu_ranks import run_ranks
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import against_links, finish
from epdoctor.bench.results import LayerResult, Measurement
from epdoctor.model import Status

BYTES = 64 << 20


def measure(bench: Bench, result: LayerResult, gpus: Mapping[str, int]) -> None:
    """Add this run to the layer and settle its status. Two nodes become a pair for the suspects."""
    names = list(gpus)
    params = {"bytes": BYTES, "rounds": 7, "repeat": 5}
    outcome = run_ranks(bench, gpus, params, python="nccl.py")
    a, b = names[0], names[1] if len(names) == 2 else ""
    version = next((value["nccl"] for _, _, value in outcome.values if "nccl" in value), "")
    for what in ("all-to-all", "all-reduce"):
        ranks = [value for _, _, value in outcome.of(what=what)]
        if not ranks:
            continue
        # Every rank reports the slowest one's time.
        found = Measurement(
            f"{what} 64 MiB", a, b, unit="GB/s", value=min(float(v["bus_gb_s"]) for v in ranks)
        )
        if not all(value.get("right") for value in ranks):
            found = replace(found, value=None, status=Status.FAIL, detail="the result is wrong")
        else:
            expect = bench.expect[f"nccl_{what.replace('-', '_')}"]
            if len(names) == 1:
                found = against_links(found, bench, a, (0, 1), expect)
        result.measurements.append(found)
    before = len(result.measurements)
    finish(result, outcome, "NCCL")
    if b:
        # A failure of a pair touches both of its nodes.
        result.measurements[before:] = [
            replace(m, a=a, b=b, detail=f"{m.a}: {m.detail}") if m.what == "NCCL" else m
            for m in result.measurements[before:]
        ]
    if result.status is Status.PASS:
        rates = {
            what: [m.value for m in result.measurements if m.what.startswith(what) and m.value is not None]
            for what in ("all-to-all", "all-reduce")
        }
        texts = [
            f"{what} {min(found):.0f}" + (f" to {max(found):.0f}" if len(found) > 1 else "") + " GB/s"
            for what, found in rates.items()
            if found
        ]
        result.summary = ", ".join(texts) + (f" (NCCL {version})" if version else "")
