"""The SSH options in force for a node, as the user's own ssh sees them: `ssh -G` (ssh_config(5)).

paramiko's reader of ssh_config ignores Include and Match, so ssh is asked. What the built-in client cannot
honour is refused by name; `--transport openssh` is the way for those.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from epdoctor.collect.ssh_config_files import Sharing
from epdoctor.collect.targets import Target
from epdoctor.exceptions import UsageError

OPENSSH_HINT = "epdoctor check --all-nodes --transport openssh"
SSH_G_TIMEOUT_S = 20
_TOKEN = re.compile(r"%(.)")
_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

_WITH_VALUE = "bceEFiIJlLmoOpQRSwWD"
_ALLOWED_WITH_VALUE = "bcFiJlmop"
_ALLOWED_FLAGS = "46aACkKnqTvxXY"
"""Flags that choose how to connect, or do not matter for one command without a terminal."""


@dataclass(frozen=True)
class SshOptions:
    """What matters for one connection. Paths are expanded."""

    hostname: str
    port: int
    user: str
    identity_files: tuple[str, ...] = ()
    identities_only: bool = False
    identity_agent: str = ""
    """Socket of the agent; empty: none."""
    user_known_hosts: tuple[str, ...] = ()
    global_known_hosts: tuple[str, ...] = ()
    host_key_alias: str = ""
    strict: str = "ask"
    """StrictHostKeyChecking: yes | ask | accept-new | no"""
    hash_known_hosts: bool = False
    proxy_jump: str = ""
    proxy_command: str = ""
    connect_timeout_s: float | None = None
    address_family: str = "any"
    bind_address: str = ""
    compression: bool = False
    algorithms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """ciphers, macs, kexalgorithms, hostkeyalgorithms, pubkeyacceptedalgorithms, as ssh would offer them."""


class SshOptionsReader:
    """Asks ssh once for all hosts that its configuration treats alike."""

    def __init__(self, *, ssh: str = "ssh", refuse: bool = True) -> None:
        self._ssh = ssh
        self._refuse = refuse
        self.processes = 0
        """How many times ssh was started."""

    def read(self, targets: Sequence[Target]) -> dict[str, SshOptions]:
        """Options by node name. Raises UsageError naming the node and the option that cannot be honoured."""
        groups: dict[object, list[Target]] = {}
        sharing: dict[tuple[str, ...], Sharing] = {}
        for target in targets:
            check_args(target)
            files = config_files(target.ssh_args)
            rule = sharing.get(files)
            if rule is None:
                rule = sharing[files] = Sharing.of(files)
            alike = rule.signature(target.address)
            key = (argv_words(target), alike) if alike is not None else target.name
            groups.setdefault(key, []).append(target)
        found: dict[str, SshOptions] = {}
        left: list[list[Target]] = []
        with ThreadPoolExecutor(max_workers=4) as pool:
            firsts = list(pool.map(lambda members: self._ask(members[0]), groups.values()))
            for members, raw in zip(groups.values(), firsts, strict=True):
                first = members[0]
                shared = len(members) > 1 and _same_for_all(raw, first.address)
                found[first.name] = parse(raw, first, refuse=self._refuse)
                if shared:
                    for other in members[1:]:
                        mine = {**raw, "hostname": [other.address.lower()], "host": [other.address]}
                        found[other.name] = parse(mine, other, refuse=self._refuse)
                else:  # HostName with %h: every host has its own
                    left += [[other] for other in members[1:]]
            for (other,), raw in zip(left, pool.map(lambda one: self._ask(one[0]), left), strict=True):
                found[other.name] = parse(raw, other, refuse=self._refuse)
        return found

    def jump(self, hop: str, args: Sequence[str]) -> SshOptions:
        """Options of one hop of a ProxyJump. As with ssh -J, only -F of the command line applies to it."""
        user, host, port = split_hop(hop)
        files = [word for pair in _pairs(args) if pair[0] == "-F" for word in pair]
        target = Target(name=host, user=user, port=port, ssh_args=tuple(files))
        return parse(self._ask(target), target, refuse=self._refuse)

    def _ask(self, target: Target) -> dict[str, list[str]]:
        self.processes += 1
        argv = [self._ssh, "-G", "-T", *argv_words(target), "--", target.address]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SSH_G_TIMEOUT_S, check=False
            )
        except FileNotFoundError:
            raise UsageError(f"{self._ssh}: not installed", hint="install the OpenSSH client") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{self._ssh}: {error}") from None
        except subprocess.TimeoutExpired:
            raise UsageError(f"ssh -G {target.address}: no answer in {SSH_G_TIMEOUT_S} s") from None
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            why = lines[-1].strip()[:300] if lines else f"status {done.returncode}"
            raise UsageError(
                f"{target.name}: ssh refuses its options: {why}", hint=f"ssh -G {target.address}"
            )
        return parse_lines(done.stdout.decode(errors="replace"))


def _same_for_all(raw: Mapping[str, list[str]], address: str) -> bool:
    """Whether only the host's own name would differ for another host; ssh -G fills %h into some values."""
    name = address.lower()
    return (
        raw.get("hostname", [""])[0] == name
        and raw.get("canonicalizehostname", ["false"])[0] in _FALSE
        and not any(
            name in value.lower()
            for key, values in raw.items()
            if key not in {"host", "hostname", "user"}
            for value in values
        )
    )


def parse_lines(text: str) -> dict[str, list[str]]:
    """Output of `ssh -G`: keyword -> its values, in order."""
    raw: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key:
            raw.setdefault(key.lower(), []).append(value.strip())
    return raw


def argv_words(target: Target) -> tuple[str, ...]:
    """Words between `ssh` and the host: the user's own, then the inventory's variables (as Ansible)."""
    words = list(target.ssh_args)
    if target.private_key_file:
        words += ["-i", target.private_key_file]
    if target.port is not None:
        words += ["-p", str(target.port)]
    if target.user:
        words += ["-l", target.user]
    return tuple(words)


def check_args(target: Target) -> None:
    """Raises UsageError for a word in the inventory's ssh arguments that is no connection option."""
    for flag, value in _pairs(target.ssh_args, target.name):
        if flag == "-i" and not Path(value).expanduser().is_file():
            raise UsageError(f"{target.name}: private key {value} does not exist", hint=f"ls -l {value}")
        if flag == "-F" and value != "none" and not Path(value).expanduser().is_file():
            raise UsageError(
                f"{target.name}: SSH configuration {value} does not exist", hint=f"ls -l {value}"
            )


def config_files(args: Sequence[str]) -> tuple[str, ...]:
    """Configuration files that ssh reads with these arguments (ssh(1), -F)."""
    chosen = [value for flag, value in _pairs(args) if flag == "-F"]
    if chosen:
        return () if chosen[-1] == "none" else (chosen[-1],)
    return ("~/.ssh/config", "/etc/ssh/ssh_config")


def _pairs(args: Sequence[str], node: str = "") -> list[tuple[str, str]]:
    """("-o", "Port=22"), ("-4", ""): getopt's reading of ssh's command line."""
    out: list[tuple[str, str]] = []
    words = list(args)
    while words:
        word = words.pop(0)
        if len(word) < 2 or word[0] != "-" or word == "--":
            raise UsageError(f'{node}: "{word[:80]}" in its SSH arguments is not an option of ssh')
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _WITH_VALUE:
                if letter not in _ALLOWED_WITH_VALUE:
                    raise UsageError(f"{node}: -{letter} in its SSH arguments cannot be honoured")
                if not letters and not words:
                    raise UsageError(f"{node}: -{letter} in its SSH arguments has no value")
                out.append((f"-{letter}", letters or words.pop(0)))
                break
            if letter not in _ALLOWED_FLAGS:
                raise UsageError(f"{node}: -{letter} in its SSH arguments cannot be honoured")
            out.append((f"-{letter}", ""))
    return out


def split_hop(hop: str) -> tuple[str, str, int | None]:
    """User, host and port of `[user@]host[:port]` or `ssh://[user@]host[:port]`. Raises UsageError."""
    text = hop.strip().removeprefix("ssh://").rstrip("/")
    user, _, rest = text.rpartition("@")
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d{1,5}))?|([^\s:]+)(?::(\d{1,5}))?|([0-9A-Fa-f:.]+)", rest)
    host = (
        next((part for part in (match.group(1), match.group(3), match.group(5)) if part), "") if match else ""
    )
    if match is None or not host or host.startswith("-"):
        raise UsageError(f'ProxyJump "{hop[:80]}" is not [user@]host[:port]')
    port = match.group(2) or match.group(4)
    return user, host, int(port) if port else None


_FALSE = {"", "no", "false", "none"}
_REFUSED_WHEN_SET = {
    "certificatefile": "CertificateFile",
    "knownhostscommand": "KnownHostsCommand",
    "pkcs11provider": "PKCS11Provider",
    "revokedhostkeys": "RevokedHostKeys",
    "bindinterface": "BindInterface",
}
_ALGORITHMS = ("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms", "pubkeyacceptedalgorithms")


def parse(raw: Mapping[str, list[str]], target: Target, *, refuse: bool = True) -> SshOptions:
    """Options from the output of `ssh -G`. Raises UsageError for what only OpenSSH can do, if `refuse`."""

    def one(key: str, default: str = "") -> str:
        return raw.get(key, [default])[0]

    def truth(key: str) -> bool:
        return one(key).lower() not in _FALSE

    if refuse:
        for key, name in _REFUSED_WHEN_SET.items():
            if truth(key):
                raise _cannot(target, name, one(key))
        if raw.get("pubkeyauthentication") and not truth("pubkeyauthentication"):
            raise _cannot(target, "PubkeyAuthentication", "no")
        methods = one("preferredauthentications")
        if methods and "publickey" not in methods.split(","):
            raise _cannot(target, "PreferredAuthentications", methods)
        if truth("proxyusefdpass"):
            raise _cannot(target, "ProxyUseFdpass", "yes")
    port = one("port", "22")
    options = SshOptions(
        hostname=one("hostname", target.address),
        port=int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 22,
        user=one("user") or target.user or local_user(),
        identities_only=truth("identitiesonly"),
        strict={"false": "no", "off": "no", "true": "yes"}.get(
            value := one("stricthostkeychecking", "ask"), value
        ),
        hash_known_hosts=truth("hashknownhosts"),
        host_key_alias="" if one("hostkeyalias") == "none" else one("hostkeyalias"),
        connect_timeout_s=_seconds(one("connecttimeout")),
        address_family=one("addressfamily", "any"),
        bind_address="" if one("bindaddress") == "none" else one("bindaddress"),
        compression=truth("compression"),
        algorithms={key: tuple(one(key).split(",")) for key in _ALGORITHMS if one(key)},
    )
    if target.accept_any_host_key:
        options = replace(options, strict="no")
    fill = _Filler(options, target)
    agent = one("identityagent", "SSH_AUTH_SOCK")
    if agent == "SSH_AUTH_SOCK":
        agent = os.environ.get("SSH_AUTH_SOCK", "")
    elif agent.startswith("$"):
        agent = os.environ.get(agent[1:].strip("{}"), "")
    return replace(
        options,
        identity_files=tuple(
            dict.fromkeys(fill.path(path) for path in raw.get("identityfile", ()) if path != "none")
        ),
        identity_agent="" if agent.lower() == "none" else fill.path(agent),
        user_known_hosts=fill.paths(one("userknownhostsfile")),
        global_known_hosts=fill.paths(one("globalknownhostsfile")),
        proxy_jump="" if one("proxyjump").lower() == "none" else one("proxyjump"),
        proxy_command="" if one("proxycommand").lower() == "none" else fill.text(one("proxycommand")),
    )


def _cannot(target: Target, option: str, value: str) -> UsageError:
    return UsageError(
        f"{target.name}: the SSH option {option} {value[:80]} cannot be honoured by the built-in client",
        hint=OPENSSH_HINT,
    )


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and 0 < len(text) < 7 and int(text) else None


def local_user() -> str:
    """Whoever runs epdoctor; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


class _Filler:
    """Tokens of ssh_config(5), "TOKENS", that do not depend on a running connection."""

    def __init__(self, options: SshOptions, target: Target) -> None:
        local = socket.gethostname()
        home = str(Path.home())
        self._tokens = {
            "%": "%",
            "h": options.hostname,
            "n": target.address,
            "p": str(options.port),
            "r": options.user,
            "u": local_user(),
            "d": home,
            "i": str(os.getuid()),
            "k": options.host_key_alias or options.hostname,
            "l": local,
            "L": local.split(".")[0],
            "j": "",
        }
        self._home = home

    def text(self, text: str) -> str:
        return _TOKEN.sub(lambda match: self._tokens.get(match.group(1), match.group()), text)

    def path(self, text: str) -> str:
        text = _ENV.sub(lambda match: os.environ.get(match.group(1), ""), text.strip('"'))
        text = self.text(text)
        return self._home + text[1:] if text == "~" or text.startswith("~/") else text

    def paths(self, text: str) -> tuple[str, ...]:
        # ssh -G prints a list of files without quotes: a path with a blank in it cannot be told from two
        return tuple(self.path(word) for word in text.split() if word.lower() != "none")
