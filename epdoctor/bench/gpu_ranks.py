"""One process a GPU over any number of nodes: what the layers that occupy GPUs share."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from epdoctor.bench.fleet import Call, OperationFailed, WorkerLost
from epdoctor.bench.ladder import Bench
from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import require

PREFIXES = ("NCCL_", "NVSHMEM_", "UCX_", "GLOO_", "TORCH_SYMM_MEM_", "EP_", "VLLM_DEEPEP_")
"""Variables of the workers' environment that the tests get too, so that they take the same way."""
OWN = ("LD_LIBRARY_PATH", "CUDA_HOME")
LINE_CHARS, ERROR_CHARS = 500, 240
_RANK = re.compile(r"^\[rank\d{1,4}\]: ?")
_ERROR = re.compile(
    r"(?:\[rank\d{1,4}\]: )?((?:[A-Za-z_]\w{0,80}\.){0,8}[A-Z]\w{0,80}(?:Error|Exception))(?:: (.*))?$"
)
"""The last line of a traceback; torch puts "[rank0]: " before it."""
TOO_LATE = ("took too long", "no answer in time")
"""How Call ends where the time was up (epdoctor/bench/fleet.py)."""


@dataclass
class Outcome:
    """What all ranks said."""

    values: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)
    """(node, rank, value) in the order of arrival."""
    failed: dict[str, str] = field(default_factory=dict)
    """Node -> sentence."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Node -> end of what its ranks printed; for explain."""
    lost: dict[str, str] = field(default_factory=dict)
    """Node -> how its worker was lost: nothing is known, rather than broken."""
    missing: dict[str, str] = field(default_factory=dict)
    """Node -> what it lacks to run this at all."""

    def of(self, **wanted: object) -> list[tuple[str, int, dict[str, Any]]]:
        """Values that have these fields."""
        return [item for item in self.values if all(item[2].get(key) == one for key, one in wanted.items())]


def gpu_counts(bench: Bench) -> tuple[dict[str, int], list[str]]:
    """Node -> GPUs, for nodes that have some, and sentences on nodes that cannot take part: no answer of the
    driver, or GPUs in use."""
    counts: dict[str, int] = {}
    refused: list[str] = []
    for name in bench.alive:
        node = bench.nodes.get(name)
        if node is None:
            continue
        try:
            gpus = node.gpu.gpus
            busy = [f"{gpu.label} by pid {p.pid}" for gpu in gpus for p in require(gpu.processes)]
        except Unmeasured as reason:
            refused.append(f"{name}: {reason}")
            continue
        if busy:
            refused.append(f"{name}: in use: {', '.join(busy[:4])}")
        elif gpus:
            counts[name] = len(gpus)
    return counts, refused


def environment(bench: Bench, name: str) -> dict[str, str]:
    """The workers' own variables where the node's facts have them, else what its facts would make of them."""
    from epdoctor.provision.environment import compute

    node = bench.nodes[name]
    found: dict[str, str] = {}
    if len(bench.alive) > 1:
        with contextlib.suppress(Unmeasured):
            computed = compute(node, bench.addresses.get(name, name), bench.goal.backend).values
            found |= {key: text for key, text in computed.items() if key.startswith(PREFIXES)}
    with contextlib.suppress(Unmeasured):
        for key in node.environment:
            if key.startswith(PREFIXES) or key in OWN:
                found[key] = node.environment.text(key)
    return found


def pythons(bench: Bench, name: str) -> list[str]:
    """Interpreters to try: the target one, then the system's."""
    node = bench.nodes[name]
    found = [node.options.python] if node.options.python else []
    with contextlib.suppress(Unmeasured):
        found.append(node.python_env.python)
    return [*dict.fromkeys([*found, "python3"])]


@cache
def source(name: str) -> str:
    """A file of epdoctor/bench/gpu."""
    return (Path(__file__).parent / "gpu" / name).read_text("utf-8")


def run_ranks(
    bench: Bench,
    gpus: Mapping[str, int],
    params: Mapping[str, Any],
    *,
    python: str = "",
    modules: Sequence[str] = ("torch",),
    cuda: Mapping[str, Mapping[str, Any]] | None = None,
    env: Mapping[str, str] | None = None,
    tmp_env: Sequence[str] = (),
    one_process: bool = False,
    timeout_s: float = 120.0,
    enough_s: float = 60.0,
) -> Outcome:
    """Run a program of epdoctor/bench/gpu with one rank a GPU (or one process a node) over these nodes.

    `python`: its file name. `cuda`: for a CUDA program, by node, {"nvcc", "cuda", "flags"}. `params` reach it
    with host, port, world and nodes added. `tmp_env`: variables that name a folder on the node, removed at the
    end. Every failure is in the outcome; a run that the budget cut off before `enough_s` is no failure, but lost."""
    outcome = Outcome()
    names = list(gpus)
    first = names[0]
    world = len(names) if one_process else sum(gpus.values())
    timeout_s = max(1.0, min(timeout_s, bench.left_s()))
    try:
        port = bench.fleet[first].start("free_port").value(timeout_s=min(10.0, timeout_s))["port"]
    except (OperationFailed, WorkerLost, KeyError, TypeError) as error:
        outcome.lost[first] = str(error)
        return outcome
    host = bench.address_of(first) if len(names) > 1 else "127.0.0.1"
    shared = {
        **params,
        "host": host,
        "port": port,
        "world": world,
        "nodes": len(names),
        "timeout_s": timeout_s,
    }
    rank = 0
    plans: dict[str, dict[str, Any]] = {}
    for name in names:
        count = 1 if one_process else gpus[name]
        plans[name] = {
            "pythons": pythons(bench, name), "modules": list(modules), "params": shared,
            "env": {**environment(bench, name), **(env or {})},
            "ranks": [{"rank": rank + i, "local_rank": i} for i in range(count)], "tmp_env": list(tmp_env),
            **(cuda[name] if cuda is not None else {"source": source(python)}),
        }  # fmt: skip
        rank += count
    inbox: queue.SimpleQueue[tuple[str, dict[str, Any] | None, Exception | None]] = queue.SimpleQueue()
    calls: dict[str, Call] = {}

    def start(name: str, uid: str = "") -> None:
        plan = {**plans[name], **({"uid": uid} if uid else {})}
        calls[name] = bench.fleet[name].start(
            "ranks", plan, timeout_s=timeout_s, tmp=cuda is not None or bool(tmp_env)
        )
        threading.Thread(target=_listen, args=(name, calls[name], inbox), daemon=True).start()

    try:
        start(first)
        if cuda is None:
            for name in names[1:]:
                start(name)
        _hear(outcome, names, inbox, start if cuda is not None else None, time.monotonic() + timeout_s + 5)
    except WorkerLost as lost:
        outcome.lost.setdefault(first, str(lost))
    finally:
        for name, call in calls.items():
            call.stop()
            if call.stderr:
                outcome.outputs[name] = call.stderr
    if timeout_s < enough_s:
        for name, why in list(outcome.failed.items()):
            if why.startswith(TOO_LATE):
                outcome.lost[name] = f"cut off after {timeout_s:.0f} s by the budget (--budget 5m)"
                del outcome.failed[name]
    for name, why in outcome.failed.items():
        last = error_line(outcome.outputs.get(name, ""))
        if last:
            outcome.failed[name] = f"{why}: {last}"
    return outcome


def error_line(output: str) -> str:
    """The first error that Python itself reported in what ranks printed, "ImportError: ... undefined symbol ...";
    a bare AssertionError with the line that asserts. Empty: there is none. Pure."""
    before = ""
    for line in output.splitlines():
        found = _ERROR.match(line[:LINE_CHARS])
        if found:
            name, said = found[1].rsplit(".", 1)[-1], found[2] or ""
            return f"{name}: {said or before}"[:ERROR_CHARS].rstrip(": ")
        before = _RANK.sub("", line[:LINE_CHARS]).strip(" ^~") or before
    return ""


def _listen(name: str, call: Call, inbox: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            inbox.put((name, call.value(), None))
        except (OperationFailed, WorkerLost) as end:
            inbox.put((name, None, end))
            return


def _hear(
    outcome: Outcome, names: Sequence[str], inbox: queue.SimpleQueue[Any], start_rest: Any, deadline: float
) -> None:
    """Until every node has ended, or one cannot take part."""
    open_nodes = set(names)
    while open_nodes:
        try:
            name, value, end = inbox.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            for name in open_nodes:
                outcome.failed.setdefault(name, "no answer in time")
            return
        if value is None:
            open_nodes.discard(name)
            if isinstance(end, WorkerLost):
                outcome.lost[name] = str(end)
            elif not (isinstance(end, OperationFailed) and end.end == "ran"):
                outcome.failed.setdefault(name, str(end))
            if outcome.missing or outcome.lost or (outcome.failed and start_rest is not None):
                return
            continue
        if not isinstance(value, dict):
            continue
        if "missing" in value:
            outcome.missing[name] = str(value["missing"])
            return
        if "rc" in value:
            if value["rc"]:
                outcome.failed.setdefault(name, f"rank {value.get('rank')} ended with status {value['rc']}")
            continue
        if "uid" in value and start_rest is not None:
            for other in names[1:]:
                start_rest(other, str(value["uid"]))
            continue
        rank = value.pop("rank", -1)
        outcome.values.append((name, rank if isinstance(rank, int) else -1, value))
