"""ProxyJump: one shared connection to each jump host, with a bound on the handshakes through it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import paramiko
from paramiko.common import cMSG_CHANNEL_CLOSE

from epdoctor.collect import endings, ssh_socket
from epdoctor.collect.ssh_options import SshOptions
from epdoctor.collect.transport import Job, NodeFailure

HANDSHAKES_AT_ONCE = 8
"""As quick as 32 (measured: 24 nodes, fabric 3.2.3), and a jump host that others use stays calm."""

SshOptionsKey = tuple[str, int, str, tuple[str, ...]]
Open = Callable[[Job, SshOptions, Any, str], Any]


@dataclass
class _Hop:
    lock: threading.Lock = field(default_factory=threading.Lock)
    handshakes: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(HANDSHAKES_AT_ONCE)
    )
    connection: Any = None
    job: Job | None = None
    """Owns the connection's socket, whichever node came first."""
    failure: NodeFailure | None = None


class JumpHosts:
    def __init__(self, open_connection: Open) -> None:
        self._open = open_connection
        self._hops: dict[tuple[SshOptionsKey, ...], _Hop] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def channel(self, job: Job, hops: tuple[SshOptions, ...], options: SshOptions) -> Iterator[Any]:
        """A stream to the node; the handshake over it belongs inside the `with`. Raises NodeFailure."""
        hop = self._hop(hops)
        while not hop.handshakes.acquire(timeout=0.25):
            job.check()
        try:
            yield self._stream(job, self._connection(job, hops), options, job.target.label, hops[-1].hostname)
        finally:
            hop.handshakes.release()

    def close(self) -> None:
        with self._lock:
            hops, self._hops = list(self._hops.values()), {}
        for hop in hops:
            if hop.job is not None:
                hop.job.cancel()

    def _hop(self, hops: tuple[SshOptions, ...]) -> _Hop:
        with self._lock:
            return self._hops.setdefault(tuple(_key(one) for one in hops), _Hop())

    def _connection(self, job: Job, hops: tuple[SshOptions, ...]) -> Any:
        hop = self._hop(hops)
        while not hop.lock.acquire(timeout=0.25):
            job.check()
        try:
            if hop.failure is not None:
                raise _again(hop.failure)
            if hop.connection is None or not hop.connection.transport.is_active():
                hop.connection, hop.job = self._connect(job, hops)
            return hop.connection
        except NodeFailure as failure:
            # One dead jump host costs one timeout, not one a node; a cut-off node proves nothing about it.
            if not job.cancelled and not failure.retry:
                hop.failure = hop.failure or failure
            raise
        finally:
            hop.lock.release()

    def _connect(self, job: Job, hops: tuple[SshOptions, ...]) -> tuple[Any, Job]:
        options = hops[-1]
        label = f"jump host {options.hostname}"
        # Owned by a job of its own: the first node's end must not close what the others use.
        own = Job(job.target, job.deadline)
        job.on_cancel(lambda: own.cancel() if own.stage != "shared" else None)
        if len(hops) > 1:
            sock = self._stream(own, self._connection(job, hops[:-1]), options, label, hops[-2].hostname)
        else:
            sock = ssh_socket.connect(own, options, label)
        try:
            connection = self._open(own, options, sock, label)
        except NodeFailure:
            own.release()
            raise
        own.stage = "shared"
        job.warnings += own.warnings
        return connection, own

    def _stream(self, job: Job, through: Any, options: SshOptions, label: str, jump: str) -> Any:
        limit = max(0.1, min(options.connect_timeout_s or ssh_socket.CONNECT_TIMEOUT_S, job.remaining()))
        where = (options.hostname, options.port)
        try:
            channel = through.transport.open_channel("direct-tcpip", where, ("", 0), timeout=limit)
        except paramiko.ChannelException as error:
            job.check()
            text = endings.one_line(error.text or "", 120)
            kind = "refused" if "refused" in text.lower() else "unreachable"
            forbidden = " (forwarding is forbidden there)" if error.code == 1 else ""
            raise NodeFailure(
                kind,
                f"{label} port {options.port} through {jump}: {text or 'no connection'}{forbidden}",
                hint=endings.ssh_command(job.target, "true"),
            ) from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            job.check()
            why = endings.one_line(str(error), 120) or "connection lost"
            raise NodeFailure(
                "unreachable",
                f"no answer from {label} port {options.port} through {jump}: {why}",
                hint=endings.ssh_command(job.target, "true"),
            ) from None
        channel.transport = _LastWord(through.transport)
        job.on_cancel(channel.close)
        return channel


class _LastWord:
    """What a channel sends through its connection: nothing after its CLOSE.

    paramiko builds a message under the channel's lock and sends it without: another thread's CLOSE can slip
    between, and sshd ends the whole connection over one packet for a channel that is gone, so that one node's
    end cost others their answers (paramiko issue 1115, open since 2017). A lock around both would deadlock
    while keys are renewed; hence the check is made where paramiko itself decides that it may send now.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send_user_message(self, message: Any) -> None:
        connection, began = self._transport, time.monotonic()
        while connection.active and not self._closed:
            connection.clear_to_send.wait(0.1)
            with connection.clear_to_send_lock:
                if connection.clear_to_send.is_set():
                    if connection.active and not self._closed:
                        self._closed = message.asbytes()[:1] == cMSG_CHANNEL_CLOSE
                        connection._send_message(message)
                    return
            if time.monotonic() - began > connection.clear_to_send_timeout:
                raise paramiko.SSHException("the keys of the jump host's connection were not renewed in time")


def _key(options: SshOptions) -> SshOptionsKey:
    return (options.hostname, options.port, options.user, options.identity_files)


def _again(failure: NodeFailure) -> NodeFailure:
    return NodeFailure(failure.kind, str(failure), hint=failure.hint)
