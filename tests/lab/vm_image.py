"""Disks of the lab's virtual machines: built once, given an identity each, kept in the cache."""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.requirements import LabError, cache_dir, find_program
from tests.lab.skeleton import make_key

BUILD = Path(__file__).parent / "vm" / "build_image.sh"
KEPT_DAYS = 7
"""An image that nothing used for so long is removed when another one is built."""


def mac(index: int, network: int) -> str:
    """Hardware address of machine ``index`` on network 0 (management) or 1 (data)."""
    return f"52:54:00:77:{network:02x}:{10 + index:02x}"


def address(index: int, network: int) -> str:
    """10.78.0.11 and up on the management network (0), 10.77.0.11 and up on the data network (1)."""
    return f"10.{78 - network}.0.{10 + index}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, so that two test runs do not build the same thing."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def image_dir() -> Path:
    """Folder with root.raw, boot.lkrn and the key; built (less than a minute) if it is not there.

    Its name holds a hash of what it is made from: the build script, this module and the kernel's version.
    Raises LabError.
    """
    kernel = subprocess.run(["apt-cache", "policy", "linux-image-amd64"], capture_output=True, text=True)
    versions = "".join(line for line in kernel.stdout.splitlines() if "Candidate:" in line)
    digest = hashlib.sha256(BUILD.read_bytes() + Path(__file__).read_bytes() + versions.encode()).hexdigest()[
        :12
    ]
    folder = cache_dir() / f"vm-{digest}"
    with locked(cache_dir() / "vm.lock"):
        if not (folder / "complete").exists():
            _forget_old()
            _build(folder)
        os.utime(folder)
    return folder


def _build(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make_key(folder / "id_ed25519", "epdlab")
    done = subprocess.run(["bash", str(BUILD), str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{BUILD.name}: {(done.stderr or done.stdout).strip()[-1500:]}")
    (folder / "complete").touch()


def _forget_old() -> None:
    for folder in cache_dir().glob("vm-*"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEPT_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def machine_disk(index: int) -> Path:
    """Raw disk of machine ``index``: the image with its own name, addresses, machine id and host key.

    ``vmINDEX.key.pub`` beside it is the host's public key. Made in a second, kept. Raises LabError.
    """
    folder = image_dir()
    disk = folder / f"vm{index}.raw"
    with locked(folder / "disk.lock"):
        if disk.exists():
            return disk
        key = folder / f"vm{index}.key"
        key.unlink(missing_ok=True)
        make_key(key, f"root@vm{index}")
        part = folder / f"vm{index}.part"
        # cp keeps the holes of the sparse file; shutil does not.
        subprocess.run(["cp", "--sparse=always", str(folder / "root.raw"), str(part)], check=True)
        _write_into(part, _identity(index, key), folder / f"vm{index}.files")
        part.rename(disk)
    return disk


def _identity(index: int, key: Path) -> dict[str, tuple[int, bytes]]:
    def network(number: int, more: str) -> bytes:
        match = f"[Match]\nName=eth{number}\n[Network]\nAddress={address(index, number)}/24\n"
        return f"{match}LinkLocalAddressing=ipv6\nIPv6AcceptRA=no\n{more}".encode()

    return {
        "/etc/hostname": (0o644, f"vm{index}\n".encode()),
        "/etc/machine-id": (0o444, f"e9d0{index:028x}\n".encode()),
        "/etc/systemd/network/10-management.network": (0o644, network(0, "Gateway=10.78.0.1\n")),
        "/etc/systemd/network/20-data.network": (0o644, network(1, "")),
        "/etc/ssh/ssh_host_ed25519_key": (0o600, key.read_bytes()),
        "/etc/ssh/ssh_host_ed25519_key.pub": (0o644, Path(f"{key}.pub").read_bytes()),
    }


def _write_into(disk: Path, files: dict[str, tuple[int, bytes]], staging: Path) -> None:
    """Put files into an ext4 image that is not mounted, by debugfs."""
    staging.mkdir(exist_ok=True)
    lines = []
    for number, (path, (mode, data)) in enumerate(files.items()):
        source = staging / str(number)
        source.write_bytes(data)
        lines += [f"rm {path}", f"write {source} {path}", f"sif {path} mode 0{0o100000 | mode:o}"]
        lines += [f"sif {path} uid 0", f"sif {path} gid 0"]
    debugfs = find_program("debugfs") or "debugfs"
    argv = [debugfs, "-w", "-f", "/dev/stdin", str(disk)]
    done = subprocess.run(argv, input="\n".join(lines) + "\n", capture_output=True, text=True)
    shutil.rmtree(staging)
    probe = subprocess.run([debugfs, "-R", "cat /etc/machine-id", str(disk)], capture_output=True)
    if probe.stdout != files["/etc/machine-id"][1]:
        raise LabError(f"debugfs: {done.stderr.strip()[-800:]}")
