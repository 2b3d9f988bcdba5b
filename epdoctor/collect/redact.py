"""Take secrets (always) and host names and addresses (on request) out of a record.

Environment variables are already filtered by an allow-list on the node; this is the second fence, for command
lines, configuration files and logs.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

BLANK = "<redacted>"

_HINTS = (
    "token", "secret", "passw", "pwd", "api-key", "api_key", "apikey", "access_key", "accesskey", "credential",
    "private key", "private_key", "bearer", "authorization", "hf_", "aws_", "sk-", "ghp_", "gho_", "github_pat_",
    "akia", "xox", "://", "nvapi-", "glpat-", "wandb", "ngc_", "passphr", "private-key", "privatekey", "access-key",
    "basic ", "eyj",
)  # fmt: skip

_SECRET_NAME = (
    r"[A-Za-z0-9_.-]*(?:token|secret|passw(?:or)?d|passphrase|pwd|api[_-]?key|access[_-]?key(?:[_-]?id)?|"  # noqa: S105 - a pattern, not a password
    r"credentials?|private[_-]?key|authorization)[A-Za-z0-9_.-]*"
)
_NAME_ONLY = re.compile(rf"(?:{_SECRET_NAME}|(?:HF|AWS|WANDB|NGC)_[A-Z0-9_]+)", re.IGNORECASE)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,20000}?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)",
            re.DOTALL,
        ),
        f"-----BEGIN PRIVATE KEY----- {BLANK}",
    ),
    (re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://)[^\s/@:'\"]{1,200}:[^\s/@'\"]{1,200}@"), rf"\1{BLANK}@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {BLANK}"),
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|"
            r"AKIA[0-9A-Z]{12,}|xox[abpr]-[A-Za-z0-9-]{10,}|nvapi-[A-Za-z0-9_-]{16,}|glpat-[A-Za-z0-9_-]{16,}|"
            r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,})"
        ),
        BLANK,
    ),
    # NAME=value, NAME: value, "name": "value", --name value; never over the end of a line
    (
        re.compile(
            rf"(?i)(?P<name>(?<![A-Za-z0-9])(?:--)?{_SECRET_NAME}|(?<![A-Za-z0-9_])(?:HF|AWS|WANDB|NGC)_[A-Z0-9_]+)"
            r"(?P<quote>[\"']?)(?P<gap>[ \t]{0,3}[=:][ \t]{0,3})(?P<open>[\"']?)[^\s\"',;]{1,4096}"
        ),
        rf"\g<name>\g<quote>\g<gap>\g<open>{BLANK}",
    ),
    (
        re.compile(
            rf"(?i)(?P<name>(?<![A-Za-z0-9])--{_SECRET_NAME})(?P<quote>)(?P<gap>[ \t]{{1,3}})(?P<open>[\"']?)"
            r"(?!-)[^\s\"',;]{1,4096}"
        ),
        rf"\g<name>\g<gap>\g<open>{BLANK}",
    ),
)
# Words like these follow a secret's name in ordinary sentences and settings; they are no secrets.
_HARMLESS = re.compile(
    r"(?i)^(?:--)?(?:max[_-]?num[_-]?batched[_-]?tokens?|[a-z_-]*tokens|tokenizers?[a-z_-]*|"
    r"tokens?[_-](?:limit|ids?|per[_-].*)|authorized[_-]?keys?(?:file)?|auth|author.{0,20}|.{0,40}tokenizer.{0,40}|"
    r"password-?auth.{0,20}|pwd)$"
)


def may_hold_secrets(value: Any) -> bool:
    """A quick look over a whole JSON value: nearly all probes hold nothing that could be a secret."""
    lowered = repr(value).lower()
    return any(hint in lowered for hint in _HINTS)


def redact_text(text: str) -> str:
    """The text without secrets. Cheap where there is nothing to find."""
    lowered = text.lower()
    if not any(hint in lowered for hint in _HINTS):
        return text
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(partial(_blank, replacement), text)
    return text


def _blank(replacement: str, match: re.Match[str]) -> str:
    name = match.groupdict().get("name")
    if name and _HARMLESS.match(name):
        return match.group(0)
    return match.expand(replacement)


def redact(value: Any) -> Any:
    """A JSON value without secrets: texts, values under secret names, words after secret flags."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {
            key: BLANK if isinstance(item, str) and item and _is_secret_name(key) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        clean: list[Any] = []
        for item in value:
            before = clean[-1] if clean else None
            hide = isinstance(before, str) and before.startswith("--") and _is_secret_name(before[2:])
            clean.append(
                BLANK if hide and isinstance(item, str) and not item.startswith("-") else redact(item)
            )
        return clean
    return value


def _is_secret_name(name: object) -> bool:
    return isinstance(name, str) and _NAME_ONLY.fullmatch(name) is not None and not _HARMLESS.match(name)


_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_MAC = re.compile(r"(?<![0-9a-f:])(?:[0-9a-f]{2}:){5}[0-9a-f]{2}(?![0-9a-f:])", re.IGNORECASE)
_MAPPED_GID = re.compile(r"(?i)(?<=ffff:)([0-9a-f]{4}):([0-9a-f]{4})(?![0-9a-f:])")


class HostHasher:
    """Replaces names and addresses by stable stand-ins. Addresses keep their structure (equal prefixes stay
    equal, loopback stays loopback), so that checks on subnets and GIDs judge the same as before."""

    def __init__(self, names: Iterable[str], salt: bytes) -> None:
        self._salt = salt
        words = sorted(
            {name for name in names if len(name) > 1 and name not in ("localhost",)}, key=len, reverse=True
        )
        self._names = {
            name: "host-" + self._digest("name:" + name)[:8] for name in words if not _is_address(name)
        }
        self._pattern = (
            re.compile(
                r"(?<![A-Za-z0-9_-])(?:" + "|".join(map(re.escape, self._names)) + r")(?![A-Za-z0-9_-])"
            )
            if self._names
            else None
        )

    def _digest(self, text: str) -> str:
        return hmac.new(self._salt, text.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()

    def name(self, text: str) -> str:
        """The stand-in of a node name or address."""
        return self._names.get(text) or self.text(text)

    def _address(self, text: str) -> str:
        octets = text.split(".")
        if any(int(octet) > 255 for octet in octets):
            return text
        address = ipaddress.ip_address(".".join(str(int(octet)) for octet in octets))
        if address.is_loopback or address.is_unspecified or address.is_multicast or octets[0] == "255":
            return text
        out = [octets[0]]
        for index in range(1, 4):
            if octets[index] in ("0", "255"):
                out.append(octets[index])  # network and broadcast addresses keep their meaning
                continue
            seed = int(self._digest("v4:" + ".".join(octets[: index + 1]))[:8], 16)
            out.append(str(1 + seed % 254))
        return ".".join(out)

    def _gid(self, match: re.Match[str]) -> str:
        high, low = int(match.group(1), 16), int(match.group(2), 16)
        octets = self._address(f"{high >> 8}.{high & 255}.{low >> 8}.{low & 255}").split(".")
        numbers = [int(octet) for octet in octets]
        return f"{numbers[0]:02x}{numbers[1]:02x}:{numbers[2]:02x}{numbers[3]:02x}"

    def text(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(lambda match: self._names[match.group(0)], text)
        text = _IPV4.sub(lambda match: self._address(match.group(0)), text)
        text = _MAPPED_GID.sub(self._gid, text)
        return _MAC.sub(lambda match: self._mac(match.group(0)), text)

    def _mac(self, text: str) -> str:
        digest = self._digest("mac:" + text.lower())
        return text[:8] + "".join(f":{digest[i : i + 2]}" for i in (0, 2, 4))

    def value(self, value: Any) -> Any:
        """A JSON value with every text replaced."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {
                self.text(key) if isinstance(key, str) else key: self.value(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return value


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
