"""A killed run leaves nothing behind: neither ansible-playbook nor its workers nor the folder with its inputs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from epdoctor.provision.leash import end, marked

ROOT = Path(__file__).parents[1]
RUN = """
import sys
from pathlib import Path
from epdoctor.provision.runner import Job, run
run(Job(playbook=sys.argv[1], inventory=Path(sys.argv[2]), nodes=("one", "two")))
"""


def _wait(what: str, seconds: float, right: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not right():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.parametrize("polled", [False, True], ids=["waits", "polls"])
def test_sigkill_leaves_nothing(tmp_path: Path, polled: bool) -> None:
    python = next(path for path in ("/usr/bin/python3", sys.executable) if Path(path).exists())
    inventory = tmp_path / "inventory.ini"
    words = f"ansible_connection=local ansible_python_interpreter={python}"
    inventory.write_text(f"one {words}\ntwo {words}\n")
    task: dict[str, object] = {
        "ansible.builtin.command": {"argv": ["sh", "-c", f"touch {tmp_path}/runs; sleep 47"]}
    }
    if polled:
        task |= {"async": 60, "poll": 1}
    play = {"hosts": "all", "gather_facts": False, "tasks": [task]}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    temporary = tmp_path / "t"
    temporary.mkdir()
    # A short path: sockets of ssh live below it.
    short = Path(f"/tmp/epdt{os.getpid()}{int(polled)}")
    short.symlink_to(temporary)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path / "play.yml"), str(inventory)],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "HOME": str(tmp_path),
                "TMPDIR": str(short),
            },
        )
        _wait("the task never began", 60, (tmp_path / "runs").exists)
        (folder,) = (path for path in short.glob("epd-*"))
        assert len(marked(str(folder))) >= 3  # ansible-playbook and a worker for each node
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        _wait("processes stay", 20, lambda: not marked(str(folder)))
        _wait("the folder stays", 10, lambda: not folder.exists())
    finally:
        short.unlink()


def test_who_does_not_listen_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "epd-x"
    folder.mkdir()
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", deaf], env={"ANSIBLE_LOCAL_TEMP": f"{folder}/tmp"}, stdout=subprocess.PIPE
    )
    other = subprocess.Popen(["sleep", "60"], env={"ANSIBLE_LOCAL_TEMP": f"{folder}-of-another/tmp"})
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        end(str(folder), grace_s=0.3)
        assert process.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        assert not folder.exists()
    finally:
        other.kill()
        other.wait()
        process.kill()
