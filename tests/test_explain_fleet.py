"""explain with checks on real nodes: the one with the fault is named, and the ranking moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.doctor import Doctor, need
from tests.lab import eight_gpus, netns
from tests.lab.netns import NetnsFleet, NodeOptions

pytestmark = pytest.mark.fleet

TEXT = "ibgda.cpp:1454: non-zero status: 7 cannot register cq buf."


def _score(answer: dict[str, Any], cause: str) -> float:
    return next(float(result["score"]) for result in answer["results"] if result["id"] == cause)


def test_the_node_with_little_locked_memory_is_it(tmp_path: Path) -> None:
    need(netns.unavailable())
    with NetnsFleet(3, options={2: NodeOptions(memlock_kib=64)}) as fleet:
        for node in fleet.nodes:
            eight_gpus.install(node)
        doctor = Doctor(tmp_path, prefix=fleet.exec_prefix)
        alone = doctor.run("explain", TEXT, "--format", "json")
        nodes = ("--all-nodes", "-i", str(fleet.inventory))
        checked = doctor.run("explain", TEXT, *nodes, "--format", "json")
        shown = doctor.run("explain", TEXT, *nodes)
        recorded = doctor.run("collect", *nodes, "-o", "fleet.tar.gz")
        judged = doctor.run("explain", TEXT, "--from", "fleet.tar.gz", "--format", "json")
    assert (alone.rc, checked.rc, recorded.rc, judged.rc) == (0, 0, 0, 0), checked.err + judged.err
    for done in (checked, judged):
        answer = json.loads(done.out)
        assert answer["results"][0]["id"] == "memlock-limit"
        assert _score(answer, "memlock-limit") > _score(json.loads(alone.out), "memlock-limit")
        proof = {r["check"]: r for r in answer["results"][0]["check_results"] if r["status"] == "fail"}
        assert proof["drift.memlock"]["nodes"] == ["gpu02"]
        assert proof["drift.memlock"]["found"].startswith("64 KiB")
    assert "on gpu02: 64 KiB" in shown.text
    assert "(this is it)" in shown.text
    assert "next       on gpu" in shown.text
