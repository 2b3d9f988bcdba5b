"""epdoctor.toml: a site's defaults. `$EPDOCTOR_CONFIG`, else ./epdoctor.toml."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epdoctor.exceptions import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Config:
    """What a site may set. Command-line options win."""

    path: str = ""
    inventory: str = ""
    """Path, relative to the file's own folder."""
    backend: str = ""
    python: str = ""
    forks: int | None = None
    timeout_s: float | None = None
    become: bool = False
    profile: str = ""
    """Name, or path relative to the file's own folder."""
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    """Ids, prefixes or tags of checks."""
    compute_hcas: str = ""
    """[rdma] compute_hcas, in NCCL_IB_HCA's syntax."""
    waivers: str = ""
    """[waivers] file, relative to the file's own folder."""


_TOP: dict[str, type | tuple[type, ...]] = {
    "inventory": str,
    "backend": str,
    "python": str,
    "forks": int,
    "timeout_s": (int, float),
    "become": bool,
    "profile": str,
    "select": list,
    "ignore": list,
    "rdma": dict,
    "waivers": dict,
}


def load_config() -> Config:
    """Raises UsageError with the file's name (and line, for broken TOML)."""
    chosen = os.environ.get("EPDOCTOR_CONFIG", "")
    path = Path(chosen) if chosen else Path("epdoctor.toml")
    if not path.is_file():
        if chosen:
            raise UsageError(f"EPDOCTOR_CONFIG: {chosen} is not a file")
        return Config()
    try:
        with path.open("rb") as file:
            data: dict[str, Any] = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    for key, value in data.items():
        if key not in _TOP:
            from epdoctor.catalog import did_you_mean

            raise UsageError(f"{path}: unknown key {key}{did_you_mean(key, _TOP)}")
        if not isinstance(value, _TOP[key]) or (isinstance(value, bool) and _TOP[key] is not bool):
            raise UsageError(f"{path}: {key} has the wrong type")
    rdma = data.pop("rdma", {})
    unknown = rdma.keys() - {"compute_hcas"}
    if unknown or not isinstance(rdma.get("compute_hcas", ""), str):
        raise UsageError(f'{path}: [rdma] takes compute_hcas = "mlx5_0,mlx5_1"')
    waivers = data.pop("waivers", {})
    if waivers.keys() - {"file"} or not isinstance(waivers.get("file", ""), str):
        raise UsageError(f'{path}: [waivers] takes file = "waivers.yaml"')
    if waivers.get("file"):
        data["waivers"] = str(path.parent / waivers["file"])
    for key in ("select", "ignore"):
        if not all(isinstance(word, str) for word in data.get(key, [])):
            raise UsageError(f'{path}: {key} must be a list of texts, ["gpu", "rdma.port-active"]')
        if key in data:
            data[key] = tuple(data[key])
    if "/" in data.get("profile", "") or data.get("profile", "").endswith(".yaml"):
        data["profile"] = str(path.parent.absolute() / data["profile"])
    if "inventory" in data:
        data["inventory"] = str(path.parent / data["inventory"])
    return Config(path=str(path), compute_hcas=rdma.get("compute_hcas", ""), **data)
