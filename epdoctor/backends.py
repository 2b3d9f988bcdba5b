"""Names of vLLM's all2all back ends: canonical, aliases, removed. Data: checks/compat/backends.yaml."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass

from epdoctor import compat
from epdoctor.exceptions import CatalogError, Unmeasured, UsageError


@dataclass(frozen=True)
class Backend:
    name: str
    status: str
    """supported | internal | alias | removed"""
    across_nodes: str
    """yes | no | only-nvlink (only where NVLink spans the nodes)"""
    transport: str
    """nccl | nvshmem | nccl-gin | ucx-gda | nvlink | mori"""
    vendor: str
    """nvidia | amd | any"""
    needs: tuple[str, ...]
    """Python packages beside vLLM: deepep, nixl, mori, moonep, flashinfer."""
    since: str
    """First vLLM release that has it; empty: before 0.11."""
    removed_in: str
    falls_back_to: str
    alias_of: str
    deepep_class: str
    """Class of deep_ep that vLLM uses for it; empty: none."""
    note: str


@dataclass(frozen=True)
class ResolvedBackend:
    """What vLLM would really run for a name that was typed."""

    name: str
    requested: str
    note: str
    """One sentence where it is not what was typed, or not in that version; empty otherwise."""


@functools.cache
def backends() -> dict[str, Backend]:
    """Every known name, also aliases and removed ones."""
    found: dict[str, Backend] = {}
    for row in compat.field("backends", "backends", list):
        try:
            needs = row.get("needs", [])
            found[row["name"]] = Backend(
                name=row["name"],
                status=row["status"],
                needs=tuple(needs),
                **{
                    key: str(row.get(key, ""))
                    for key in (
                        "across_nodes", "transport", "vendor", "since", "removed_in", "falls_back_to",
                        "alias_of",
                        "deepep_class", "note",
                    )
                },
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise CatalogError(f"checks/compat/backends.yaml: {row!r}: {error!r}") from error
    return found


def canonical_backends() -> tuple[str, ...]:
    """Names to judge for, vLLM's default first."""
    return tuple(name for name, backend in backends().items() if backend.status == "supported")


def applicable_backends(multinode: bool, vendor: str = "nvidia") -> tuple[str, ...]:
    """Canonical names that can serve on this vendor's GPUs.

    Across nodes, those that stay in one node are left out, and those that cross only over NVLink: whether
    NVLink spans the nodes is not known here."""
    return tuple(
        name
        for name in canonical_backends()
        if backends()[name].vendor in ("any", vendor)
        and (not multinode or backends()[name].across_nodes == "yes")
    )


def available(name: str, vllm_version: str) -> str:
    """Why vLLM of that version has no such back end, as a sentence part; empty: it has it, or the version is
    not given."""
    backend = backends()[name]
    if not vllm_version:
        return ""
    wanted = compat.release(vllm_version, "vLLM's version")
    if backend.removed_in and wanted >= compat.release(backend.removed_in):
        return f"vLLM {vllm_version} has no {name} (removed in {backend.removed_in})"
    if backend.since and wanted < compat.release(backend.since):
        return f"vLLM {vllm_version} has no {name} yet (since {backend.since})"
    return ""


def resolve_backend(text: str, vllm_version: str = "") -> ResolvedBackend:
    """The canonical back end for what was typed.

    Removed ones resolve to what vLLM silently runs instead, with a note. Raises UsageError with the nearest
    name for an unknown one, and for `passthrough`, which vLLM does not accept on its command line."""
    requested = text.strip()
    name = requested.lower().replace("-", "_")
    backend = backends().get(name)
    if backend is None:
        near = difflib.get_close_matches(name, [*backends()], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "epdoctor list versions shows them"
        raise UsageError(
            f"no all2all back end is called {requested!r}; {hint}",
            hint="known: " + ", ".join(canonical_backends()),
        )
    if backend.status == "internal":
        raise UsageError(
            f"{name} is internal to vLLM: {backend.note}", hint="known: " + ", ".join(canonical_backends())
        )
    if backend.alias_of:
        return ResolvedBackend(
            backend.alias_of, requested, f"{name} is vLLM's old name of {backend.alias_of}"
        )
    if backend.status == "removed":
        # An old vLLM that still has it is not judged by this catalogue.
        return ResolvedBackend(
            backend.falls_back_to,
            requested,
            f"vLLM removed {name} in {backend.removed_in} and runs {backend.falls_back_to} instead",
        )
    try:
        note = available(name, vllm_version)
    except Unmeasured as error:
        raise UsageError(str(error), hint="--vllm 0.33.0") from error
    return ResolvedBackend(name, requested, note)


def backend_table(vllm_version: str = "") -> list[tuple[str, str]]:
    """(name, one line) for `epdoctor list backends`."""
    rows = []
    for name, backend in backends().items():
        if backend.status == "removed":
            text = f"removed in vLLM {backend.removed_in}: it runs {backend.falls_back_to} instead"
        elif backend.alias_of:
            text = f"old name of {backend.alias_of}"
        elif backend.status == "internal":
            text = f"internal to vLLM: {backend.note}"
        else:
            across = {"yes": "one node and across nodes", "no": "one node only"}.get(
                backend.across_nodes, "across nodes only over NVLink"
            )
            text = f"{across}, over {backend.transport}" + (", AMD GPUs" if backend.vendor == "amd" else "")
            missing = available(name, vllm_version)
            text += f"; {missing}" if missing else ""
        rows.append((name, text))
    return rows
