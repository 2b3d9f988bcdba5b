"""DeepEP dispatch and combine, verified and timed: Buffer (generations 1 and 2.x) and ElasticBuffer (2.x).

API: deepseek-ai/DeepEP v1.2.1 deep_ep/buffer.py; d4f41e4 and dd758ca deep_ep/buffers/{legacy,elastic}.py with
tests/elastic/test_ep.py; README examples. Generation 2.5 has EPBuffer in the place of both.
"""

import importlib.metadata
import json
import os
import statistics
from datetime import timedelta

import torch
import torch.distributed as dist

PARAMS = json.loads(os.environ["EPDOCTOR_PARAMS"])
OUT = os.fdopen(3, "w")
RANK, WORLD = int(os.environ["RANK"]), PARAMS["world"]
HIDDEN, EXPERTS, TOP = PARAMS["hidden"], PARAMS["experts"], PARAMS["top"]
CLASSES = ("Buffer", "ElasticBuffer", "EPBuffer")


def say(**value):
    OUT.write(json.dumps(value) + "\n")
    OUT.flush()


def timed(action, rounds=7, repeat=10):
    """Microseconds an action takes among others of its kind, median, the slowest rank's."""
    times = []
    for round_ in range(rounds + 2):
        dist.barrier()
        torch.cuda.synchronize()
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeat):
            action()
        end.record()
        end.synchronize()
        if round_ >= 2:
            times.append(begin.elapsed_time(end) * 1e3 / repeat)
    worst = torch.tensor([statistics.median(times)], device="cuda")
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst.item())


def off(got, want):
    """Relative error in float64."""
    got, want = got.double(), want.double()
    return float((got - want).norm() / want.norm())


def tell(what, mode, us, moved, right, error):
    """One timed call that moved so many bytes."""
    gb_s = round(moved / us / 1e3, 1)
    say(what=what, mode=mode, us=round(us, 1), gb_s=gb_s, right=right, error=error)


def agreed(right):
    """Whether every rank says so."""
    flag = torch.tensor([1 if right else 0], device="cuda")
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def version():
    """Of the package; empty where it does not say."""
    if getattr(deep_ep, "__version__", ""):
        return str(deep_ep.__version__)
    for name in importlib.metadata.packages_distributions().get("deep_ep", []):
        return importlib.metadata.version(name)
    return ""


def choice(tokens):
    """Each token's experts and weights."""
    score = torch.randn((tokens, EXPERTS), dtype=torch.float32, device="cuda").abs() + 1
    index = torch.topk(score, TOP, dim=-1).indices
    weights = torch.rand((tokens, TOP), dtype=torch.float32, device="cuda")
    return index.to(deep_ep.topk_idx_t if hasattr(deep_ep, "topk_idx_t") else torch.int64), weights


def some(tokens):
    return torch.randn((tokens, HIDDEN), dtype=torch.bfloat16, device="cuda")


def normal(group):
    across = WORLD > 8
    buffer = deep_ep.Buffer(group, PARAMS["buffer_bytes"], PARAMS["buffer_bytes"] if across else 0)
    say(started="normal")
    x = some(PARAMS["tokens"])
    index, weights = choice(PARAMS["tokens"])
    per_rank, per_rdma, per_expert, in_rank, _ = buffer.get_dispatch_layout(index, EXPERTS)
    layout = dict(
        num_tokens_per_rank=per_rank,
        num_tokens_per_rdma_rank=per_rdma,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
    )
    received, _, _, _, handle, _ = buffer.dispatch(x, topk_idx=index, topk_weights=weights, **layout)
    back, _, _ = buffer.combine(received, handle)
    copies = in_rank.sum(dim=1, keepdim=True)
    error = off(back, x.float() * copies)
    moved = int(received.numel() * 2)
    us = timed(lambda: buffer.dispatch(x, handle=handle))
    right = agreed(error < 1e-2)
    tell("dispatch", "normal", us, moved, right, error)
    us = timed(lambda: buffer.combine(received, handle))
    tell("combine", "normal", us, moved, right, error)


def low_latency(group):
    limit = PARAMS["low_latency_tokens"]
    size = deep_ep.Buffer.get_low_latency_rdma_size_hint(limit, HIDDEN, WORLD, EXPERTS)
    buffer = deep_ep.Buffer(
        group,
        0,
        size,
        low_latency_mode=True,
        num_qps_per_rank=EXPERTS // WORLD,
        allow_nvlink_for_low_latency_mode=True,
    )
    say(started="low-latency")
    x = some(limit)
    index, weights = choice(limit)

    def dispatch():
        return buffer.low_latency_dispatch(x, index, limit, EXPERTS, use_fp8=False)

    received, _, handle, _, _ = dispatch()
    back, _, _ = buffer.low_latency_combine(received, index, weights, handle)
    error = off(back, x.float() * weights.sum(dim=1, keepdim=True))
    right = agreed(error < 1e-2)
    us = timed(dispatch)
    moved = limit * TOP * HIDDEN * 2
    tell("dispatch", "low-latency", us, moved, right, error)
    received, _, handle, _, _ = dispatch()
    us = timed(lambda: buffer.low_latency_combine(received, index, weights, handle))
    tell("combine", "low-latency", us, moved, right, error)


def pattern(tokens):
    """Rows that every rank can make for any token of the group: small multiples of 1/64, exact in bfloat16."""
    column = torch.arange(HIDDEN, device="cuda", dtype=torch.int32) * 7
    row = tokens.to(torch.int32).unsqueeze(1) % 251 * 131
    return (((row + column) % 251 - 125).float() / 64).to(torch.bfloat16)


def v2(group):
    """One kind of buffer for prefill and decode, NVLink inside a node and NCCL GIN across."""
    limit = PARAMS["tokens"]
    # A hang ends with DeepEP's own words. The first calls compile their kernels: ranks do not start together.
    patience = max(20, int(PARAMS["timeout_s"] * 0.7))
    buffer = deep_ep.ElasticBuffer(
        group,
        num_max_tokens_per_rank=limit,
        hidden=HIDDEN,
        num_topk=TOP,
        # vLLM 0.33 vllm/envs.py: 1 unless it is set.
        allow_hybrid_mode=os.environ.get("VLLM_DEEPEP_V2_ALLOW_HYBRID_MODE", "1") != "0",
        num_cpu_timeout_secs=patience,
        num_gpu_timeout_secs=patience,
        explicitly_destroy=True,
    )
    say(started="v2")
    # Unequal numbers of tokens, as in serving.
    tokens = limit - RANK % 8
    first = RANK * limit
    x = pattern(torch.arange(first, first + tokens, device="cuda"))
    index, weights = choice(tokens)

    def dispatch():
        # Without waiting for the CPU, as in a CUDA graph: the result has room for the worst case.
        return buffer.dispatch(
            x=x,
            topk_idx=index,
            topk_weights=weights,
            num_experts=EXPERTS,
            num_max_tokens_per_rank=limit,
            do_cpu_sync=False,
        )

    received, _, _, handle, _ = dispatch()
    count = int(handle.psum_num_recv_tokens_per_scaleup_rank[-1].item())
    came_from = handle.recv_src_metadata[:count, 0]
    right = torch.equal(torch.sort(came_from).values.long(), expected_here(index, limit))
    for start in range(0, count if right else 0, 4096):
        rows = slice(start, min(start + 4096, count))
        right = right and torch.equal(received[rows], pattern(came_from[rows]))
    right = agreed(right)
    back, _, _ = buffer.combine(received, handle)
    holders = torch.zeros((tokens, WORLD), dtype=torch.bool, device="cuda")
    holders.scatter_(1, index.long() // (EXPERTS // WORLD), True)
    error = off(back, x.float() * holders.sum(dim=1, keepdim=True))
    moved = count * HIDDEN * 2
    tell("dispatch", "v2", timed(dispatch), moved, right, error)
    us = timed(lambda: buffer.combine(received, handle))
    tell("combine", "v2", us, moved, agreed(error < 1e-2), error)
    buffer.destroy()


def expected_here(index, limit):
    """Numbers of all tokens that have an expert on this rank, ascending."""
    padded = torch.full((limit, TOP), -1, dtype=torch.int64, device="cuda")
    padded[: len(index)] = index
    everyone = torch.empty((WORLD * limit, TOP), dtype=torch.int64, device="cuda")
    dist.all_gather_into_tensor(everyone, padded)
    share = EXPERTS // WORLD
    return ((everyone >= RANK * share) & (everyone < (RANK + 1) * share)).any(dim=1).nonzero().squeeze(1)


torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group(
    "nccl",
    init_method="tcp://%s:%d" % (PARAMS["host"], PARAMS["port"]),
    rank=RANK,
    world_size=WORLD,
    timeout=timedelta(seconds=PARAMS["timeout_s"]),
    device_id=torch.device("cuda", torch.cuda.current_device()),
)
group = dist.new_group(list(range(WORLD)))
# The group's communicator must exist: ElasticBuffer takes it as it is.
dist.all_reduce(torch.zeros(1, device="cuda"), group=group)
import deep_ep

say(version=version(), classes=[name for name in CLASSES if hasattr(deep_ep, name)])
NEEDS = {"normal": "Buffer", "low-latency": "Buffer", "v2": "ElasticBuffer"}
torch.manual_seed(100 + RANK)
for mode, run in (("normal", normal), ("low-latency", low_latency), ("v2", v2)):
    if mode in PARAMS["modes"] and hasattr(deep_ep, NEEDS[mode]):
        run(group)
dist.destroy_process_group()
