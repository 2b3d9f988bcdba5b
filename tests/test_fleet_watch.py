"""--watch, diff --last-good and a baseline on real sshd nodes: a limit is broken and mended while we look."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctor import Doctor, need
from tests.lab import netns
from tests.lab.netns import NetnsFleet

pytestmark = pytest.mark.fleet
WORDS = ("--select", "drift.memlock", "--fail-on", "warning", "--multinode")


@pytest.fixture
def fleet() -> Iterator[NetnsFleet]:
    need(netns.unavailable())
    with NetnsFleet(2) as nodes:
        yield nodes


def test_broken_and_mended_while_we_look(fleet: NetnsFleet, tmp_path: Path) -> None:
    doctor = Doctor(tmp_path, prefix=fleet.exec_prefix)
    nodes = ("-i", str(fleet.inventory))
    for node in fleet.nodes:
        node.login_limit("memlock", "unlimited")
    assert doctor.run("check", *nodes, *WORDS).rc == 0
    assert doctor.run("baseline", "save", *nodes, "-o", str(tmp_path / "b.json")).rc == 0
    fleet["gpu02"].login_limit("memlock", "64")
    assert doctor.run("check", *nodes, *WORDS).rc == 1

    since = doctor.run("diff", "--last-good")
    assert since.rc == 1
    assert since.text.startswith("last good")
    assert "limits.memlock" in since.text
    assert "gpu02" in since.text

    moved = doctor.run("check", *nodes, "--baseline", str(tmp_path / "b.json"), "--select", "drift.baseline")
    assert "limits.memlock: 64 KiB (was " in " ".join(moved.text.split())

    mend = threading.Timer(15.0, lambda: fleet["gpu02"].login_limit("memlock", "unlimited"))
    mend.start()
    watched = doctor.run("check", *nodes, *WORDS, "--watch", "1s", "--until-pass", timeout=150)
    mend.join()
    assert watched.rc == 0, watched.text
    assert "gone: drift.memlock" in watched.text
    time.sleep(2)
    assert not fleet["gpu02"].processes(), "each look logged out"


def test_ctrl_c_between_looks(fleet: NetnsFleet, tmp_path: Path) -> None:
    doctor = Doctor(tmp_path, prefix=fleet.exec_prefix)
    running = doctor.start("check", "-i", str(fleet.inventory), *WORDS, "--watch", "60s")
    time.sleep(15)
    running.interrupt()
    done = running.wait()
    assert done.rc == 130
    assert "2 nodes in" in done.text
