"""The agent: syntax and imports for Python 3.6, and its behaviour as a real process."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest

from epdoctor import agent
from epdoctor.collect.plan import all_probes, build_plan, payload
from epdoctor.collect.record import parse_output
from epdoctor.facts.base import CollectOptions, Command, Script

PACKAGE = Path(__file__).parent.parent / "epdoctor"
AGENT = PACKAGE / "agent.py"
NODE_SIDE = [AGENT, *sorted((PACKAGE / "probes").glob("*.py"))]
ALLOWED_IMPORTS = {
    "base64", "ctypes", "errno", "fcntl", "fnmatch", "glob", "ipaddress", "json", "mmap", "os", "psutil", "pwd",
    "pynvml", "re", "resource", "select", "signal", "socket", "stat", "struct", "sys", "threading", "time", "types", "zlib",
}  # fmt: skip
READ_ONLY_COMMANDS = {
    "nvidia-smi",
    "ip",
    "nft",
    "ldconfig",
    "systemctl",
    "lspci",
    "modinfo",
    "dpkg-query",
    "nvidia-imex-ctl",
}
VERSION_ONLY = {"nv-fabricmanager"}
"""Asked for their version and nothing else."""
"""What the plan may run. Each only reads: see the comments beside the probes."""


@pytest.mark.parametrize("path", NODE_SIDE, ids=lambda path: path.name)
def test_node_side_is_python_3_6(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 6))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
            assert node.module != "__future__", "annotations are 3.7"
        assert {name.partition(".")[0] for name in names} <= ALLOWED_IMPORTS, f"{path.name} imports {names}"
        if isinstance(node, ast.Call):
            keywords = {keyword.arg for keyword in node.keywords}
            assert not keywords & {"capture_output", "text"}, "3.7"


def test_every_command_is_on_the_read_only_list() -> None:
    commands = [probe for probe in all_probes(CollectOptions()) if isinstance(probe, Command)]
    versions = [probe for probe in commands if probe.argv[0].rpartition("/")[2] in VERSION_ONLY]
    assert all(probe.argv[1:] == ("--version",) for probe in versions)
    assert {p.argv[0].rpartition("/")[2] for p in commands if p not in versions} <= READ_ONLY_COMMANDS
    assert len(commands) <= 20


def test_what_can_load_a_module_runs_only_where_the_driver_is() -> None:
    for probe in all_probes(CollectOptions()):
        nvidia = (isinstance(probe, Command) and probe.argv[0] == "nvidia-smi") or (
            isinstance(probe, Script) and "pynvml" in probe.modules
        )
        if nvidia:
            assert probe.only_if_exists == "/proc/driver/nvidia/version", probe.name


def run_plan(
    probes: list[dict[str, Any]], *, deadline_s: float = 20.0, limit_s: float = 30.0, **extra: Any
) -> dict[str, Any]:
    plan = {"nonce": "n0", "deadline_s": deadline_s, "parallel": 4, "probes": probes, "modules": {}, **extra}
    done = subprocess.run(
        [sys.executable, "-IB", "-"],
        input=payload(plan),
        stdout=subprocess.PIPE,
        timeout=limit_s,
        check=False,
    )
    begin, found, end = parse_output(done.stdout, "n0")
    assert begin["protocol"] == 1
    assert end is not None
    return found


def command(name: str, *argv: str, **extra: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "command",
        "argv": list(argv),
        "timeout_s": 5.0,
        "max_bytes": 65536,
        **extra,
    }


def test_statuses_of_commands() -> None:
    found = run_plan(
        [
            command("ok", "echo", "hello"),
            command("missing", "epdoctor-no-such-program"),
            command("denied", "/etc/hostname"),
            command("failing", "ls", "/epdoctor-no-such-path"),
            command("guarded", "echo", "x", only_if_exists="/epdoctor-no-such-path"),
            command("fallback", "echo", "x", unless_ok="ok"),
        ]
    )
    assert (found["ok"]["status"], found["ok"]["stdout"], found["ok"]["rc"]) == ("ran", "hello\n", 0)
    assert found["missing"]["status"] == "not-found"
    assert found["denied"]["status"] == "denied"
    assert found["failing"]["rc"] == 2
    assert "epdoctor-no-such-path" in found["failing"]["stderr"]
    assert found["guarded"]["status"] == "skipped"
    assert found["fallback"]["status"] == "skipped"


def test_a_hanging_command_costs_its_own_limit_only() -> None:
    started = time.monotonic()
    found = run_plan([command("hang", "sleep", "60", timeout_s=0.5), command("ok", "echo", "x")])
    assert found["hang"]["status"] == "timeout"
    assert found["ok"]["status"] == "ran"
    assert time.monotonic() - started < 10


def test_after_a_probe_that_hung_the_rest_of_its_lane_is_skipped_and_others_run() -> None:
    hanging = [command(f"hang{n}", "sleep", "60", timeout_s=0.5, lane="gpu") for n in range(4)]
    found = run_plan([*hanging, *[command(f"ok{n}", "echo", "x") for n in range(6)]])
    assert [found[f"hang{n}"]["status"] for n in range(4)] == ["timeout", "skipped", "skipped", "skipped"]
    assert found["hang1"]["reason"] == "hang0 hung"
    assert {found[f"ok{n}"]["status"] for n in range(6)} == {"ran"}


def test_a_lane_that_answers_runs_one_after_the_other() -> None:
    found = run_plan([command(f"p{n}", "sleep", "0.2", lane="gpu") for n in range(3)])
    assert [found[f"p{n}"]["status"] for n in range(3)] == ["ran"] * 3


def test_a_grandchild_that_holds_the_output_does_not_hold_us() -> None:
    found = run_plan([command("tree", "sh", "-c", "sleep 60 & echo started; wait", timeout_s=0.5)])
    assert found["tree"]["status"] == "timeout"
    assert found["tree"]["stdout"] == "started\n"


def test_a_flood_ends_at_its_source() -> None:
    found = run_plan([command("flood", "yes", "0123456789", max_bytes=100_000)])
    assert found["flood"]["truncated"] is True
    assert len(found["flood"]["stdout"]) == 100_000


def test_bytes_that_are_no_text_arrive_escaped() -> None:
    found = run_plan([command("raw", "printf", r"a\377\000\033[31m")])
    assert found["raw"]["stdout"] == "a\\xff\\x00\x1b[31m"


def test_files_links_and_stat(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("one")
    (tmp_path / "b.conf").write_text("x" * 100)
    (tmp_path / "link.conf").symlink_to("a.conf")
    os.mkfifo(tmp_path / "fifo.conf")
    glob = f"{tmp_path}/*.conf"
    found = run_plan(
        [
            {"name": "files", "kind": "files", "globs": [glob], "max_file_bytes": 10, "max_bytes": 65536},
            {"name": "links", "kind": "links", "globs": [glob], "max_bytes": 65536},
            {
                "name": "stat",
                "kind": "stat",
                "globs": [f"{tmp_path}/a.conf"],
                "statvfs": True,
                "max_bytes": 65536,
            },
        ]
    )
    rows = {row[0].rpartition("/")[2]: row[1:] for row in found["files"]["data"]}
    assert rows["a.conf"] == ["one"]
    assert rows["b.conf"] == ["x" * 10, "TRUNCATED"]
    assert rows["link.conf"] == ["one"]
    assert found["links"]["data"] == [[f"{tmp_path}/link.conf", "a.conf"]]
    assert found["stat"]["data"][0][1]["size"] == 3
    assert found["stat"]["data"][0][1]["total"] > 0


def files(name: str, *globs: str, **extra: Any) -> dict[str, Any]:
    return {"name": name, "kind": "files", "globs": list(globs), "max_bytes": 65536, **extra}


def test_file_probes_share_a_child_and_each_has_its_own_entry(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"f{number}").write_text(str(number))
    found = run_plan([files(f"p{number}", f"{tmp_path}/f{number}") for number in range(20)])
    assert [found[f"p{number}"]["data"] for number in range(20)] == [
        [[f"{tmp_path}/f{n}", str(n)]] for n in range(20)
    ]
    assert {found[f"p{number}"]["status"] for number in range(20)} == {"ran"}


def test_a_flood_in_a_batch_costs_its_own_probe(tmp_path: Path) -> None:
    (tmp_path / "big").write_text("x" * 50_000)
    (tmp_path / "small").write_text("s")
    probes = [
        files("a", f"{tmp_path}/small"),
        files("b", f"{tmp_path}/big", max_bytes=1000),
        files("c", f"{tmp_path}/small"),
    ]
    found = run_plan(probes)
    assert found["b"]["truncated"] is True
    assert found["a"]["data"] == found["c"]["data"] == [[f"{tmp_path}/small", "s"]]


def test_a_probe_that_hung_in_a_batch_is_named_and_the_rest_is_asked_again() -> None:
    """A sysfs file of a wedged device cannot be had here: the batch's output as it stands when the child is killed."""
    specs = [{"name": name, "kind": "files", "globs": []} for name in "abcd"]
    raw = b'\x1e0\n["/x","1"]\n\x1d0.01\n\x1e1\n["/y","2"]\n["/z","unfin'
    lines, rest = agent.batch_entries(specs, raw, ("timeout", None), "")  # type: ignore[no-untyped-call]  # Python 3.6 code, unannotated
    entries = [json.loads(line) for line in lines]
    assert [(entry["name"], entry["status"], entry["data"]) for entry in entries] == [
        ("a", "ran", [["/x", "1"]]),
        ("b", "timeout", [["/y", "2"]]),
    ]
    assert [spec["name"] for spec in rest] == ["c", "d"]


def test_the_node_deadline_gives_what_there_is() -> None:
    found = run_plan(
        [command("ok", "echo", "x"), command("slow", "sleep", "60", timeout_s=60)], deadline_s=1.0, parallel=1
    )
    assert found["ok"]["status"] == "ran"
    assert found["slow"]["status"] == "timeout"


def started(plan: dict[str, Any]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """An agent that has been given its plan and has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-IB", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(payload(plan))
    process.stdin.close()
    process.stdout.readline()
    return process, process.stdout


def test_a_lost_reader_ends_everything_it_started() -> None:
    plan = {
        "nonce": "n0",
        "deadline_s": 50,
        "parallel": 2,
        "modules": {},
        "probes": [command("s", "sleep", "4711", timeout_s=50)],
    }
    process, stdout = started(plan)
    stdout.close()
    process.wait(timeout=10)
    left = subprocess.run(["pgrep", "-f", "^sleep 4711$"], stdout=subprocess.PIPE, check=False)
    assert left.stdout == b""


def test_a_reader_lost_while_the_agent_writes_ends_everything() -> None:
    slow = [command(f"w{n}", "sh", "-c", "sleep 0.4; yes | head -c 60000", timeout_s=50) for n in range(3)]
    probes = [command("s", "sleep", "4713", timeout_s=50), *slow]
    plan = {"nonce": "n0", "deadline_s": 50, "parallel": 4, "modules": {}, "probes": probes}
    process, stdout = started(plan)
    # Full pipe: the agent sits in write() when its reader goes.
    time.sleep(1.0)
    stdout.close()
    process.wait(timeout=10)
    left = subprocess.run(["pgrep", "-f", "^sleep 4713$"], stdout=subprocess.PIPE, check=False)
    assert left.stdout == b""


def test_term_ends_everything_it_started() -> None:
    plan = {
        "nonce": "n0",
        "deadline_s": 50,
        "parallel": 2,
        "modules": {},
        "probes": [command("s", "sleep", "4712", timeout_s=50)],
    }
    process, _ = started(plan)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)
    left = subprocess.run(["pgrep", "-f", "^sleep 4712$"], stdout=subprocess.PIPE, check=False)
    assert left.stdout == b""


def test_the_real_plan_runs_here_and_every_probe_answers() -> None:
    plan = build_plan(CollectOptions(), node_timeout_s=60.0)
    done = subprocess.run(
        [sys.executable, "-IB", "-"], input=payload(plan), stdout=subprocess.PIPE, timeout=90, check=False
    )
    _, found, end = parse_output(done.stdout, plan["nonce"])
    assert end is not None
    assert set(found) == {probe["name"] for probe in plan["probes"]}
    failed = {name: entry.get("stderr") for name, entry in found.items() if entry.get("rc") == 70}
    assert not failed
    assert len(json.dumps(found)) < 8_000_000
