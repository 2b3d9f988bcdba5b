"""All nodes at once: bounded workers, a deadline for each node, and one result for each, whatever happens.

The workers are daemon threads rather than a ThreadPoolExecutor: an executor's threads hold the process at
its end, and a node stuck in a call that nothing can end (getaddrinfo) keeps its slot. Here such a node is
given up at its deadline, its thread is abandoned, and a new one takes its place.
"""

from __future__ import annotations

import collections
import queue
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from epdoctor.collect.ssh_options import SshOptions, SshOptionsReader
from epdoctor.collect.targets import Target
from epdoctor.collect.transport import Event, Job, NodeFailure, NodeResult, Transport
from epdoctor.collect.transport_local import LocalTransport
from epdoctor.collect.transport_via import ViaTransport
from epdoctor.exceptions import UsageError

DEFAULT_FORKS = 32
DEFAULT_TIMEOUT_S = 60.0
_GRACE_S = 0.3
"""The worker reports its own deadline with a better sentence; the supervisor acts when it cannot."""
_RETRY_PAUSE_S = (0.3, 1.5)


def run_fleet(
    targets: Sequence[Target],
    payload_for: Callable[[Target], bytes],
    *,
    transport: str = "fabric",
    forks: int = DEFAULT_FORKS,
    node_timeout_s: float = DEFAULT_TIMEOUT_S,
    become: bool = False,
    via: str = "",
    on_event: Callable[[Event], None] = lambda _: None,
    prepare: Callable[[Job], None] = lambda _: None,
) -> FleetRun:
    """Start asking all nodes; iterate over the returned run for one NodeResult each, as they come.

    `payload_for` and `prepare` are called in worker threads, `prepare` once for each attempt's job; `on_event` only in the thread that iterates.
    `transport`: fabric | openssh | local. Targets with connection "local" always run locally; `via` replaces
    SSH for all others. Raises UsageError before any connection: options that cannot be honoured, a program
    that is not installed, duplicate names.
    """
    names = [target.name for target in targets]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"node {twice} is named twice")
    if forks < 1:
        raise UsageError(f"--forks {forks}: at least 1")
    if node_timeout_s <= 0:
        raise UsageError(f"--timeout {node_timeout_s:g}: more than 0 seconds")
    local = LocalTransport(become=become)
    remote = [target for target in targets if target.connection != "local"]
    elsewhere: Transport = local
    if remote and via:
        elsewhere = ViaTransport(via, become=become)
    elif remote and transport in {"fabric", "openssh"}:
        elsewhere = _over_ssh(remote, transport, become)
    elif remote and transport != "local":
        raise UsageError(f"--transport {transport}: choose fabric, openssh or local")
    return FleetRun(
        targets,
        payload_for,
        lambda target: local if target.connection == "local" else elsewhere,
        forks=forks,
        node_timeout_s=node_timeout_s,
        on_event=on_event,
        prepare=prepare,
    )


def _over_ssh(targets: Sequence[Target], transport: str, become: bool) -> Transport:
    builtin = transport == "fabric"
    reader = SshOptionsReader(refuse=builtin)
    options = reader.read(targets)
    if not builtin:
        from epdoctor.collect.transport_openssh import OpenSshTransport

        return OpenSshTransport(options, become=become)
    # fabric costs 0.2 s to import: only where it is used
    from epdoctor.collect.transport_fabric import FabricTransport

    return FabricTransport(options, _jumps(targets, options, reader), become=become)


def _jumps(
    targets: Sequence[Target], options: dict[str, SshOptions], reader: SshOptionsReader
) -> dict[str, tuple[SshOptions, ...]]:
    """Hops before each node. A hop's own ProxyJump is followed too, as ssh would."""
    seen: dict[tuple[str, tuple[str, ...]], tuple[SshOptions, ...]] = {}

    def hops(jump: str, args: tuple[str, ...], depth: int) -> tuple[SshOptions, ...]:
        if depth > 8:
            raise UsageError(f'ProxyJump "{jump[:80]}" leads back to itself')
        if (jump, args) not in seen:
            chain: list[SshOptions] = []
            for at, text in enumerate(jump.split(",")):
                one = reader.jump(text, args)
                if at == 0 and one.proxy_jump:
                    chain += hops(one.proxy_jump, args, depth + 1)
                chain.append(one)
            seen[jump, args] = tuple(chain)
        return seen[jump, args]

    found = {}
    for target in targets:
        jump = options[target.name].proxy_jump
        if jump:
            found[target.name] = hops(jump, target.ssh_args, 0)
    return found


class FleetRun:
    """A run under way: iterate over it or `results()`; `abort()` ends it with a result for each node."""

    def __init__(
        self,
        targets: Sequence[Target],
        payload_for: Callable[[Target], bytes],
        transport_for: Callable[[Target], Transport],
        *,
        forks: int,
        node_timeout_s: float,
        on_event: Callable[[Event], None] = lambda _: None,
        prepare: Callable[[Job], None] = lambda _: None,
    ) -> None:
        self._payload_for, self._transport_for, self._on_event = payload_for, transport_for, on_event
        self._prepare = prepare
        self._timeout_s = node_timeout_s
        self._waiting = collections.deque(targets)
        self._pending = {target.name: target for target in targets}
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Event | NodeResult] = queue.SimpleQueue()
        self._aborted = False
        self._ready: collections.deque[NodeResult] = collections.deque()
        self._transports = {id(one): one for one in map(transport_for, targets)}
        for _ in range(min(forks, len(targets))):
            self._start_worker()

    @property
    def pending(self) -> tuple[str, ...]:
        """Nodes without a result."""
        return tuple(self._pending)

    def __iter__(self) -> Iterator[NodeResult]:
        return self.results()

    def results(self) -> Iterator[NodeResult]:
        """Each node's result as it comes. After an abort or KeyboardInterrupt, call it again for the rest."""
        try:
            while self._pending or self._ready:
                if self._ready:
                    yield self._ready.popleft()
                    continue
                overdue = self._overdue()
                if overdue is not None:
                    yield overdue
                    continue
                try:
                    item = self._inbox.get(timeout=self._next_check_s())
                except queue.Empty:
                    continue
                if isinstance(item, Event):
                    if item.node in self._pending:
                        self._on_event(item)
                elif self._pending.pop(item.target.name, None) is not None:
                    self._report(item)
                    yield item
        finally:
            if not self._pending:
                self._close()

    def abort(self, kind: str = "interrupted") -> list[NodeResult]:
        """Close every connection at once; unfinished nodes get a result of this kind, with partial output.

        Returns what was not yet iterated over; `results()` yields the same.
        """
        self._aborted = True
        with self._lock:
            self._waiting.clear()
            jobs = dict(self._jobs)
        results = []
        while not self._inbox.empty():  # what came in and was not looked at
            item = self._inbox.get()
            if isinstance(item, NodeResult) and self._pending.pop(item.target.name, None) is not None:
                results.append(item)
        for name, target in self._pending.items():
            job = jobs.get(name)
            if job is None:
                error = f"{target.label} was not asked: the run was interrupted"
                results.append(NodeResult(target, kind, error=error))
                continue
            error = f"interrupted after {time.monotonic() - job.started:.0f} s, while {job.stage}"
            results.append(_result(job, NodeFailure(kind, f"{target.label}: {error}")))
            job.cancel()
        self._pending.clear()
        self._ready.extend(results)
        self._close()
        return list(self._ready)

    def _close(self) -> None:
        for transport in self._transports.values():
            transport.close()

    def _report(self, result: NodeResult) -> None:
        kind = "done" if result.kind == "ok" else "failed"
        self._on_event(Event(kind, result.target.name, result.error, result.seconds))

    def _next_check_s(self) -> float:
        with self._lock:
            ends = [job.deadline for job in self._jobs.values()]
        return max(0.01, min([1.0, *(end + _GRACE_S - time.monotonic() for end in ends)]))

    def _overdue(self) -> NodeResult | None:
        """Give up on a node whose worker did not notice its deadline: blocked where nothing can end it."""
        now = time.monotonic()
        with self._lock:
            late = next((job for job in self._jobs.values() if now > job.deadline + _GRACE_S), None)
            if late is None:
                return None
            del self._jobs[late.target.name]
        if self._pending.pop(late.target.name, None) is None:
            return None
        result = _result(late, late.overdue())
        late.cancel()
        self._start_worker()
        self._report(result)
        return result

    def _start_worker(self) -> None:
        threading.Thread(target=self._work, daemon=True, name="epdoctor-node").start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._aborted or not self._waiting:
                    return
                target = self._waiting.popleft()
                job = Job(target, time.monotonic() + self._timeout_s, self._inbox.put)
                self._prepare(job)
                self._jobs[target.name] = job
            result = self._ask(job)
            with self._lock:
                abandoned = self._jobs.pop(target.name, None) is None
            self._inbox.put(result)
            if abandoned:  # given up meanwhile: another worker has taken this one's place
                return

    def _ask(self, job: Job) -> NodeResult:
        transport = self._transport_for(job.target)
        rc: int | None = None
        failure: NodeFailure | None = None
        try:
            payload = self._payload_for(job.target)
            job.event("connecting")
            for last in (False, True):
                failure = None
                try:
                    rc = transport.run(job, payload)
                    failure = transport.explain(job, rc)
                except NodeFailure as stopped:
                    failure = stopped
                again = failure is not None and failure.retry and not job.stdout and not job.cancelled
                if last or not again or job.remaining() < 2 * _RETRY_PAUSE_S[1]:
                    break
                job.release()
                time.sleep(random.uniform(*_RETRY_PAUSE_S))  # noqa: S311 - spreads retries, no secret
                job.stage, rc = "connecting", None
                job.stderr.clear()
            return _result(job, failure, rc)
        except Exception as error:  # noqa: BLE001 - one node's bug must not take the others with it
            broken = NodeFailure("closed", f"{job.target.label}: internal error ({type(error).__name__})")
            return _result(job, broken, rc, traceback.format_exc())
        finally:
            job.release()


def _result(job: Job, failure: NodeFailure | None, rc: int | None = None, trace: str = "") -> NodeResult:
    return NodeResult(
        target=job.target,
        kind="ok" if failure is None else failure.kind,
        stdout=bytes(job.stdout),
        stderr_tail=bytes(job.stderr).decode(errors="replace"),
        rc=rc,
        error="" if failure is None else str(failure),
        hint="" if failure is None else failure.hint,
        by_hand=job.by_hand,
        warnings=tuple(job.warnings),
        seconds=time.monotonic() - job.started,
        sent_at=job.sent_at,
        first_byte_at=job.first_byte_at,
        received_at=job.received_at,
        traceback=trace,
    )
