"""Keys to log in with: agent and key files in OpenSSH's order, loaded once for the fleet. Never a prompt."""

from __future__ import annotations

import copy
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
from paramiko.agent import AgentSSH

from epdoctor.collect.ssh_options import SshOptions

AGENT_TIMEOUT_S = 15
"""A key that asks for a touch or a confirmation answers late or never."""


@dataclass(frozen=True)
class Identities:
    """What one node is offered."""

    keys: tuple[tuple[Any, str], ...] = ()
    """Key (paramiko.PKey) and what it is called in sentences."""
    unusable: tuple[str, ...] = ()
    """Why other keys cannot be offered: "~/.ssh/id_rsa has a passphrase and is in no agent"."""


class SharedAgent(AgentSSH):  # type: ignore[misc]  # paramiko ships no types
    """One connection to the SSH agent for all threads: paramiko's would mix their answers."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._one_at_a_time = threading.Lock()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(AGENT_TIMEOUT_S)
            connection.connect(path)
            self._connect(connection)
        except BaseException:
            connection.close()
            raise

    def _send_message(self, msg: object) -> Any:
        with self._one_at_a_time:
            return super()._send_message(msg)

    def close(self) -> None:
        self._close()


@dataclass
class IdentityStore:
    """Loads each key file and asks each agent once."""

    _files: dict[str, tuple[list[Any], str]] = field(default_factory=dict)
    _agents: dict[str, tuple[SharedAgent | None, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _chosen: dict[tuple[object, ...], Identities] = field(default_factory=dict)

    def of(self, options: SshOptions) -> Identities:
        """Order of ssh (sshconnect2.c, pubkey_prepare): agent keys named in the configuration, other agent
        keys (not with IdentitiesOnly), key files that are in no agent."""
        key = (options.identity_files, options.identities_only, options.identity_agent)
        with self._lock:
            if key not in self._chosen:
                self._chosen[key] = self._choose(options)
            return self._chosen[key]

    def _choose(self, options: SshOptions) -> Identities:
        agent, complaint = self._agent(options.identity_agent)
        unusable = [complaint] if complaint else []
        in_agent = {key.asbytes(): key for key in agent.get_keys()} if agent is not None else {}
        first: list[tuple[Any, str]] = []
        last: list[tuple[Any, str]] = []
        for path in options.identity_files:
            public = _public_blob(path)
            if public in in_agent:
                first.append((in_agent.pop(public), f"{path} (agent)"))
                continue
            loaded, why = self._file(path)
            for key in loaded:
                if key.public_blob is None and key.asbytes() in in_agent:
                    first.append((in_agent.pop(key.asbytes()), f"{path} (agent)"))
                else:
                    last.append((key, path))
            if why:
                unusable.append(why)
        others = (
            []
            if options.identities_only
            else [(key, f"agent key {key.comment}") for key in in_agent.values()]
        )
        return Identities((*first, *others, *last), tuple(unusable))

    def _agent(self, path: str) -> tuple[SharedAgent | None, str]:
        if not path:
            return None, ""
        if path not in self._agents:
            try:
                self._agents[path] = SharedAgent(path), ""
            except FileNotFoundError:
                self._agents[path] = None, ""
            except (OSError, paramiko.SSHException) as error:
                self._agents[path] = None, f"the SSH agent at {path} does not answer ({error})"
        return self._agents[path]

    def _file(self, path: str) -> tuple[list[Any], str]:
        if path not in self._files:
            self._files[path] = _load(path)
        return self._files[path]

    def close(self) -> None:
        for agent, _ in self._agents.values():
            if agent is not None:
                agent.close()


def _public_blob(path: str) -> bytes:
    """Public half beside a key file: it tells whether an agent holds it, also when the file is encrypted."""
    try:
        return bytes(paramiko.pkey.PublicBlob.from_file(f"{path}.pub").key_blob)
    except Exception:  # noqa: BLE001 - missing or not a key: then the private file is asked
        return b""


def _load(path: str) -> tuple[list[Any], str]:
    if not Path(path).is_file():
        return [], ""
    try:
        key = paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError):
        # cryptography raises TypeError for an encrypted key without a password
        return [], f"{path} has a passphrase and is in no agent"
    except PermissionError:
        return [], f"{path} cannot be read"
    except Exception as error:  # noqa: BLE001 - any key format, broken or new
        if "password" in str(error).lower() or "passphrase" in str(error).lower():
            return [], f"{path} has a passphrase and is in no agent"
        return [], f"{path} is a kind of key that only OpenSSH can use"
    if getattr(key, "public_blob", None) is None:
        return [key], ""
    plain = copy.copy(key)  # a certificate lies beside it: offer that first, then the bare key, as ssh does
    plain.public_blob = None
    return [key, plain], ""


class KeyLogin:
    """paramiko's `auth_strategy`: offers the keys in turn; only when all are refused is it an error."""

    def __init__(self, user: str, identities: Identities) -> None:
        self._user, self._identities = user, identities

    def authenticate(self, transport: Any) -> Mapping[str, str]:
        """Name of the key that let us in. Raises AuthenticationException, or SSHException when cut off."""
        for key, name in self._identities.keys:
            try:
                left = transport.auth_publickey(self._user, key)
            except paramiko.BadAuthenticationType as error:
                allowed = ", ".join(error.allowed_types)[:100] or "nothing"
                raise paramiko.AuthenticationException(f"it allows {allowed} only, not keys") from None
            except paramiko.AuthenticationException:
                if not transport.is_active():
                    raise paramiko.AuthenticationException("it gave up after too many keys") from None
                continue
            if left:
                raise paramiko.AuthenticationException(f"it wants {', '.join(left)[:100]} after the key")
            return {"key": name}
        names = ", ".join(name for _, name in self._identities.keys)
        why = [
            f"it accepts none of {names}" if names else "there is no key to offer",
            *self._identities.unusable,
        ]
        raise paramiko.AuthenticationException("; ".join(why))
