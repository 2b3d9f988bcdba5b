"""Container nodes with their own systemd, sshd and address, run by podman without a registry."""

import fcntl
import itertools
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.life import PREFIX, Lab, owner_is_gone, write_access
from tests.lab.requirements import LabError, cache_dir, missing, namespaces_refused
from tests.lab.skeleton import host_key_line, make_key

PROGRAMS = (
    ("podman", "podman"),
    ("runc", "runc"),
    ("mmdebstrap", "mmdebstrap"),
    ("ip", "iproute2"),
    ("ssh", "openssh-client"),
    ("nsenter", "util-linux"),
)
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt", "sudo",
    "iproute2", "kmod", "pciutils", "procps", "ca-certificates",
)  # fmt: skip
SUITE = "bookworm"
IMAGE = "localhost/epdlab-node:base"
_SERIAL = itertools.count()

# podman's defaults raise limits, which a machine without CAP_SYS_RESOURCE refuses.
CONTAINERS_CONF = '[containers]\ndefault_ulimits=["nofile=20000:20000","nproc=32768:32768"]\n'


def unavailable() -> str | None:
    """Why a PodmanFleet cannot be started here, or None."""
    return missing(PROGRAMS, kernel=("overlay", "tmpfs")) or namespaces_refused()


def _mirror() -> str:
    """The Debian mirror that this machine's apt uses most."""
    argv = ["apt-get", "indextargets", "--format", "$(SITE)"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    sites = Counter(done.stdout.split())
    if not sites:
        raise LabError("apt has no package lists: run apt-get update")
    return sites.most_common(1)[0][0]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def base_image(packages: Sequence[str] = ()) -> Path:
    """Tar of the node's root file system, built once (about half a minute) and kept in cache_dir().

    `packages`: of Debian, beside PACKAGES; a file of its own for each set of them."""
    folder = cache_dir()
    tar = folder / f"node-{SUITE}{_suffix(packages)}.tar"
    with _locked(folder / "node.lock"):
        if not tar.exists():
            part = folder / f"node-{SUITE}{_suffix(packages)}.part.tar"
            include = "--include=" + ",".join((*PACKAGES, *packages))
            argv = ["mmdebstrap", "--variant=minbase", include, SUITE, str(part), _mirror()]
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode != 0:
                part.unlink(missing_ok=True)
                raise LabError(f"mmdebstrap: {done.stderr.strip()[-800:]}")
            part.rename(tar)
    return tar


def _suffix(packages: Sequence[str]) -> str:
    return "".join(f"-{name}" for name in sorted(packages))


@dataclass(frozen=True)
class ContainerNode:
    """One running container."""

    name: str
    """Its name for ``podman exec``, and its host name."""
    address: str
    pid: int
    """Process id of its systemd on this machine."""

    def run(
        self, argv: Sequence[str], *, text: str | None = None, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the container by ``podman exec -i``. Raises LabError with ``check``."""
        full = ["podman", "exec", "-i", self.name, *argv]
        done = subprocess.run(full, input=text or "", capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            tail = done.stderr.strip()[-500:]
            raise LabError(f"{self.name}: {argv[0]} ended with {done.returncode}: {tail}")
        return done

    def write(self, path: str, text: str) -> None:
        """Write a file in the container; parents are made."""
        self.run(["sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", path], text=text)

    def read(self, path: str) -> str:
        """The text of a file in the container."""
        return self.run(["cat", "--", path]).stdout


class PodmanFleet(Lab):
    """``count`` containers with systemd on a bridge in a network namespace of their own.

    ``exec_prefix`` reaches them by SSH as root; ``podman exec -i NAME`` needs no prefix and
    CONTAINERS_CONF from ``env``. They have no way out to any other network.
    """

    def __init__(self, count: int, *, prefix: str = "node", packages: Sequence[str] = ()) -> None:
        super().__init__()
        self._packages = tuple(packages)
        self._image = IMAGE + _suffix(packages).replace("+", "p")
        self._id = f"{PREFIX}-{os.getpid()}-{next(_SERIAL)}c"
        self._names = [f"{self._id}-{prefix}{index}" for index in range(1, count + 1)]
        self.hub = f"{self._id}-hub"
        self.nodes: tuple[ContainerNode, ...] = ()

    @property
    def inventory(self) -> Path:
        """Ansible inventory; group ``nodes``, logging in as root."""
        return self.dir / "inventory.ini"

    @property
    def ssh_config(self) -> Path:
        """For ``ssh -F``."""
        return self.dir / "ssh_config"

    @property
    def exec_prefix(self) -> list[str]:
        """Words before a command so that it reaches the nodes' addresses.

        Not ``ip netns exec``: that hides /sys/fs/cgroup, without which ``podman exec`` fails.
        """
        return ["nsenter", f"--net=/run/netns/{self.hub}", "--"]

    @property
    def env(self) -> dict[str, str]:
        """Environment for podman."""
        return {**os.environ, "CONTAINERS_CONF": str(self.dir / "containers.conf")}

    def run(self, argv: Sequence[str], *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine where the nodes can be reached; never raises for its rc."""
        return subprocess.run(
            [*self.exec_prefix, *argv],
            capture_output=True, text=True, timeout=timeout, env=self.env, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    # --- inner ----------------------------------------------------------

    def _unavailable(self) -> str | None:
        return unavailable()

    def _sweep(self) -> None:
        listed = subprocess.run(
            ["podman", "ps", "--all", "--format={{.Names}}"], capture_output=True, text=True
        )
        gone = [name for name in listed.stdout.split() if owner_is_gone(name)]
        if gone:
            subprocess.run(["podman", "rm", "--force", "--time=0", *gone], capture_output=True)

    def _start(self) -> None:
        (self.dir / "containers.conf").write_text(CONTAINERS_CONF)
        make_key(self.dir / "id_ed25519", "epdlab")
        self._import_image()
        self._bridge()
        self.nodes = tuple(self._start_node(index, name) for index, name in enumerate(self._names, 1))
        for node in self.nodes:
            self._wait(node)
        self._write_files()

    def _stop(self) -> None:
        self._podman("rm", "--force", "--ignore", "--time", "0", *self._names, check=False)
        subprocess.run(["ip", "netns", "del", self.hub], capture_output=True)
        self.nodes = ()

    def _podman(self, *words: str, check: bool = True, timeout: float = 180) -> str:
        done = subprocess.run(
            ["podman", "--runtime", "runc", *words],
            capture_output=True, text=True, env=self.env, stdin=subprocess.DEVNULL, timeout=timeout,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise LabError(f"podman {words[0]}: {done.stderr.strip()[-800:]}")
        return done.stdout.strip()

    def _import_image(self) -> None:
        tar = base_image(self._packages)
        with _locked(cache_dir() / "import.lock"):
            have = subprocess.run(
                ["podman", "image", "exists", self._image], capture_output=True, env=self.env
            )
            if have.returncode != 0:
                self._podman("import", str(tar), self._image)

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def _bridge(self) -> None:
        self._ip("netns", "add", self.hub)
        self._ip("-n", self.hub, "link", "set", "lo", "up")
        self._ip("-n", self.hub, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        self._ip("-n", self.hub, "addr", "add", "10.97.255.1/16", "dev", "br0")
        self._ip("-n", self.hub, "link", "set", "br0", "up")

    def _start_node(self, index: int, name: str) -> ContainerNode:
        self._podman(
            "run", "--detach", "--name", name, "--hostname", name, "--systemd=always",
            "--network", "none", "--privileged", self._image, "/sbin/init",
        )  # fmt: skip
        pid = int(self._podman("inspect", "--format", "{{.State.Pid}}", name))
        address = f"10.97.0.{index}"
        # podman's own bridge networks need netavark; a veth into the container needs nothing.
        port = f"v{index}"
        peer = ("peer", "name", "eth0", "netns", str(pid))
        self._ip("-n", self.hub, "link", "add", port, "type", "veth", *peer)
        self._ip("-n", self.hub, "link", "set", port, "master", "br0", "up")
        for words in (["addr", "add", f"{address}/16", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            subprocess.run(["nsenter", "--target", str(pid), "--net", "ip", *words], check=True)
        return ContainerNode(name, address, pid)

    def _wait(self, node: ContainerNode) -> None:
        deadline = time.monotonic() + 60
        state = ""
        while time.monotonic() < deadline:
            done = node.run(["systemctl", "is-system-running", "--wait"], check=False)
            state = (done.stdout or done.stderr).strip()
            ready = state in ("running", "degraded")  # degraded: a unit that no container can run
            if ready and node.run(["systemctl", "is-active", "ssh"], check=False).returncode == 0:
                node.write("/root/.ssh/authorized_keys", (self.dir / "id_ed25519.pub").read_text())
                return
            time.sleep(0.2)
        raise LabError(f"{node.name}: systemd says {state!r} after a minute")

    def _write_files(self) -> None:
        keys = {}
        for node in self.nodes:
            public = self.dir / f"{node.name}.pub"
            public.write_text(node.read("/etc/ssh/ssh_host_ed25519_key.pub"))
            keys[node.name] = host_key_line(public)
        write_access(self.dir, {node.name: node.address for node in self.nodes}, keys)
