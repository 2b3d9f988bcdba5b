"""vLLM's flags: canonical names, short forms, what follows them, and the nearest one to a mistyped name.

The table is checks/compat/vllm_flags.yaml; how a command line is normalised is in vLLM 0.33.0
vllm/utils/argparse_utils.py (FlexibleArgumentParser).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from epdoctor.paths import data_dir


@dataclass(frozen=True, slots=True)
class Flag:
    name: str
    """Without dashes: "tensor-parallel-size"."""
    kind: str
    """switch | int | float | str | json | choice | list (takes every word up to the next option) | optional"""
    shorts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    first: str = ""
    """Oldest of the listed releases that has it; empty: all of them."""
    last: str = ""
    """Newest of the listed releases that has it; empty: the newest has it."""
    paired: bool = False
    """Has a --no-NAME."""


@dataclass(frozen=True)
class Flags:
    as_of: str
    versions: tuple[str, ...]
    """Releases whose source was read, oldest first."""
    flags: Mapping[str, Flag]
    shorts: Mapping[str, str]
    """"-tp" -> "tensor-parallel-size"."""

    def get(self, name: str) -> Flag | None:
        """By its canonical name; a dotted one by what stands before the dot."""
        return self.flags.get(name) or self.flags.get(name.partition(".")[0])

    def known(self, name: str, version: str = "") -> bool:
        """Whether vLLM of this version takes the flag; an empty or unlisted version counts as the newest.

        A version older than the oldest that was read is not judged: every flag of the table counts."""
        flag = self.get(name)
        if flag is None:
            return False
        wanted = _key(version) if version else _key(self.versions[-1])
        if not wanted or wanted < _key(self.versions[0]):
            return True
        if flag.first and wanted <= _key(self._neighbour(flag.first, -1)):
            return False
        return not (flag.last and wanted >= _key(self._neighbour(flag.last, 1)))

    def _neighbour(self, version: str, step: int) -> str:
        """The listed release before or after: in between, a flag may have come or gone at any release."""
        position = self.versions.index(version) + step
        return self.versions[max(0, min(position, len(self.versions) - 1))]

    def similar(self, name: str, version: str = "") -> str:
        """The flag that was probably meant, as it is written: "--enable-eplb"; empty: none is near."""
        import difflib

        base, dot, key = name.partition(".")
        if base.startswith("no-") and base[3:] in self.flags:
            return f"--{base[3:]}"
        candidates = [known for known in self.flags if self.known(known, version)]
        near = difflib.get_close_matches(base[:60], candidates, n=1, cutoff=0.78)
        if not near:
            # A word forgotten or in another order: --expert-parallel for --enable-expert-parallel
            parts = set(base.split("-"))
            near = [c for c in candidates if len(parts) > 1 and parts <= set(c.split("-"))][:1]
        return f"--{near[0]}{dot}{key}" if near else ""


def _key(version: str) -> tuple[int, ...]:
    parts: list[int] = []
    for piece in version.removeprefix("v").split(".")[:3]:
        digits = "".join(c for c in piece if c.isascii() and c.isdigit()) if piece[:1].isdigit() else ""
        if not digits or len(digits) > 6:
            break
        parts.append(int(digits))
        if digits != piece:
            break
    return tuple(parts)


@functools.lru_cache(maxsize=1)
def load() -> Flags:
    """The table. Raises CatalogError where the file is missing or wrong."""
    from epdoctor.compiled import load_compiled, read_yaml

    folder = data_dir("checks") / "compat"

    def compiled() -> dict[str, object]:
        table = dict(read_yaml(folder / "vllm_flags.yaml"))
        return {**table, "as_of": str(table["as_of"])}  # JSON has no dates

    raw = load_compiled("flags", [folder], compiled)
    found: dict[str, Flag] = {}
    shorts: dict[str, str] = {}
    for name, entry in raw["flags"].items():
        entry = entry if isinstance(entry, dict) else {"kind": entry}
        flag = Flag(
            name,
            str(entry["kind"]),
            tuple(entry.get("shorts", ())),
            tuple(str(choice) for choice in entry.get("choices", ())),
            str(entry.get("first", "")),
            str(entry.get("last", "")),
            bool(entry.get("paired", False)),
        )
        found[name] = flag
        for short in flag.shorts:
            shorts.setdefault(short, name)
    return Flags(str(raw["as_of"]), tuple(raw["versions"]), found, shorts)
