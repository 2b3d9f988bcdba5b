"""`--via 'ARGV TEMPLATE'`: the same agent somewhere else than over SSH, e.g. `kubectl exec -i {node} --`."""

from __future__ import annotations

import shlex
import shutil

from epdoctor.collect import endings, process
from epdoctor.collect.remote_command import FLAGS, as_argv
from epdoctor.collect.targets import Target
from epdoctor.collect.transport import Job, NodeFailure
from epdoctor.exceptions import UsageError

EXAMPLE = "--via 'kubectl exec -i -n serving {node} --'"


class ViaTransport:
    """The template is split once, here; `{node}` and `{host}` are filled into each word; no shell."""

    def __init__(self, template: str, *, become: bool = False) -> None:
        """Raises UsageError: cannot be split, names no `{node}`, or a program that is not installed."""
        try:
            self._words = shlex.split(template)
        except ValueError as error:
            raise UsageError(
                f"--via {template!r} cannot be split into words: {error}", hint=EXAMPLE
            ) from None
        if not self._words:
            raise UsageError("--via is empty", hint=EXAMPLE)
        if not any("{node}" in word or "{host}" in word for word in self._words):
            raise UsageError(f"--via {template!r} has no {{node}} in it", hint=EXAMPLE)
        if "{" not in self._words[0] and shutil.which(self._words[0]) is None:
            raise UsageError(
                f"--via: {self._words[0]} is not installed here", hint=f"command -v {self._words[0]}"
            )
        self._become = become

    def argv(self, target: Target, flags: tuple[str, ...] = FLAGS) -> list[str]:
        filled = [
            word.replace("{host}", "\0").replace("{node}", target.name).replace("\0", target.address)
            for word in self._words
        ]
        return [*filled, *as_argv(target, become=self._become, flags=flags)]

    def run(self, job: Job, payload: bytes) -> int | None:
        job.stage = "waiting for the answer"
        argv = self.argv(job.target, job.flags)
        job.by_hand = endings.via_by_hand(self.argv(job.target))
        return process.run(job, argv, payload)

    def explain(self, job: Job, rc: int | None) -> NodeFailure | None:
        return endings.of_via(
            job.target,
            self.argv(job.target),
            rc,
            bytes(job.stdout[:400]),
            job.stderr.decode(errors="replace"),
            become=self._become or job.target.become,
        )

    def close(self) -> None:
        """Nothing is shared."""
