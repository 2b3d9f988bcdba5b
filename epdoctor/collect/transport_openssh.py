"""`--transport openssh`: the system's ssh, for FIDO keys, certificates and whatever else only it can do."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Mapping

from epdoctor.collect import endings, process, remote_command
from epdoctor.collect.ssh_options import SshOptions, argv_words
from epdoctor.collect.targets import Target
from epdoctor.collect.transport import Job, NodeFailure
from epdoctor.exceptions import UsageError

JUMPS_AT_ONCE = 8
"""Each ssh -J opens its own connection to the jump host, whose MaxStartups (10:30:100) drops more at once."""


class OpenSshTransport:
    def __init__(
        self,
        options: Mapping[str, SshOptions],
        *,
        ssh: str = "ssh",
        connect_timeout_s: int = 10,
        become: bool = False,
    ) -> None:
        """Raises UsageError when there is no ssh."""
        if shutil.which(ssh) is None:
            raise UsageError(f"{ssh} is not installed here", hint="install the OpenSSH client")
        self._options, self._ssh, self._become = options, ssh, become
        self._connect_timeout_s = connect_timeout_s
        self._jumps = threading.BoundedSemaphore(JUMPS_AT_ONCE)

    def argv(self, target: Target, flags: tuple[str, ...] = remote_command.FLAGS) -> list[str]:
        # ssh takes the first value it sees: the user's words win over ours.
        words = [self._ssh, *argv_words(target), "-T", "-oBatchMode=yes"]
        if target.accept_any_host_key:
            words.append("-oStrictHostKeyChecking=no")
        words += [f"-oConnectTimeout={self._connect_timeout_s}", "-oLogLevel=ERROR", "-oForwardX11=no"]
        command = remote_command.over_ssh(target, become=self._become, flags=flags)
        return [*words, "--", target.address, command]

    def run(self, job: Job, payload: bytes) -> int | None:
        options = self._options.get(job.target.name)
        bounded = self._jumps if options is not None and options.proxy_jump else contextlib.nullcontext()
        if options is not None and options.strict == "no" and not job.warnings:
            job.warnings.append("any host key is accepted: StrictHostKeyChecking is no")
        job.by_hand = endings.ssh_command(job.target, "uptime")
        with bounded:
            job.stage = "waiting for the answer"
            return process.run(job, self.argv(job.target, job.flags), payload)

    def explain(self, job: Job, rc: int | None) -> NodeFailure | None:
        options = self._options.get(job.target.name)
        return endings.of_openssh(
            job.target,
            rc,
            bytes(job.stdout[:400]),
            job.stderr.decode(errors="replace"),
            become=self._become,
            options=options,
        )

    def close(self) -> None:
        """Nothing is shared."""
