"""Many SSH nodes on one machine: network namespaces, each with its own sshd and files."""

import itertools
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.life import PREFIX, owner_is_gone, write_access
from tests.lab.node import FREEZER, NetnsNode
from tests.lab.requirements import LabError, missing, namespaces_refused
from tests.lab.skeleton import host_key_line, make_key, write_skeleton
from tests.lab.ssh_fleet import SshFleet

PROGRAMS = (
    ("ip", "iproute2"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("openssl", "openssl"),
    ("pkill", "procps"),
    ("sudo", "sudo"),
)
NODE_INIT = Path(__file__).with_name("node_init.sh")
HUB_ADDRESS = "10.99.255.1"
_SERIAL = itertools.count()


@dataclass(frozen=True)
class NodeOptions:
    """How one node differs from the others at start."""

    memlock_kib: int | None = None
    """Limit of locked memory of the node's init and sshd, KiB; None: this machine's own."""
    hostname_on_loopback: bool = False
    """/etc/hosts says ``127.0.1.1 <name>``, as Debian's installer writes."""


def unavailable() -> str | None:
    """Why a NetnsFleet cannot be started here, or None."""
    return missing(PROGRAMS, kernel=("overlay", "tmpfs")) or namespaces_refused()


def _run(argv: Sequence[str], text: str | None = None) -> None:
    done = subprocess.run(argv, input=text or "", capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip()[-800:]}")


def address_of(index: int) -> str:
    """Address of the node with this index, from 1: 10.99.0.3, 10.99.0.4, ..."""
    return f"10.99.{index // 250}.{index % 250 + 2}"


class NetnsFleet(SshFleet[NetnsNode]):
    """``count`` SSH nodes behind a bridge that only the hub namespace reaches.

    Use it as a context manager, or call start() and stop(). Start it from a thread that
    lives as long as the fleet: the nodes end with the thread that started them, so that
    nothing stays behind when the test process is killed. Several fleets may run at once.

    ``writable=False`` mounts every node's root read-only, as on an immutable host.
    ``pam=False`` starts sshd without PAM (no limits.d). ``size`` bounds what a node can write.
    """

    def __init__(
        self,
        count: int,
        *,
        prefix: str = "gpu",
        writable: bool = True,
        pam: bool = True,
        options: Mapping[int, NodeOptions] | None = None,
        max_startups: int = 1000,
        size: str = "64m",
    ) -> None:
        super().__init__()
        self._id = f"{PREFIX}-{os.getpid()}-{next(_SERIAL)}"
        self.hub = f"{self._id}-hub"
        self._writable, self._pam, self._size, self._max_startups = writable, pam, size, max_startups
        self._options = dict(options or {})
        self._started: list[subprocess.Popen[bytes]] = []
        width = max(2, len(str(count)))
        self.nodes = tuple(
            NetnsNode(
                f"{prefix}{index:0{width}d}",
                address_of(index),
                f"{self._id}-{index}",
                hub=self.hub,
                port=f"v{index}",
                memlock_kib=self._options.get(index, NodeOptions()).memlock_kib,
            )
            for index in range(1, count + 1)
        )

    # --- inner ----------------------------------------------------------

    def _unavailable(self) -> str | None:
        return unavailable()

    def _sweep(self) -> None:
        sweep()

    def _start(self) -> None:
        self.dir.chmod(0o711)  # a node's users look nothing up here; ssh wants the key private
        (self.dir / "mnt").mkdir()
        self._write_files()
        self._lay_network()
        for index, node in enumerate(self.nodes, 1):
            self._start_node(index, node)
        self._wait()

    def _stop(self) -> None:
        groups = [group for node in self.nodes if (group := node.thaw_and_forget()) is not None]
        for process in self._started:
            process.kill()  # unshare --kill-child takes the node's whole process namespace along
        for process in self._started:
            process.wait()
        self._started.clear()
        _delete_namespaces(self._id + "-")
        for group in groups:
            _remove_group(group)

    def _write_files(self) -> None:
        make_key(self.key, "epdlab")
        make_key(self.dir / "host_key", "epdlab-host")
        hosts = self._hosts()
        write_skeleton(self.dir, hosts, pam=self._pam, max_startups=self._max_startups)
        host_key = host_key_line(self.dir / "host_key.pub")
        write_access(self.dir, hosts, dict.fromkeys(hosts, host_key))

    def _lay_network(self) -> None:
        lines = [f"netns add {self.hub}", *(f"netns add {node.netns}" for node in self.nodes)]
        _run(["ip", "-batch", "-"], "\n".join(lines))
        lines = [
            "link set lo up",
            "link add br0 type bridge forward_delay 0 mcast_snooping 0",
            f"addr add {HUB_ADDRESS}/16 dev br0",
            "link set br0 up",
        ]
        for index, node in enumerate(self.nodes, 1):
            lines.append(f"link add v{index} type veth peer name eth0 netns {node.netns}")
            lines.append(f"link set v{index} master br0 up")
        _run(["ip", "-n", self.hub, "-batch", "-"], "\n".join(lines))
        # A bridge of hundreds of nodes needs more neighbour entries than the kernel's default of 1024;
        # kernels that keep the limit per machine do not show the file here, and that is fine.
        settings = [f"net.ipv4.neigh.default.gc_thresh{level}={level * 4096}" for level in (1, 2, 3)]
        subprocess.run([*self.exec_prefix, "sysctl", "-qe", "-w", *settings], capture_output=True)

    def _start_node(self, index: int, node: NetnsNode) -> None:
        options = self._options.get(index, NodeOptions())
        memlock = "-" if options.memlock_kib is None else str(options.memlock_kib)
        init = [
            str(NODE_INIT), str(self.dir), node.name, f"{node.address}/16", HUB_ADDRESS,
            memlock, str(int(options.hostname_on_loopback)), str(int(self._writable)), self._size,
        ]  # fmt: skip
        namespaces = ["--mount", "--uts", "--ipc", "--pid", "--propagation", "private"]
        with (self.dir / f"log-{index}").open("wb") as log:
            self._started.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", node.netns,
                     "unshare", *namespaces, "--fork", "--kill-child", "bash", *init],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )
            )  # fmt: skip

    def _wait(self) -> None:
        deadline = time.monotonic() + 30 + len(self.nodes) / 4
        for index, (node, process) in enumerate(zip(self.nodes, self._started, strict=True), 1):
            while True:
                if node.pid == 0:
                    node.pid = _only_child(process.pid)
                if node.pid and node.listening():
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    log = (self.dir / f"log-{index}").read_text(errors="replace")
                    raise LabError(f"{node.name} does not listen: {log.strip()[-800:]}")
                time.sleep(0.01)


def _only_child(pid: int) -> int:
    try:
        # Until setpriv and ip have become unshare, there is no child to see.
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(children[0]) if len(children) == 1 else 0


def _namespaces() -> list[str]:
    try:
        return sorted(entry.name for entry in Path("/run/netns").iterdir())
    except OSError:
        return []


def _delete_namespaces(prefix: str) -> None:
    ours = [name for name in _namespaces() if name.startswith(prefix)]
    if ours:
        lines = "\n".join(f"netns del {name}" for name in ours)
        subprocess.run(["ip", "-force", "-batch", "-"], input=lines, text=True, capture_output=True)


def _remove_group(group: Path) -> None:
    for _ in range(50):
        if subprocess.run(["rmdir", str(group)], capture_output=True).returncode == 0:
            return
        time.sleep(0.02)  # its killed tasks are still on their way out


def sweep() -> None:
    """Remove what fleets of processes that no longer exist (killed by SIGKILL) left behind."""
    for name in _namespaces():
        if owner_is_gone(name):
            _delete_namespaces(name)
    if FREEZER.is_dir():
        for group in FREEZER.glob(f"{PREFIX}-*"):
            if owner_is_gone(group.name):
                (group / "freezer.state").write_text("THAWED")
                _remove_group(group)
