"""Which hosts an ssh_config treats alike, so that `ssh -G` need not run once a host (3 to 6 ms CPU each).

Only Host, Match and Include decide that (ssh_config(5)). Anything not understood means: ask for each host.
"""

from __future__ import annotations

import fnmatch
import glob
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

_MAX_DEPTH = 16  # ssh's own limit on nested Include
_KEYWORD = re.compile(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*?)\s*\Z")


class Sharing:
    """The Host lines of a configuration."""

    def __init__(self, patterns: list[tuple[str, ...]] | None) -> None:
        self._patterns = patterns

    @classmethod
    def of(cls, files: Sequence[str]) -> Sharing:
        patterns: list[tuple[str, ...]] = []
        understood = all(_collect(Path(name).expanduser(), patterns, 0) for name in files)
        return cls(patterns if understood else None)

    def signature(self, host: str) -> tuple[bool, ...] | None:
        """Equal for hosts whose blocks are the same; None: this host needs an `ssh -G` of its own."""
        if self._patterns is None:
            return None
        return tuple(_matches(host, line) for line in self._patterns)


def _matches(host: str, patterns: tuple[str, ...]) -> bool:
    host = host.lower()
    if any(p.startswith("!") and fnmatch.fnmatchcase(host, p[1:].lower()) for p in patterns):
        return False
    return any(not p.startswith("!") and fnmatch.fnmatchcase(host, p.lower()) for p in patterns)


def _collect(path: Path, patterns: list[tuple[str, ...]], depth: int) -> bool:
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return depth < _MAX_DEPTH and all(_line(line, path, patterns, depth) for line in lines)


def _line(line: str, path: Path, patterns: list[tuple[str, ...]], depth: int) -> bool:
    match = _KEYWORD.match(line) if line.strip() and not line.lstrip().startswith("#") else None
    if match is None:
        return True
    keyword, value = match.group(1).lower(), match.group(2)
    if keyword in {"match", "canonicalizehostname", "canonicaldomains"}:
        return False
    if keyword not in {"host", "include"}:
        return True
    try:
        words = shlex.split(value, comments=True)
    except ValueError:
        return False
    if keyword == "host":
        # fnmatch knows [sets], ssh does not
        if any(char in word for word in words for char in "[]"):
            return False
        if words != ["*"]:
            patterns.append(tuple(words))
        return True
    for word in words:
        if "%" in word or "$" in word:
            return False
        base = "/etc/ssh" if str(path).startswith("/etc/ssh/") else "~/.ssh"
        full = Path(word).expanduser() if word.startswith(("/", "~")) else Path(base).expanduser() / word
        for name in sorted(glob.glob(str(full))):  # noqa: PTH207 - an absolute pattern
            if not _collect(Path(name), patterns, depth + 1):
                return False
    return True
