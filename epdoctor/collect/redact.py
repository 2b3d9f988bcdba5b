"""Take secrets out of a record, always. Names and addresses go on request: epdoctor/collect/hashing.py.

Environment variables are already filtered by an allow-list on the node; this is the second fence, for command
lines, configuration files and logs.
"""

from __future__ import annotations

import re
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
