"""Start, stop and clean up: what all labs share."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.lab.requirements import LabError

L = TypeVar("L", bound="Lab")
PREFIX = "epdlab"


class Lab:
    """Something real that is started, used and ended. A context manager.

    A subclass gives _unavailable(), _start() and _stop(). Whatever happens, stop() runs: when
    start() fails, when the ``with`` block ends, and when the interpreter exits. What a process
    killed by SIGKILL left is found by its process id and removed by the next start().
    """

    def __init__(self) -> None:
        self._dir: Path | None = None
        self._owner = 0

    @property
    def dir(self) -> Path:
        """Folder of the lab's files; removed with it. Raises LabError when it is not started."""
        if self._dir is None:
            raise LabError("the lab is not started")
        return self._dir

    def start(self: L) -> L:  # noqa: PYI019  # typing.Self came with Python 3.11
        """Start it and wait until it is ready. Raises LabError and leaves nothing behind."""
        reason = self._unavailable()
        if reason is not None:
            raise LabError(reason)
        self._sweep()
        for folder in leftovers():
            shutil.rmtree(folder, ignore_errors=True)
        self._owner = os.getpid()
        atexit.register(self.stop)
        self._dir = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-"))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything that was started and remove the files. May be called twice."""
        atexit.unregister(self.stop)
        if self._dir is None or self._owner != os.getpid():
            return  # a forked child that exits must not end its parent's lab
        try:
            self._stop()
        finally:
            shutil.rmtree(self._dir, ignore_errors=True)
            self._dir = None

    def __enter__(self: L) -> L:  # noqa: PYI019  # typing.Self came with Python 3.11
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _unavailable(self) -> str | None:
        raise NotImplementedError

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    def _sweep(self) -> None:
        """Remove what killed processes left, other than files; see owner_is_gone()."""
        raise NotImplementedError


def owner_is_gone(name: str) -> bool:
    """Whether ``epdlab-PID-...`` belongs to a process that no longer exists."""
    parts = name.split("-")
    if len(parts) < 3 or parts[0] != PREFIX or not parts[1].isdigit():
        return False
    return not Path("/proc", parts[1]).exists()


def leftovers() -> Iterator[Path]:
    """Folders of labs whose process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        if owner_is_gone(folder.name):
            yield folder


def inventory_text(
    folder: Path, hosts: Mapping[str, str], *, user: str = "root", host_vars: Mapping[str, str] | None = None
) -> str:
    """An Ansible inventory of a lab's nodes (name -> address), in group ``nodes``.

    ``host_vars`` are more words on a host's line. ``folder`` holds id_ed25519 and ssh_config.
    """
    lines = ["[nodes]"]
    for name, address in hosts.items():
        extra = (host_vars or {}).get(name, "")
        lines.append(f"{name} ansible_host={address} {extra}".rstrip())
    lines += [
        "[nodes:vars]",
        f"ansible_user={user}",
        f"ansible_ssh_private_key_file={folder}/id_ed25519",
        f"ansible_ssh_common_args=-F {folder}/ssh_config",
        "ansible_python_interpreter=/usr/bin/python3",
    ]
    return "\n".join(lines) + "\n"


def write_access(folder: Path, hosts: Mapping[str, str], host_keys: Mapping[str, str]) -> None:
    """Write known_hosts, ssh_config and inventory.ini.

    ``hosts`` maps name to address, ``host_keys`` name to "type base64".
    """
    known = "".join(f"{name},{address} {host_keys[name]}\n" for name, address in hosts.items())
    (folder / "known_hosts").write_text(known)
    names = "".join(f"Host {name}\n  HostName {address}\n" for name, address in hosts.items())
    rest = (
        f"Host *\n  User root\n  IdentityFile {folder}/id_ed25519\n  IdentitiesOnly yes\n"
        f"  StrictHostKeyChecking yes\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  GlobalKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    (folder / "ssh_config").write_text(names + rest)
    (folder / "inventory.ini").write_text(inventory_text(folder, hosts))
