"""The deadline and Ctrl-C on real hung nodes: what there is is printed, and the process ends at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import gpu_cluster
from tests.doctor import Doctor, Done, Running, need, no_traceback, raw_controls, until
from tests.lab import netns
from tests.lab.netns import NetnsFleet
from tests.lab.node import NetnsNode, can_be_stuck

pytestmark = pytest.mark.fleet

GOOD = ["gpu01", "gpu02"]
SMI = "/usr/bin/nvidia-smi"


@dataclass
class Hung:
    fleet: NetnsFleet
    doctor: Doctor

    def start(self, *words: str) -> Running:
        for process in self.fleet["gpu05"].processes():
            os.kill(process.pid, signal.SIGKILL)  # the last run's python3 ignores that its session is gone
        assert until(lambda: self.fleet["gpu05"].processes() == ())
        return self.doctor.start(
            "check", "-i", str(self.fleet.inventory), *words, f"-ojson={self.doctor.folder}/report.json"
        )


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hung]:
    """gpu01 and gpu02 are well; each of the others hangs at another place."""
    need(netns.unavailable())
    with NetnsFleet(7) as fleet:
        for name in ("gpu01", "gpu06", "gpu07"):
            gpu_cluster.install_two_gpus(fleet[name])
        fleet["gpu03"].black_hole()
        fleet["gpu04"].freeze()
        fleet["gpu05"].hang_python()
        fleet["gpu06"].hang_command(SMI)
        if can_be_stuck():
            fleet["gpu07"].stuck_command(SMI)
        yield Hung(fleet, Doctor(tmp_path_factory.mktemp("hung"), prefix=fleet.exec_prefix))


def _asked(node: NetnsNode) -> bool:
    """Whether something runs on the node for us."""
    return any("python3" in word for process in node.processes() for word in process.argv)


def _python_hangs(hung: Hung) -> bool:
    return _asked(hung.fleet["gpu05"])


def _ended(running: Running, since: float, limit_s: float) -> Done:
    done = running.wait(60)
    took = time.monotonic() - since
    assert took < limit_s, f"the process ended {took:.1f} s later"
    no_traceback(done)
    return done


def test_deadline_prints_what_there_is_and_ends(hung: Hung) -> None:
    running = hung.start("--timeout", "5", "--limit", "gpu[01-05]")
    assert until(lambda: _python_hangs(hung))
    began = time.monotonic()  # the node's time runs at least since now
    done = _ended(running, began, 5 + 2)
    assert done.rc == 3
    assert done.reached == GOOD
    for name in ("gpu03", "gpu04", "gpu05"):
        assert not done.nodes[name]["reached"]
        assert "5 s" in done.nodes[name]["error"]
        assert done.nodes[name]["error"] in " ".join(done.text.split())
    for name in GOOD:
        assert done.statuses("names.own-name-not-loopback")[name] == "pass"


@pytest.mark.parametrize("transport", ["fabric", "openssh"])
def test_interrupt_prints_what_there_is_and_ends(hung: Hung, transport: str) -> None:
    running = hung.start("--timeout", "60", "--transport", transport)
    assert until(lambda: _python_hangs(hung))
    # gpu01 and gpu02 have answered once nothing of ours runs there any more.
    assert until(lambda: not any(_asked(hung.fleet[name]) for name in GOOD))
    time.sleep(1)
    done = _ended(running, running.interrupt(), 2)
    assert done.rc == 130
    assert done.report["interrupted"] is True
    assert done.reached == GOOD
    assert {done.nodes[f"gpu0{number}"]["kind"] for number in (3, 4, 5, 6)} == {"interrupted"}
    assert done.statuses("names.own-name-not-loopback")["gpu01"] == "pass"
    assert "interrupted" in done.text
    assert raw_controls(done.out) == []
    offline = hung.doctor.check("--from", str(hung.doctor.recordings()[-1]))
    assert offline.of_node("gpu01") == done.of_node("gpu01")


def test_interrupt_during_a_probe_leaves_no_process_on_the_node(hung: Hung) -> None:
    """The agent sees that its reader is gone and kills what ignores every other signal."""
    running = hung.start("--limit", "gpu06", "--timeout", "60")
    node = hung.fleet["gpu06"]
    assert until(lambda: any(SMI in process.argv for process in node.processes()))
    done = _ended(running, running.interrupt(), 2)
    assert done.rc == 130
    assert until(lambda: node.processes() == ()), node.processes()


def test_interrupt_while_the_inventory_is_read(hung: Hung) -> None:
    running = hung.start()
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    assert until(lambda: children.read_text().split())
    done = _ended(running, running.interrupt(), 2)
    assert (done.rc, done.out) == (130, b"")


def test_two_interrupts_end_it_as_well(hung: Hung) -> None:
    running = hung.start("--limit", "gpu05", "--timeout", "60")
    assert until(lambda: _python_hangs(hung))
    since = running.interrupt()
    time.sleep(0.05)
    if running.process.poll() is None:
        running.interrupt()
    assert _ended(running, since, 2).rc == 130


def test_a_session_that_freezes_after_login(hung: Hung) -> None:
    """Login works, the command runs, and then nothing comes any more: no TCP error ever ends this."""
    node = hung.fleet["gpu02"]
    real = node.run(["readlink", "-f", "/usr/bin/python3"]).stdout.strip()
    link = node.run(["readlink", "/usr/bin/python3"]).stdout.strip()
    node.install_script("/usr/bin/python3", f'#!/bin/sh\nsleep 1.5\nexec {real} "$@"\n')
    try:
        running = hung.start("--limit", "gpu01,gpu02", "--timeout", "5")
        assert until(lambda: _asked(node))
        began = time.monotonic()
        node.freeze("sessions")
        done = _ended(running, began, 5 + 2)
        assert (done.rc, done.reached) == (3, ["gpu01"])
        assert "did not finish within 5 s" in done.nodes["gpu02"]["error"]
    finally:
        node.thaw()
        node.run(["ln", "-sf", link, "/usr/bin/python3"])
    assert until(lambda: node.processes() == ()), node.processes()
    assert hung.doctor.check("-i", str(hung.fleet.inventory), "--limit", "gpu02").reached == ["gpu02"]


def test_hung_nodes_do_not_keep_others_waiting_for_a_turn(hung: Hung) -> None:
    """One fork: each node has its own limit, and the last one still gets its turn."""
    done = hung.doctor.check(
        "-i", str(hung.fleet.inventory), "--limit", "gpu05,gpu04,gpu01", "--forks", "1", "--timeout", "3"
    )
    assert (done.rc, done.reached) == (3, ["gpu01"])


@pytest.mark.skipif(not can_be_stuck(), reason="no cgroup version 1 freezer here")
def test_a_process_in_state_d_costs_one_probe(hung: Hung) -> None:
    """SIGKILL waits, the agent does not."""
    done = hung.doctor.check("-i", str(hung.fleet.inventory), "--limit", "gpu01,gpu07", "--timeout", "6")
    no_traceback(done)
    assert done.reached == ["gpu01", "gpu07"]
    assert done.statuses("gpu.nvlinks-up") == {"gpu01": "pass", "gpu07": "unknown"}
    assert [process.state for process in hung.fleet["gpu07"].processes()].count("D") >= 1
