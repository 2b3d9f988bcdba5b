"""Layer 6: NVSHMEM put, bandwidth and latency, bytes compared. A small program that the node's nvcc compiles
against the NVSHMEM that the target interpreter would load; inside a node over NVLink, across nodes by the
transport that the node's variables choose (IBGDA, IBRC)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from epdoctor.bench.gpu_ranks import Outcome, run_ranks, source
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import against_links, begin, finish
from epdoctor.bench.nvshmem_build import build_plan
from epdoctor.bench.results import LayerResult, Measurement, spread
from epdoctor.exceptions import Unmeasured
from epdoctor.model import Status

NUMBER, NAME, TITLE, NEEDS_GPU = "6", "nvshmem", "NVSHMEM put", True
CHECKS = ("gpudirect.memory-registrable", "driver.ibgda-options", "host.memlock-unlimited")
BYTES = 64 << 20
BLOCKS = 64


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    counts = begin(bench, result)
    if sum(counts.values()) < 2:
        result.reason = result.reason or "no two GPUs"
        return result
    plans: dict[str, Mapping[str, Any]] = {}
    for name in counts:
        try:
            plans[name] = {**build_plan(bench, name), "cuda": source("nvshmem_put.cu")}
        except Unmeasured as reason:
            result.measurements.append(
                Measurement("NVSHMEM", name, status=Status.UNKNOWN, detail=str(reason))
            )
    counts = {name: count for name, count in counts.items() if name in plans}
    if sum(counts.values()) < 2:
        finish(result, Outcome(), "NVSHMEM")
        return result
    for group in [{n: c} for n, c in counts.items() if c > 1] + ([counts] if len(counts) > 1 else []):
        _measure(bench, result, group, plans)
    return result


def _measure(bench: Bench, result: LayerResult, gpus: Mapping[str, int], plans: Mapping[str, Any]) -> None:
    names = list(gpus)
    bench.watch(f"NVSHMEM put {'inside ' + names[0] if len(names) == 1 else 'across nodes'}")
    env = {
        "EPDOCTOR_WORLD": str(sum(gpus.values())), "EPDOCTOR_BYTES": str(BYTES), "EPDOCTOR_BLOCKS": str(BLOCKS),
        "NVSHMEM_BOOTSTRAP": "UID",
    }  # fmt: skip
    outcome = run_ranks(bench, gpus, {}, cuda={name: plans[name] for name in names}, env=env, timeout_s=180)
    version = next((value["nvshmem"] for _, _, value in outcome.values if "nvshmem" in value), "")
    where = {rank: (name, rank - _first(gpus, name)) for name in names for rank in _ranks(gpus, name)}
    expect = bench.expect["nvshmem_put"]
    for name, rank, value in outcome.of(what="put"):
        peer, peer_gpu = where.get(int(value["peer"]), ("?", 0))
        own_gpu = where[rank][1] if rank in where else 0
        other = "" if peer == name else peer
        found = Measurement(
            "put", name, other, rail=f"GPU{own_gpu}-GPU{peer_gpu}", value=float(value["gb_s"]), unit="GB/s"
        )
        if not value.get("right"):
            found = replace(
                found, value=None, status=Status.FAIL, detail="the bytes that arrived are not those sent"
            )
        elif not other:
            found = against_links(found, bench, name, (own_gpu, peer_gpu), expect)
        result.measurements.append(found)
    for name, _, value in outcome.of(what="latency"):
        result.measurements.append(Measurement("put of a word", name, value=float(value["us"]), unit="us"))
    finish(result, outcome, "NVSHMEM")
    if result.status is Status.PASS:
        rates = [m.value for m in result.measurements if m.what == "put" and m.value is not None]
        words = [m.value for m in result.measurements if m.what == "put of a word" and m.value is not None]
        result.summary = spread(rates, "GB/s") if rates else "started"
        result.summary += (f", a word {max(words):.1f} us" if words else "") + (
            f" (NVSHMEM {version})" if version else ""
        )


def _first(gpus: Mapping[str, int], name: str) -> int:
    before = 0
    for other, count in gpus.items():
        if other == name:
            return before
        before += count
    return before


def _ranks(gpus: Mapping[str, int], name: str) -> range:
    return range(_first(gpus, name), _first(gpus, name) + gpus[name])
