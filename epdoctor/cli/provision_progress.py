"""What a running playbook shows on standard error: one live line on a terminal, one line a component elsewhere."""

from __future__ import annotations

import time
from typing import IO

from epdoctor.cli.terminal import LiveLine
from epdoctor.provision.events import EventReader
from epdoctor.report.sanitize import sanitize


class RunProgress(LiveLine):
    """Give `watch` to provision.runner.run."""

    def __init__(self, verb: str, stream: IO[str] | None = None) -> None:
        self.verb = verb
        super().__init__(stream)
        self.started = time.monotonic()
        self._component = ""
        self._since = self.started
        self._failures = 0

    def watch(self, reader: EventReader) -> None:
        """Called with every event, and now and then in between."""
        result = reader.result
        if reader.component != self._component:
            self._component_done(reader)
            self._component, self._since = reader.component, time.monotonic()
        for failure in result.failures[self._failures :]:
            self._print(
                f"failed  {failure.component} on {failure.node}: {sanitize(failure.error)} ({failure.where})"
            )
        self._failures = len(result.failures)
        if not self.live or not (reader.task or reader.component):
            self.clear()
            return
        # " : " parts the role from the task's own name.
        task = reader.task.rpartition(" : ")[2]
        out = f", {len(result.failures) + len(result.unreachable)} failed" if result.failures else ""
        text = (
            f"{self.verb} {reader.component or 'nodes'} on {len(result.nodes)} nodes · {task} · "
            f"{time.monotonic() - self.started:.0f} s{out}"
        )
        self.show(text)

    def _component_done(self, reader: EventReader) -> None:
        result, name = reader.result, self._component
        if name not in result.components:
            return
        states = [result.state(name, node) for node in result.nodes]
        parts = [f"{states.count(state)} {word}" for state, word in _SUMMARY if states.count(state)]
        self._print(f"{self.verb} {name:<13} {time.monotonic() - self._since:5.1f} s  {', '.join(parts)}")

    def _print(self, text: str) -> None:
        self.clear()
        self.stream.write(text + "\n")
        self.stream.flush()


_SUMMARY = (
    ("change", "with changes"),
    ("right", "right"),
    ("absent", "do not apply"),
    ("left-alone", "left alone"),
    ("failed", "failed"),
    ("unreachable", "not reached"),
    ("not-tried", "not tried"),
)
