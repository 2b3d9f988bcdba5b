"""Workers on all nodes at once: start operations on any of them, hear their values, end everything.

    with Fleet(targets, ...) as fleet:
        call = fleet["gpu01"].start("tcp_listen", {"ports": [0]})
        port = call.value(timeout_s=5)["port"]
        call.stop()

A worker whose connection ends raises WorkerLost from every call on it; the others go on. Leaving the block, also
by Ctrl-C, closes every connection, and each worker kills what it started (epdoctor/bench/worker.py).
"""

from __future__ import annotations

import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

from epdoctor.collect import remote_command
from epdoctor.collect.fanout import FleetRun, run_fleet
from epdoctor.collect.targets import Target
from epdoctor.collect.transport import Feed, Job, NodeResult

PING_S = 5.0
"""A quarter of the worker's DEADMAN_S."""
LINE_BYTES = 4 << 20


class WorkerLost(Exception):  # noqa: N818 - an outcome of one node, shown as its result
    """The node's worker is gone; `str()` says how: a dead connection, a refused login, no Python."""


class OperationFailed(Exception):  # noqa: N818 - an outcome of one measurement
    """An operation ended without the value that was waited for."""

    def __init__(self, end: str, rc: int, stderr: str) -> None:
        super().__init__(_sentence(end, rc, stderr))
        self.end, self.rc, self.stderr = end, rc, stderr


def _sentence(end: str, rc: int, stderr: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    words = {"timeout": "took too long", "stopped": "was stopped"}.get(end, f"ended with status {rc}")
    return f"{words}: {last[:300]}" if last else words


@final
class Call:
    """One operation on one node, from its start to its end."""

    def __init__(self, worker: Worker, number: int, timeout_s: float) -> None:
        self._worker, self.number, self._timeout_s = worker, number, timeout_s
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.ended: dict[str, Any] | None = None

    def put(self, message: dict[str, Any]) -> None:
        self._inbox.put(message)

    @property
    def stderr(self) -> str:
        """What it wrote to stderr and stdout; empty before its end."""
        return str(self.ended.get("stderr", "")) if self.ended else ""

    def value(self, timeout_s: float | None = None) -> Any:
        """The next value that it emits. Raises OperationFailed at its end, WorkerLost with its node."""
        deadline = time.monotonic() + (timeout_s if timeout_s is not None else self._timeout_s + 2)
        while self.ended is None:
            try:
                message = self._inbox.get(timeout=max(0.0, min(0.5, deadline - time.monotonic())))
            except queue.Empty:
                if self._worker.lost:
                    raise WorkerLost(self._worker.lost) from None
                if time.monotonic() > deadline:
                    raise OperationFailed("timeout", -1, "no answer in time") from None
                continue
            if "value" in message:
                return message["value"]
            self.ended = message
        raise OperationFailed(
            str(self.ended.get("end")), int(self.ended.get("rc", -1)), str(self.ended.get("stderr", ""))
        )

    def each(self) -> Iterator[Any]:
        """Its values as they come, until it has ended well. Raises as `value()` when it ends otherwise: what came
        before counts."""
        while True:
            try:
                yield self.value()
            except OperationFailed as failed:
                if failed.end == "ran":
                    return
                raise

    def values(self) -> list[Any]:
        """All values, once it has ended well. Raises as `value()`."""
        return list(self.each())

    def tell(self, value: Any) -> None:
        """Give it a value: its next hear() returns it. Harmless when it has ended."""
        if self.ended is None and not self._worker.lost:
            self._worker.send({"tell": self.number, "value": value})

    def stop(self) -> None:
        """End it on the node; harmless when it has ended."""
        if self.ended is None and not self._worker.lost:
            self._worker.send({"stop": self.number})

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Worker:
    """One node's end of the ladder."""

    def __init__(self, target: Target, nonce: str) -> None:
        self.target, self.name = target, target.name
        self.lost = ""
        """Why it is gone; empty: it is there, or still being connected."""
        self.hint = ""
        self.hello: dict[str, Any] = {}
        """hostname, uid, python of the node, once it answered."""
        self.feed = Feed()
        self._mark = f"@@epdoctor {nonce} ".encode()
        self._rest = b""
        self._calls: dict[int, Call] = {}
        self._known_ops: set[str] = set()
        self._lock = threading.Lock()
        self._next = 0
        self.ready = threading.Event()

    def send(self, message: Mapping[str, Any]) -> None:
        self.feed.put(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def start(
        self, op: str, params: Mapping[str, Any] | None = None, *, timeout_s: float = 30.0, tmp: bool = False
    ) -> Call:
        """Start operation `op` (a file of epdoctor/bench/ops). `tmp`: it gets a folder of its own as
        PARAMS["tmp"], removed at its end. Raises WorkerLost."""
        if self.lost:
            raise WorkerLost(self.lost)
        with self._lock:
            self._next += 1
            call = Call(self, self._next, timeout_s)
            self._calls[call.number] = call
            if op not in self._known_ops:
                self._known_ops.add(op)
                self.send({"ops": {op: _source(op)}})
            self.send(
                {
                    "id": call.number,
                    "op": op,
                    "params": dict(params or {}),
                    "timeout_s": timeout_s,
                    "tmp": tmp,
                }
            )
        return call

    def heard(self, data: bytes) -> None:
        """Output of the node, in pieces of any size; anything that is not ours is passed over."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()[-LINE_BYTES:]
        for line in lines:
            if not line.startswith(self._mark):
                continue
            try:
                message = json.loads(line[len(self._mark) :])
            except (ValueError, RecursionError):
                continue
            if not isinstance(message, dict):
                continue
            if isinstance(message.get("hello"), dict):
                self.hello = message["hello"]
                self.ready.set()
                continue
            call = self._calls.get(message.get("id", 0)) if isinstance(message.get("id"), int) else None
            if call is not None:
                call.put(message)
                if "end" in message:
                    self._calls.pop(call.number, None)

    def gone(self, why: str, hint: str = "") -> None:
        self.lost, self.hint = why, hint
        self.ready.set()


@final
class Fleet(Mapping[str, Worker]):
    """Workers by node name."""

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        transport: str = "fabric",
        become: bool = False,
        via: str = "",
        lifetime_s: float = 3600.0,
        on_lost: Callable[[str, str], None] = lambda node, why: None,
    ) -> None:
        """Raises UsageError as run_fleet() does, before any connection."""
        nonce = secrets.token_hex(8)
        self._on_lost = on_lost
        self._workers = {target.name: Worker(target, nonce) for target in targets}
        program = (Path(__file__).parent / "worker.py").read_bytes() + f'\nmain("{nonce}")\n'.encode()
        self._flags = remote_command.bootstrap(len(program))
        self._closing = threading.Event()
        self._run: FleetRun = run_fleet(
            targets,
            lambda target: program,
            transport=transport,
            # A worker holds its place for as long as the ladder runs.
            forks=max(len(targets), 1),
            node_timeout_s=lifetime_s,
            become=become,
            via=via,
            prepare=self._prepare,
        )
        threading.Thread(target=self._listen, daemon=True, name="epdoctor-fleet").start()
        threading.Thread(target=self._ping, daemon=True, name="epdoctor-ping").start()

    def _prepare(self, job: Job) -> None:
        worker = self._workers[job.target.name]
        job.flags = self._flags
        job.feed = worker.feed
        job.consume = worker.heard

    def _listen(self) -> None:
        for result in self._run.results():
            self._ended(result)

    def _ended(self, result: NodeResult) -> None:
        worker = self._workers[result.target.name]
        said = [line for line in result.stderr_tail.splitlines() if line.strip()]
        ended = f"{result.target.label} ended its worker" + (f": {said[-1][:200]}" if said else "")
        why = result.error or ended
        if not self._closing.is_set():
            worker.gone(why, result.hint)
            self._on_lost(worker.name, why)

    def _ping(self) -> None:
        while not self._closing.wait(PING_S):
            for worker in self._workers.values():
                if not worker.lost:
                    worker.send({"ping": 1})

    def wait_ready(self, timeout_s: float) -> None:
        """Until every worker has answered or is lost; who has not by then is lost."""
        deadline = time.monotonic() + timeout_s
        for worker in self._workers.values():
            if not worker.ready.wait(max(0.0, deadline - time.monotonic())):
                worker.gone(f"{worker.target.label} did not start our program within {timeout_s:.0f} s")

    @property
    def alive(self) -> list[str]:
        """Names of the nodes whose worker answers, in inventory order."""
        return [name for name, worker in self._workers.items() if worker.hello and not worker.lost]

    def __getitem__(self, name: str) -> Worker:
        return self._workers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)

    def __len__(self) -> int:
        return len(self._workers)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; they kill what they started when their stdin ends, or the connection does."""
        self._closing.set()
        for worker in self._workers.values():
            worker.feed.end()
        deadline = time.monotonic() + 2.0
        while self._run.pending and time.monotonic() < deadline:
            time.sleep(0.02)
        self._run.abort()


@cache
def _source(op: str) -> str:
    return (Path(__file__).parent / "ops" / f"{op}.py").read_text("utf-8")
