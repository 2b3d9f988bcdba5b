"""DeepEP (Buffer of generations 1 and 2.x): normal and low-latency dispatch and combine, verified and timed.

API: deepseek-ai/DeepEP v1.2.1 deep_ep/buffer.py and d4f41e4 deep_ep/buffers/legacy.py; README examples.
"""

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
import deep_ep

Buffer = getattr(deep_ep, "Buffer", None)
if Buffer is None:
    say(absent="this DeepEP has no Buffer class (generation 2.5: EPBuffer only)")
    raise SystemExit(0)
torch.manual_seed(100 + RANK)
score = torch.randn((PARAMS["tokens"], EXPERTS), dtype=torch.float32, device="cuda").abs() + 1


def routed(tokens):
    x = torch.randn((tokens, HIDDEN), dtype=torch.bfloat16, device="cuda")
    index = torch.topk(score[:tokens], TOP, dim=-1).indices
    weights = torch.rand((tokens, TOP), dtype=torch.float32, device="cuda")
    return x, index.to(deep_ep.topk_idx_t if hasattr(deep_ep, "topk_idx_t") else torch.int64), weights


if "normal" in PARAMS["modes"]:
    across = WORLD > 8
    buffer = Buffer(group, PARAMS["buffer_bytes"], PARAMS["buffer_bytes"] if across else 0)
    say(started="normal")
    x, index, weights = routed(PARAMS["tokens"])
    per_rank, per_rdma, per_expert, in_rank, _ = buffer.get_dispatch_layout(index, EXPERTS)
    layout = dict(
        num_tokens_per_rank=per_rank,
        num_tokens_per_rdma_rank=per_rdma,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
    )

    def dispatch():
        return buffer.dispatch(x, topk_idx=index, topk_weights=weights, **layout)

    received, _, _, _, handle, _ = dispatch()
    back, _, _ = buffer.combine(received, handle)
    copies = in_rank.sum(dim=1, keepdim=True)
    error = off(back, x.float() * copies)
    moved = int(received.numel() * 2)
    us = timed(lambda: buffer.dispatch(x, handle=handle))
    right = agreed(error < 1e-2)
    tell("dispatch", "normal", us, moved, right, error)
    us = timed(lambda: buffer.combine(received, handle))
    tell("combine", "normal", us, moved, right, error)
    del buffer, received, back, handle

if "low-latency" in PARAMS["modes"]:
    limit = PARAMS["low_latency_tokens"]
    size = Buffer.get_low_latency_rdma_size_hint(limit, HIDDEN, WORLD, EXPERTS)
    buffer = Buffer(
        group,
        0,
        size,
        low_latency_mode=True,
        num_qps_per_rank=EXPERTS // WORLD,
        allow_nvlink_for_low_latency_mode=True,
    )
    say(started="low-latency")
    x, index, weights = routed(limit)

    def dispatch_low():
        return buffer.low_latency_dispatch(x, index, limit, EXPERTS, use_fp8=False)

    received, count, handle, _, _ = dispatch_low()
    back, _, _ = buffer.low_latency_combine(received, index, weights, handle)
    error = off(back, x.float() * weights.sum(dim=1, keepdim=True))
    right = agreed(error < 1e-2)
    us = timed(dispatch_low)
    moved = limit * TOP * HIDDEN * 2
    tell("dispatch", "low-latency", us, moved, right, error)
    received, count, handle, _, _ = dispatch_low()
    us = timed(lambda: buffer.low_latency_combine(received, index, weights, handle))
    tell("combine", "low-latency", us, moved, right, error)
    del buffer
dist.destroy_process_group()
