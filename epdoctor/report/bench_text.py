"""The ladder's report for people: one line a layer, a block where it breaks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from epdoctor.bench.results import LayerResult, Measurement, shown
from epdoctor.model import Status
from epdoctor.report.heat_map import heat_lines
from epdoctor.report.sanitize import sanitize

SIGNS = {Status.PASS: "✓", Status.FAIL: "✗", Status.UNKNOWN: "?", Status.SKIP: "-", Status.ERROR: "?"}
_PLAIN = {"✓": "ok  ", "✗": "FAIL", "?": "?   ", "-": "-   "}


def layer_lines(layer: LayerResult, *, verbose: bool = False, unicode: bool = True) -> list[str]:
    """What is printed when a layer has ended."""
    sign = SIGNS[layer.status] if unicode else _PLAIN[SIGNS[layer.status]]
    text = layer.summary if layer.status is Status.PASS else layer.broken if layer.failures else layer.reason
    head = f"{sign} {layer.number:<3}{layer.title}"
    lines = [f"{head}  {layer.seconds:.1f} s" if layer.status is not Status.SKIP else head]
    if text:
        lines.append(f"      {sanitize(text)}")
    if layer.status is Status.FAIL:
        for at, suspect in enumerate(layer.suspects):
            lines.append(f"      {'suspect' if not at else '       '}   {sanitize(suspect.sentence)}")
        lines += [f"      means     {sanitize(title)}  ({cause})" for cause, title in layer.causes]
        if layer.checks:
            lines.append(f"      explain   {', '.join(layer.checks[:3])}")
    lines += [f"      note      {sanitize(note)}" for note in layer.notes[:5]]
    if verbose or layer.failures:
        lines += [f"      {line}" for line in heat_lines(layer.measurements, unicode=unicode)]
    if verbose:
        lines += [f"      {line}" for line in measurement_lines(layer.measurements)]
    elif layer.failures:
        lines += [f"      {line}" for line in measurement_lines(layer.failures[1:6])]
    return lines


def measurement_lines(measurements: Iterable[Measurement]) -> list[str]:
    return [
        sanitize(
            f"{SIGNS[one.status]} {one.what} {ends(one)}"
            + (f" {one.rail}" if one.rail else "")
            + (f"  {shown(one.value, one.unit)}" if one.value is not None else "")
            + (
                f" (expected {'at most' if one.lower_is_better else 'at least'} {shown(one.expected, one.unit)})"
                if one.expected is not None
                else ""
            )
            + (f"  {one.detail}" if one.detail else "")
        )
        for one in measurements
    ]


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
        return f"CANNOT TELL  layer {', '.join(unknown)} could not be measured" + (
            f"; {holds}" if holds else ""
        )
    return f"PASSES  {holds}" if holds else "NOTHING MEASURED"
