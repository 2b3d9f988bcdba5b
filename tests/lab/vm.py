"""Fleets of virtual machines with their own kernel, systemd and Soft-RoCE: real verbs, limits, modules, reboots."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab.life import PREFIX, owner_is_gone, write_access
from tests.lab.requirements import LabError, missing, namespaces_refused
from tests.lab.skeleton import host_key_line
from tests.lab.ssh_fleet import SshFleet
from tests.lab.vm_image import image_dir, locked, mac, machine_disk
from tests.lab.vm_machine import CLEAN, VirtualMachine, qemu_argv

PROGRAMS = (
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("mmdebstrap", "mmdebstrap"),
    ("apt-ftparchive", "apt-utils"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("ip", "iproute2"),
    ("ssh", "openssh-client"),
    ("setpriv", "util-linux"),
)
MAX_MACHINES = 8
NTP_SERVER = Path(__file__).parent / "vm" / "ntp_server.py"
_SERIAL = itertools.count()


def unavailable() -> str | None:
    """Why a VmFleet cannot be started here, or None."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "needs Linux on x86-64"
    lacks = missing(PROGRAMS, kernel=("ext4",)) or namespaces_refused()
    if lacks is None and not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun (modprobe tun)"
    return lacks


def _run(argv: Sequence[str], text: str | None = None) -> None:
    done = subprocess.run(argv, input=text or "", capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip()[-800:]}")


class VmFleet(SshFleet[VirtualMachine]):
    """``count`` machines, vm1 and up, on two networks that only the hub namespace reaches.

    The first fleet of a machine builds the image, boots and keeps the booted state (two minutes);
    later ones start from it in seconds. Start it from a thread that lives as long as the fleet.
    Nothing sends outside the hub namespace.
    """

    # An emulated machine takes its time.
    run_timeout_s = 180.0
    connect_timeout_s = 20

    def __init__(self, count: int = 2, *, memory_mib: int = 768) -> None:
        super().__init__()
        if not 1 <= count <= MAX_MACHINES:
            raise LabError(f"1 to {MAX_MACHINES} machines, not {count}")
        self._count, self._memory_mib = count, memory_mib
        self.hub = f"{PREFIX}-{os.getpid()}-{next(_SERIAL)}v"
        self.nodes = ()
        self._ntp: subprocess.Popen[bytes] | None = None

    # --- what a test uses -----------------------------------------------

    @classmethod
    def attached(cls, count: int, folder: Path, hub: str) -> "VmFleet":
        """Machines that another process started and goes on owning; stop() leaves them alone."""
        fleet = cls(count)
        fleet.hub, fleet._dir = hub, folder
        fleet.nodes = tuple(VirtualMachine(index, folder) for index in range(1, count + 1))
        return fleet

    def restore(self, tag: str = CLEAN) -> None:
        """Bring all machines back to a saved state (a few seconds): a clean lab between two tests."""
        self._each(lambda node: node.restore(tag))
        self._forget_neighbours()

    # --- inner ----------------------------------------------------------

    def _unavailable(self) -> str | None:
        return unavailable()

    def _sweep(self) -> None:
        for name in _namespaces():
            if owner_is_gone(name) and name.endswith("v"):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def _each(self, call: Callable[[VirtualMachine], None]) -> None:
        with ThreadPoolExecutor(max_workers=MAX_MACHINES) as pool:
            list(pool.map(call, self.nodes))

    def _start(self) -> None:
        self.nodes = tuple(VirtualMachine(index, self.dir) for index in range(1, self._count + 1))
        self._write_files()
        self._lay_network()
        self._ntp = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self.exec_prefix, sys.executable, str(NTP_SERVER), "10.78.0.1"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        booted = self._booted_disks()
        for node, kept in zip(self.nodes, booted, strict=True):
            disk = self.dir / f"{node.name}.qcow2"
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(kept), str(disk)], check=True)
            node.start(self.hub, disk, memory_mib=self._memory_mib, loadvm=True)
        self._each(lambda node: node.set_clock())
        self._forget_neighbours()

    def _stop(self) -> None:
        for node in self.nodes:
            node.end()
        self.nodes = ()
        if self._ntp is not None:
            self._ntp.kill()
            self._ntp.wait()
            self._ntp = None
        subprocess.run(["ip", "netns", "del", self.hub], capture_output=True)

    def _write_files(self) -> None:
        keys = {}
        for node in self.nodes:
            machine_disk(node.index)
            keys[node.name] = host_key_line(image_dir() / f"{node.name}.key.pub")
        for name in ("id_ed25519", "id_ed25519.pub"):
            (self.dir / name).write_bytes((image_dir() / name).read_bytes())
        self.key.chmod(0o600)
        write_access(self.dir, self._hosts(), keys)

    def _lay_network(self) -> None:
        _run(["ip", "netns", "add", self.hub])
        lines = ["link set lo up"]
        for number, bridge in enumerate(("ssh", "data")):
            # The machines remember the bridge's hardware address in their kept states, so it is always the same.
            # 9000 bytes at most, as a jumbo fabric; the machines' cards start with 1500.
            lines += [
                f"link add {bridge} address {mac(-9, number)} type bridge forward_delay 0 mcast_snooping 0",
                f"addr add 10.{78 - number}.0.1/24 dev {bridge}",
                f"link set {bridge} up",
            ]
            for node in self.nodes:
                port = f"{bridge}{node.index}"
                lines += [
                    f"tuntap add dev {port} mode tap vnet_hdr",
                    f"link set {port} mtu 9000 master {bridge} up",
                ]
        _run(["ip", "-n", self.hub, "-batch", "-"], "\n".join(lines))

    def _forget_neighbours(self) -> None:
        subprocess.run(["ip", "-n", self.hub, "neigh", "flush", "all"], capture_output=True)

    def _booted_disks(self) -> list[Path]:
        """Disks that hold the state CLEAN, for each machine; those that are not kept yet are booted."""
        version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True).stdout
        folder = image_dir()
        kept = []
        with locked(folder / "boot.lock"):
            missing_ones: list[tuple[VirtualMachine, Path]] = []
            for node in self.nodes:
                words = json.dumps([version, qemu_argv(node.index, self._memory_mib), BOOTED_SCRIPT])
                digest = hashlib.sha256(words.encode()).hexdigest()[:8]
                kept.append(folder / f"{node.name}-{digest}.qcow2")
                if not kept[-1].exists():
                    missing_ones.append((node, kept[-1]))
            if missing_ones:
                self._boot(missing_ones)
        return kept

    def _boot(self, machines: Sequence[tuple[VirtualMachine, Path]]) -> None:
        for node, path in machines:
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            backing = str(machine_disk(node.index))
            _run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "raw", str(part)])
            node.start(self.hub, part, memory_mib=self._memory_mib, loadvm=False)
        for node, path in machines:
            node.wait()
            node.sh(BOOTED_SCRIPT, timeout_s=120)
            node.save()
            node.quit()
            path.with_suffix(".part").rename(path)


BOOTED_SCRIPT = """set -e
update-grub >/dev/null 2>&1
apt-get update -qq >/dev/null 2>&1
for try in $(seq 60); do grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state && break; sleep 0.5; done
grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state
chronyc waitsync 60 1 0 0.5 >/dev/null
sync; echo 3 >/proc/sys/vm/drop_caches
"""
"""What a machine does before its state is kept; a change of it makes new states."""


def _namespaces() -> list[str]:
    try:
        return sorted(entry.name for entry in Path("/run/netns").iterdir())
    except OSError:
        return []
