"""Real sshd processes of the current user on loopback addresses, each with a behaviour of its own."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from epdoctor.collect import transport as transport_module
from epdoctor.collect.fanout import run_fleet
from epdoctor.collect.targets import Target
from epdoctor.collect.transport import NodeResult

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
ADDRESS = "127.0.0.1"
_WORKER = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
_ports = itertools.cycle(range(20_000 + 1_000 * (_WORKER % 12), 20_000 + 1_000 * (_WORKER % 12 + 1)))
"""Below the ports that the kernel gives to connections, and another range for each worker: a port that is free when
asked for must still be when an sshd takes it, or nobody has taken it when a connection must be refused."""


def unavailable() -> str | None:
    """Why no sshd can be started here; None: it can."""
    missing = [name for name in (SSHD, "ssh-keygen", "ssh") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class SshdLab:
    """`start()` an sshd; the login key, host key and client configuration are made on entry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = getpass.getuser()
        self.processes: list[subprocess.Popen[bytes]] = []
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's privilege separation refuses to start without it
        self.key = self.keygen("id_login")
        self.host_key = self.keygen("host_key")
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.touch()
        self.config = folder / "ssh_config"
        self.write_config()

    def write_config(self, extra: str = "") -> None:
        self.config.write_text(
            f"{extra}\nHost *\n  User {self.user}\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n"
            f"  IdentityAgent none\n  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile none\n"
        )

    def keygen(self, name: str, *, kind: str = "ed25519", passphrase: str = "") -> Path:
        path = self.folder / name
        argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", name, "-f", str(path)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        return path

    def start(
        self, *lines: str, known: bool = True, port: int | None = None, host_key: Path | None = None
    ) -> int:
        """Start an sshd with these sshd_config lines; its port. `known`: enter its key in known_hosts."""
        port = port or free_port()
        host_key = host_key or self.host_key
        config = self.folder / f"sshd_{port}"
        config.write_text(
            "\n".join(
                [
                    *lines,
                    f"Port {port}",
                    f"ListenAddress {ADDRESS}",
                    f"HostKey {host_key}",
                    f"AuthorizedKeysFile {self.key}.pub",
                    "PidFile none",
                    "StrictModes no",
                    "UsePAM no",
                    "PermitRootLogin prohibit-password",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "MaxStartups 100",
                    "UseDNS no",
                    "PrintMotd no",
                ]
            )
            + "\n"
        )
        argv = [SSHD, "-D", "-e", "-f", str(config)]
        with (self.folder / f"log_{port}").open("wb") as log:
            self.processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log))
        wait_for(port)
        if known:
            self.trust(port, host_key)
        return port

    def trust(self, port: int, host_key: Path) -> None:
        kind, blob = host_key.with_name(host_key.name + ".pub").read_text().split()[:2]
        with self.known_hosts.open("a") as file:
            file.write(f"[{ADDRESS}]:{port} {kind} {blob}\n")

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(timeout=10)


def free_port() -> int:
    """A port of this worker that nothing listens on; asked for again, another."""
    for port in itertools.islice(_ports, 1_000):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as sshd: what only lingers is free
            sock.bind((ADDRESS, port))
            return port
    raise OSError("no free port")


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as sock:
            sock.settimeout(1)
            if sock.connect_ex((ADDRESS, port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


@contextlib.contextmanager
def running_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshdLab]:
    """For a module's fixture; skips, or with EPDOCTOR_LAB=required fails, where no sshd can be had."""
    reason = unavailable()
    if reason is not None:
        if os.environ.get("EPDOCTOR_LAB") == "required":
            pytest.fail(f"EPDOCTOR_LAB=required, but: {reason}", pytrace=False)
        pytest.skip(reason)
    lab = SshdLab(tmp_path_factory.mktemp("sshd"))
    try:
        yield lab
    finally:
        lab.close()


HELLO = b"print('hello')"


BOTH = pytest.mark.parametrize("transport", ["fabric", "openssh"])


def node(lab: SshdLab, name: str, port: int, **more: object) -> Target:
    fields: dict[str, object] = {"host": ADDRESS, "port": port, "ssh_args": ("-F", str(lab.config)), **more}
    return Target(name=name, **fields)  # type: ignore[arg-type]  # the dataclass's own signature judges them


def ask(
    *targets: Target, payload: bytes = HELLO, timeout_s: float = 20, **options: object
) -> dict[str, NodeResult]:
    run = run_fleet(targets, lambda _: payload, node_timeout_s=timeout_s, **options)  # type: ignore[arg-type]  # the callers' keywords
    results = {result.target.name: result for result in run}
    assert set(results) == {target.name for target in targets}
    assert all(result.kind in transport_module.KINDS for result in results.values())
    assert [result.traceback for result in results.values() if result.traceback] == []
    return results


def ask_one(target: Target, **options: object) -> NodeResult:
    return ask(target, **options)[target.name]  # type: ignore[arg-type]  # as above


@contextlib.contextmanager
def listener(*, greet: bytes = b"", relay_to: int = 0) -> Iterator[int]:
    """A TCP server without SSH; with `relay_to`, it drops the first connection and passes on the rest."""
    server = socket.create_server((ADDRESS, 0), backlog=64)
    held: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                held.append(client)
                if relay_to and len(held) == 1:
                    client.close()
                elif relay_to:
                    behind = socket.create_connection((ADDRESS, relay_to))
                    held.append(behind)
                    for pair in ((client, behind), (behind, client)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()
                elif greet:
                    client.sendall(greet)
                    client.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield int(server.getsockname()[1])
    finally:
        server.close()
        for sock in held:
            sock.close()
