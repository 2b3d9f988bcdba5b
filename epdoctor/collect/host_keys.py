"""Host keys: known_hosts files, read once for the whole fleet (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").

fabric accepts every key, and paramiko keeps one key a type and knows nothing of @revoked or patterns, so the
decision is taken here. A key is never accepted silently.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from epdoctor.collect.ssh_options import SshOptions

MAX_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class HostKey:
    kind: str
    """Key type, e.g. ssh-ed25519."""
    blob: bytes
    where: str
    """file:line"""


@dataclass
class KnownHosts:
    """All entries of some files."""

    exact: dict[str, list[HostKey]] = field(default_factory=dict)
    patterns: list[tuple[tuple[str, ...], HostKey]] = field(default_factory=list)
    hashed: list[tuple[bytes, bytes, HostKey]] = field(default_factory=list)
    """Salt, HMAC-SHA1 of the name, key."""
    revoked: set[bytes] = field(default_factory=set)
    authorities: bool = False
    """There are @cert-authority lines."""

    def keys_of(self, name: str) -> list[HostKey]:
        name = name.lower()
        found = list(self.exact.get(name, ()))
        found += [key for patterns, key in self.patterns if _matches(name, patterns)]
        text = name.encode()
        for salt, digest, key in self.hashed:
            if hmac.compare_digest(hmac.new(salt, text, hashlib.sha1).digest(), digest):
                found.append(key)
        return found

    def add(self, text: str, where: str) -> None:
        """Add the lines of a file; what cannot be understood is passed over, as ssh does."""
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) < 3 or words[0].startswith("#"):
                continue
            if marker == "@cert-authority":
                self.authorities = True
                continue
            try:
                blob = base64.b64decode(words[2], validate=True)
            except (binascii.Error, ValueError):
                continue
            if marker == "@revoked":
                self.revoked.add(blob)
            elif not marker:
                self._add_entry(words[0], HostKey(words[1], blob, f"{where}:{number}"))

    def _add_entry(self, names: str, key: HostKey) -> None:
        if names.startswith("|1|"):
            parts = names.split("|")
            try:
                salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:4])
            except (binascii.Error, ValueError):
                return
            self.hashed.append((salt, digest, key))
            return
        listed = tuple(name.lower() for name in names.split(",") if name)
        if any(char in name for name in listed for char in "*?!"):
            self.patterns.append((listed, key))
            return
        for name in listed:
            self.exact.setdefault(name, []).append(key)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # "[host]:port" is literal in ssh's patterns, a set in fnmatch's
    plain = [p.replace("[", "[[]") for p in patterns]
    if any(p.startswith("!") and fnmatch.fnmatchcase(name, p[1:]) for p in plain):
        return False
    return any(not p.startswith("!") and fnmatch.fnmatchcase(name, p) for p in plain)


@dataclass(frozen=True)
class Verdict:
    state: str
    """ok | unknown | changed | revoked"""
    name: str
    """What it was looked up as: `[10.0.0.3]:2222`."""
    known: HostKey | None = None
    """For "changed": the key on file."""


class HostKeyStore:
    """Shared by all connections; each combination of files is read once."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, ...], KnownHosts] = {}
        self._lookups: dict[tuple[tuple[str, ...], str], list[HostKey]] = {}
        self._lock = threading.Lock()

    def known(self, options: SshOptions) -> KnownHosts:
        files = options.user_known_hosts + options.global_known_hosts
        with self._lock:
            if files not in self._files:
                self._files[files] = read_files(files)
            return self._files[files]

    def kinds(self, options: SshOptions) -> tuple[str, ...]:
        """Key types on file for this host, so that the server is asked for one of them first."""
        keys = self._keys(options, lookup_name(options))
        return tuple(dict.fromkeys(key.kind for key in keys))

    def judge(self, options: SshOptions, kind: str, blob: bytes) -> Verdict:
        name = lookup_name(options)
        known = self.known(options)
        if blob in known.revoked:
            return Verdict("revoked", name)
        keys = self._keys(options, name)
        if any(key.blob == blob for key in keys):
            return Verdict("ok", name)
        # As ssh (check_host_key, "checking without port identifier"): an entry without port may also vouch.
        if name.startswith("[") and any(key.blob == blob for key in known.keys_of(options.hostname)):
            return Verdict("ok", name)
        same = next((key for key in keys if key.kind == kind), None)
        return Verdict("changed" if same else "unknown", name, same)

    def remember(self, options: SshOptions, kind: str, blob: bytes) -> None:
        """Add a new key to the user's file (accept-new); as with ssh, an unwritable file is no error."""
        if not options.user_known_hosts:
            return
        name = lookup_name(options)
        if options.hash_known_hosts:
            name = hashed_name(name)
        line = f"{name} {kind} {base64.b64encode(blob).decode()}\n"
        with self._lock:
            try:
                with Path(options.user_known_hosts[0]).open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError:
                return

    def _keys(self, options: SshOptions, name: str) -> list[HostKey]:
        known = self.known(options)
        key = (options.user_known_hosts + options.global_known_hosts, name)
        with self._lock:
            if key not in self._lookups:
                self._lookups[key] = known.keys_of(name)
            return self._lookups[key]


def lookup_name(options: SshOptions) -> str:
    """The name a host is filed under: its alias, or its name with a port other than 22."""
    if options.host_key_alias:
        return options.host_key_alias.lower()
    host = options.hostname.lower()
    return host if options.port == 22 else f"[{host}]:{options.port}"


def hashed_name(name: str, salt: bytes | None = None) -> str:
    """`|1|salt|hash`, as HashKnownHosts writes it."""
    salt = secrets.token_bytes(20) if salt is None else salt
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def read_files(files: Iterable[str]) -> KnownHosts:
    """Missing and unreadable files count as empty, as with ssh: their hosts are unknown, never accepted."""
    known = KnownHosts()
    for name in files:
        try:
            with Path(name).open("rb") as file:
                raw = file.read(MAX_BYTES)
        except OSError:
            continue
        known.add(raw.decode("utf-8", errors="replace"), name)
    return known
