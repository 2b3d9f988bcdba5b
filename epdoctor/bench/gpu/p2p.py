"""Copies between the GPUs of one node: bandwidth of each direction, and whether the bytes arrive."""

import json
import os
import statistics

import torch

PARAMS = json.loads(os.environ["EPDOCTOR_PARAMS"])
OUT = os.fdopen(3, "w")
SIZE = PARAMS["bytes"]


def say(**value):
    OUT.write(json.dumps(value) + "\n")
    OUT.flush()


def name(index):
    return "GPU%d" % index


def timed(source, target):
    """GB/s, median over the repetitions; each repetition is long enough for the event clock."""
    stream = torch.cuda.Stream(device=source.device)
    times = []
    with torch.cuda.stream(stream):
        for round_ in range(PARAMS["rounds"] + 2):
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record(stream)
            for _ in range(PARAMS["copies"]):
                target.copy_(source, non_blocking=True)
            end.record(stream)
            end.synchronize()
            if round_ >= 2:
                times.append(begin.elapsed_time(end) / PARAMS["copies"])
    return SIZE / 1e6 / statistics.median(times)


count = torch.cuda.device_count()
say(gpus=count, names=[torch.cuda.get_device_name(i) for i in range(count)], torch=torch.__version__)
buffers = {}
for index in range(count):
    generator = torch.Generator(device="cuda:%d" % index).manual_seed(index + 1)
    buffers[index] = torch.randint(
        0, 255, (SIZE,), dtype=torch.uint8, device="cuda:%d" % index, generator=generator
    )
for a in range(count):
    for b in range(count):
        if a == b:
            continue
        try:
            target = torch.zeros(SIZE, dtype=torch.uint8, device="cuda:%d" % b)
            rate = timed(buffers[a], target)
            torch.cuda.synchronize(b)
            right = bool(torch.equal(target.cpu(), buffers[a].cpu()))
            del target
        except RuntimeError as error:
            say(a=a, b=b, error=str(error).splitlines()[0][:300])
            continue
        say(a=a, b=b, gb_s=round(rate, 2), right=right, peer=torch.cuda.can_device_access_peer(a, b))
