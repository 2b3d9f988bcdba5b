"""Bytes that a back end's all2all buffers take on each GPU. Pure.

Sources: vLLM 0.33.0 distributed/device_communicators/all2all.py:255-285 (high throughput), :343-366 (low latency)."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
HIGH_THROUGHPUT_MIB = 1024
"""VLLM_DEEPEP_BUFFER_SIZE_MB where it is not set."""
NONE_OF_ITS_OWN = ("allgather_reducescatter",)
"""Go through NCCL, whose buffers stand with the context."""


@dataclass(frozen=True)
class Buffers:
    size_bytes: float
    how: str
    """The sum in words; for a back end that is not counted, that."""
    counted: bool = True


def low_latency_buffer_bytes(tokens: int, hidden: int, experts: int) -> int:
    """Size of the RDMA buffer of DeepEP's low-latency mode.

    DeepEP d4f41e4e csrc/config.hpp LowLatencyLayout: two send and two receive buffers and two of counters; a
    combine message carries bfloat16 and a scale pair for each 128 values. Checked against the sizes in
    vllm-project/vllm#57894 (5120, 448 experts, 2048 tokens: 35.55 GiB)."""
    scales = hidden // 128
    dispatch = 16 + max(hidden * 2, hidden + scales * 4)
    combine = scales * 4 + hidden * 2
    send = max(tokens * dispatch, experts * tokens * combine)
    receive = experts * tokens * max(dispatch, combine)
    counters = max(experts * 4, 128)
    total = 2 * (send + receive + counters)
    return (total + 127) // 128 * 128


def all2all_buffers(
    backend: str, *, across: bool, tokens: int, hidden: int, experts: int, buffer_mib: int = HIGH_THROUGHPUT_MIB
) -> Buffers:  # fmt: skip
    """`across`: ranks on several nodes; `tokens`: of a rank in one step; `experts`: redundant ones too."""
    if backend in NONE_OF_ITS_OWN:
        return Buffers(0.0, "")
    if backend == "deepep_high_throughput":
        parts = 2 if across else 1
        what = f"{buffer_mib} MiB NVLink" + (f" + {buffer_mib} MiB RDMA" if across else "")
        return Buffers(float(parts * buffer_mib * MIB), what)
    if backend == "deepep_low_latency":
        size = low_latency_buffer_bytes(tokens, hidden, experts)
        return Buffers(float(size), f"{tokens} tokens x {experts} experts x hidden {hidden}")
    return Buffers(0.0, f"those of {backend} are not counted", counted=False)
