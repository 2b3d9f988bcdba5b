"""What a rank of a launch needs on its GPU: weights, experts, redundancy, buffers, cache. Pure arithmetic.

Sources: vLLM 0.33.0: experts are divided over TP x DP ranks with and without --enable-expert-parallel
(docs/serving/expert_parallel_deployment.md); attention, dense and shared layers over TP alone, one copy a
data-parallel rank; distributed/device_communicators/all2all.py:255-366 (buffers). Redundancy: one redundant
expert a rank of DeepSeek-V3 in FP8 = 58 x 3 x 7168 x 2048 B = 2.38 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from epdoctor import compat
from epdoctor.launch.model_shape import ModelShape

GIB = 1 << 30
CONTEXT_BYTES = int(1.5 * GIB)
"""A CUDA context took 518 MiB on an H200 (nvidia-smi, 2026-11-22); the rest is room for NCCL's channels and the
allocator's slack: an estimate."""
UTILISATION = 0.92
"""vLLM's --gpu-memory-utilization where a launch does not give it (vLLM 0.33.0 config/cache.py:215)."""
UTILISATION_BEFORE = 0.9
"""Up to 0.19.1 (config/cache.py:41); 0.22.1 has 0.92. In between the lower one counts."""
UTILISATION_SINCE = "0.22.1"
TIGHT = 0.1
"""Of the GPU's memory: with less than this for cache, activations and CUDA graphs together there is no room to
serve many requests. A rule of thumb."""


@dataclass(frozen=True)
class Layout:
    """How the model is spread."""

    tensor: int
    data: int
    redundant: int = 0
    """num_redundant_experts of --eplb-config, over all ranks."""
    pipeline: int = 1
    """Stages, each with a part of the layers."""
    context: int = 1
    """Prefill context parallel size: its ranks share the experts, too."""

    @property
    def ranks(self) -> int:
        """EP = TP x PCP x DP."""
        return self.tensor * self.context * self.data


@dataclass(frozen=True)
class Term:
    """One part of a rank's memory."""

    name: str
    size_bytes: float
    how: str
    """The sum in words and numbers."""
    estimate: bool = False
    """Not counted but guessed."""

    @property
    def gib(self) -> float:
        return self.size_bytes / GIB


@dataclass(frozen=True)
class Budget:
    """A rank's memory against its GPU."""

    terms: tuple[Term, ...]
    gpu_bytes: float
    utilisation: float
    kv_bytes_per_token: float
    """A rank's part of one token's cache."""

    @property
    def needed_bytes(self) -> float:
        return sum(term.size_bytes for term in self.terms)

    @property
    def counted_bytes(self) -> float:
        """Without the estimates."""
        return sum(term.size_bytes for term in self.terms if not term.estimate)

    @property
    def usable_bytes(self) -> float:
        return self.gpu_bytes * self.utilisation

    @property
    def left_bytes(self) -> float:
        """For the KV cache and activations; below zero: the model does not fit."""
        return self.usable_bytes - self.needed_bytes

    @property
    def fits(self) -> bool:
        return self.left_bytes > 0

    @property
    def surely_too_much(self) -> bool:
        """Too much even where the estimates are zero."""
        return self.counted_bytes > self.usable_bytes

    @property
    def tight(self) -> bool:
        return self.left_bytes < TIGHT * self.gpu_bytes

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache would hold if nothing else took what is left."""
        return max(0, int(self.left_bytes / self.kv_bytes_per_token)) if self.kv_bytes_per_token else 0


def kv_bytes_per_token(shape: ModelShape, tensor: int, value_bytes: float = 2.0) -> float:
    """Of one rank. Latent attention keeps the whole of it on every rank of a tensor-parallel group."""
    divided = min(tensor, shape.kv_heads) if shape.kv_heads else 1
    return shape.layers * shape.kv_values * value_bytes / divided


def utilisation_default(version: str) -> float:
    """vLLM's own share of the GPU, of that version."""
    return UTILISATION if compat.release(version) >= compat.release(UTILISATION_SINCE) else UTILISATION_BEFORE


def budget(
    shape: ModelShape,
    layout: Layout,
    gpu_bytes: float,
    *,
    utilisation: float = UTILISATION,
    buffer_bytes: float = 0.0,
    buffer_how: str = "",
    speculative: bool = False,
    kv_value_bytes: float = 2.0,
) -> Budget:
    """Every term of one rank. `buffer_bytes`: the back end's all2all buffers (epdoctor/launch/buffers.py)."""
    ranks, tensor, stages = layout.ranks, layout.tensor, max(1, layout.pipeline)
    by_stage = f" / PP {stages}" if stages > 1 else ""
    shown = f"{shape.moe_layers} layers x {shape.experts} experts x {shape.expert_bytes / 1e6:.1f} MB"
    common = shape.attention_bytes + shape.dense_bytes + shape.shared_bytes
    terms = [
        Term("routed experts", shape.routed_bytes / ranks / stages, f"{shown} / {ranks} ranks{by_stage}"),
        Term(
            "attention, dense and shared layers",
            common / tensor / stages,
            f"{common / 1e9:.1f} GB / TP {tensor}{by_stage}, one copy a data-parallel rank",
        ),
        Term("embeddings", shape.embedding_bytes / tensor, f"{shape.embedding_bytes / 1e9:.1f} GB / TP {tensor}"),
    ]  # fmt: skip
    if layout.redundant:
        size = shape.moe_layers * shape.expert_bytes * layout.redundant / ranks / stages
        how = (
            f"{shape.moe_layers} layers x {shape.expert_bytes / 1e6:.1f} MB x {layout.redundant} redundant "
            f"/ {ranks} ranks{by_stage}"
        )
        terms.append(Term("redundant experts (EPLB)", size, how))
    if speculative and shape.mtp_layers:
        size = shape.mtp_expert_bytes / ranks + shape.mtp_other_bytes / tensor
        terms.append(Term("multi-token prediction", size, f"{shape.mtp_layers} layer(s)"))
    if buffer_bytes:
        terms.append(Term("all2all buffers", buffer_bytes, buffer_how))
    terms.append(Term("CUDA context and NCCL", CONTEXT_BYTES, "an estimate", estimate=True))
    per_token = kv_bytes_per_token(shape, tensor, kv_value_bytes) / stages
    return Budget(tuple(terms), gpu_bytes, utilisation, per_token)


def smallest_fit(
    shape: ModelShape, layout: Layout, gpu_bytes: float, step: int, *, most: int = 512, **parts: Any
) -> int | None:
    """Fewest ranks of the same tensor parallel size, in whole nodes of `step` GPUs, that are not tight.

    None: not even `most` ranks, since what every rank keeps is too much. `parts` as in `budget`."""
    for ranks in range(step, most + 1, step):
        data = ranks // layout.tensor
        if data < 1 or ranks % layout.tensor:
            continue
        wider = Layout(layout.tensor, data, layout.redundant, layout.pipeline)
        if not budget(shape, wider, gpu_bytes, **parts).tight:
            return ranks
    return None
