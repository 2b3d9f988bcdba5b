"""What a layer's measurements come to: its status, and the sentence for that status. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from epdoctor.bench.results import LayerResult, Measurement, Suspect, overall
from epdoctor.bench.suspects import suspects
from epdoctor.model import Status


def settle(
    result: LayerResult,
    *,
    broken: Callable[[list[Measurement]], str],
    summary: Callable[[], str] = str,
    suspected: Callable[[Sequence[Measurement]], list[Suspect]] = suspects,
) -> None:
    """Set the status, and what belongs to it: `broken` of the failures with suspects, what is unknown, or the
    `summary` where all passed."""
    result.status = overall(result.measurements)
    failures = result.failures
    if failures:
        result.suspects = suspected(result.measurements)
        result.broken = broken(failures)
    elif result.status is Status.UNKNOWN:
        unknown = [one for one in result.measurements if one.status is Status.UNKNOWN]
        first = unknown[0]
        ends = f"{first.a} and {first.b}" if first.b else first.a
        result.reason = f"{ends}: {first.detail}{and_more(unknown)}"
    elif result.status is Status.PASS:
        result.summary = summary()


def and_more(of: Sequence[object]) -> str:
    """What stands behind the first of several: " (and 3 more)"; empty for one."""
    return f" (and {len(of) - 1} more)" if len(of) > 1 else ""
