"""A Python environment of which only a part is told: what is not told is unknown, never absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from epdoctor.exceptions import Unmeasured


class PartialPackages(Mapping[str, str]):
    """Versions by name. Asking for a name that is not among them raises Unmeasured."""

    def __init__(self, known: Mapping[str, str], reason: str) -> None:
        self._known = known
        self._reason = reason

    def __getitem__(self, name: str) -> str:
        if name in self._known:
            return self._known[name]
        raise Unmeasured(f"{self._reason} whether {name} is installed")

    def get(self, name: str, default: Any = None) -> Any:
        del default  # it would say "not installed"
        return self[name]

    def __contains__(self, name: object) -> bool:
        return bool(self[str(name)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
