"""Version facts: the dated tables under checks/compat/. Pure; each table is read once.

Every table has `as_of` (date) and `source`. A fact about versions stands there and nowhere else.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from packaging.version import InvalidVersion, Version

from epdoctor.compiled import read_yaml
from epdoctor.exceptions import CatalogError, Unmeasured
from epdoctor.paths import data_dir

T = TypeVar("T")

STALE_AFTER_DAYS = 180
"""vLLM, NCCL and NVSHMEM release every four to eight weeks: after half a year a table misses several of each."""


@dataclass(frozen=True)
class Generation:
    """One generation of DeepEP. Bounds are versions as text; empty: no bound."""

    generation: str
    title: str
    classes: frozenset[str]
    nvshmem_min: str
    nvshmem_below: str
    nccl_min: str
    torch_min: str
    source: str


@dataclass(frozen=True)
class RemovedVariable:
    name: str
    gone_in: str
    instead: str
    source: str


@functools.cache
def table(name: str) -> Mapping[str, Any]:
    """checks/compat/<name>.yaml. Raises CatalogError, naming the file, where it is not a dated table."""
    path = data_dir("checks") / "compat" / f"{name}.yaml"
    loaded = read_yaml(path)
    if not isinstance(loaded, dict) or "as_of" not in loaded or "source" not in loaded:
        raise CatalogError(f"{path}: needs `as_of` and `source`")
    if type(loaded["as_of"]) is not datetime.date:
        raise CatalogError(f"{path}: as_of must be a date, 2026-11-21")
    return loaded


def tables() -> Mapping[str, Mapping[str, Any]]:
    """Every table by name, for `epdoctor list versions`."""
    return {path.stem: table(path.stem) for path in sorted((data_dir("checks") / "compat").glob("*.yaml"))}


def field(name: str, key: str, kind: type[T]) -> T:
    """`table(name)[key]`, of that type. Raises CatalogError otherwise."""
    value = table(name).get(key)
    if not isinstance(value, kind):
        raise CatalogError(f"checks/compat/{name}.yaml: {key} must be a {kind.__name__}")
    return value


def version(text: str, what: str = "version") -> Version:
    """A comparable version of "2.14.0+cu130", "v1.2.1" or "3.4.5-1". Raises Unmeasured on anything else."""
    try:
        return Version(text.strip()[:80])
    except InvalidVersion as error:
        raise Unmeasured(f"{what}: {text[:80]!r} is not a version") from error


def release(text: str, what: str = "version") -> Version:
    """Like version(), without local, dev and pre-release parts: a development build counts as its release."""
    return Version(version(text, what).base_version)


@functools.cache
def generations() -> Mapping[str, Generation]:
    """DeepEP's generations by name: 1, 2.0, 2.5."""
    found: dict[str, Generation] = {}
    for row in field("deepep", "generations", list):
        try:
            found[str(row["generation"])] = Generation(
                generation=str(row["generation"]),
                title=str(row["title"]),
                classes=frozenset(row["classes"]),
                nvshmem_min=str(row.get("nvshmem_min", "")),
                nvshmem_below=str(row.get("nvshmem_below", "")),
                nccl_min=str(row.get("nccl_min", "")),
                torch_min=str(row.get("torch_min", "")),
                source=str(row["source"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CatalogError(f"checks/compat/deepep.yaml: generations: {error!r}") from error
    return found


@functools.cache
def removed_variables() -> tuple[RemovedVariable, ...]:
    """Variables of vLLM that newer versions no longer read."""
    rows = field("vllm", "removed_variables", list)
    try:
        return tuple(
            RemovedVariable(str(row["name"]), str(row["gone_in"]), str(row["instead"]), str(row["source"]))
            for row in rows
        )
    except (KeyError, TypeError) as error:
        raise CatalogError(f"checks/compat/vllm.yaml: removed_variables: {error!r}") from error


def vllm_pins(vllm_version: str) -> Mapping[str, Any]:
    """Pins of that vLLM release, or of the newest known one that is not newer than it; {} where none fits."""
    wanted = release(vllm_version, "vLLM's version")
    fitting = [row for row in field("vllm", "releases", list) if release(str(row["version"])) <= wanted]
    return max(fitting, key=lambda row: release(str(row["version"])), default={})


def torch_pins(torch_version: str) -> Mapping[str, Any]:
    """NCCL and NVSHMEM that this torch release pins; {} where it is not in the table."""
    wanted = release(torch_version, "torch's version")
    return next((row for row in field("torch", "pins", list) if release(str(row["torch"])) == wanted), {})


def nixl_minimum(vllm_version: str) -> str:
    """Oldest NIXL that this vLLM accepts; empty where the table does not say."""
    wanted = release(vllm_version, "vLLM's version")
    rows = [row for row in field("nixl", "vllm_min", list) if release(str(row["vllm"])) <= wanted]
    return str(max(rows, key=lambda row: release(str(row["vllm"])))["nixl"]) if rows else ""


def nixl_ep_torch(nixl_version: str) -> tuple[str, ...]:
    """torch releases ("2.14") that NIXL's wheel has nixl_ep for; empty where the table does not say."""
    wanted = release(nixl_version, "NIXL's version")
    for row in field("nixl", "nixl_ep_builds", list):
        if release(str(row["nixl"])) == wanted:
            return tuple(str(item) for item in row["torch"])
    return ()


def catalogue_date() -> str:
    """Date of the newest table, for the report's first line."""
    return max((str(content["as_of"]) for content in tables().values()), default="")


def stale_warning(dates: Mapping[str, datetime.date], today: datetime.date) -> str:
    """One line that names the tables older than STALE_AFTER_DAYS, oldest first; empty where there is none."""
    old = sorted((date, name) for name, date in dates.items() if (today - date).days > STALE_AFTER_DAYS)
    if not old:
        return ""
    named = ", ".join(f"{name} of {date}" for date, name in old)
    return (
        f"compatibility tables older than {STALE_AFTER_DAYS} days ({named}): newer releases may be judged wrongly; "
        "pip install --upgrade epdoctor"
    )


def table_dates() -> Mapping[str, datetime.date]:
    """As-of date of every table."""
    return {name: content["as_of"] for name, content in tables().items()}
