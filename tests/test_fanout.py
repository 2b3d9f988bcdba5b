"""The fan-out: deadlines, Ctrl-C, events, and the transports that are a local command."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from epdoctor.collect import transport as transport_module
from epdoctor.collect.fanout import FleetRun, run_fleet
from epdoctor.collect.targets import Target
from epdoctor.collect.transport import Event
from epdoctor.exceptions import UsageError
from tests.sshd_lab import BOTH, HELLO, SshdLab, ask, ask_one, free_port, listener, node, running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshdLab]:
    with running_lab(tmp_path_factory) as started:
        yield started


@pytest.fixture(scope="module")
def good(lab: SshdLab) -> int:
    return lab.start()


@BOTH
def test_hang_ends_at_the_deadline_with_partial_output_and_delays_nobody(
    lab: SshdLab, good: int, transport: str
) -> None:
    hang = lab.start("ForceCommand echo partial; sleep 1000")
    started = time.monotonic()
    nodes = [node(lab, "hang", hang), *(node(lab, f"gpu{i}", good) for i in range(4))]
    results = ask(*nodes, timeout_s=3, transport=transport)
    assert time.monotonic() - started < 6
    assert (results["hang"].kind, results["hang"].stdout) == ("timeout", b"partial\n")
    assert "within 3 s" in results["hang"].error
    assert results["hang"].hint.endswith("uptime")
    assert all(results[f"gpu{i}"].kind == "ok" and results[f"gpu{i}"].seconds < 3 for i in range(4))


def test_local_target_needs_no_ssh() -> None:
    result = ask_one(Target("here", connection="local"), payload=b"import sys; print(sys.executable)")
    assert result.stdout.decode().strip() == sys.executable
    assert ask_one(Target("here", connection="local"), payload=b"raise SystemExit('no')").kind == "garbage"


def test_via_runs_a_command_per_node_without_a_shell() -> None:
    template = "env 'NODE={node};touch x' sh -c 'exec \"$@\"' -"
    payload = b"import os; print(os.environ['NODE'])"
    results = ask(Target("a"), Target("b"), payload=payload, via=template)
    assert results["a"].stdout == b"a;touch x\n"
    assert results["b"].stdout == b"b;touch x\n"


@pytest.mark.parametrize(
    ("via", "kind"),
    [
        ("sh -c 'echo Error: no such container: $0 >&2; exit 125' {node}", "via-failed"),
        ("sh -c 'exit 0' {node}", "via-failed"),
        ("env PATH=/nonexistent/{node}", "no-python"),
        ("sh -c 'echo half; exit 3' {node}", "truncated"),
    ],
)
def test_via_that_fails(via: str, kind: str) -> None:
    result = ask_one(Target("gpu01"), via=via)
    assert result.kind == kind
    assert "gpu01" in result.error
    assert result.hint


def test_via_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    result = ask_one(Target("n"), via=f"sh -c 'sleep 1000 & echo $! >{pid}; wait' {{node}}", timeout_s=1)
    assert result.kind == "timeout"
    time.sleep(0.2)
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize("via", ["", "'", "kubectl exec -i pod --", "/no/such/program {node}"])
def test_bad_via_is_a_usage_error(via: str) -> None:
    if via:
        with pytest.raises(UsageError):
            run_fleet([Target("a")], lambda _: HELLO, via=via)


def test_usage_errors_come_before_any_connection(lab: SshdLab, good: int) -> None:
    bad = node(lab, "gpu02", good, ssh_args=("-F", str(lab.config), "-o", "CertificateFile=/x"))
    with pytest.raises(UsageError, match="gpu02: the SSH option CertificateFile"):
        run_fleet([node(lab, "gpu01", good), bad], lambda _: HELLO)
    with pytest.raises(UsageError, match="named twice"):
        run_fleet([Target("a"), Target("a")], lambda _: HELLO)
    with pytest.raises(UsageError, match="leaves nothing"):
        run_fleet(
            [node(lab, "a", good, ssh_args=("-oCiphers=chacha20-poly1305@openssh.com",))], lambda _: HELLO
        )
    with pytest.raises(UsageError, match="--transport telnet"):
        run_fleet([Target("a")], lambda _: HELLO, transport="telnet")


@BOTH
def test_abort_returns_at_once_with_partial_output(lab: SshdLab, good: int, transport: str) -> None:
    hang = lab.start("ForceCommand echo partial; sleep 1000")
    targets = [node(lab, "gpu01", good), *(node(lab, f"hang{i}", hang) for i in range(3))]
    run = run_fleet(targets, lambda _: HELLO, forks=3, node_timeout_s=60, transport=transport)
    first = next(iter(run))
    assert (first.target.name, first.error, first.traceback) == ("gpu01", "", "")
    time.sleep(1.5)
    started = time.monotonic()
    left = run.abort()
    assert time.monotonic() - started < 1
    assert {result.kind for result in left} == {"interrupted"}
    assert {result.target.name for result in left} == {"hang0", "hang1", "hang2"}
    assert b"partial\n" in {result.stdout for result in left}
    assert [result.target.name for result in run.results()] == [result.target.name for result in left]
    assert run.pending == ()


def test_events_tell_the_story_of_each_node(lab: SshdLab, good: int) -> None:
    events: list[Event] = []
    ask(node(lab, "gpu01", good), node(lab, "gpu02", free_port()), on_event=events.append)
    assert [event.kind for event in events if event.node == "gpu01"] == ["connecting", "connected", "done"]
    assert [event.kind for event in events if event.node == "gpu02"] == ["connecting", "failed"]


SCRIPT = """
import sys
from epdoctor.collect.fanout import run_fleet
from epdoctor.collect.targets import Target
ports = sys.argv[2:]
args = ("-F", sys.argv[1])
nodes = [Target(f"n{at}", "127.0.0.1", int(port), ssh_args=args) for at, port in enumerate(ports)]
run = run_fleet(nodes, lambda _: b"print(1)", node_timeout_s=60)
for result in run:
    print(result.target.name, result.kind)
    if len(run.pending) == 1:
        break
for result in run.abort():
    print(result.target.name, result.kind)
"""


def test_nothing_reaches_stderr_and_the_process_ends_while_a_node_hangs(lab: SshdLab, good: int) -> None:
    hang = lab.start("ForceCommand sleep 1000")
    dying = lab.start("ForceCommand kill -9 $PPID")
    with listener(greet=b"SSH-2.0-x\r\n" + bytes(range(256)) * 4) as noise:
        argv = [
            sys.executable,
            "-c",
            SCRIPT,
            str(lab.config),
            *map(str, (good, hang, dying, noise, free_port())),
        ]
        done = subprocess.run(
            argv, capture_output=True, timeout=40, check=False, cwd=Path(__file__).parent.parent
        )
    assert (done.returncode, done.stderr) == (0, b"")
    kinds = dict(line.split() for line in done.stdout.decode().splitlines())
    assert kinds == {"n0": "ok", "n1": "interrupted", "n2": "closed", "n3": "closed", "n4": "refused"}


class _Stuck:
    """A transport call that nothing can end, as getaddrinfo with a dead resolver."""

    def run(self, job: transport_module.Job, payload: bytes) -> int | None:
        if job.target.name.startswith("stuck"):
            threading.Event().wait(30)
        job.add_stdout(b"x")
        return 0

    def explain(self, job: transport_module.Job, rc: int | None) -> transport_module.NodeFailure | None:
        return None

    def close(self) -> None: ...


def test_a_worker_that_cannot_be_ended_gives_its_place_to_another() -> None:
    targets = [Target("stuck1"), Target("stuck2"), Target("good1"), Target("good2")]
    transport = _Stuck()
    run = FleetRun(targets, lambda _: b"", lambda _: transport, forks=2, node_timeout_s=0.5)
    started = time.monotonic()
    kinds = {result.target.name: result.kind for result in run}
    assert kinds == {"stuck1": "timeout", "stuck2": "timeout", "good1": "ok", "good2": "ok"}
    assert time.monotonic() - started < 4


def test_a_bug_in_one_node_does_not_take_the_others() -> None:
    def payload(target: Target) -> bytes:
        return HELLO if target.name == "good" else bytes(1 // 0)

    local = [Target("good", connection="local"), Target("bad", connection="local")]
    results = {result.target.name: result for result in run_fleet(local, payload)}
    assert results["good"].kind == "ok"
    assert "ZeroDivisionError" in results["bad"].traceback


class _Counting(_Stuck):
    """Counts how many nodes are asked at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def run(self, job: transport_module.Job, payload: bytes) -> int | None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)
        with self.lock:
            self.now -= 1
        return super().run(job, payload)


def test_no_more_than_forks_nodes_at_once() -> None:
    transport = _Counting()
    targets = [Target(f"n{i}") for i in range(40)]
    run = FleetRun(targets, lambda _: b"", lambda _: transport, forks=5, node_timeout_s=30)
    assert [result.kind for result in run] == ["ok"] * 40
    assert transport.most == 5
