"""Climb the ladder: layers in order, stopping at the first that is broken.

A layer is a module of epdoctor/bench/layers with NUMBER, NAME, TITLE and `run(bench) -> LayerResult`; it is
found by itself. Order is by NUMBER ("2b" after "2").
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import epdoctor.bench.layers
from epdoctor.bench.expect import Expectations, load_expectations
from epdoctor.bench.fleet import Fleet
from epdoctor.bench.results import LayerResult, with_percentiles
from epdoctor.catalog import did_you_mean
from epdoctor.exceptions import Unmeasured, UsageError
from epdoctor.facts import Node
from epdoctor.model import Goal, Status

GPU_REASON = "only with --gpu: it occupies GPUs"
BUDGET_REASON = "the budget was spent before it (--budget)"


@dataclass
class Bench:
    """What every layer gets."""

    fleet: Fleet
    nodes: Mapping[str, Node]
    """Facts by node name; a node whose facts are missing is absent."""
    goal: Goal
    addresses: Mapping[str, str]
    """Node -> the address that the inventory connects to."""
    pairs: str = "full"
    gpu: bool = False
    """Layers that occupy GPUs were asked for (--gpu)."""
    deadline: float = field(default_factory=lambda: time.monotonic() + 90)
    """time.monotonic() at which the budget is spent."""
    keep_going: bool = False
    expect: Expectations = field(default_factory=load_expectations)
    watch: Callable[[str], None] = lambda text: None
    """A word of progress: "write bandwidth, round 3 of 15"."""

    @property
    def alive(self) -> list[str]:
        return self.fleet.alive

    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def address_of(self, name: str) -> str:
        """Where the workers of this node are reached: the interface that the environment file would name
        (epdoctor/provision/environment.py), else what the inventory connects to."""
        from epdoctor.provision.environment import compute

        node = self.nodes.get(name)
        given = self.addresses.get(name, name)
        if node is None:
            return given
        try:
            return compute(node, given, self.goal.backend).values.get("VLLM_HOST_IP", given)
        except Unmeasured:
            return given


@dataclass(frozen=True)
class Layer:
    number: str
    name: str
    title: str
    needs_gpu: bool
    """Occupies GPUs: only with --gpu."""
    run: Callable[[Bench], LayerResult]


def _order(number: str) -> tuple[int, str]:
    found = re.match(r"(\d+)(.*)", number)
    assert found is not None
    return int(found[1]), found[2]


def layers() -> tuple[Layer, ...]:
    """All layers, lowest first."""
    modules: list[ModuleType] = [
        importlib.import_module(f"epdoctor.bench.layers.{module.name}")
        for module in pkgutil.iter_modules(epdoctor.bench.layers.__path__)
    ]
    found = [
        Layer(m.NUMBER, m.NAME, m.TITLE, bool(getattr(m, "NEEDS_GPU", False)), m.run)
        for m in modules
        if hasattr(m, "NUMBER")
    ]
    return tuple(sorted(found, key=lambda layer: _order(layer.number)))


def choose(words: Sequence[str]) -> tuple[Layer, ...]:
    """Layers by number, name or range ("1-3"); all where nothing is named. Raises UsageError."""
    known = layers()
    if not words:
        return known
    chosen: set[str] = set()
    for word in words:
        span = re.fullmatch(r"(\d+)-(\d+)", word)
        fits = {
            layer.number
            for layer in known
            if word in (layer.number, layer.name)
            or (span and int(span[1]) <= _order(layer.number)[0] <= int(span[2]))
        }
        if not fits:
            names = [layer.name for layer in known]
            raise UsageError(
                f"no layer {word!r}{did_you_mean(word, names)}; there are "
                + ", ".join(f"{layer.number} {layer.name}" for layer in known)
            )
        chosen |= fits
    return tuple(layer for layer in known if layer.number in chosen)


def climb(bench: Bench, chosen: Sequence[Layer]) -> Iterator[LayerResult]:
    """Each layer's result as it comes; what stands above a broken layer is skipped, unless keep_going."""
    broken = ""
    for layer in chosen:
        blank = LayerResult(layer.number, layer.name, layer.title, Status.SKIP, not_run=True)
        if layer.needs_gpu and not bench.gpu:
            blank.reason = GPU_REASON
        elif broken and not bench.keep_going:
            blank.reason = f"layer {broken} is broken (--keep-going)"
        elif bench.left_s() <= 0:
            blank.status, blank.reason = Status.UNKNOWN, BUDGET_REASON
        elif len(bench.alive) < 1:
            blank.status, blank.reason = Status.UNKNOWN, "no node is left"
        else:
            began = time.monotonic()
            blank = layer.run(bench)
            blank.seconds = time.monotonic() - began
            blank.measurements = with_percentiles(blank.measurements)
            _explain(blank)
        if blank.status is Status.FAIL and not broken:
            broken = layer.number
        yield blank


def _explain(layer: LayerResult) -> None:
    """What a failed tool printed goes through explain; at most three causes are kept."""
    outputs = {one.output for one in layer.failures if one.output.strip()}
    if not outputs:
        return
    from epdoctor.explain.answer import explain_text

    for output in sorted(outputs)[:4]:
        for candidate in explain_text(output.encode("utf-8", "backslashreplace")).results[:1]:
            found = (candidate.cause.id, candidate.cause.title)
            if found not in layer.causes and len(layer.causes) < 3:
                layer.causes.append(found)
