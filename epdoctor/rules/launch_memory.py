"""Rules on memory: whether weights, redundancy and buffers of a rank fit on its GPU, and with how much room."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.launch.footprint import Footprint, footprint, gpu_memory
from epdoctor.launch.judge import fleet_rule
from epdoctor.launch.layout import across_nodes, first_option
from epdoctor.launch.memory import GIB, TIGHT, Budget, Layout, smallest_fit
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.launch.model_table import config_of
from epdoctor.model import Location, Problem
from epdoctor.rules import need


def _gpu_known(launch: LaunchSet, server: Server) -> bool:
    try:
        return gpu_memory(launch, server) is not None
    except Unmeasured:
        return True


def _model_known(launch: LaunchSet, server: Server) -> bool:
    if launch.model_config is not None:
        return True
    try:
        config_of(launch, server)
    except Unmeasured:
        return False
    return True


@need("launch-gpu-memory")
def launch_gpu_memory_known(launch: LaunchSet) -> bool:
    """Nothing says the GPUs' memory (--gpu-memory 80GiB, -i or --from)"""
    return any(_gpu_known(launch, server) for server in launch.servers)


@need("launch-model")
def launch_model_known(launch: LaunchSet) -> bool:
    """The model's config.json is not known (--model-config FILE)"""
    # Who names the memory wants an answer; then a model that is not known is unknown and no skip.
    return launch.gpu_memory_bytes is not None or any(_model_known(launch, s) for s in launch.servers)


def _judged(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[tuple[Server, Footprint]]:
    """Servers whose ranks are not alike: in one deployment, mostly one."""
    if launch.live:
        # It runs, so it fits.
        return
    across, seen = across_nodes(servers), set()
    for server in servers:
        if launch.gpu_memory_bytes is None and not _gpu_known(launch, server):
            continue
        found = footprint(launch, server, across=across)
        key = (found.budget, found.gpu if launch.gpu_memory_bytes is None else "")
        if key not in seen:
            seen.add(key)
            yield server, found


def _place(server: Server) -> Location:
    option = first_option(server, "data-parallel-size", "tensor-parallel-size", "model")
    return server.location if option is None else option.location


def _terms(found: Footprint) -> tuple[str, ...]:
    rows = [f"{term.gib:6.1f} GiB  {term.name}: {term.how}" for term in found.budget.terms]
    return (*rows, *([f"not counted: {found.not_counted}"] if found.not_counted else []))


def _sum(budget: Budget) -> str:
    return f"{budget.needed_bytes / GIB:.1f} GiB"


def _short(budget: Budget) -> str:
    """ "routed experts 76.1 GiB, embeddings 3.5 GiB" """
    return ", ".join(f"{term.name} {term.gib:.1f} GiB" for term in budget.terms)


def _usable(found: Footprint) -> str:
    budget = found.budget
    return (
        f"{budget.usable_bytes / GIB:.1f} GiB ({budget.utilisation:g} of the GPU's "
        f"{budget.gpu_bytes / GIB:.1f} GiB by {found.gpu})"
    )


def _parts(found: Footprint) -> dict[str, Any]:
    buffers = sum(term.size_bytes for term in found.budget.terms if term.name == "all2all buffers")
    return {"utilisation": found.budget.utilisation, "buffer_bytes": buffers}


def _advice(found: Footprint) -> str:
    """What makes it fit, with the numbers."""
    layout, budget = found.layout, found.budget
    terms = {term.name: term.size_bytes for term in budget.terms}
    redundant = terms.get("redundant experts (EPLB)", 0.0)
    if redundant and budget.left_bytes + redundant >= TIGHT * budget.gpu_bytes:
        return "without the redundant experts it fits"
    for tensor in dict.fromkeys((layout.tensor, 2, 4, 8)):
        if tensor < layout.tensor or found.shape.heads % tensor:
            continue
        wider = Layout(tensor, 1, 0, layout.pipeline)
        ranks = smallest_fit(found.shape, wider, budget.gpu_bytes, 8, **_parts(found))
        if ranks is not None:
            return f"{ranks} GPUs fit (TP {tensor} x DP {ranks // tensor})"
    return "more memory a GPU, or weights of fewer bits: no number of these GPUs is enough"


@fleet_rule
def launch_memory_fits(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """What a rank must hold is less than what vLLM may use of its GPU."""
    for server, found in _judged(launch, servers):
        budget = found.budget
        if not budget.surely_too_much:
            continue
        yield Problem(
            found=f"{_sum(budget)} a GPU before any KV cache at EP {found.layout.expert}: {_short(budget)}",
            expected=f"below {_usable(found)}; {_advice(found)}",
            evidence=_terms(found),
            location=_place(server),
        )


@fleet_rule
def launch_memory_not_tight(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """A tenth of the GPU stays for KV cache, activations and CUDA graphs, and one request of full length."""
    for server, found in _judged(launch, servers):
        budget = found.budget
        if budget.surely_too_much:
            continue
        longest = server.number("max-model-len")
        if found.shape.windowed or (server.number("decode-context-parallel-size") or 1) > 1:
            longest = None
        if budget.tight:
            yield Problem(
                found=f"{_sum(budget)} of {_usable(found)} taken before any KV cache: "
                f"{max(0.0, budget.left_bytes) / GIB:.1f} GiB left",
                expected=f"{TIGHT * budget.gpu_bytes / GIB:.0f} GiB or more left; {_advice(found)}",
                evidence=_terms(found),
                location=_place(server),
            )
        elif longest is not None and longest > budget.cache_tokens:
            option = server.option("max-model-len")
            yield Problem(
                found=f"--max-model-len {longest}: all that is left, {budget.left_bytes / GIB:.1f} GiB, holds "
                f"{budget.cache_tokens} tokens",
                expected=f"at most {budget.cache_tokens} tokens; {_advice(found)}",
                evidence=_terms(found),
                location=_place(server) if option is None else option.location,
            )
