"""Layer 8: NIXL between two nodes over UCX, in blocks of a KV cache's size, bytes compared.

Host memory; with --gpu the GPUs' memory where torch is there. UCX takes the way that the workers' variables name.
"""

from __future__ import annotations

from dataclasses import replace

from epdoctor.bench.gpu_ranks import gpu_counts, run_ranks
from epdoctor.bench.ladder import Bench
from epdoctor.bench.layers._gpu import PYTHON_NEXT
from epdoctor.bench.pairs import rounds
from epdoctor.bench.results import LayerResult, Measurement, count_of, judge_value, spread
from epdoctor.bench.settle import settle
from epdoctor.model import Status

NUMBER, NAME, TITLE = "8", "nixl", "NIXL transfer of KV-sized blocks"
CHECKS = ("nixl.installed", "network.nixl-side-channel-host-local", "network.ucx-devices-resolve")
BLOCKS, BLOCK_BYTES = 64, 256 << 10
LIMIT_S = 60.0


def run(bench: Bench) -> LayerResult:
    result = LayerResult(NUMBER, NAME, TITLE, Status.SKIP, checks=CHECKS)
    names = [name for name in bench.alive if name in bench.nodes]
    if len(names) < 2:
        result.reason = "one node: nothing to connect to"
        return result
    memory = "VRAM" if bench.gpu and all(gpu_counts(bench)[0].get(name) for name in names) else "DRAM"
    pairs = [pair for one in rounds(names, "1") for pair in one]
    missing: dict[str, str] = {}
    version = ""
    for at, (a, b) in enumerate(pairs):
        if bench.left_s() <= 1:
            result.notes.append(
                f"{len(pairs) - at} of {len(pairs)} pairs did not fit into the budget (--budget)"
            )
            break
        if a in missing or b in missing:
            continue
        bench.watch(f"NIXL from {a} to {b}")
        params = {"blocks": BLOCKS, "block_bytes": BLOCK_BYTES, "memory": memory, "rounds": 10}
        outcome = run_ranks(
            bench,
            {a: 1, b: 1},
            params,
            python="nixl.py",
            modules=("json",),
            one_process=True,
            timeout_s=LIMIT_S,
        )
        missing |= outcome.missing
        version = next((str(v["nixl"]) for _, _, v in outcome.values if v.get("nixl")), version)
        blank = Measurement("NIXL", a, b, unit="GB/s")
        values = [value for _, _, value in outcome.of(what="nixl")]
        if values:
            result.measurements.append(_judged(bench, blank, values[0]))
        elif outcome.missing:
            continue
        elif outcome.lost:
            why = "; ".join(f"{name}: {text}" for name, text in outcome.lost.items())
            result.measurements.append(replace(blank, status=Status.UNKNOWN, detail=why))
        else:
            why = "; ".join(f"{name}: {text}" for name, text in outcome.failed.items()) or "no answer"
            output = "\n".join(outcome.outputs.values())
            result.measurements.append(replace(blank, status=Status.FAIL, detail=why, output=output))
    if missing and not result.measurements:
        result.reason = f"missing: {next(iter(missing.values()))} (--python names another interpreter)"
        result.next = PYTHON_NEXT if bench.gpu else PYTHON_NEXT.replace(" --gpu", "")
        return result
    result.measurements += [
        Measurement("NIXL", name, status=Status.UNKNOWN, detail=f"missing: {lacks}")
        for name, lacks in missing.items()
    ]
    settle(result, broken=_broken, summary=lambda: _summary(result, memory, version))
    return result


def _judged(bench: Bench, blank: Measurement, value: dict[str, object]) -> Measurement:
    if value.get("right") is not True:
        return replace(blank, status=Status.FAIL, detail="the bytes that arrived are not those sent")
    row = bench.expect["nixl_write"]
    try:
        rate = float(str(value["gb_s"]))
    except (KeyError, ValueError):
        return replace(blank, status=Status.UNKNOWN, detail="an answer that makes no sense")
    found = replace(blank, value=rate, expected=row.at_least, expected_from=row.source)
    return replace(found, status=judge_value(found))


def _broken(failures: list[Measurement]) -> str:
    first = failures[0]
    short = (
        f"{first.value:.3g} of at least {first.expected:.3g} GB/s"
        if first.value is not None and first.expected is not None
        else first.detail
    )
    return f"from {first.a} to {first.b}: {short}"


def _summary(result: LayerResult, memory: str, version: str) -> str:
    rates = [one.value for one in result.measurements if one.value is not None]
    where = "host memory" if memory == "DRAM" else "GPU memory"
    return f"{count_of(len(rates), 'pair')}, {BLOCKS} blocks of {BLOCK_BYTES // 1024} KiB, {where}: " + (
        spread(rates, "GB/s") + (f" (NIXL {version})" if version else "")
    )
