"""The byte stream under an SSH connection: TCP, or the user's ProxyCommand."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess

from epdoctor.collect.endings import ssh_command
from epdoctor.collect.ssh_options import SshOptions
from epdoctor.collect.transport import Job, NodeFailure

CONNECT_TIMEOUT_S = 10.0
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def connect(job: Job, options: SshOptions, label: str) -> socket.socket:
    """A connected socket, closed when the job is cut off. Raises NodeFailure: dns, refused, unreachable."""
    if options.proxy_command:
        return _through_command(job, options)
    hint = ssh_command(job.target, "true")
    family = _FAMILIES.get(options.address_family, socket.AF_UNSPEC)
    try:
        found = socket.getaddrinfo(options.hostname, options.port, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a label too long for IDNA
        raise NodeFailure(
            "dns", f"{options.hostname} cannot be resolved", hint=f"getent hosts {options.hostname}"
        ) from (None)
    failure: NodeFailure | None = None
    for af, kind, protocol, _, address in found:
        job.check()
        sock = socket.socket(af, kind, protocol)
        job.on_cancel(lambda sock=sock: end(sock))  # type: ignore[misc]  # binds this round's socket
        limit = max(0.05, min(options.connect_timeout_s or CONNECT_TIMEOUT_S, job.remaining()))
        try:
            if options.bind_address:
                sock.bind((options.bind_address, 0))
            sock.settimeout(limit)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except TimeoutError:
            failure = NodeFailure(
                "unreachable", f"no answer from {label} port {options.port} in {limit:.0f} s", hint=hint
            )
        except ConnectionRefusedError:
            failure = NodeFailure("refused", f"connection refused by {label} port {options.port}", hint=hint)
        except OSError as error:
            job.check()
            why = (error.strerror or str(error)).lower()
            failure = NodeFailure("unreachable", f"{label} port {options.port}: {why}", hint=hint)
        sock.close()
    raise failure or NodeFailure("dns", f"{options.hostname} has no address", hint=hint)


def end(sock: socket.socket) -> None:
    """Close and wake whoever reads: paramiko's thread would notice a plain close() only at its next poll."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _through_command(job: Job, options: SshOptions) -> socket.socket:
    ours, theirs = socket.socketpair()
    try:
        child = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {options.proxy_command}"],  # as ssh does: the user's own command line
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise NodeFailure("unreachable", f"ProxyCommand: {error.strerror or error}") from None
    finally:
        theirs.close()

    def stop() -> None:
        end(ours)
        if child.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(timeout=1)

    job.on_cancel(stop)
    return ours
