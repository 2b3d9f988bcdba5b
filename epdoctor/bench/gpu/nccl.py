"""All-reduce and all-to-all (the pattern of expert parallelism) over NCCL, through torch; results verified."""

import json
import os
import statistics
from datetime import timedelta

import torch
import torch.distributed as dist

PARAMS = json.loads(os.environ["EPDOCTOR_PARAMS"])
OUT = os.fdopen(3, "w")
RANK, WORLD = int(os.environ["RANK"]), PARAMS["world"]


def say(**value):
    OUT.write(json.dumps(value) + "\n")
    OUT.flush()


def timed(action):
    """Milliseconds, median over repetitions, the slowest rank's."""
    times = []
    for round_ in range(PARAMS["rounds"] + 3):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(PARAMS["repeat"]):
            action()
        end.record()
        end.synchronize()
        if round_ >= 3:
            times.append(begin.elapsed_time(end) / PARAMS["repeat"])
    worst = torch.tensor([statistics.median(times)], device="cuda")
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst.item())


torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group(
    "nccl",
    init_method="tcp://%s:%d" % (PARAMS["host"], PARAMS["port"]),
    rank=RANK,
    world_size=WORLD,
    timeout=timedelta(seconds=PARAMS["timeout_s"]),
    device_id=torch.device("cuda", torch.cuda.current_device()),
)
size = PARAMS["bytes"] // WORLD // 4 * WORLD * 4
say(started=True, nccl=".".join(str(part) for part in torch.cuda.nccl.version()))

count = size // 4
sent = torch.arange(count, dtype=torch.int32, device="cuda") + RANK * 7
got = torch.zeros_like(sent)
dist.all_to_all_single(got, sent)
share = count // WORLD
right = all(
    bool(
        torch.equal(
            got[peer * share : (peer + 1) * share],
            torch.arange(RANK * share, (RANK + 1) * share, dtype=torch.int32, device="cuda") + peer * 7,
        )
    )
    for peer in range(WORLD)
)
ms = timed(lambda: dist.all_to_all_single(got, sent))
say(what="all-to-all", ms=round(ms, 4), bus_gb_s=round(size * (WORLD - 1) / WORLD / ms / 1e6, 2), right=right)

summed = torch.full((count,), float(RANK + 1), device="cuda")
dist.all_reduce(summed)
right = bool((summed == WORLD * (WORLD + 1) / 2).all())
ms = timed(lambda: dist.all_reduce(summed))
say(
    what="all-reduce",
    ms=round(ms, 4),
    bus_gb_s=round(2 * size * (WORLD - 1) / WORLD / ms / 1e6, 2),
    right=right,
)
dist.destroy_process_group()
