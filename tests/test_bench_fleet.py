"""The ladder over real SSH: healthy nodes pass, each planted fault is named at the right place, nothing stays."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.doctor import until
from tests.lab.netns import NetnsFleet
from tests.lab.node import NetnsNode

pytestmark = pytest.mark.fleet

# By its interpreter: the environment that runs the tests need not be on the path.
EPDOCTOR = [sys.executable, "-m", "epdoctor"]
DROP = "table ip t {{\n chain c {{\n  type filter hook input priority 0;\n  {rule}\n }}\n}}\n"


def bench(fleet: NetnsFleet, *words: str) -> tuple[int, dict[str, Any]]:
    done = fleet.run(
        [*EPDOCTOR, "bench", "-i", str(fleet.inventory), "--no-state", "--format", "json", *words]
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def firewall(node: NetnsNode, rule: str) -> None:
    node.write("/tmp/rules.nft", DROP.format(rule=rule))
    node.run(["nft", "-f", "/tmp/rules.nft"])


def layer(report: dict[str, Any], number: str = "1") -> dict[str, Any]:
    return next(one for one in report["layers"] if one["number"] == number)


def workers(fleet: NetnsFleet) -> list[str]:
    """What the ladder still has on the nodes."""
    return [
        " ".join(process.argv)[:120]
        for node in fleet.nodes
        for process in node.processes()
        if any("epdoctor" in word for word in process.argv)
    ]


@pytest.mark.parametrize("transport", ["fabric", "openssh"])
def test_healthy_nodes_pass_and_nothing_stays(fleet: NetnsFleet, transport: str) -> None:
    code, report = bench(fleet, "--layers", "1", "--transport", transport)
    found = layer(report)
    assert (code, found["status"]) == (0, "pass"), found
    count = len(fleet.nodes)
    assert len(found["measurements"]) == count * (count - 1) * 5
    assert until(lambda: workers(fleet) == [])


def test_one_port_dropped_on_one_node(make_fleet: Any) -> None:
    fleet = make_fleet(4)
    firewall(fleet["gpu03"], "tcp dport 29550 drop")
    code, report = bench(fleet, "--layers", "1")
    found = layer(report)
    assert code == 1
    assert [s["name"] for s in found["suspects"]] == ["port 29550 on gpu03"]
    assert "no answer" in found["broken"]
    assert {m["b"] for m in found["measurements"] if m["status"] == "fail"} == {"gpu03"}


def test_a_path_that_swallows_full_size_packets(make_fleet: Any) -> None:
    fleet = make_fleet(4)
    firewall(fleet["gpu02"], "tcp dport != 22 meta length > 1400 drop")
    code, report = bench(fleet, "--layers", "1")
    found = layer(report)
    assert code == 1
    assert [s["name"] for s in found["suspects"]] == ["gpu02"]
    assert any("stalls" in m["detail"] and "MTU" in m["detail"] for m in found["measurements"])


def test_a_port_that_somebody_holds_is_no_fault(make_fleet: Any) -> None:
    fleet = make_fleet(2)
    serve = "import socket,time;s=socket.create_server(('',8000));time.sleep(60)"
    fleet["gpu01"].run(["sh", "-c", f'python3 -c "{serve}" >/dev/null 2>&1 </dev/null &'])
    assert until(lambda: ":1F40 " in fleet["gpu01"].read("/proc/net/tcp"))
    code, report = bench(fleet, "--layers", "1")
    found = layer(report)
    assert (code, found["status"]) == (0, "pass"), found["broken"]
    assert any("port 8000 of gpu01 is taken" in note for note in found["notes"])


def test_a_node_that_is_lost_is_unknown_and_the_others_go_on(make_fleet: Any) -> None:
    fleet = make_fleet(4)
    fleet["gpu04"].black_hole()
    code, report = bench(fleet, "--layers", "1", "--timeout", "4")
    assert code == 3
    assert list(report["missing"]) == ["gpu04"]
    assert layer(report)["status"] == "pass"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_stays_when_the_ladder_is_cut_off(make_fleet: Any, number: signal.Signals) -> None:
    import subprocess

    fleet = make_fleet(4)
    for node in fleet.nodes:
        firewall(node, "tcp dport 29550 drop")  # so that the layer takes its five seconds
    argv = [*fleet.exec_prefix, *EPDOCTOR, "bench", "-i", str(fleet.inventory), "--no-state"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert until(lambda: len(workers(fleet)) >= 4, 60)
    time.sleep(0.5)
    subprocess.run(["pkill", f"-{int(number)}", "-f", f"epdoctor bench -i {fleet.inventory}"], check=True)
    process.wait(timeout=20)
    if number is signal.SIGINT:
        assert process.returncode in (130, -2)
    assert until(lambda: workers(fleet) == []), workers(fleet)


def test_bad_words_end_before_any_node_is_touched(fleet: NetnsFleet, tmp_path: Path) -> None:
    for words, said in (
        (["--layers", "tpc"], "did you mean tcp"),
        (["--pairs", "every"], "ring, full"),
        (["--budget", "soon"], "not a time"),
    ):
        done = fleet.run([*EPDOCTOR, "bench", "-i", str(fleet.inventory), *words])
        assert done.returncode == 2
        assert said in done.stderr


TRICKLE = """table ip t {{
 chain c {{
  type filter hook input priority 0;
  ip saddr {address} tcp dport != 22 tcp sport != 22 limit rate over 12 kbytes/second burst 4 kbytes drop
 }}
}}
"""


def test_a_pair_that_trickles_is_named_in_time_and_the_others_are_judged(make_fleet: Any) -> None:
    """256 KiB there and back at 12 kB/s would take a minute a port; the budget is 20 s for four nodes."""
    fleet = make_fleet(4)
    for name, other in (("gpu02", "gpu03"), ("gpu03", "gpu02")):
        fleet[name].write("/tmp/rules.nft", TRICKLE.format(address=fleet[other].address))
        fleet[name].run(["nft", "-f", "/tmp/rules.nft"])
    code, report = bench(fleet, "--layers", "1", "--budget", "20s")
    found = layer(report)
    assert code == 1
    assert [s["name"] for s in found["suspects"]] == ["gpu02 and gpu03"]
    assert found["next"].endswith("-l gpu02,gpu03")
    assert found["seconds"] < 20 * 1.1
    good = [m for m in found["measurements"] if m["status"] == "pass"]
    assert {m["a"] for m in good} == {m["b"] for m in good} == {node.name for node in fleet.nodes}
    assert {frozenset((m["a"], m["b"])) for m in found["measurements"] if m["status"] != "pass"} == {
        frozenset(("gpu02", "gpu03"))
    }
    # Where the budget ends first, it is not known; what was measured before still counts.
    code, report = bench(fleet, "--layers", "1", "--budget", "4s")
    found = layer(report)
    assert found["seconds"] < 4 * 1.1 + 1
    assert sum(m["status"] == "pass" for m in found["measurements"]) == len(good)
    assert code in (1, 3)
    assert until(lambda: workers(fleet) == [])
