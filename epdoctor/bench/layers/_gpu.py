"""What the GPU layers do alike at their start and end. No layer itself: it has no NUMBER."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from epdoctor.bench.expect import Expectation
from epdoctor.bench.gpu_ranks import Outcome, gpu_counts
from epdoctor.bench.gpu_rates import between
from epdoctor.bench.ladder import Bench
from epdoctor.bench.results import LayerResult, Measurement, judge_value
from epdoctor.bench.settle import settle
from epdoctor.exceptions import Unmeasured
from epdoctor.model import Status

PYTHON_NEXT = "epdoctor bench --gpu --python /path/to/python   # the one that serves vLLM"


def begin(bench: Bench, result: LayerResult, *, gpus_per_node: int = 1) -> dict[str, int]:
    """Node -> GPUs of those that can take part. Nodes that cannot are in the result already."""
    counts, refused = gpu_counts(bench)
    refuse(result, refused)
    return {name: count for name, count in counts.items() if count >= gpus_per_node}


def against_links(
    found: Measurement, bench: Bench, name: str, gpus: tuple[int, int], expect: Expectation
) -> Measurement:
    """Judged by a share of what the links between two GPUs of a node carry; where the facts do not tell, it
    has no expectation."""
    try:
        rate, how = between(bench.nodes[name], *gpus)
        factor = expect.factor or 0.0
        found = replace(found, expected=factor * rate, expected_from=f"{factor:g} x {how}; {expect.source}")
    except (Unmeasured, IndexError):
        pass
    return replace(found, status=judge_value(found))


def refuse(result: LayerResult, refused: Sequence[str]) -> None:
    """Nodes whose GPUs are in use or unknown are left out, and the layer cannot be green."""
    for sentence in refused:
        node, _, why = sentence.partition(": ")
        result.measurements.append(Measurement(result.name, node, status=Status.UNKNOWN, detail=why))
    if refused:
        result.status, result.reason = Status.UNKNOWN, refused[0]


def finish(result: LayerResult, outcome: Outcome, what: str) -> None:
    """Add what failed or was missing, and settle the layer's status, suspects and texts."""
    for node, why in outcome.lost.items():
        result.measurements.append(Measurement(what, node, status=Status.UNKNOWN, detail=why))
    for node, lacks in outcome.missing.items():
        result.measurements.append(Measurement(what, node, status=Status.UNKNOWN, detail=f"missing: {lacks}"))
    for node, why in outcome.failed.items():
        if node not in outcome.missing and node not in outcome.lost:
            result.measurements.append(
                Measurement(what, node, status=Status.FAIL, detail=why, output=outcome.outputs.get(node, ""))
            )
    settle(result, broken=_broken)
    if result.status is Status.UNKNOWN and any(" in " in lacks for lacks in outcome.missing.values()):
        result.next = PYTHON_NEXT


def _broken(failures: list[Measurement]) -> str:
    first = failures[0]
    reached = (
        f"{first.value:.1f} of at least {first.expected:.1f} {first.unit}"
        if first.value is not None and first.expected is not None
        else first.detail
    )
    return f"{first.what} on {first.a}{f' {first.rail}' if first.rail else ''}: {reached}"
