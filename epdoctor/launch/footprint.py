"""The memory of one server's ranks, from its options, its model and its GPUs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import require
from epdoctor.facts.launch import BATCHED_TOKEN_LIMIT, parse_number
from epdoctor.launch import memory
from epdoctor.launch.buffers import HIGH_THROUGHPUT_MIB, Buffers, all2all_buffers
from epdoctor.launch.experts import redundant_experts
from epdoctor.launch.json_options import merged
from epdoctor.launch.judge import backend_of, version_of
from epdoctor.launch.layout import Layout, layout_of, number_of, require_known, switch_of, text_of
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.launch.model_shape import ModelShape, parse_config
from epdoctor.launch.model_table import config_of

MIB = 1 << 20
_LOADED_DRAFTS = ("mtp", "deepseek_mtp", "glm4_moe_mtp", "mimo_mtp", "ernie_mtp", "qwen3_next_mtp")
"""speculative-config methods that load the checkpoint's own extra layers."""


@dataclass(frozen=True)
class Footprint:
    budget: memory.Budget
    shape: ModelShape
    layout: Layout
    gpu: str
    """Where the GPU's memory comes from."""
    model: str
    not_counted: str
    """What is left out; empty: nothing that is known of."""


def memory_by_product(name: str) -> int | None:
    """Bytes of a GPU by its product's name ("NVIDIA-H100-80GB-HBM3", "nvidia-h200-141gb"); None: not known."""
    words = {word.upper() for word in re.split(r"[^A-Za-z0-9]+", name[:200])}
    if "MIG" in words:
        return None
    for row in compat.field("gpus", "gpus", list):
        if all(str(word).upper() in words for word in row["words"]):
            return int(row["memory_mib"]) * MIB or None
    return None


def _labels(node: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    """(label, value) of nodeSelector and of node affinity's In expressions with one value."""
    if depth > 12:
        return
    if isinstance(node, Mapping):
        key, values = node.get("key"), node.get("values")
        if node.get("operator") == "In" and isinstance(values, list) and len(values) == 1:
            yield str(key), str(values[0])
        for value in node.values():
            yield from _labels(value, depth + 1)
    elif isinstance(node, list):
        for value in node[:64]:
            yield from _labels(value, depth + 1)


def _by_manifest(server: Server) -> tuple[int, str] | None:
    if server.pod is None:
        return None
    selector = server.pod.raw.get("nodeSelector")
    labels = [(str(k), str(v)) for k, v in selector.items()] if isinstance(selector, Mapping) else []
    labels += _labels(server.pod.raw.get("affinity"))
    products = compat.field("gpus", "product_labels", list)
    for key, value in labels:
        if key in compat.field("gpus", "memory_labels", list):
            number = parse_number(value)
            if number:
                return number * MIB, f"{key}: {value[:60]}"
        if key in products and (size := memory_by_product(value)):
            return size, f"{key}: {value[:60]}"
    return None


def gpu_memory(launch: LaunchSet, server: Server) -> tuple[int, str] | None:
    """(bytes, source) of each of the server's GPUs; None: nothing says it. Raises Unmeasured of a record."""
    if launch.gpu_memory_bytes is not None:
        return launch.gpu_memory_bytes, "--gpu-memory"
    node = launch.nodes.get(server.node)
    if node is not None and node.gpu.gpus:
        sizes = [require(gpu.memory_total_bytes) for gpu in node.gpu.gpus]
        return min(sizes), f"the record of {server.node}"
    return _by_manifest(server)


def _tokens(server: Server) -> int:
    option = server.option("max-num-batched-tokens")
    if option is None:
        return BATCHED_TOKEN_LIMIT
    number = parse_number(require_known(option.value, option.written))
    if number is None:
        raise Unmeasured(f"{option.location}: {option.written} {option.value.text[:40]!r} is not a number")
    return number


def _buffers(
    launch: LaunchSet, server: Server, shape: ModelShape, layout: Layout, redundant: int, across: bool
) -> Buffers:
    if not switch_of(server, "enable-expert-parallel") or layout.data < 2:
        return Buffers(0.0, "")
    backend = backend_of(launch, server)
    tokens = _tokens(server) if backend == "deepep_low_latency" else 0
    given = parse_number(server.variable("VLLM_DEEPEP_BUFFER_SIZE_MB"))
    return all2all_buffers(
        backend,
        across=across,
        tokens=tokens,
        hidden=shape.hidden,
        experts=shape.experts + redundant,
        buffer_mib=HIGH_THROUGHPUT_MIB if given is None else given,
    )


def _speculative(server: Server) -> bool:
    config = merged(server, "speculative-config")
    if config is None:
        return False
    if config.values is None:
        raise Unmeasured(f"{config.location}: --speculative-config cannot be read")
    return str(config.values.get("method", "")) in _LOADED_DRAFTS


def _utilisation(launch: LaunchSet, server: Server) -> float:
    option = server.option("gpu-memory-utilization")
    if option is None:
        return memory.utilisation_default(version_of(launch, server))
    text = require_known(option.value, option.written)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise Unmeasured(f"{option.location}: {option.written} {text[:40]!r} is no share of 1")
    return value


def footprint(launch: LaunchSet, server: Server, *, across: bool) -> Footprint:
    """`across`: whether its deployment spans nodes. Raises Unmeasured for what is missing: GPU, model, options."""
    found = gpu_memory(launch, server)
    if found is None:
        raise Unmeasured(f"{server.location}: the GPU's memory (--gpu-memory 80GiB)")
    gpu_bytes, gpu = found
    if number_of(server, "cpu-offload-gb", 0):
        raise Unmeasured(f"{server.location}: --cpu-offload-gb moves weights to the host")
    config, _source, name = config_of(launch, server)
    shape = parse_config(config, name)
    layout = layout_of(server)
    redundant = redundant_experts(server) if switch_of(server, "enable-eplb") else 0
    buffers = _buffers(launch, server, shape, layout, redundant, across)
    cache = text_of(server, "kv-cache-dtype", "auto")
    budget = memory.budget(
        shape,
        memory.Layout(layout.tensor, layout.data, redundant, layout.pipeline, layout.context),
        gpu_bytes,
        utilisation=_utilisation(launch, server),
        buffer_bytes=buffers.size_bytes,
        buffer_how=buffers.how,
        speculative=_speculative(server),
        kv_value_bytes=1.0 if cache.startswith("fp8") else 2.0,
    )
    missing = "" if buffers.counted else f"all2all buffers: {buffers.how}"
    return Footprint(budget, shape, layout, gpu, name, missing)
