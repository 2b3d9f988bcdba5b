"""This machine: the agent in a child of the interpreter that runs epdoctor."""

from __future__ import annotations

import sys

from epdoctor.collect import endings, process
from epdoctor.collect.transport import Job, NodeFailure


class LocalTransport:
    def __init__(self, *, become: bool = False) -> None:
        self._become = become

    def run(self, job: Job, payload: bytes) -> int | None:
        target = job.target
        python = target.python_interpreter.split() or [sys.executable]
        sudo: list[str] = []
        if self._become or target.become:
            user = ["-u", target.become_user] if target.become_user else []
            sudo = ["sudo", "-n", *user, "--"]
        job.stage = "waiting for the answer"
        job.event("connected")
        return process.run(job, [*sudo, *python, *job.flags], payload)

    def explain(self, job: Job, rc: int | None) -> NodeFailure | None:
        stderr = job.stderr.decode(errors="replace")
        failure = endings.of_shell(job.target, rc, bytes(job.stdout[:400]), stderr, become=self._become)
        if failure is None:
            return None
        hint = "sudo -v" if failure.kind == "sudo" else ""
        return NodeFailure(failure.kind, str(failure), hint=hint)

    def close(self) -> None:
        """Nothing is shared."""
