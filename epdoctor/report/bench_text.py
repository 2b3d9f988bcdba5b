"""The ladder's report for people: one line a layer, a block where it breaks. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from epdoctor.bench.results import LadderReport, LayerResult, Measurement, shown
from epdoctor.model import Status
from epdoctor.report.heat_map import heat_lines
from epdoctor.report.sanitize import sanitize

SIGNS = {Status.PASS: "✓", Status.FAIL: "✗", Status.UNKNOWN: "?", Status.SKIP: "-", Status.ERROR: "?"}
_PLAIN = {"✓": "ok  ", "✗": "FAIL", "?": "?   ", "-": "-   "}
_UNIT = re.compile(r"(?<=\d) (?=(?:[GM]B/s|[mu]?s|[KMG]iB|Gb/s)\b)")
INDENT = " " * 6
KEY = 10
WIDTH = 100


def layer_lines(
    layer: LayerResult, *, verbose: bool = False, unicode: bool = True, width: int = WIDTH
) -> list[str]:
    """What is printed when a layer has ended."""
    head = sanitize(f"{_sign(layer.status, unicode=unicode)} {layer.number:<3}{layer.title}")
    lines = [f"{head}  {layer.seconds:.1f} s" if layer.status is not Status.SKIP else head]
    text = said(layer)
    if text:
        lines += _wrapped(text, width)
    if layer.status is Status.FAIL:
        for at, suspect in enumerate(layer.suspects):
            lines += _wrapped(suspect.sentence, width, "suspect" if not at else " ")
        for cause, title in layer.causes:
            lines += _wrapped(f"{title}  ({cause})", width, "means")
        if layer.checks:
            lines += _wrapped(", ".join(layer.checks[:3]), width, "explain")
    for note in layer.notes[:5]:
        lines += _wrapped(note, width, "note")
    if len(layer.notes) > 5:
        lines += _wrapped(f"and {len(layer.notes) - 5} more notes (--format json)", width, "note")
    if verbose or layer.failures:
        lines += [INDENT + line for line in heat_lines(layer.measurements, unicode=unicode)]
    shown_ones = layer.measurements if verbose else layer.failures[1:6]
    for line in measurement_lines(shown_ones, unicode=unicode):
        lines += _wrapped(line, width)
    return lines


def said(layer: LayerResult) -> str:
    """The layer's own sentence: what was measured, where it breaks, or why it is not known."""
    if layer.status is Status.PASS:
        return layer.summary
    return layer.broken if layer.failures else layer.reason


def not_run_lines(layers: Sequence[LayerResult], *, unicode: bool = True, width: int = WIDTH) -> list[str]:
    """The layers that the ladder passed over, folded by the reason."""
    reasons: dict[tuple[Status, str], list[str]] = {}
    for layer in layers:
        if layer.not_run:
            reasons.setdefault((layer.status, layer.reason), []).append(layer.number)
    lines = []
    for (status, reason), numbers in reasons.items():
        head = f"{_sign(status, unicode=unicode)} "
        words = f"layer{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} not run: {reason}"
        lines += _fill(sanitize(words), width, head, " " * len(head))
    return lines


def end_lines(report: LadderReport, *, width: int = WIDTH) -> list[str]:
    """The verdict, whom it leaves out, and the command to type."""
    lines = [""]
    for node, why in report.missing.items():
        lines += _fill(sanitize(f"{node}: {why}"), width, "? ", "  ")
    interrupted = "INTERRUPTED  " if report.interrupted else ""
    words = f"{interrupted}{head_line(report.layers)}   {report.seconds:.1f} s"
    lines += _fill(sanitize(words), width, "", "")
    if report.next:
        # Not wrapped: it is copied.
        lines.append(f"next      {sanitize(report.next)}")
    return lines


def start_lines(nodes: int, budget_s: float) -> list[str]:
    return [f"ladder on {nodes} node{'s' if nodes != 1 else ''}, budget {budget_s:.0f} s", ""]


def text_lines(
    report: LadderReport, *, verbose: bool = False, unicode: bool = True, width: int = WIDTH
) -> Iterator[str]:
    """The whole report, as the screen shows it in the end."""
    yield from start_lines(len(report.nodes), report.budget_s)
    for layer in report.layers:
        if not layer.not_run:
            yield from layer_lines(layer, verbose=verbose, unicode=unicode, width=width)
    yield from not_run_lines(report.layers, unicode=unicode, width=width)
    yield from end_lines(report, width=width)


def measurement_lines(measurements: Iterable[Measurement], *, unicode: bool = True) -> list[str]:
    return [
        sanitize(f"{_sign(one.status, unicode=unicode)} {one.what} {ends(one)}{outcome(one)}")
        for one in measurements
    ]


def outcome(one: Measurement) -> str:
    """ " mlx5_2  0.4 GB/s (expected at least 42.5 GB/s, percentile 0 of 24)  slow pair"."""
    words = f" {one.rail}" if one.rail else ""
    if one.value is not None:
        words += f"  {shown(one.value, one.unit)}"
    aside = []
    if one.expected is not None:
        bound = "at most" if one.lower_is_better else "at least"
        aside.append(f"expected {bound} {shown(one.expected, one.unit)}")
    if one.percentile is not None:
        aside.append(f"percentile {one.percentile:.0f} of {one.of_kind}")
    words += f" ({', '.join(aside)})" if aside else ""
    return words + (f"  {one.detail}" if one.detail else "")


def ends(one: Measurement) -> str:
    return f"{one.a} > {one.b}" if one.b else one.a


def head_line(layers: Sequence[LayerResult]) -> str:
    """ "BROKEN AT LAYER 3" and what holds below it."""
    broken = next((layer for layer in layers if layer.status is Status.FAIL), None)
    passed = [layer.number for layer in layers if layer.status is Status.PASS]
    holds = (
        f"layers {', '.join(passed)} pass"
        if len(passed) > 1
        else f"layer {passed[0]} passes"
        if passed
        else ""
    )
    if broken is not None:
        return f"BROKEN AT LAYER {broken.number}" + (f"  {holds}" if holds else "")
    unknown = [layer.number for layer in layers if layer.status in (Status.UNKNOWN, Status.ERROR)]
    if unknown:
        more = "s" if len(unknown) > 1 else ""
        return f"CANNOT TELL  layer{more} {', '.join(unknown)} could not be measured" + (
            f"; {holds}" if holds else ""
        )
    return f"PASSES  {holds}" if holds else "NOTHING MEASURED"


def _sign(status: Status, *, unicode: bool) -> str:
    return SIGNS[status] if unicode else _PLAIN[SIGNS[status]]


def _wrapped(text: str, width: int, key: str = "") -> list[str]:
    """Under the layer's head; with a key, in its column."""
    keyed = f"{key:<{KEY}}" if key else ""
    first = INDENT + keyed
    return _fill(sanitize(text), width, first, INDENT + (" " * KEY if keyed else "  "))


def _fill(text: str, width: int, first: str, then: str) -> list[str]:
    # A number stays with its unit; sanitize() leaves no such character.
    joined = _UNIT.sub("\x1f", text)
    lines = textwrap.wrap(
        joined, width, initial_indent=first, subsequent_indent=then, break_on_hyphens=False
    )  # fmt: skip
    return [line.replace("\x1f", " ") for line in lines] or [first.rstrip()]
