"""What running `vllm serve` command lines say: back end, token limit, parallel sizes, KV connector."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epdoctor.exceptions import Unmeasured

if TYPE_CHECKING:
    from epdoctor.facts import Node

_SHORT = {"-tp": "tensor-parallel-size", "-dp": "data-parallel-size", "-pp": "pipeline-parallel-size",
          "-dpr": "data-parallel-start-rank", "-dpn": "data-parallel-rank", "-dpl": "data-parallel-size-local", "-dpa": "data-parallel-address",
          "-dpp": "data-parallel-rpc-port", "-ep": "enable-expert-parallel",
          "-dpb": "data-parallel-backend"}  # fmt: skip
"""Short flags of vLLM 0.33 engine/arg_utils.py."""

BATCHED_BACKENDS = ("deepep_low_latency", "nixl_ep")
BATCHED_TOKEN_LIMIT = 256
"""vLLM 0.33 config/scheduler.py:42 DEFAULT_MAX_NUM_BATCHED_TOKENS_FOR_BATCHED_DP, with EP and DP > 1."""


@dataclass(frozen=True)
class Launch:
    """One `vllm serve` command line."""

    pid: int
    options: Mapping[str, str]
    """Long option without dashes -> value; "true" for a switch. A repeated option keeps its last value."""

    @property
    def source(self) -> str:
        return f"vllm serve (pid {self.pid})"

    def number(self, option: str) -> int | None:
        return parse_number(self.options.get(option, ""))

    @property
    def all2all_backend(self) -> str:
        """As given; empty: vLLM's default."""
        return self.options.get("all2all-backend", "")

    @property
    def kv_connector(self) -> str:
        """kv_connector of --kv-transfer-config; empty: none or not readable."""
        try:
            value: Any = json.loads(self.options.get("kv-transfer-config", "") or "{}")
        except (ValueError, RecursionError):
            return ""
        return str(value.get("kv_connector", "")) if isinstance(value, dict) else ""


@dataclass(frozen=True)
class TokenLimit:
    """Most tokens a rank sends in one step (max_num_batched_tokens) and who says so."""

    tokens: int
    source: str


def parse_number(text: str) -> int | None:
    """An integer as vLLM's parser takes it: 8192, 8k (8000), 8K (8192), 1M... None where it is none."""
    text = text.strip().replace("_", "")
    # vLLM 0.33 engine/arg_utils.py human_readable_int: lower case decimal, upper case binary.
    factors = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    factor = factors.get(text[-1:], 1)
    digits = text[:-1] if text[-1:] in factors else text
    whole, dot, decimals = digits.partition(".")
    if not digits.isascii() or not whole.isdigit() or len(digits) > 12 or (dot and not decimals.isdigit()):
        return None
    if dot:
        # vLLM takes decimals with the decimal suffixes only: 25.6k
        return int(float(digits) * factor) if text[-1:] in ("k", "m", "g") else None
    return int(whole) * factor


def parse_options(argv: Sequence[str]) -> dict[str, str]:
    """Options of a command line. `--a=b`, `--a b`, `--a_b`; words before the first option are left out."""
    found: dict[str, str] = {}
    name = ""
    for word in argv[:2000]:
        if word in _SHORT:
            name = _SHORT[word]
            found[name] = "true"
        elif word.startswith("--") and len(word) > 2:
            raw, equals, value = word[2:].partition("=")
            name = raw.replace("_", "-")
            found[name] = value if equals else "true"
            if equals:
                name = ""
        elif name:
            found[name] = word
            name = ""
    return found


def launches(node: Node) -> tuple[Launch, ...]:
    """Command lines of the running `vllm serve` processes. Raises Unmeasured where /proc was not read."""
    return tuple(
        Launch(process.pid, parse_options(process.cmdline))
        for process in node.processes.workers
        if process.role == "serve" and len(process.cmdline) > 1
    )


def token_limit(node: Node) -> TokenLimit:
    """Most tokens a rank sends in one step.

    From the running launch, else --max-num-batched-tokens, else vLLM's default for the batched back ends
    (deepep_low_latency, nixl_ep).

    Raises Unmeasured where nothing says so and vLLM's default depends on the GPU and the usage."""
    goal = node.goal
    try:
        running = launches(node)
    except Unmeasured:
        if goal.max_num_batched_tokens is None:
            raise
        running = ()
    given = [(number, launch) for launch in running if (number := launch.number("max-num-batched-tokens"))]
    if given:
        tokens, launch = max(given, key=lambda pair: pair[0])
        return TokenLimit(tokens, launch.source)
    if goal.max_num_batched_tokens is not None:
        return TokenLimit(goal.max_num_batched_tokens, goal.token_limit_source or "--max-num-batched-tokens")
    if goal.backend and goal.backend not in BATCHED_BACKENDS:
        raise Unmeasured(
            f"vLLM's token limit for {goal.backend} depends on the GPU; give --max-num-batched-tokens"
        )
    for launch in running:
        if (launch.number("data-parallel-size") or 1) < 2:
            raise Unmeasured(
                f"{launch.source} has one data-parallel rank: vLLM's token limit then depends on the GPU; "
                "give --max-num-batched-tokens"
            )
    return TokenLimit(BATCHED_TOKEN_LIMIT, f"vLLM's default for {goal.backend or 'deepep_low_latency'}")
