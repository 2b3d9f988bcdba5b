"""One collection: build the plan, send it to every node, turn what comes back into redacted records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from epdoctor.collect.fanout import FleetRun, run_fleet
from epdoctor.collect.plan import build_plan, payload
from epdoctor.collect.record import Record, clock_probe, now_text, parse_output, redact_record
from epdoctor.collect.targets import Target
from epdoctor.collect.transport import NodeResult
from epdoctor.facts.base import CollectOptions
from epdoctor.model import NodeOutcome

Watcher = Callable[[str, str], None]
"""(event, node): "start", "done" or "failed"."""


@dataclass
class Session:
    """A running collection over nodes; iterate `records()`, call `abort()` on Ctrl-C."""

    targets: tuple[Target, ...]
    options: CollectOptions
    forks: int = 32
    timeout_s: float = 60.0
    become: bool = False
    via: str = ""
    transport: str = "fabric"
    watcher: Watcher = lambda event, node: None
    nonce: str = ""
    run: FleetRun | None = field(default=None, init=False)

    def start(self) -> None:
        """Raises UsageError for what the inventory or --via asks and cannot be honoured, before connecting."""
        plan = build_plan(self.options, node_timeout_s=self.timeout_s)
        self.nonce = plan["nonce"]
        program = payload(plan)
        self.run = run_fleet(
            self.targets,
            lambda target: program,
            transport=self.transport,
            forks=self.forks,
            node_timeout_s=self.timeout_s,
            become=self.become,
            via=self.via,
            on_event=lambda event: self.watcher(event.kind, event.node),
        )

    def records(self) -> Iterator[Record]:
        """Each node's record as it ends, in the order of ending."""
        assert self.run is not None
        for result in self.run.results():
            yield to_record(result, self.nonce)

    def abort(self) -> None:
        """Close every connection; `records()` then yields the rest as interrupted."""
        if self.run is not None:
            self.run.abort()


def to_record(result: NodeResult, nonce: str) -> Record:
    """One node's answer as a record; what is missing or garbled becomes the outcome's sentence."""
    begin, probes, end = parse_output(result.stdout, nonce)
    outcome = NodeOutcome(
        result.target.name,
        error=result.error,
        kind=result.kind if result.kind != "ok" else "",
        hint=result.hint,
        warnings=tuple(result.warnings),
        seconds=result.seconds,
    )
    if not outcome.error:
        outcome = _judge_answer(outcome, result, begin, end)
    clock = clock_probe(begin, result.sent_at or 0.0, result.first_byte_at or 0.0)
    if clock is not None:
        probes["controller.clock"] = clock
    times = {name: entry.get("seconds", 0.0) for name, entry in probes.items()}
    times = {name: value for name, value in times.items() if isinstance(value, (int, float))}
    if times:
        slowest = max(times, key=lambda name: times[name])
        outcome = replace(outcome, slowest_probe=slowest, slowest_probe_s=float(times[slowest]))
    started: dict[str, Any] = {
        key: begin[key] for key in ("user", "uid", "hostname", "python") if key in begin
    }
    cpu = (end or {}).get("cpu_s")
    return redact_record(
        Record(
            result.target.name,
            now_text(),
            started,
            outcome,
            probes,
            float(cpu) if isinstance(cpu, (int, float)) else None,
        )
    )


def _judge_answer(
    outcome: NodeOutcome, result: NodeResult, begin: dict[str, object], end: dict[str, object] | None
) -> NodeOutcome:
    """The transport saw no failure: did the agent answer, and to its end?"""
    if begin and end is not None:
        return outcome
    said = result.stderr_tail.strip().splitlines()
    last = f": {said[-1][:200]}" if said else ""
    if begin:
        return replace(
            outcome,
            error=f"the answer of {result.target.name} ends in the middle{last}",
            kind="truncated",
            hint=result.by_hand,
        )
    return replace(
        outcome,
        error=f"{result.target.name} gave no answer that epdoctor understands (exit {result.rc}){last}",
        kind="garbage",
        hint=result.by_hand,
    )
