"""The yardstick for layers 5b: a plain torch loop of all-to-all, without anything of ours. One node.

python tests/bench/gpu_by_hand.py
"""

import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

BYTES = 64 << 20


def work(rank: int, world: int) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method="tcp://127.0.0.1:29777", rank=rank, world_size=world)
    sent = torch.randn(BYTES // 4, device="cuda")
    got = torch.empty_like(sent)
    for _ in range(10):
        dist.all_to_all_single(got, sent)
    times = []
    for _ in range(7):
        torch.cuda.synchronize()
        dist.barrier()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(20):
            dist.all_to_all_single(got, sent)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / 20)
    if rank == 0:
        seconds = statistics.median(times)
        print(
            f"all-to-all 64 MiB by hand: {BYTES * (world - 1) / world / seconds / 1e9:.1f} GB/s", flush=True
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, args=(torch.cuda.device_count(),), nprocs=torch.cuda.device_count())
