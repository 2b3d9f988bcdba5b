"""A node to look at, and how the inventory says it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """One node. Variables follow Ansible's ssh connection plugin (ansible-doc -t connection ssh)."""

    name: str
    """The inventory's name; every report uses it."""
    host: str = ""
    """What is connected to (`ansible_host`); empty: the name."""
    port: int | None = None
    """None: what the SSH configuration says, else 22."""
    user: str = ""
    """Empty: what the SSH configuration says, else the local user."""
    python_interpreter: str = ""
    """Interpreter for the agent on the node; empty: python3, else platform-python."""
    become: bool = False
    become_user: str = ""
    """Empty: root."""
    connection: str = "ssh"
    """ssh | local"""
    private_key_file: str = ""
    ssh_args: tuple[str, ...] = ()
    """Words for ssh, in Ansible's order: ansible_ssh_args, common args, extra args."""
    accept_any_host_key: bool = False
    """The inventory says `ansible_host_key_checking=false`."""
    groups: tuple[str, ...] = ()
    vars: Mapping[str, Any] = field(default_factory=dict)
    """Variables for epdoctor itself: those whose names start with `epdoctor_`."""

    @property
    def address(self) -> str:
        return self.host or self.name

    @property
    def label(self) -> str:
        """For sentences: "gpu03 (10.0.0.3)", or the name alone."""
        return f"{self.name} ({self.host})" if self.host and self.host != self.name else self.name


@dataclass(frozen=True)
class Inventory:
    nodes: tuple[Target, ...]
    source: str
    """Where they come from, for the report: "inventory.ini", "Slurm job 1234", "this machine"."""
    warnings: tuple[str, ...] = ()


def this_machine(name: str) -> Target:
    """The machine epdoctor runs on, without any connection."""
    return Target(name=name, connection="local")
