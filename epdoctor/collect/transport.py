"""What every transport shares: one node's run, its limits, how it ends, and how a transport is called."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from epdoctor.collect import remote_command
from epdoctor.collect.targets import Target

MAX_STDOUT_BYTES = 32 * 1024 * 1024
"""A record is below 2 MB; more than this is a flood, and the node is cut off."""
STDERR_TAIL_BYTES = 8192

KINDS = (
    "ok",
    "unreachable",  # no route, no answer
    "refused",
    "dns",
    "auth",
    "host-key-unknown",
    "host-key-changed",
    "no-python",
    "sudo",
    "garbage",  # an answer that is not ours
    "truncated",  # our answer, cut short
    "timeout",
    "interrupted",
    "closed",  # the connection ended, or does not speak SSH
    "via-failed",
)


class NodeFailure(Exception):  # noqa: N818 - an outcome of one node, never shown as an exception
    """A node could not be asked, or not to the end. `retry`: worth a second try with a pause."""

    def __init__(self, kind: str, sentence: str, *, hint: str = "", retry: bool = False) -> None:
        super().__init__(sentence)
        self.kind, self.hint, self.retry = kind, hint, retry


@dataclass(frozen=True)
class Event:
    """For a live progress line."""

    kind: str
    """connecting | connected | done | failed"""
    node: str
    text: str = ""
    """For "failed": the sentence."""
    seconds: float = 0.0
    """Since work on the node began."""


@dataclass(frozen=True)
class NodeResult:
    """What came back from one node. Output is raw: the node may have sent anything."""

    target: Target
    kind: str
    """One of KINDS; "ok" means that the remote command ended with status 0 and wrote something."""
    stdout: bytes = b""
    """Everything received, also when the node failed later."""
    stderr_tail: str = ""
    rc: int | None = None
    error: str = ""
    """One sentence; empty for "ok"."""
    hint: str = ""
    """A command that shows it by hand, or mends it."""
    by_hand: str = ""
    """A harmless command on the node the same way, for whoever finds fault with the answer later."""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    sent_at: float | None = None
    """time.time() when the payload had been sent."""
    first_byte_at: float | None = None
    """time.time() of the first output: a clock that the node reads at its start lies between these two."""
    received_at: float | None = None
    """time.time() at the end of the output."""
    traceback: str = ""
    """Only for a bug of ours."""


class Feed:
    """Bytes for a node's program after its payload, put by any thread, taken by the transport.

    `fileno()` is readable while there is something to take: a transport that waits in select() hears of it."""

    def __init__(self) -> None:
        self._parts: collections.deque[bytes | None] = collections.deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def put(self, data: bytes) -> None:
        self._parts.append(data)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    def end(self) -> None:
        """End of the node's stdin."""
        self._parts.append(None)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    def fileno(self) -> int:
        return self._wake_read

    def take(self, timeout_s: float = 0.0) -> tuple[bytes, bool]:
        """(bytes, whether that was the end); waits up to `timeout_s` for the first."""
        if not self._parts and timeout_s:
            select.select([self._wake_read], [], [], timeout_s)
        if select.select([self._wake_read], [], [], 0)[0]:
            os.read(self._wake_read, 4096)
        taken: list[bytes] = []
        while self._parts:
            part = self._parts.popleft()
            if part is None:
                return b"".join(taken), True
            taken.append(part)
        return b"".join(taken), False


@dataclass
class Job:
    """One node being asked: its deadline, what it sent so far, and how to cut it off from another thread."""

    target: Target
    deadline: float
    """time.monotonic()"""
    notify: Callable[[Event], None] = lambda _: None
    started: float = field(default_factory=time.monotonic)
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    warnings: list[str] = field(default_factory=list)
    sent_at: float | None = None
    first_byte_at: float | None = None
    received_at: float | None = None
    stage: str = "connecting"
    """connecting | logging in | waiting for the answer; names what a deadline hit."""
    by_hand: str = ""
    """Command that shows a hang by hand; the transport sets it."""
    flags: tuple[str, ...] = remote_command.FLAGS
    """Of the node's Python."""
    feed: Feed | None = None
    """More stdin after the payload; None: the payload is all."""
    consume: Callable[[bytes], None] | None = None
    """Takes the output as it comes; `stdout` then keeps its beginning only."""
    cancelled: bool = False
    _closers: list[Callable[[], object]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Raises NodeFailure once the deadline has passed or the job was cut off."""
        if self.cancelled or self.remaining() <= 0:
            raise self.overdue()

    def overdue(self) -> NodeFailure:
        limit = f"{self.deadline - self.started:.0f} s"
        words = {
            "connecting": f"no connection to {self.target.label} within {limit}",
            "logging in": f"no SSH login on {self.target.label} within {limit}",
        }
        sentence = words.get(self.stage, f"{self.target.label} did not finish within {limit}")
        return NodeFailure("timeout", sentence, hint=self.by_hand)

    def event(self, kind: str, text: str = "") -> None:
        self.notify(Event(kind, self.target.name, text, time.monotonic() - self.started))

    def on_cancel(self, close: Callable[[], object]) -> None:
        """Register how to cut the node off; called at once when that was already asked for."""
        with self._lock:
            if not self.cancelled:
                self._closers.append(close)
                return
        _quietly(close)

    def cancel(self) -> None:
        """Cut the node off now; never blocks for long, never raises."""
        with self._lock:
            self.cancelled = True
            closers, self._closers = self._closers[::-1], []
        for close in closers:
            _quietly(close)

    def release(self) -> None:
        """Close what the job holds, at its normal end."""
        with self._lock:
            closers, self._closers = self._closers[::-1], []
        for close in closers:
            _quietly(close)

    def sent(self) -> None:
        self.sent_at = time.time()

    def add_stdout(self, data: bytes) -> None:
        """Raises NodeFailure("garbage") above MAX_STDOUT_BYTES."""
        now = time.time()
        if self.first_byte_at is None:
            self.first_byte_at = now
        self.received_at = now
        if self.consume is not None:
            self.stdout += data[: max(0, 400 - len(self.stdout))]
            self.consume(data)
            return
        room = MAX_STDOUT_BYTES - len(self.stdout)
        self.stdout += data[:room]
        if len(data) > room:
            size = MAX_STDOUT_BYTES // 2**20
            sentence = f"{self.target.label} sent more than {size} MiB and was cut off"
            raise NodeFailure("garbage", sentence, hint=self.by_hand)

    def add_stderr(self, data: bytes) -> None:
        self.stderr += data
        if len(self.stderr) > 2 * STDERR_TAIL_BYTES:
            del self.stderr[:-STDERR_TAIL_BYTES]


def _quietly(close: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):  # closing what is already broken
        close()


class Transport(Protocol):
    """A way to run the agent on a node."""

    def run(self, job: Job, payload: bytes) -> int | None:
        """Start the node's interpreter, send the payload and EOF, collect output in the job.

        Returns the exit status (None: the connection ended without one). Raises NodeFailure.
        """

    def explain(self, job: Job, rc: int | None) -> NodeFailure | None:
        """What an ended command means, from its status and stderr; None: it answered."""

    def close(self) -> None:
        """Close what is shared between nodes."""
