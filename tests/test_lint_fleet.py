"""lint and plan on real nodes over SSH: files against what the nodes are, live processes, a plan that fits them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doctor import Doctor
from tests.lab import eight_gpus
from tests.lab.netns import NetnsFleet
from tests.lab.node import NetnsNode

pytestmark = pytest.mark.fleet

MODEL = "deepseek-ai/DeepSeek-V3-0324"
LISTEN = "import socket,time\ns=socket.socket()\ns.bind(('0.0.0.0',8000))\ns.listen()\ntime.sleep(600)\n"


def _script(rank: int, address: str, interface: str = "eth0", more: str = "") -> str:
    part = f"--data-parallel-start-rank {rank} --headless" if rank else "--port 8000"
    return (
        f"#!/bin/bash\nexport GLOO_SOCKET_IFNAME={interface}\n"
        f"vllm serve {MODEL} --enable-expert-parallel --data-parallel-size 16 \\\n"
        f"  --data-parallel-size-local 8 --data-parallel-address {address} \\\n"
        f"  --data-parallel-rpc-port 13345 {part} {more}\n"
    )


@pytest.fixture
def two(make_fleet: Callable[..., NetnsFleet]) -> NetnsFleet:
    fleet = make_fleet(2)
    for node in fleet.nodes:
        eight_gpus.install(node)
    return fleet


@pytest.fixture
def doctor(tmp_path: Path, two: NetnsFleet) -> Doctor:
    return Doctor(tmp_path, prefix=two.exec_prefix)


def _problems(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {
        finding["id"]: finding["problems"]
        for finding in report["findings"]
        if finding["status"] == "fail" and finding["severity"] != "info"
    }


def _lint(doctor: Doctor, fleet: NetnsFleet, *words: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    done = doctor.run("lint", *words, "-i", str(fleet.inventory), f"-ojson={doctor.folder}/report.json")
    assert "Traceback" not in done.err, done.err
    assert done.report, done.err
    return done.rc, _problems(done.report)


def test_files_against_what_the_nodes_are(two: NetnsFleet, doctor: Doctor) -> None:
    head, other = two.nodes
    (doctor.folder / "work" / "gpu01.sh").write_text(_script(0, head.address))
    (doctor.folder / "work" / "gpu02.sh").write_text(_script(8, head.address))
    assert _lint(doctor, two, "gpu01.sh", "gpu02.sh") == (0, {})

    head.write("/tmp/listen.py", LISTEN)
    head.run(["sh", "-c", "setsid python3 /tmp/listen.py >/dev/null 2>&1 &"])
    (doctor.folder / "work" / "gpu01.sh").write_text(_script(0, other.address))
    more = "--tensor-parallel-size 2"
    (doctor.folder / "work" / "gpu02.sh").write_text(
        _script(8, other.address, "eth7", more).replace("export", "export NCCL_IB_HCA=mlx5_77\nexport", 1)
    )
    code, found = _lint(doctor, two, "gpu01.sh", "gpu02.sh")
    assert code == 1
    assert f"but of {other.name}" in found["launch.address-is-the-heads"][0]["found"]
    assert found["launch.address-is-the-heads"][0]["location"]["path"] == "gpu01.sh"
    assert "no eth7 on gpu02" in found["launch.interfaces-exist"][0]["found"]
    assert "no mlx5_77 on gpu02" in found["launch.hcas-exist"][0]["found"]
    assert "16 ranks" in found["launch.gpus-enough"][0]["found"]
    assert found["launch.gpus-enough"][0]["odd_nodes"] == ["gpu02"]
    assert "port 8000 (API server) is taken on gpu01" in found["launch.ports-apart"][0]["found"]


VENV = "/opt/venv"
HOLDER = """import mmap, time
with open("/opt/venv/lib/libnccl.so.2", "rb") as library:
    kept = mmap.mmap(library.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC)
time.sleep(600)
"""


def _install(node: NetnsNode) -> None:
    """An environment with a vLLM that holds a library and loads no model."""
    site = f"{VENV}/lib/python3.11/site-packages"
    node.write(f"{VENV}/bin/vllm", HOLDER)
    node.write(f"{VENV}/lib/libnccl.so.2", "no library, but mapped like one\n")
    node.write(f"{VENV}/pyvenv.cfg", "home = /usr/bin\nversion = 3.11.2\n")
    node.write(
        f"{site}/vllm-0.33.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n"
    )
    node.run(["ln", "-sf", "/usr/bin/python3", f"{VENV}/bin/python3"])


def _serve(node: NetnsNode, rank: int, address: str, variables: str = "", more: str = "") -> None:
    """A process with the command line, environment and libraries of a server."""
    part = f"--data-parallel-start-rank {rank} --headless" if rank else "--port 8000"
    command = (
        f"{VENV}/bin/python3 {VENV}/bin/vllm serve {MODEL} --enable-expert-parallel --data-parallel-size 16 "
        f"--data-parallel-size-local 8 --data-parallel-address {address} --data-parallel-rpc-port 13345 "
        f"--enable-eplb {part} {more}"
    )
    node.run(
        ["sh", "-c", f"GLOO_SOCKET_IFNAME=eth0 {variables} setsid {command} </dev/null >/dev/null 2>&1 &"]
    )


def test_which_live_rank_differs(two: NetnsFleet, doctor: Doctor) -> None:
    """vllm-project/vllm#26187: one rank with another EPLB flag, seen as a hang."""
    head, other = two.nodes
    nobody = doctor.run("lint", "--running", "-i", str(two.inventory))
    assert nobody.rc == 2
    assert "no vLLM server runs on these nodes" in nobody.err

    for node in two.nodes:
        _install(node)
    _serve(head, 0, head.address)
    _serve(other, 8, head.address)
    code, found = _lint(doctor, two, "--running")
    assert (code, found) == (0, {})

    for process in other.processes():
        if f"{VENV}/bin/vllm" in process.argv:
            os.kill(process.pid, signal.SIGKILL)
    _serve(other, 8, head.address, "NVSHMEM_QP_DEPTH=4096", "--no-enable-eplb")
    code, found = _lint(doctor, two, "--running")
    assert code == 1
    (flag,) = found["launch.flags-equal"]
    assert "--enable-eplb is on in gpu01" in flag["found"]
    assert flag["odd_nodes"] == ["gpu02"]
    (variable,) = found["launch.variables-equal"]
    assert "NVSHMEM_QP_DEPTH" in variable["found"]


def test_a_plan_for_the_nodes_passes_lint_on_them(two: NetnsFleet, doctor: Doctor) -> None:
    done = doctor.run(
        "plan", "--model", MODEL, "-i", str(two.inventory), "--workload", "decode", "-o", "launch"
    )
    assert done.rc == 0, done.err
    for node in two.nodes:
        text = "".join(
            path.read_text() for path in sorted((doctor.folder / "work" / "launch").glob(f"{node.name}*"))
        )
        assert two.nodes[0].address in text
        assert "GLOO_SOCKET_IFNAME=eth0" in text
    code, found = _lint(doctor, two, "launch")
    assert (code, {name for name in found if name != "launch.backend-fits-workload"}) == (0, set())
