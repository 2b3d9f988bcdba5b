"""The built-in SSH client: one fabric.Connection and one remote execution a node.

Traps of fabric 3.2 and paramiko 5.1 that shape this file: fabric's policy accepts every host key (replaced
before open()); `run(in_stream=...)` sends a character per 10 ms (the channel is used directly); there is no
limit on a hang after login (ours); paramiko logs tracebacks to stderr (silenced); its Transport.close() waits
for its thread (the socket is closed instead).
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import fabric
import paramiko
from fabric.config import Config

from epdoctor.collect import endings, remote_command, ssh_socket
from epdoctor.collect.host_keys import HostKeyStore
from epdoctor.collect.identities import IdentityStore, KeyLogin
from epdoctor.collect.jump_hosts import JumpHosts
from epdoctor.collect.ssh_options import OPENSSH_HINT, SshOptions
from epdoctor.collect.targets import Target
from epdoctor.collect.transport import Job, NodeFailure
from epdoctor.exceptions import UsageError

_CHUNK = 65536
_POLL_S = 0.25
"""How often stderr is drained while stdout is silent: both share one SSH window."""
BANNER_TIMEOUT_S = 15.0
_ALGORITHMS = {
    "ciphers": "_preferred_ciphers",
    "macs": "_preferred_macs",
    "kexalgorithms": "_preferred_kex",
    "hostkeyalgorithms": "_preferred_keys",
    "pubkeyacceptedalgorithms": "_preferred_pubkeys",
}


class _Refused(paramiko.SSHException):  # type: ignore[misc]  # paramiko ships no types
    def __init__(self, state: str, name: str, authorities: bool) -> None:
        super().__init__(state)
        self.state, self.name, self.authorities = state, name, authorities


class KnownHostsPolicy(paramiko.RejectPolicy):  # type: ignore[misc]  # paramiko ships no types
    """Asked for every key, since the client's own table stays empty: the shared store decides."""

    def __init__(self, store: HostKeyStore, options: SshOptions, job: Job) -> None:
        self._store, self._options, self._job = store, options, job

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        verdict = self._store.judge(self._options, key.get_name(), key.asbytes())
        if verdict.state == "ok":
            return
        strict = self._options.strict
        if verdict.state != "revoked" and strict == "no":
            self._job.warnings.append(f"host key is {verdict.state}, accepted: StrictHostKeyChecking is no")
            return
        if verdict.state == "unknown" and strict == "accept-new":
            self._store.remember(self._options, key.get_name(), key.asbytes())
            self._job.warnings.append(
                "host key is new, accepted and stored: StrictHostKeyChecking is accept-new"
            )
            return
        raise _Refused(verdict.state, verdict.name, self._store.known(self._options).authorities)


class FabricTransport:
    def __init__(
        self,
        options: Mapping[str, SshOptions],
        jumps: Mapping[str, tuple[SshOptions, ...]] | None = None,
        *,
        become: bool = False,
    ) -> None:
        """`options` by node name, `jumps` by node name: the hops before it. Loads keys and known_hosts.

        Raises UsageError when a node's algorithms leave nothing that paramiko knows.
        """
        for name in ("paramiko", "paramiko.transport"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._options, self._become = options, become
        self._hops = jumps or {}
        self._keys = IdentityStore()
        self._host_keys = HostKeyStore()
        self._jumps = JumpHosts(self._open)
        # Lazy, with an empty SSH configuration: fabric's own reading ignores Include and costs time a node
        self._config = Config(lazy=True, ssh_config=paramiko.SSHConfig())
        self._algorithms: dict[tuple[object, ...], dict[str, tuple[str, ...]]] = {}
        for name, one in [*options.items(), *((n, hop) for n, hops in self._hops.items() for hop in hops)]:
            self._check_algorithms(name, one)
            self._keys.of(one)
            self._host_keys.known(one)

    def run(self, job: Job, payload: bytes) -> int | None:
        options = self._options[job.target.name]
        job.by_hand = endings.ssh_command(job.target, "uptime")
        hops = self._hops.get(job.target.name, ())
        if hops:
            with self._jumps.channel(job, hops, options) as sock:
                client = self._open(job, options, sock, job.target.label)
        else:
            client = self._open(
                job, options, ssh_socket.connect(job, options, job.target.label), job.target.label
            )
        job.event("connected")
        job.stage = "waiting for the answer"
        command = remote_command.over_ssh(job.target, become=self._become, flags=job.flags)
        try:
            channel = client.transport.open_session(timeout=max(0.1, job.remaining()))
            channel.exec_command(command)
        except Exception as error:  # noqa: BLE001 - paramiko raises here whatever ended its own thread
            job.check()
            why = endings.one_line(str(error), 80) or type(error).__name__
            raise NodeFailure(
                "closed",
                f"{job.target.label} let us log in but runs no command ({why})",
                hint=endings.ssh_command(job.target, "echo ok"),
            ) from None
        return _converse(job, channel, payload)

    def explain(self, job: Job, rc: int | None) -> NodeFailure | None:
        stderr = job.stderr.decode(errors="replace")
        return endings.of_shell(job.target, rc, bytes(job.stdout[:400]), stderr, become=self._become)

    def close(self) -> None:
        self._jumps.close()
        self._keys.close()

    def _open(self, job: Job, options: SshOptions, sock: Any, label: str) -> Any:
        """A fabric.Connection that has logged in over `sock`. Raises NodeFailure."""
        job.stage = "logging in"
        target = job.target
        limit = max(1.0, job.remaining())
        banner_s, began = min(BANNER_TIMEOUT_S, limit), time.monotonic()
        connection = fabric.Connection(
            host=options.hostname,
            user=options.user,
            port=options.port,
            config=self._config,
            gateway=False,
            connect_timeout=int(limit) + 1,
            connect_kwargs={
                "sock": sock,
                "auth_strategy": KeyLogin(options.user, self._keys.of(options)),
                "transport_factory": lambda *a, **kw: self._transport(options, *a, **kw),
                "banner_timeout": banner_s,
                "auth_timeout": limit,
                "compress": options.compression,
            },
        )
        connection.client.set_missing_host_key_policy(KnownHostsPolicy(self._host_keys, options, job))
        try:
            connection.open()
        except _Refused as error:
            raise self._refused(target, label, error, options) from None
        except paramiko.AuthenticationException as error:
            job.check()
            why = endings.one_line(str(error), 400)
            hint = endings.ssh_command(target, "true", flags=("-v",)) if label == target.label else ""
            raise NodeFailure(
                "auth", f"{label} refuses the login of {options.user}: {why}", hint=hint
            ) from None
        except paramiko.ssh_exception.IncompatiblePeer as error:
            why = endings.one_line(str(error), 120)
            raise NodeFailure(
                "closed", f"{label} and the built-in client share no algorithm: {why}", hint=OPENSSH_HINT
            ) from (None)
        except (paramiko.SSHException, EOFError, OSError) as error:
            job.check()
            why = endings.one_line(str(error), 120) or "connection closed"
            if "banner" in why and time.monotonic() - began > banner_s - 1:
                said = f"{label} accepts connections but sent no SSH greeting in {banner_s:.0f} s"
                raise NodeFailure("timeout", said, hint=endings.ssh_command(target, "true")) from None
            if "banner" in why:
                why = "no SSH greeting"
            raise NodeFailure(
                "closed",
                f"{label} ended the SSH handshake: {why}",
                hint=endings.ssh_command(target, "true"),
                retry=True,
            ) from None
        except Exception as error:  # noqa: BLE001 - paramiko parses a stranger's packets: struct.error, ValueError, ...
            job.check()
            raise NodeFailure("closed", f"{label} does not speak SSH ({type(error).__name__})") from None
        return connection

    def _refused(self, target: Target, label: str, error: _Refused, options: SshOptions) -> NodeFailure:
        mine = label == target.label
        login = endings.ssh_command(target) if mine else endings.hop_command(target, options)
        if error.state == "unknown":
            if error.authorities:
                return NodeFailure(
                    "host-key-unknown",
                    f"host key of {label} is not known (host certificates need OpenSSH)",
                    hint=OPENSSH_HINT,
                )
            return NodeFailure("host-key-unknown", f"host key of {label} is not known", hint=login)
        word = "has changed" if error.state == "changed" else "is revoked in known_hosts"
        forget = endings.forget_command(login, options)
        return NodeFailure("host-key-changed", f"host key of {label} {word}", hint=forget)

    def _transport(self, options: SshOptions, sock: Any, **kwargs: Any) -> Any:
        transport = paramiko.Transport(sock, **kwargs)
        limits = self._algorithms[_algorithm_key(options)]
        for attribute, names in limits.items():
            setattr(transport, attribute, names)
        # As ssh: ask first for the kinds of key that are on file, or a known host looks unknown.
        kinds = [name for kind in self._host_keys.kinds(options) for name in _signatures(kind)]
        keys = transport._preferred_keys
        transport._preferred_keys = tuple(sorted(keys, key=lambda name: name not in kinds))
        return transport

    def _check_algorithms(self, name: str, options: SshOptions) -> None:
        key = _algorithm_key(options)
        if key in self._algorithms:
            return
        chosen: dict[str, tuple[str, ...]] = {}
        for option, attribute in _ALGORITHMS.items():
            allowed = options.algorithms.get(option)
            if allowed:
                ours = tuple(one for one in getattr(paramiko.Transport, attribute) if one in allowed)
                if not ours:
                    raise UsageError(
                        f"{name}: the SSH option {option} leaves nothing that the built-in client knows",
                        hint=OPENSSH_HINT,
                    )
                chosen[attribute] = ours
        self._algorithms[key] = chosen


def _algorithm_key(options: SshOptions) -> tuple[object, ...]:
    return tuple(options.algorithms.get(option) for option in _ALGORITHMS)


def _signatures(kind: str) -> Sequence[str]:
    return ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)


def _converse(job: Job, channel: Any, payload: bytes) -> int | None:
    """Send everything, read everything. The output may begin before the payload is through."""
    channel.settimeout(_POLL_S)
    sender = threading.Thread(target=_send, args=(job, channel, payload), daemon=True, name="epdoctor-send")
    if job.feed is not None or len(payload) > channel.out_window_size:
        sender.start()  # so that a node that talks first cannot block both sides
    else:
        _send(job, channel, payload)
    while True:
        job.check()
        try:
            data = channel.recv(_CHUNK)
        except socket.timeout:  # noqa: UP041 - paramiko raises this one; the same class from 3.10 on
            data = None
        except OSError:
            break
        _drain_stderr(job, channel)
        if data:
            job.add_stdout(data)
        elif data is not None:
            break
    while not channel.status_event.wait(timeout=0.05):
        job.check()
        _drain_stderr(job, channel)
        if channel.closed or not channel.transport.is_active():
            break
    _drain_stderr(job, channel)
    job.check()
    return int(channel.exit_status) if channel.exit_status >= 0 else None


def _send(job: Job, channel: Any, payload: bytes) -> None:
    rest = memoryview(payload)
    try:
        while rest:
            try:
                rest = rest[channel.send(rest[:_CHUNK]) :]
            except socket.timeout:  # noqa: UP041 - the window is full; reading shares the timeout
                job.check()
        while job.feed is not None:
            more, ended = job.feed.take(timeout_s=0.5)
            job.check()
            rest = memoryview(more)
            while rest:
                try:
                    rest = rest[channel.send(rest[:_CHUNK]) :]
                except socket.timeout:  # noqa: UP041 - as above
                    job.check()
            if ended or channel.closed:
                break
        channel.shutdown_write()
    except (NodeFailure, OSError, EOFError, paramiko.SSHException):
        return  # cut off, or the command ended first: its status and stderr tell why
    job.sent()


def _drain_stderr(job: Job, channel: Any) -> None:
    while channel.recv_stderr_ready():
        data = channel.recv_stderr(_CHUNK)
        if not data:
            return
        job.add_stderr(data)
