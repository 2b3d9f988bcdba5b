"""A local process that stands for a node: payload in, output out, bounded in time and size."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence

from epdoctor.collect.transport import Job, NodeFailure

_CHUNK = 65536


def run(job: Job, argv: Sequence[str], payload: bytes, *, env: Mapping[str, str] | None = None) -> int | None:
    """Exit status; output goes to the job. The process has its own session, which is killed as a whole.

    Raises NodeFailure: cannot be started, deadline passed, or too much output.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            start_new_session=True,
            bufsize=0,
        )
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise NodeFailure("via-failed", f"{argv[0]}: {why}") from None
    job.on_cancel(lambda: _kill(child))
    try:
        _pump(job, child, payload)
        while True:
            job.check()
            try:
                status = child.wait(timeout=max(0.05, min(1.0, job.remaining())))
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        _kill(child)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    return status if status >= 0 else 128 - status


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The group also when its leader is gone: helpers of ssh or kubectl may hold the pipes."""
    if child.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.2)


def _pump(job: Job, child: subprocess.Popen[bytes], payload: bytes) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    to_send = memoryview(payload)
    ending = job.feed is None
    with selectors.DefaultSelector() as selector:
        os.set_blocking(child.stdin.fileno(), False)
        selector.register(child.stdin, selectors.EVENT_WRITE)
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(child.stderr, selectors.EVENT_READ)
        if job.feed is not None:
            selector.register(job.feed, selectors.EVENT_READ)
        open_outputs = 2
        while open_outputs:
            job.check()
            for key, _ in selector.select(timeout=max(0.0, min(0.5, job.remaining()))):
                if key.fileobj is job.feed:
                    assert job.feed is not None
                    more, ended = job.feed.take()
                    if ended:
                        ending = True
                        selector.unregister(job.feed)
                    to_send = memoryview(bytes(to_send) + more)
                    if not child.stdin.closed and child.stdin not in selector.get_map():
                        selector.register(child.stdin, selectors.EVENT_WRITE)
                    continue
                if key.fileobj is child.stdin:
                    try:
                        to_send = to_send[os.write(key.fd, to_send[:_CHUNK]) :] if to_send else to_send
                    except BlockingIOError:
                        continue
                    except OSError:  # it ended, or closed its stdin: its status tells
                        to_send, ending = to_send[:0], True
                    if not to_send:
                        selector.unregister(child.stdin)
                        if not ending:
                            continue
                        with contextlib.suppress(OSError):
                            child.stdin.close()
                        job.sent()
                    continue
                data = os.read(key.fd, _CHUNK)
                if not data:
                    selector.unregister(key.fileobj)
                    open_outputs -= 1
                elif key.fileobj is child.stdout:
                    job.add_stdout(data)
                else:
                    job.add_stderr(data)
