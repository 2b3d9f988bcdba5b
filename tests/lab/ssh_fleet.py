"""Nodes behind a hub's network namespace that are reached over SSH: what namespaces and machines share."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tests.lab.life import Lab, inventory_text


class Reachable(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...


N = TypeVar("N", bound=Reachable)


class SshFleet(Lab, Generic[N]):
    """A subclass sets ``hub`` and ``nodes``, and writes the files that are named here."""

    run_timeout_s = 120.0
    connect_timeout_s = 5
    hub: str
    """Name of the network namespace from which the nodes are reached."""
    nodes: tuple[N, ...]

    @property
    def inventory(self) -> Path:
        """Ansible inventory; group ``nodes``, logging in as root."""
        return self.dir / "inventory.ini"

    @property
    def known_hosts(self) -> Path:
        """Host keys of all nodes by name and address."""
        return self.dir / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """For ``ssh -F``: names, key, known_hosts, strict checking."""
        return self.dir / "ssh_config"

    @property
    def key(self) -> Path:
        """Private key that root and the users of every node accept."""
        return self.dir / "id_ed25519"

    @property
    def exec_prefix(self) -> list[str]:
        """Words before a command so that it runs where the nodes can be reached."""
        return ["ip", "netns", "exec", self.hub]

    def __getitem__(self, name: str) -> N:
        """The node of this name. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine where the nodes can be reached; never raises for its rc."""
        return subprocess.run(
            [*self.exec_prefix, *argv],
            capture_output=True,
            text=True,
            timeout=self.run_timeout_s if timeout is None else timeout,
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
        )

    def ssh(
        self, node: N, *command: str, user: str = "root", connect_timeout_s: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command over OpenSSH; never raises for its rc."""
        limit = self.connect_timeout_s if connect_timeout_s is None else connect_timeout_s
        options = ["-F", str(self.ssh_config), "-o", f"ConnectTimeout={limit}"]
        return self.run(["ssh", *options, f"{user}@{node.name}", *command])

    def inventory_text(self, *, user: str = "root", host_vars: Mapping[str, str] | None = None) -> str:
        """Text of an inventory.ini for another user, or with more words on a host's line."""
        return inventory_text(self.dir, self._hosts(), user=user, host_vars=host_vars)

    def _hosts(self) -> dict[str, str]:
        return {node.name: node.address for node in self.nodes}
