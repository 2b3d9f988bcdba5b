"""One run of ansible-playbook through ansible-runner, in a private folder that is gone afterwards.

ansible-runner writes its inputs and every event into its folder and puts extra variables on the command line
when they are given as an argument; here they go through a file in a folder that only this user can read.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from epdoctor.collect.redact import redact_text
from epdoctor.exceptions import EpdoctorError
from epdoctor.paths import data_dir
from epdoctor.provision.events import EventReader
from epdoctor.provision.leash import leash
from epdoctor.provision.result import RunResult

RUN_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Job:
    """What to run on which nodes."""

    playbook: str
    """Name of a file in playbooks/; with `components`, their playbooks run instead."""
    inventory: Path
    nodes: tuple[str, ...]
    components: tuple[str, ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Component -> nodes that it is for, where that is not all of them."""
    check: bool = False
    """Check mode with diff: changes nothing."""
    forks: int = 32
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Extra variables; they win over the inventory."""
    host_vars: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Variables of single nodes, beside those of the inventory."""
    pins: Mapping[str, Any] = field(default_factory=dict)
    """Variables of all nodes that win over the roles' defaults and lose against the inventory."""
    become_password: str = ""
    """For sudo on the nodes; it travels in a file that only this user can read."""
    max_fail_percent: float = 100
    timeout_s: float = RUN_TIMEOUT_S


def run(
    job: Job,
    *,
    log: IO[str] | None = None,
    watch: Callable[[EventReader], None] = lambda reader: None,
) -> RunResult:
    """Run a playbook; never raises for what happens on nodes.

    `watch` is called with every event and while nothing happens. Raises EpdoctorError where ansible-runner or
    ansible-playbook is not installed."""
    if importlib.util.find_spec("ansible_runner") is None:
        raise EpdoctorError("ansible-runner is not installed", hint="pip install ansible-runner ansible-core")
    if shutil.which("ansible-playbook", path=_path()) is None:
        raise EpdoctorError("ansible-playbook is not installed", hint="pip install ansible-core")
    from ansible_runner import interface  # half a second: only where a playbook runs

    result = RunResult(job.nodes, job.components, where=job.where)
    reader = EventReader(result, max_fail_percent=job.max_fail_percent)
    started = time.monotonic()
    # Sockets of ssh must have short paths (sun_path, 108 bytes), so TMPDIR is not followed where it is long.
    base = tempfile.gettempdir() if len(tempfile.gettempdir()) < 40 else "/tmp"  # noqa: S108  # mkdtemp makes it private
    private = Path(tempfile.mkdtemp(prefix="epd-", dir=base))
    stop = threading.Event()

    def on_event(event: Mapping[str, Any]) -> bool:
        reader.feed(event)
        if log is not None and event.get("stdout"):
            log.write(redact_text(str(event["stdout"])) + "\n")
            log.flush()
        watch(reader)
        return False  # keep no event file

    def cancelled() -> bool:
        watch(reader)
        return stop.is_set()

    try:
        _write_inputs(private, job)
        try:
            with leash(private):
                done = interface.run(
                    private_data_dir=str(private),
                    project_dir=str(data_dir("playbooks")),
                    playbook=str(private / "site.json") if job.components else job.playbook,
                    # Of several inventories the later one wins: pins before the site's own.
                    inventory=[
                        str(private / "pins.json"),
                        str(job.inventory.resolve()),
                        str(private / "hosts.json"),
                    ],
                    limit=f"@{private / 'limit'}",
                    forks=job.forks,
                    cmdline=_words(job),
                    envvars=_environment(private, job),
                    settings={"job_timeout": int(job.timeout_s), "suppress_ansible_output": True},
                    quiet=True,
                    event_handler=on_event,
                    cancel_callback=cancelled,
                )
                _judge_end(result, done.status, private)
                _close_sockets(private / "cp")
        except KeyboardInterrupt:
            result.stopped = "interrupted"
    finally:
        stop.set()
        shutil.rmtree(private, ignore_errors=True)
    result.seconds = time.monotonic() - started
    reader.component = reader.task = ""
    watch(reader)
    return result


def _words(job: Job) -> str:
    words = ["--check", "--diff"] if job.check else ["--diff"]
    if job.components:
        words += ["--tags", ",".join(job.components)]
    return " ".join(words)


def _write_inputs(private: Path, job: Job) -> None:
    (private / "env").mkdir()
    (private / "cp").mkdir()
    (private / "tmp").mkdir()
    extra = {**job.extra, "epdoctor_nodes": _where(job)} if job.where else dict(job.extra)
    (private / "env" / "extravars").write_text(json.dumps(extra), "utf-8")
    (private / "limit").write_text("\n".join(job.nodes) + "\n", "utf-8")
    hosts = {name: dict(job.host_vars.get(name, {})) for name in job.nodes}
    (private / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}), "utf-8")
    (private / "pins.json").write_text(json.dumps({"all": {"vars": dict(job.pins)}}), "utf-8")
    if job.components:
        # With --tags alone, Ansible still checks the arguments of every role of every play, on every node.
        where = _where(job)
        names = [f"{component}.yml" for component in job.components if where.get(component, job.nodes)]
        plays = [{"import_playbook": str(data_dir("playbooks") / name)} for name in names]
        (private / "site.json").write_text(json.dumps(plays), "utf-8")
    if job.become_password:
        # Neither an argument nor a variable: those show in process lists and with -vvv in logs.
        with os.fdopen(os.open(private / "become", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(job.become_password)


def _where(job: Job) -> dict[str, list[str]]:
    """Only nodes of the run: the plan may have failed on some."""
    return {name: [node for node in nodes if node in job.nodes] for name, nodes in job.where.items()}


def _environment(private: Path, job: Job) -> dict[str, str]:
    """The site's own ansible.cfg and ANSIBLE_* variables hold; only what this run needs is added."""
    playbooks = data_dir("playbooks")
    config = os.environ.get("ANSIBLE_CONFIG") or (
        str(Path("ansible.cfg").resolve())
        if Path("ansible.cfg").is_file()
        else str(playbooks / "ansible.cfg")
    )
    own = {
        "PATH": _path(),
        "ANSIBLE_CONFIG": config,
        "ANSIBLE_ROLES_PATH": str(playbooks / "roles"),
        "ANSIBLE_LOCAL_TEMP": str(private / "tmp"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(private / "cp"),
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_HOST_PATTERN_MISMATCH": "ignore",
        "LC_ALL": "C.UTF-8",
    }
    if "ANSIBLE_PIPELINING" not in os.environ and "ANSIBLE_SSH_PIPELINING" not in os.environ:
        own["ANSIBLE_PIPELINING"] = "1"
    own["ANSIBLE_SSH_EXTRA_ARGS"] = f"{_site_ssh_words(Path(config))} {_ALIVE}".strip()
    if job.become_password:
        own["ANSIBLE_BECOME_PASSWORD_FILE"] = str(private / "become")
    return own


# A node whose packets are dropped answers nothing: without these, ssh waits for a quarter of an hour, and all nodes with it.
# They stand last, and ssh takes the first value of an option: what the site sets holds.
_ALIVE = "-o ServerAliveInterval=10 -o ServerAliveCountMax=3"


def _site_ssh_words(config: Path) -> str:
    """ssh_extra_args of the environment or of ansible.cfg, which the variable that carries _ALIVE would hide."""
    if "ANSIBLE_SSH_EXTRA_ARGS" in os.environ:
        return os.environ["ANSIBLE_SSH_EXTRA_ARGS"]
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",), strict=False)
    try:
        parser.read_string(config.read_text("utf-8"))
    except (OSError, ValueError, configparser.Error):
        return ""  # Ansible says what is wrong with it
    return " ".join(parser.get("ssh_connection", "ssh_extra_args", fallback="").split())


def _path() -> str:
    """PATH with this interpreter's own programs first: a virtual environment need not be activated."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def _judge_end(result: RunResult, status: str, private: Path) -> None:
    if status == "canceled":
        result.stopped = "interrupted"
    elif status == "timeout":
        result.stopped = "timeout"
    elif status != "successful" and not result.failures and not result.unreachable:
        # A syntax error, an inventory that ansible refuses: there are no events, only its words.
        texts = [path.read_text("utf-8", "replace") for path in private.glob("artifacts/*/stdout")]
        lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line]
        result.crashed = " ".join((errors or lines or ["ansible-playbook ended without a word"])[:2])[:600]


def _close_sockets(folder: Path) -> None:
    """End ssh's shared connections: they would stay for a minute, with the limits of before the change."""
    ssh = shutil.which("ssh") or "/usr/bin/ssh"
    for path in folder.glob("*"):
        subprocess.run(
            [ssh, "-o", f"ControlPath={path}", "-O", "exit", "none"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )


def node_become(user: str) -> dict[str, bool]:
    """Host variables for a login: root needs no sudo, which small systems do not have."""
    return {"ansible_become": False} if user == "root" else {}
