"""``python -m tests.lab vm up|down|status|run|ssh``: machines that stay, or that end with one command."""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.lab.requirements import LabError, cache_dir
from tests.lab.vm import VmFleet
from tests.lab.vm_machine import accelerator

SHORT = ("up", "down", "status", "restore", "ssh")
"""Sub-commands that ``python -m tests.lab`` takes without the word ``vm``."""


def _state_file() -> Path:
    return cache_dir() / "vm-up.json"


def _keeper_alive() -> dict[str, Any] | None:
    """What the keeper of the machines that are up has written, or None. The keeper holds a lock on it."""
    try:
        with _state_file().open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                written = json.loads(file.read() or "{}")
                return written if isinstance(written, dict) else None
    except (OSError, ValueError):
        return None
    return None


def keep(options: argparse.Namespace) -> int:
    """Start the machines and hold them until SIGTERM: what ``up`` leaves running."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with _state_file().open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        with VmFleet(options.nodes) as fleet:
            json.dump(
                {"pid": os.getpid(), "dir": str(fleet.dir), "hub": fleet.hub, "nodes": options.nodes}, file
            )
            file.flush()
            print("ready", flush=True)
            sys.stdout.close()
            while not stop.wait(1.0):
                pass
        file.truncate(0)
    return 0


def up(options: argparse.Namespace) -> int:
    """Start machines that stay up after this command."""
    kept = _keeper_alive()
    if kept is None:
        argv = [sys.executable, "-m", "tests.lab", "vm", "keep", "--nodes", str(options.nodes)]
        log = cache_dir() / "vm-up.log"
        with log.open("wb") as errors:
            keeper = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        assert keeper.stdout is not None
        try:
            ready = keeper.stdout.readline()
        except KeyboardInterrupt:
            keeper.terminate()
            keeper.wait(30)
            raise
        if ready != b"ready\n":
            keeper.wait(30)
            print(
                log.read_text(errors="replace").strip()[-2000:] or "the machines did not start",
                file=sys.stderr,
            )
            return 2
        kept = _keeper_alive()
    if not kept:
        print("lab: the machines are starting in another process", file=sys.stderr)
        return 2
    print(f"up: {kept['nodes']} machines ({accelerator()}), files in {kept['dir']}")
    _advise(kept)
    return 0


def _advise(kept: dict[str, Any]) -> None:
    print("python -m tests.lab vm run -- epdoctor check --all-nodes")
    print(
        "python -m tests.lab vm ssh vm1        python -m tests.lab vm restore        python -m tests.lab vm down"
    )


def down(options: argparse.Namespace) -> int:
    """End the machines that ``up`` started."""
    kept = _keeper_alive()
    if not kept:
        print("no machines are up")
        return 0
    os.kill(int(kept["pid"]), signal.SIGTERM)
    for _ in range(300):
        if _keeper_alive() is None:
            print("down")
            return 0
        time.sleep(0.1)
    print(f"lab: process {kept['pid']} does not end", file=sys.stderr)
    return 1


def _machine_pids(folder: str) -> dict[str, int]:
    """Process ids of the QEMUs whose files lie in ``folder``, by machine."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "qemu-system" in words[0] and any(folder in word for word in words) and "-name" in words:
            found[words[words.index("-name") + 1]] = int(entry.name)
    return found


def status(options: argparse.Namespace) -> int:
    """One line a machine; 1 when none is up."""
    kept = _keeper_alive()
    if not kept:
        print("no machines are up; start them: python -m tests.lab vm up")
        return 1
    pids = _machine_pids(str(kept["dir"]))
    for index in range(1, int(kept["nodes"]) + 1):
        name = f"vm{index}"
        state = "down"
        if name in pids:
            text = Path(f"/proc/{pids[name]}/status").read_text()
            rss = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))
            state = f"up    pid {pids[name]}   {rss // 1024} MiB"
        print(f"{name}   10.78.0.{10 + index}   data 10.77.0.{10 + index}   {state}")
    _advise(kept)
    return 0


def _need_up() -> dict[str, Any]:
    kept = _keeper_alive()
    if not kept:
        raise LabError("no machines are up: python -m tests.lab vm up")
    return kept


def _environment(folder: str) -> dict[str, str]:
    return {**os.environ, "EPDOCTOR_INVENTORY": f"{folder}/inventory.ini", "LAB": folder}


def run(options: argparse.Namespace) -> int:
    """Run a command where the machines can be reached: those that are up, else ones of its own."""
    argv = options.command or [os.environ.get("SHELL", "/bin/sh")]
    kept = None if options.own else _keeper_alive()
    if kept:
        prefix = ["ip", "netns", "exec", str(kept["hub"])]
        return subprocess.run([*prefix, *argv], env=_environment(str(kept["dir"]))).returncode
    with VmFleet(options.nodes) as fleet:
        words = f"inventory {fleet.inventory}; ssh -F {fleet.ssh_config} {fleet.nodes[0].name}"
        print(f"up in {time.monotonic() - options.began:.1f} s: {words}", file=sys.stderr)
        return subprocess.run([*fleet.exec_prefix, *argv], env=_environment(str(fleet.dir))).returncode


def ssh(options: argparse.Namespace) -> int:
    """SSH to a machine that is up."""
    kept = _need_up()
    prefix = ["ip", "netns", "exec", str(kept["hub"]), "ssh", "-F", f"{kept['dir']}/ssh_config"]
    return subprocess.run([*prefix, *options.command]).returncode


def restore(options: argparse.Namespace) -> int:
    """Bring the machines that are up back to their first state."""
    kept = _need_up()
    fleet = VmFleet.attached(int(kept["nodes"]), Path(kept["dir"]), str(kept["hub"]))
    fleet.restore()
    print("restored")
    return 0


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add up, down, status, run, ssh, restore and keep to ``parser``."""
    commands = parser.add_subparsers(required=True, metavar="up|down|status|run|ssh|restore")
    for name, call in (
        ("up", up), ("down", down), ("status", status), ("run", run), ("ssh", ssh), ("restore", restore), ("keep", keep),
    ):  # fmt: skip
        command = commands.add_parser(name, help=None if name == "keep" else call.__doc__)
        if name in ("up", "run", "keep"):
            command.add_argument("-n", "--nodes", type=int, default=2)
        if name == "run":
            command.add_argument("--own", action="store_true", help="new machines, also where some are up")
        if name in ("run", "ssh"):
            command.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND...")
        command.set_defaults(call=call)
