"""What provision and rollback do alike: the inventory, the checks on its nodes, the question, the log."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import click

from epdoctor.cli.gather import Gathered, gather
from epdoctor.cli.options import NodeChoice
from epdoctor.collect.targets import Inventory, Target
from epdoctor.config import load_config
from epdoctor.exceptions import InventoryError, UsageError

_SYSTEM_PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")


@dataclass(frozen=True)
class Place:
    """The inventory and how its nodes are reached."""

    inventory: Path
    choice: NodeChoice
    targets: tuple[Target, ...]
    warnings: tuple[str, ...]
    local: bool = False
    """This machine alone, by an inventory that is gone after the run."""

    @property
    def words(self) -> str:
        """The inventory as an argument of a command to type; empty for this machine."""
        return "" if self.local else str(self.inventory)

    def only(self, nodes: Collection[str]) -> Place:
        """The same with these nodes alone."""
        targets = tuple(target for target in self.targets if target.name in nodes)
        choice = replace(self.choice, limit=",".join(target.name for target in targets))
        return replace(self, targets=targets, choice=choice)


def place_of(inventory: Path, limit: str, forks: int) -> Place:
    """Read the inventory. Raises InventoryError before any node is touched."""
    from epdoctor.inventory import load_inventory

    if not inventory.exists():
        raise InventoryError(f"{inventory} does not exist", hint=f"ls -l {inventory}")
    config = load_config()
    choice = NodeChoice(
        all_nodes=True,
        inventory=(str(inventory),),
        limit=limit,
        forks=forks,
        timeout_s=config.timeout_s or 60.0,
        become=config.become,
        via="",
        transport="fabric",
        dynamic_inventory=False,
        config=config,
    )
    loaded: Inventory = load_inventory((str(inventory),), limit=limit)
    return Place(inventory, choice, loaded.nodes, loaded.warnings)


@contextmanager
def inventory_or_here(path: Path | None) -> Iterator[Path]:
    """The inventory that was named, or one of this machine alone."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="epd-") as folder:
        yield _local_inventory(Path(folder))


def _local_inventory(folder: Path) -> Path:
    """An inventory of this machine; root needs no sudo, which small systems do not have."""
    path = folder / "inventory.ini"
    become = "" if os.geteuid() else " ansible_become=false"
    # The system's own Python: it has python3-apt, and a version manager's shims answer for none.
    python = next((name for name in _SYSTEM_PYTHONS if os.access(name, os.X_OK)), sys.executable)
    words = f"ansible_connection=local ansible_python_interpreter={shlex.quote(python)}{become}"
    path.write_text(f"{socket.gethostname() or 'localhost'} {words}\n", "utf-8")
    return path


def look(place: Place, values: Mapping[str, Any]) -> Gathered:
    """Collect from the nodes by new SSH connections: an old one keeps the limits of before a change."""
    own = {"env_file": None, "python": "", "max_num_batched_tokens": values.get("max_num_batched_tokens")}
    return gather(place.choice, own)


def host_vars(targets: tuple[Target, ...]) -> dict[str, dict[str, Any]]:
    """Variables that every run gives its nodes."""
    from epdoctor.provision.runner import node_become

    return {target.name: dict(node_become(target.user)) for target in targets}


def ask(question: str, *, yes: bool) -> None:
    """Go on only after a yes. Raises UsageError where nobody can be asked, Abort for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nothing was changed: there is no terminal to ask on", hint="add --yes")
    click.confirm(question, abort=True, err=True)


@contextmanager
def log_file(run: str) -> Iterator[IO[str] | None]:
    """A log of everything that Ansible says, readable by this user only; None where state is not allowed."""
    from epdoctor.compiled import state_allowed
    from epdoctor.paths import state_dir

    if not state_allowed():
        yield None
        return
    folder = state_dir() / "provision"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        yield None
        return
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        yield file


@contextmanager
def wheel_cache() -> Iterator[Path]:
    """Where built wheels stay on this machine between runs; for this run only where state is not allowed."""
    from epdoctor.compiled import state_allowed
    from epdoctor.paths import cache_dir

    if state_allowed():
        yield cache_dir() / "wheels"
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="epd-") as folder:
        yield Path(folder)


def say(text: str = "") -> None:
    """One line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
