"""The layout of a model on nodes: tensor and expert parallel sizes, back end, memory, and why. Pure.

Sources: vLLM 0.33.0 docs/serving/expert_parallel_deployment.md (one head, others headless; DeepEP high throughput
for prefill, low latency for decode, across nodes; allgather_reducescatter for everything else); DeepEP d4f41e4e
(limits, checks/compat/launch.yaml); distributed/device_communicators/all2all.py (buffers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from epdoctor import compat
from epdoctor.backends import available
from epdoctor.exceptions import UsageError
from epdoctor.facts.launch import BATCHED_TOKEN_LIMIT
from epdoctor.launch import memory
from epdoctor.launch.buffers import Buffers, all2all_buffers, low_latency_buffer_bytes
from epdoctor.launch.judge import fact
from epdoctor.launch.memory import GIB, Budget, Layout
from epdoctor.launch.model_shape import ModelShape
from epdoctor.plan.nodes import PlanNode, alike

PORTABLE = "allgather_reducescatter"
LOW_LATENCY = "deepep_low_latency"
HIGH_THROUGHPUT = "deepep_high_throughput"
BY_WORKLOAD = {"prefill": HIGH_THROUGHPUT, "decode": LOW_LATENCY}


@dataclass(frozen=True)
class Request:
    model: str
    version: str
    workload: str
    """prefill | decode | mixed"""
    tensor: int | None = None
    redundant: int = 0
    tokens: int | None = None
    """--max-num-batched-tokens."""
    backend: str = ""
    """Asked for by name; empty: chosen."""


@dataclass(frozen=True)
class Group:
    """Nodes that serve together under one head."""

    role: str
    """serve | prefill | decode"""
    nodes: tuple[PlanNode, ...]
    tensor: int
    data: int
    backend: str
    redundant: int
    tokens: int | None
    """Written to the command; None: vLLM's own."""
    budget: Budget
    not_counted: str
    windowed: bool
    """The cache's tokens are not counted: some layers keep a window of them."""
    reasons: tuple[tuple[str, str], ...]
    """(what, why), one line each."""
    variables: tuple[tuple[str, str], ...]
    """Of every node alike."""

    @property
    def local(self) -> int:
        """Data-parallel ranks a node."""
        return self.data // len(self.nodes)

    @property
    def ranks(self) -> int:
        return self.tensor * self.data


class DoesNotFit(Exception):  # noqa: N818 - an answer with numbers, not a mistake
    """No layout on these nodes holds the model. `group`: the best one; `advice`: what would."""

    def __init__(self, group: Group, advice: str) -> None:
        super().__init__(advice)
        self.group = group
        self.advice = advice


def split(nodes: tuple[PlanNode, ...], ratio: tuple[int, int]) -> tuple[tuple[PlanNode, ...], tuple[PlanNode, ...]]:  # fmt: skip
    """Nodes for prefill and for decode, P:D. Raises UsageError where they do not divide."""
    prefill, decode = ratio
    whole = prefill + decode
    if len(nodes) % whole:
        raise UsageError(
            f"--disaggregate {prefill}:{decode} needs a multiple of {whole} nodes, and there are {len(nodes)}",
            hint=f"--nodes {whole}, or another P:D",
        )
    first = len(nodes) // whole * prefill
    return nodes[:first], nodes[first:]


def _obstacle(
    backend: str, request: Request, shape: ModelShape, nodes: Sequence[PlanNode], ranks: int
) -> str:
    """Why DeepEP's legacy kernels cannot be chosen; empty: nothing is in the way."""
    if reason := available(backend, request.version):
        return reason
    if any(node.rdma is None for node in nodes):
        return "the fabric between the nodes is not known (-i inventory or --from RECORD tells)"
    without = [node.name for node in nodes if not node.rdma]
    if without:
        return f"no active RDMA device on {', '.join(without[:4])}"
    if any(node.nvlink is False for node in nodes):
        return "the GPUs of a node have no NVLink"
    if nodes[0].gpus != 8:
        return f"legacy DeepEP counts on 8 GPUs a node, and these have {nodes[0].gpus}"
    return _limit(backend, request, shape, ranks)


def _limit(backend: str, request: Request, shape: ModelShape, ranks: int) -> str:
    allowed = [int(item) for item in compat.field("launch", "deepep_ranks", list)]
    if backend == HIGH_THROUGHPUT and ranks not in allowed:
        return f"DeepEP has no configuration for {ranks} ranks (it has {', '.join(map(str, allowed))})"
    if (shape.experts + request.redundant) % ranks:
        return f"{shape.experts + request.redundant} experts do not divide over {ranks} ranks"
    if backend != LOW_LATENCY:
        return ""
    sizes = [int(item) for item in compat.field("launch", "deepep_hidden_sizes", list)]
    if shape.hidden > sizes[-1]:
        return f"its kernels end at hidden size {sizes[-1]}, the model has {shape.hidden}"
    if shape.top_k > fact("deepep_low_latency_top_k"):
        return f"its kernels end at {fact('deepep_low_latency_top_k')} experts a token, the model has {shape.top_k}"
    tokens = request.tokens or BATCHED_TOKEN_LIMIT
    size = low_latency_buffer_bytes(tokens, shape.hidden, shape.experts + request.redundant)
    if size > fact("deepep_buffer_limit_bytes"):
        return f"its buffer for {tokens} tokens is {size / GIB:.1f} GiB, more than 32 GiB"
    if 2 * (tokens + 1) > int(compat.field("nvshmem", "qp_depth", dict)["max"]):
        return f"NVSHMEM's queues are too short for {tokens} tokens"
    return ""


def _backend(request: Request, shape: ModelShape, nodes: Sequence[PlanNode], ranks: int) -> tuple[str, str]:
    """(name, reason)."""
    if request.backend:
        limit = ""
        if request.backend in BY_WORKLOAD.values():
            limit = _limit(request.backend, request, shape, ranks)
        if limit:
            raise UsageError(f"--backend {request.backend}: {limit}", hint="leave --backend away")
        return request.backend, "asked for by --backend"
    if request.workload not in BY_WORKLOAD:
        return (
            PORTABLE,
            "prefill and decode mixed: DeepEP's kernels are each made for one (--disaggregate 1:1)",
        )
    if len(nodes) == 1:
        return PORTABLE, "one node: NCCL over NVLink; vLLM's guide has DeepEP for several nodes"
    wanted = BY_WORKLOAD[request.workload]
    if obstacle := _obstacle(wanted, request, shape, nodes, ranks):
        return PORTABLE, f"not {wanted}: {obstacle}"
    return wanted, f"{request.workload} across nodes with RDMA and NVLink"


def _tensors(request: Request, shape: ModelShape, gpus: int) -> list[int]:
    """Tensor parallel sizes to try, inside one node's NVLink island."""
    if request.tensor is None:
        return [size for size in (1, 2, 4, 8) if not gpus % size and not shape.heads % size]
    size = request.tensor
    if gpus % size:
        raise UsageError(
            f"--tp {size} does not divide a node's {gpus} GPUs: it would leave the NVLink island"
        )
    if shape.heads % size:
        raise UsageError(f"--tp {size} does not divide the model's {shape.heads} attention heads")
    return [size]


def _check_experts(request: Request, shape: ModelShape, ranks: int) -> None:
    if request.redundant and (shape.experts + request.redundant) % ranks:
        more = request.redundant + -(shape.experts + request.redundant) % ranks
        raise UsageError(
            f"--eplb {request.redundant}: {shape.experts} + {request.redundant} experts do not divide over {ranks} ranks",
            hint=f"--eplb {more}",
        )
    if shape.experts < ranks and not request.redundant:
        raise UsageError(
            f"{ranks} ranks and only {shape.experts} experts a layer: some ranks would have none",
            hint=f"--eplb {ranks - shape.experts}, or fewer nodes",
        )


def choose(request: Request, shape: ModelShape, nodes: tuple[PlanNode, ...], role: str = "serve") -> Group:
    """The layout of one group of nodes. Raises UsageError for a wish that cannot be, DoesNotFit with the numbers."""
    alike(nodes)
    ranks = nodes[0].gpus * len(nodes)
    if ranks < 2:
        raise UsageError("expert parallelism needs two GPUs or more", hint="--gpus-per-node 8")
    _check_experts(request, shape, ranks)
    backend, reason = _backend(request, shape, nodes, ranks)
    tokens = request.tokens
    if backend == LOW_LATENCY and tokens is None:
        tokens = BATCHED_TOKEN_LIMIT
    buffers = all2all_buffers(
        backend, across=len(nodes) > 1, tokens=tokens or BATCHED_TOKEN_LIMIT, hidden=shape.hidden,
        experts=shape.experts + request.redundant,
    )  # fmt: skip
    gpu_bytes = min(node.gpu_bytes for node in nodes)
    parts: dict[str, Any] = {
        "utilisation": memory.utilisation_default(request.version),
        "buffer_bytes": buffers.size_bytes,
        "buffer_how": buffers.how,
    }
    tried: list[tuple[int, Budget]] = []
    for tensor in _tensors(request, shape, nodes[0].gpus):
        layout = Layout(tensor, ranks // tensor, request.redundant)
        tried.append((tensor, memory.budget(shape, layout, gpu_bytes, **parts)))
    good = next((item for item in tried if not item[1].tight), None) or max(
        tried, key=lambda item: item[1].left_bytes
    )
    group = _group(request, shape, nodes, role, good, backend, reason, tokens, buffers)
    if not good[1].fits:
        raise DoesNotFit(group, _advice(request, shape, nodes[0], ranks, gpu_bytes, parts))
    return group


def _advice(
    request: Request, shape: ModelShape, node: PlanNode, total: int, gpu_bytes: float, parts: dict[str, Any]
) -> str:
    """How many of these GPUs, or which others, hold it."""
    said: list[str] = []
    plain = {"utilisation": parts["utilisation"], "buffer_bytes": parts["buffer_bytes"]}
    for tensor in _tensors(request, shape, node.gpus):
        ranks = memory.smallest_fit(
            shape, Layout(tensor, 1, request.redundant), gpu_bytes, node.gpus, **plain
        )
        if ranks is not None and ranks <= shape.experts + request.redundant:
            said.append(f"{ranks} of these GPUs ({ranks // node.gpus} nodes, TP {tensor})")
            break
    for row in sorted(compat.field("gpus", "gpus", list), key=lambda row: int(row["memory_mib"])):
        size = int(row["memory_mib"]) << 20
        if size <= gpu_bytes:
            continue
        ranks = memory.smallest_fit(
            shape, Layout(1, 1, request.redundant), size, node.gpus, most=total, **plain
        )
        if ranks is not None:
            said.append(f"{ranks} x {' '.join(row['words'])}")
    return "; ".join(said[:3]) or "no number of these GPUs is enough: weights of fewer bits"


def _group(
    request: Request, shape: ModelShape, nodes: tuple[PlanNode, ...], role: str, chosen: tuple[int, Budget],
    backend: str, reason: str, tokens: int | None, buffers: Buffers,
) -> Group:  # fmt: skip
    tensor, budget = chosen
    ranks = nodes[0].gpus * len(nodes)
    why = (
        _tensor_reason(request, shape, tensor, nodes[0].nvlink)
        if budget.fits
        else "leaves the most room, and still too little"
    )
    reasons = [(f"TP {tensor}", why)]
    reasons.append(
        (f"EP {ranks}", f"experts over all {ranks} GPUs: {budget.terms[0].gib:.1f} GiB of them each")
    )  # fmt: skip
    reasons.append((backend, reason))
    variables: list[tuple[str, str]] = []
    if backend == LOW_LATENCY:
        limit = tokens or BATCHED_TOKEN_LIMIT
        depths = compat.field("nvshmem", "qp_depth", dict)
        asked = "asked for" if request.tokens else "vLLM's own limit for this back end"
        reasons.append((f"{limit} tokens", f"a rank in one step ({asked}): the buffers are sized by it"))
        if 2 * (limit + 1) > int(depths["default"]):
            variables.append(("NVSHMEM_QP_DEPTH", str(2 * (limit + 1))))
            reasons.append((f"depth {2 * (limit + 1)}", f"NVSHMEM_QP_DEPTH: DeepEP wants 2 x ({limit} + 1)"))
    if request.redundant:
        local = (shape.experts + request.redundant) // ranks
        reasons.append(
            (f"EPLB {request.redundant}", f"{shape.experts} + {request.redundant} experts: {local} a rank")
        )
    not_counted = "" if buffers.counted else f"all2all buffers: {buffers.how}"
    return Group(
        role, nodes, tensor, ranks // tensor, backend, request.redundant, tokens, budget, not_counted,
        shape.windowed, tuple(reasons), tuple(variables),
    )  # fmt: skip


def _tensor_reason(request: Request, shape: ModelShape, tensor: int, nvlink: bool | None) -> str:
    if request.tensor is not None:
        return "asked for by --tp"
    if tensor > 1:
        island = "one node, without NVLink: slow" if nvlink is False else "one NVLink island"
        return f"so that attention and dense weights fit; {tensor} GPUs of {island}"
    if not shape.kv_heads:
        return "latent attention: TP would keep a copy of the cache on every rank"
    return "no traffic for attention: each GPU has its own requests"
