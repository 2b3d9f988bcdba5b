"""`check` leaves nothing behind: no file, process, module, shared memory or name, and opens nothing for writing."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import gpu_cluster
from tests.doctor import Doctor, Done, need, until
from tests.lab import netns
from tests.lab.netns import NetnsFleet
from tests.lab.node import NetnsNode
from tests.lab.requirements import find_program

pytestmark = pytest.mark.fleet

PYTHON = "/usr/bin/python3"
LISTED = "%p\\t%y %m %U:%G %s %T@ %C@ %i %l\\n"
"""All of a file that writing, replacing or touching it would change (ctime, inode)."""
KERNEL = (
    "ls /sys/module; cat /proc/modules 2>/dev/null; cat /proc/sysvipc/shm /proc/sysvipc/sem /proc/sysvipc/msg;"
    " cat /proc/mounts; cat /proc/sys/kernel/hostname; ls /sys/class/net; ip -4 -o addr; ip route; ip rule;"
    " sysctl -a 2>/dev/null | grep -E '^(net|vm|fs\\.(file-max|nr_open|protected))' | grep -vE 'conntrack_count|neigh'"
)


@dataclass
class Watched:
    fleet: NetnsFleet
    doctor: Doctor

    def check(self, *words: str) -> Done:
        done = self.doctor.check("-i", str(self.fleet.inventory), *words)
        assert not any(node.get("error") for node in done.report["nodes"]), done.text
        return done


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    need(netns.unavailable())
    with NetnsFleet(3) as fleet:
        planted = gpu_cluster.plants(fleet)
        for name in ("gpu01", "gpu02"):
            planted[name].install(fleet[name])
        fleet["gpu03"].run(["mount", "-o", "remount,bind,ro", "/"])
        yield Watched(fleet, Doctor(tmp_path_factory.mktemp("watched"), prefix=fleet.exec_prefix))


def _files(watched: Watched, node: NetnsNode) -> dict[str, str]:
    """Every file that the node holds itself: the upper layer of its root, its own folders, /dev and /dev/shm.

    A change to any file of the layer below shows in the upper one.
    """
    base = watched.fleet.dir / "mnt"
    folders = [f"{base}/{name}" for name in ("up", "own", "root/dev", "root/dev/shm")]
    argv = ["nsenter", "--target", str(node.pid), "--mount", "--", "find", *folders, "-printf", LISTED]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    pairs = (line.partition("\t") for line in done.stdout.splitlines())
    return {path.removeprefix(f"{base}/"): rest for path, _, rest in pairs}


def _changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def _quiet(node: NetnsNode) -> bool:
    return until(lambda: node.processes() == ())


def test_no_file_process_or_module_is_left_on_a_node(watched: Watched) -> None:
    """Compared with what a plain `ssh node true` changes: login records and sshd's own files."""
    node = watched.fleet["gpu01"]
    assert watched.fleet.ssh(node, "true").returncode == 0  # sshd makes its files at the first login
    assert _quiet(node)
    start, kernel = _files(watched, node), node.run(["sh", "-c", KERNEL]).stdout
    assert watched.fleet.ssh(node, "true").returncode == 0
    assert _quiet(node)
    plain = _files(watched, node)
    watched.check("--limit", "gpu01,gpu02")
    assert _quiet(node), node.processes()
    assert _changed(plain, _files(watched, node)) <= _changed(start, plain)
    assert node.run(["sh", "-c", KERNEL]).stdout == kernel
    assert {"up/etc/hosts", "own/root/.bashrc", "root/dev/null", "root/dev/shm"} <= start.keys()


def test_the_comparison_notices_a_trace(watched: Watched) -> None:
    node = watched.fleet["gpu02"]
    before = _files(watched, node)
    node.run(["touch", "/dev/shm/left", "/tmp/left"])
    node.run(["sh", "-c", "text=$(cat /etc/debian_version); echo $text >/etc/debian_version"])
    node.run(["touch", "--reference=/etc/hostname", "/etc/hostname"])
    expected = {"root/dev/shm/left", "own/tmp/left", "up/etc/debian_version", "up/etc/hostname"}
    assert expected <= _changed(before, _files(watched, node))
    node.remove("/dev/shm/left", "/tmp/left")


def test_a_read_only_node_is_judged_like_any_other(watched: Watched) -> None:
    done = watched.check("--limit", "gpu02,gpu03")
    assert done.statuses("names.own-name-not-loopback") == {"gpu02": "pass", "gpu03": "pass"}
    assert done.broken() == []


CALLS = "openat,open,creat,unlink,unlinkat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown,truncate,utimensat,setxattr,mount,umount2,init_module,finit_module,delete_module,kexec_load,bpf,memfd_create,connect,bind,sendto,socket"
WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE")


def test_system_calls_of_the_agent(watched: Watched) -> None:
    """strace on the node: nothing is opened for writing but /dev/null, output goes to memory files."""
    if find_program("strace") is None:
        pytest.skip("missing strace: apt-get install -y --no-install-recommends strace")
    node = watched.fleet["gpu02"]
    real = node.run(["readlink", "-f", PYTHON]).stdout.strip()
    link = node.run(["readlink", PYTHON]).stdout.strip()
    node.install_script(PYTHON, f'#!/bin/sh\nexec strace -qq -f -e trace={CALLS} -o /run/trace {real} "$@"\n')
    try:
        watched.check("--limit", "gpu02", "--timeout", "100")
    finally:
        node.run(["ln", "-sf", link, PYTHON])
    lines = [line.partition(" ")[2].strip() for line in node.read("/run/trace").splitlines()]
    node.remove("/run/trace")
    called: dict[str, list[str]] = {}
    for line in lines:
        if found := re.match(r"(\w+)\(", line):
            called.setdefault(found[1], []).append(line)
    opened = called.pop("openat", []) + called.pop("open", [])
    assert len(opened) > 200
    assert [line for line in opened if WRITING.search(line) and '"/dev/null"' not in line] == []
    assert len(called.pop("memfd_create")) > 10
    # Reading addresses and routes takes a netlink socket; names are looked up in files and by UDP alone.
    for line in called.pop("socket", []):
        assert re.search(r"AF_NETLINK|AF_UNIX|AF_INET6?, SOCK_DGRAM", line), line
    for name in ("connect", "bind", "sendto"):
        for line in called.pop(name, []):
            assert re.search(r"AF_NETLINK|AF_UNIX|AF_UNSPEC|AF_INET|NLM", line), line
    assert called == {}, "system calls that change something"


def test_on_the_controller_only_the_xdg_folders_are_written(watched: Watched, tmp_path: Path) -> None:
    doctor = Doctor(tmp_path, prefix=watched.fleet.exec_prefix)
    inventory = tmp_path / "work" / "nodes.ini"
    inventory.write_text(f"gpu01 ansible_ssh_common_args='-F {watched.fleet.ssh_config}'\n")
    done = doctor.run("check", "-i", str(inventory))
    assert done.rc in (0, 1), done.err
    assert _written(tmp_path) == {"cache/epdoctor/checks.json", "state/epdoctor/recordings"}
    assert len(doctor.recordings()) == 1
    mode = stat.S_IMODE((tmp_path / "state" / "epdoctor" / "recordings").stat().st_mode)
    assert mode & 0o077 == 0


def test_no_state_writes_nothing(watched: Watched, tmp_path: Path) -> None:
    doctor = Doctor(tmp_path, prefix=watched.fleet.exec_prefix)
    inventory = tmp_path / "work" / "nodes.ini"
    inventory.write_text(f"gpu01 ansible_ssh_common_args='-F {watched.fleet.ssh_config}'\n")
    done = doctor.run("check", "-i", str(inventory), "--no-state")
    assert done.rc in (0, 1), done.err
    assert _written(tmp_path) == set()


def test_reading_an_inventory_makes_no_folder_in_the_home(watched: Watched, tmp_path: Path) -> None:
    doctor = Doctor(tmp_path, prefix=watched.fleet.exec_prefix)
    doctor.check("-i", str(watched.fleet.inventory), "--limit", "gpu03")
    assert list((tmp_path / "home").iterdir()) == []


def test_the_last_ten_recordings_are_kept(watched: Watched, tmp_path: Path) -> None:
    doctor = Doctor(tmp_path, prefix=watched.fleet.exec_prefix)
    folder = tmp_path / "state" / "epdoctor" / "recordings"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"20250101T0000{number:02}-1.tar.gz").write_bytes(b"old")
    doctor.check("-i", str(watched.fleet.inventory), "--limit", "gpu03")
    kept = doctor.recordings()
    assert len(kept) == 10
    assert kept[0].name.startswith("20250101T000003")
    assert kept[-1].stat().st_size > 1000


def _written(folder: Path) -> set[str]:
    """What a run added below a user's folders; recordings as their folder."""
    found = set()
    for base, folders, files in os.walk(folder):
        where = Path(base).relative_to(folder)
        if where.name == "recordings":
            found.add(str(where))
            continue
        found |= {str(where / name) for name in files}
        found |= {str(where / name) for name in folders if name.startswith(".")}
    return found - {"work/nodes.ini", "home/.ansible"}
