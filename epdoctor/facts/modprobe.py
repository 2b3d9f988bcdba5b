"""modprobe.d and modules-load.d, as modprobe and systemd-modules-load read them. Pure; used by `modules`.

Sources: modprobe.d(5): files of the same name in an earlier directory hide later ones, files are read in the
order of their names, a line may be continued with a backslash, all `options` of a module add up (so the
kernel sees the same parameter twice and keeps the last one). modules-load.d(5) has the same order of folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from epdoctor.facts.base import FileSet

# modprobe.d(5), kmod 30 and later; /lib is /usr/lib on merged systems.
_FOLDERS = ("/etc/", "/run/", "/usr/local/lib/", "/usr/lib/", "/lib/")


@dataclass(frozen=True)
class ModuleOptions:
    """One `options` line."""

    module: str
    """Underscores, as in /proc/modules."""
    parameters: Mapping[str, str]
    """Parameter -> value without its quotes; a bare word has the value ""."""
    path: str
    line: int
    """Counted from 1; of a continued line, the first."""
    text: str


def _rank(path: str) -> int:
    return next((place for place, folder in enumerate(_FOLDERS) if path.startswith(folder)), len(_FOLDERS))


def reading_order(paths: Iterable[str]) -> list[str]:
    """The files that count, in the order in which they are read."""
    chosen: dict[str, str] = {}
    for path in sorted(paths, key=_rank):
        chosen.setdefault(path.rpartition("/")[2], path)
    return [chosen[name] for name in sorted(chosen)]


def _split(text: str) -> list[str]:
    """Words of an options line; a double-quoted part keeps its spaces (kernel parameter syntax)."""
    words, word, quoted = [], "", False
    for char in text:
        if char == '"':
            quoted = not quoted
        elif char.isspace() and not quoted:
            if word:
                words.append(word)
            word = ""
        else:
            word += char
    return [*words, word] if word else words


def _lines(text: str) -> Iterable[tuple[int, str]]:
    first, joined = 1, ""
    for number, line in enumerate(text.splitlines(), 1):
        if not joined:
            first = number
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        yield first, joined + line
        joined = ""
    if joined:
        yield first, joined


def parse_options(files: FileSet) -> tuple[ModuleOptions, ...]:
    """Every `options` line in reading order. A line that is not one is left out."""
    found = []
    for path in reading_order(files):
        for number, line in _lines(files[path]):
            words = _split(line) if line.lstrip().startswith("options") else []
            if len(words) < 3 or words[0] != "options":
                continue
            pairs = (word.partition("=") for word in words[2:])
            parameters = {name.replace("-", "_"): value for name, _, value in pairs}
            found.append(ModuleOptions(words[1].replace("-", "_"), parameters, path, number, line.strip()))
    return tuple(found)


def parse_load(files: FileSet) -> dict[str, str]:
    """Module -> file that loads it at boot."""
    found: dict[str, str] = {}
    drop_ins = [path for path in files if path != "/etc/modules"]
    for path in [*reading_order(drop_ins), *(["/etc/modules"] if "/etc/modules" in files else [])]:
        for line in files[path].splitlines():
            words = line.split()
            if words and not words[0].startswith(("#", ";")):
                found.setdefault(words[0].replace("-", "_"), path)
    return found


def registry_dwords(text: str) -> dict[str, str]:
    """Entries of NVreg_RegistryDwords ("a=1;b=2;"), names in lower case; the last one wins."""
    found = {}
    for entry in text.strip().strip('"').split(";"):
        name, _, value = entry.partition("=")
        if name.strip():
            found[name.strip().lower()] = value.strip()
    return found
