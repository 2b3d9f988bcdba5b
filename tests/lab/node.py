"""One SSH node in a network namespace: look inside it, change it, break it."""

import io
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from tests.lab.requirements import LabError

NODE_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C",
}
NOWHERE_MAC = "02:00:00:00:00:01"
FREEZER = Path("/sys/fs/cgroup/freezer")


@dataclass(frozen=True)
class Link:
    """A symbolic link in a faked tree."""

    target: str


@dataclass(frozen=True)
class Process:
    """A process of a node, seen from outside."""

    pid: int
    """Process id on this machine, not in the node."""
    state: str
    """The letter of /proc/PID/stat: R, S, D, T, Z..."""
    argv: tuple[str, ...]


Content = str | bytes | Link


def pack_tree(files: Mapping[str, Content]) -> bytes:
    """A tar of relative path -> text, bytes or Link; parents are made by tar as it unpacks."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.mode = 0o644
            if isinstance(content, Link):
                entry.type = tarfile.SYMTYPE
                entry.linkname = content.target
                archive.addfile(entry)
                continue
            data = content.encode() if isinstance(content, str) else content
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class NetnsNode:
    """A node of a NetnsFleet. Changes touch this node alone and vanish with the fleet."""

    def __init__(
        self, name: str, address: str, netns: str, *, hub: str, port: str, memlock_kib: int | None
    ) -> None:
        self.name = name
        self.address = address
        self.netns = netns
        self._hub = hub
        self._port = port
        self._memlock_kib = memlock_kib
        self._mounts = 0
        self._freezer: Path | None = None
        self.pid = 0
        """Process id, on this machine, of the node's init; set by the fleet."""

    # --- look and write -------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | bytes | None = None,  # the name subprocess.run uses  # noqa: A002 - the name that subprocess.run uses
        timeout: float = 30,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside the node, not through SSH.

        Raises LabError with ``check`` when it fails, and subprocess.TimeoutExpired.
        """
        data = input.encode() if isinstance(input, str) else input
        flags = ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd=/"]
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), *flags, "--", *argv],
            input=b"" if data is None else data,
            capture_output=True,
            timeout=timeout,
            env=NODE_ENV,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {argv[0]} ended with {done.returncode}: {err.strip()[-500:]}")
        return subprocess.CompletedProcess(list(argv), done.returncode, out, err)

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file in the node; parents are made."""
        script = 'mkdir -p "$(dirname "$1")" && rm -f "$1" && cat >"$1" && chmod "$2" "$1"'
        self.run(["sh", "-c", script, "sh", path, f"{mode:o}"], input=text)

    def read(self, path: str) -> str:
        """The text of a file in the node. Raises LabError when it cannot be read."""
        return self.run(["cat", "--", path]).stdout

    def exists(self, path: str) -> bool:
        """Whether the node has this path (links are followed)."""
        return self.run(["test", "-e", path], check=False).returncode == 0

    def remove(self, *paths: str) -> None:
        """Remove files or directories; an absent one is fine."""
        self.run(["rm", "-rf", "--", *paths])

    def install_script(self, path: str, text: str) -> None:
        """Write an executable in the node."""
        self.write(path, text, mode=0o755)

    def processes(self) -> tuple[Process, ...]:
        """All processes of the node but its init, init's sleep and the listening sshd."""
        found = []
        wanted = _pid_namespace(self.pid)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.pid:
                continue
            try:
                if _pid_namespace(entry.name) != wanted:
                    continue
                raw = (entry / "cmdline").read_bytes()
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            argv = tuple(raw.decode(errors="replace").rstrip("\0").split("\0"))
            resident = argv == ("sleep", "infinity") or argv[0].startswith(
                ("/usr/sbin/sshd", "sshd: /usr/sbin")
            )
            if int(stat[1]) == self.pid and resident:
                continue
            found.append(Process(int(entry.name), stat[0], argv))
        return tuple(found)

    # --- faults of the node ---------------------------------------------

    def bashrc_noise(self, text: str) -> None:
        """Print ``text`` on stdout before every command of root's SSH session."""
        self.write("/root/.epdlab-noise", text)
        self.write("/root/.bashrc", "cat /root/.epdlab-noise\n")

    def remove_python(self) -> None:
        """Leave no Python interpreter on the node."""
        self.run(["sh", "-c", "rm -f /usr/bin/python* /usr/local/bin/python* /usr/libexec/platform-python*"])

    def hang_command(self, path: str) -> None:
        """Make a command that ignores SIGTERM and never ends, such as nvidia-smi or python3."""
        self.install_script(path, "#!/bin/sh\ntrap '' TERM INT HUP\nwhile :; do sleep 1000; done\n")

    def hang_python(self) -> None:
        """Make python3 never answer: login works, the agent does not."""
        self.hang_command("/usr/bin/python3")

    def stuck_command(self, path: str) -> None:
        """Make a command that enters state D, where SIGKILL waits, as with a wedged driver.

        The process joins a frozen group of the version 1 freezer. Raises LabError where
        the machine has none (`can_be_stuck` tells).
        """
        if not can_be_stuck():
            raise LabError("no cgroup version 1 freezer on this machine")
        group = FREEZER / self.netns
        group.mkdir(exist_ok=True)
        (group / "freezer.state").write_text("FROZEN")
        self._freezer = group
        mount = "mkdir -p /run/freezer && mount -t cgroup -o freezer none /run/freezer"
        self.run(["sh", "-c", f"mountpoint -q /run/freezer || {{ {mount}; }}"])
        join = f"echo $$ >/run/freezer/{group.name}/tasks"
        self.install_script(path, f"#!/bin/sh\n{join}\nexec sleep 1000\n")

    def release_stuck(self) -> None:
        """Let the stuck processes go on (and so die of the signals that wait for them)."""
        if self._freezer is not None:
            (self._freezer / "freezer.state").write_text("THAWED")

    def fill_disk(self) -> None:
        """Leave no byte free on the node's file systems (/, /root, /home, /tmp, /run, /opt)."""
        self.run(["dd", "if=/dev/zero", "of=/.epdlab-full", "bs=64k"], check=False)
        self.run(["dd", "if=/dev/zero", "of=/.epdlab-full2", "bs=1"], check=False)

    def login_limit(self, item: str, value: str) -> None:
        """Set a limit of login sessions by PAM, for example ``memlock`` to ``64`` (KiB)."""
        self.write("/etc/security/limits.d/99-epdlab.conf", f"* - {item} {value}\nroot - {item} {value}\n")

    # --- faults of SSH and of the network -------------------------------

    def stop_sshd(self) -> None:
        """End the listening sshd: new connections are refused, open ones live on."""
        self.run(["pkill", "-o", "-x", "sshd"])
        self._wait_listening(False)

    def start_sshd(self) -> None:
        """Start sshd again with the node's own limits."""
        limit: list[str] = []
        if self._memlock_kib is not None:
            limit = ["prlimit", f"--memlock={self._memlock_kib * 1024}:{self._memlock_kib * 1024}"]
        self.run([*limit, "/usr/sbin/sshd"])
        self._wait_listening(True)

    def change_host_key(self) -> str:
        """Give the node a new host key, as a reinstalled node has; return its known_hosts part."""
        key = "/etc/ssh/ssh_host_ed25519_key"
        self.remove(key, f"{key}.pub")
        self.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        self.stop_sshd()
        self.start_sshd()
        return " ".join(self.read(f"{key}.pub").split()[:2])

    def freeze(self, what: Literal["all", "sessions"] = "all") -> None:
        """Stop the node's processes where they stand.

        ``all``: connections are accepted by the kernel and never get a banner.
        ``sessions``: only what runs now; new logins work.
        """
        if what == "all":
            os.kill(self._listener(), signal.SIGSTOP)
        stopped = [process.pid for process in self.processes()]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        # kill() returns before a process that runs on another core has stopped.
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(
            process.state == "R" for process in self.processes() if process.pid in stopped
        ):
            time.sleep(0.01)

    def thaw(self) -> None:
        """Let everything that was frozen go on."""
        os.kill(self._listener(), signal.SIGCONT)
        for process in self.processes():
            os.kill(process.pid, signal.SIGCONT)

    def black_hole(self) -> None:
        """Let every packet to the node vanish: connects time out, open sessions fall silent."""
        argv = ["neigh", "replace", self.address, "lladdr", NOWHERE_MAC, "dev", "br0", "nud", "permanent"]
        subprocess.run(["ip", "-n", self._hub, *argv], check=True)

    def link_down(self) -> None:
        """Unplug the node: "No route to host" after about 3 s."""
        subprocess.run(["ip", "-n", self._hub, "link", "set", self._port, "down"], check=True)

    def reconnect(self) -> None:
        """End black_hole() and link_down()."""
        words = ["neigh", "del", self.address, "dev", "br0"]
        subprocess.run(["ip", "-n", self._hub, *words], capture_output=True)
        subprocess.run(["ip", "-n", self._hub, "link", "set", self._port, "up"], check=True)

    # --- a different machine --------------------------------------------

    def fake_tree(self, root: str, files: Mapping[str, Content], *, keep: bool = False) -> None:
        """Show ``files`` (path below ``root`` -> content) at ``root``, also in /sys and /proc.

        What was at ``root`` is hidden, or kept beside the new files with ``keep``. A ``root``
        that the kernel does not have is added to its nearest directory in /sys, whose other
        entries stay; in /proc they are hidden.
        """
        self._mounts += 1
        stage = f"/run/epdlab/{self._mounts}"
        base = PurePosixPath(root)
        while self.run(["test", "-d", str(base)], check=False).returncode != 0:
            base = base.parent
        if str(base) in ("/", "/proc", "/sys"):
            raise LabError(f"{root}: nothing below {base} to mount over")
        whole = str(base) == root and not keep
        if whole or (str(base).startswith("/proc/") and not keep):
            self.run(["mount", "-t", "tmpfs", "-o", "mode=755", "epdlab-fake", str(base)])
        else:
            self.run(["mkdir", "-p", f"{stage}/up", f"{stage}/work"])
            options = f"lowerdir={base},upperdir={stage}/up,workdir={stage}/work"
            self.run(["mount", "-t", "overlay", "-o", options, "epdlab-fake", str(base)])
        self.run(["mkdir", "-p", root])
        self.run(["tar", "-x", "--no-same-owner", "-C", root], input=pack_tree(files))

    def fake_file(self, path: str, text: str) -> None:
        """Show ``text`` at a path that exists, such as /proc/modules or /proc/cmdline."""
        self._mounts += 1
        source = f"/run/epdlab/{self._mounts}"
        self.write(source, text)
        self.run(["mount", "--bind", source, path])

    def device(self, path: str, major: int, minor: int, *, mode: int = 0o666) -> None:
        """Make a character device node, such as /dev/nvidia0; opening it gives ENXIO."""
        self.run(["mkdir", "-p", str(PurePosixPath(path).parent)])
        self.run(["mknod", "-m", f"{mode:o}", path, "c", str(major), str(minor)])

    # --- inner ----------------------------------------------------------

    def _listener(self) -> int:
        done = self.run(["cat", "/run/sshd.pid"], check=False)
        inner, wanted = done.stdout.strip(), _pid_namespace(self.pid)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if _pid_namespace(entry.name) != wanted:
                    continue
                status = (entry / "status").read_text()
            except OSError:
                continue
            nspid = next((line.split() for line in status.splitlines() if line.startswith("NSpid:")), [])
            if nspid and nspid[-1] == inner:
                return int(entry.name)
        raise LabError(f"{self.name}: no sshd runs")

    def listening(self) -> bool:
        """Whether something listens on port 22 of the node."""
        try:
            rows = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        except OSError:
            return False
        return any(row.split()[1].endswith(":0016") and row.split()[3] == "0A" for row in rows)

    def _wait_listening(self, wanted: bool) -> None:
        deadline = time.monotonic() + 10
        while self.listening() != wanted:
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: sshd did not {'start' if wanted else 'stop'}")
            time.sleep(0.02)

    def thaw_and_forget(self) -> Path | None:
        """Before the node is killed: release frozen tasks; returns the group left to remove."""
        self.release_stuck()
        group, self._freezer = self._freezer, None
        return group


def _pid_namespace(pid: int | str) -> str:
    return str(Path("/proc", str(pid), "ns/pid").readlink())


def can_be_stuck() -> bool:
    """Whether stuck_command() works here (cgroup version 1 freezer, writable)."""
    return os.geteuid() == 0 and (FREEZER / "cgroup.procs").exists() and os.access(FREEZER, os.W_OK)
