"""Ends what a run of ansible-playbook leaves behind, also where epdoctor itself was killed.

ansible-playbook ignores SIGHUP under ansible-runner, and its workers have sessions of their own: killed with
SIGKILL, epdoctor would leave them polling, with ssh's shared connections and a folder that can hold a password.
So a small process of its own session waits until the pipe from epdoctor is closed, by whatever end, and then ends
every process that carries the run's folder in its environment (ANSIBLE_LOCAL_TEMP), and removes the folder.
Sources: ansible-core 2.19 executor/process/worker.py (setsid), executor/task_queue_manager.py (SIGTERM is passed
on to the workers); ansible-runner 2.4 runner.py (ignore_sighup).

As a program: leash.py FOLDER, with the pipe as its standard input; standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""
_POLL_S = 0.1


@contextmanager
def leash(folder: Path) -> Iterator[None]:
    """While it is open, what runs with this folder lives; afterwards it is gone, and the folder too."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-IS", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:  # no more processes: the run goes on without it
        yield
        return
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S + 5)


def marked(folder: str) -> list[int]:
    """Own processes that have ANSIBLE_LOCAL_TEMP in this folder."""
    word = f"ANSIBLE_LOCAL_TEMP={folder}/"
    me = os.getpid()
    if not Path("/proc/self").is_dir():
        return [pid for pid in _by_ps(word) if pid != me]
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == me:
            continue
        try:
            if word.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:  # of another user, or just gone
            continue
    return found


def _by_ps(word: str) -> Iterator[int]:
    """Where there is no /proc (macOS): ps shows the environment of own processes behind their words."""
    done = subprocess.run(
        ["/bin/ps", "-E", "-ww", "-x", "-o", "pid=,command="], capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        pid, _, words = line.strip().partition(" ")
        if word in words and pid.isdigit():
            yield int(pid)


def end(folder: str, grace_s: float = GRACE_S) -> None:
    """End the processes, then remove the folder."""
    deadline = time.monotonic() + grace_s
    told: set[int] = set()
    while left := marked(folder):
        if time.monotonic() > deadline:
            _signal(left, signal.SIGKILL)
            break
        _signal([pid for pid in left if pid not in told], signal.SIGTERM)
        told.update(left)
        time.sleep(_POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def main(folder: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the pipe, never before
    while os.read(0, 4096):
        pass
    end(folder)


if __name__ == "__main__":
    main(sys.argv[1])
