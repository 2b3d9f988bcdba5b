"""What a measurement must reach: checks/compat/bench.yaml, and a site's own table above it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from epdoctor import compat
from epdoctor.catalog import did_you_mean
from epdoctor.compiled import read_yaml
from epdoctor.exceptions import CatalogError

_KEYS = {"factor", "at_least", "at_most", "unit", "source"}


@dataclass(frozen=True)
class Expectation:
    """One row. Exactly one of `factor`, `at_least`, `at_most` is set."""

    name: str
    unit: str
    source: str
    """"perftest on ConnectX-7 ... (table of 2026-11-22)" """
    factor: float | None = None
    """Least share of the rate that the facts give."""
    at_least: float | None = None
    at_most: float | None = None


Expectations = Mapping[str, Expectation]


def load_expectations(path: str | None = None) -> Expectations:
    """The shipped rows, with those of a site's file in their place. Raises CatalogError that starts with the
    file's name."""
    shipped = compat.field("bench", "expectations", dict)
    found = _rows(shipped, "checks/compat/bench.yaml", str(compat.table("bench")["as_of"]), known=shipped)
    if path:
        own: Any = read_yaml(path)
        rows = own.get("expectations") if isinstance(own, dict) else None
        if not isinstance(rows, dict) or not rows:
            raise CatalogError(f"{path}: needs a mapping `expectations`, as checks/compat/bench.yaml has")
        found |= _rows(rows, path, str(own.get("as_of", "")), known=shipped)
    return found


def _rows(
    rows: Mapping[Any, Any], where: str, as_of: str, known: Mapping[Any, Any]
) -> dict[str, Expectation]:
    found = {}
    for name, row in rows.items():
        if name not in known:
            raise CatalogError(f"{where}: no expectation {name!r}{did_you_mean(str(name), known)}")
        if not isinstance(row, dict) or row.keys() - _KEYS:
            raise CatalogError(f"{where}: {name} takes {', '.join(sorted(_KEYS))}")
        bounds = [key for key in ("factor", "at_least", "at_most") if key in row]
        numbers = [row[key] for key in bounds]
        if len(bounds) != 1 or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
            raise CatalogError(f"{where}: {name} needs one number: factor, at_least or at_most")
        unit = str(row.get("unit", known[name].get("unit", "")))
        source = str(row.get("source", where)) + (f" (table of {as_of})" if as_of else "")
        found[name] = Expectation(name, unit, source, **{bounds[0]: float(numbers[0])})
    return found
