"""Ansible's connection variables of one host, made into a Target.

Names and meaning: the documentation of Ansible's ssh connection and sudo become plugins (ansible-core 2.19).
What changes how a node is reached and cannot be honoured is refused by name, before any connection.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epdoctor.collect.targets import Target
from epdoctor.exceptions import InventoryError

_SSH_CONNECTIONS = {
    "ssh",
    "smart",
    "paramiko",
    "paramiko_ssh",
    "ansible.builtin.ssh",
    "ansible.builtin.paramiko_ssh",
}
_LOCAL_CONNECTIONS = {"local", "ansible.builtin.local"}
_SECRETS = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password", "ansible_private_key_passphrase")
_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_TRUE = {"yes", "on", "1", "true", "t", "y"}
_FALSE = {"no", "off", "0", "false", "f", "n", ""}


def target(name: str, groups: tuple[str, ...], hostvars: Mapping[str, Any], source: str) -> Target:
    """Raises InventoryError that names the host and the variable."""
    if name.startswith("-") or any(char.isspace() or ord(char) < 32 for char in name):
        raise InventoryError(f'{source}: "{name[:80]}" cannot be a node name')
    read = _Reader(name, hostvars, source)
    connection = read.text("ansible_connection") or "ssh"
    if connection not in _SSH_CONNECTIONS | _LOCAL_CONNECTIONS:
        raise InventoryError(
            f"{source}: {name} has ansible_connection={connection}; epdoctor speaks ssh and local",
            hint="use --via, e.g. --via 'docker exec -i {node}'",
        )
    for secret in _SECRETS:
        if hostvars.get(secret) not in (None, ""):
            raise InventoryError(
                f"{source}: {name} has {secret}; epdoctor logs in with keys only",
                hint="use a key or an SSH agent",
            )
    method = read.text("ansible_become_method") or "sudo"
    become = read.flag("ansible_become", "ansible_sudo") or False
    if become and method not in {"sudo", "ansible.builtin.sudo"}:
        raise InventoryError(f"{source}: {name} has ansible_become_method={method}; epdoctor knows sudo only")
    become_user = read.text("ansible_become_user", "ansible_sudo_user")
    host = read.text("ansible_host", "ansible_ssh_host")
    if host.startswith("-") or any(char.isspace() for char in host):
        raise InventoryError(f'{source}: {name}: ansible_host "{host[:80]}" cannot be an address')
    checking = read.flag("ansible_ssh_host_key_checking", "ansible_host_key_checking")
    interpreter = read.text("ansible_python_interpreter")
    return Target(
        name=name,
        host="" if host == name else host,
        port=read.port(),
        user=read.text("ansible_user", "ansible_ssh_user"),
        python_interpreter="" if interpreter.startswith("auto") else interpreter,
        become=become,
        become_user="" if become_user == "root" else become_user,
        connection="local" if connection in _LOCAL_CONNECTIONS else "ssh",
        private_key_file=_key_file(read),
        ssh_args=read.words("ansible_ssh_args")
        + read.words("ansible_ssh_common_args")
        + read.words("ansible_ssh_extra_args"),
        accept_any_host_key=checking is False,
        groups=groups,
        vars={key: value for key, value in hostvars.items() if key.startswith("epdoctor_")},
    )


def _key_file(read: _Reader) -> str:
    path = read.text("ansible_ssh_private_key_file", "ansible_private_key_file")
    if path:
        expanded = Path(path).expanduser()
        if not expanded.is_file():
            raise InventoryError(
                f"{read.source}: {read.host}: private key {path} does not exist", hint=f"ls -l {path}"
            )
        path = str(expanded)
    return path


class _Reader:
    def __init__(self, host: str, hostvars: Mapping[str, Any], source: str) -> None:
        self.host, self.vars, self.source = host, hostvars, source

    def _fail(self, key: str, why: str) -> InventoryError:
        return InventoryError(f"{self.source}: {self.host}: {key} {why}")

    def text(self, *keys: str) -> str:
        """Value of the first of these variables that is set, `{{ name }}` of plain variables filled in."""
        for key in keys:
            value = self.vars.get(key)
            if value is None or value == "":
                continue
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                why = "is vault-encrypted" if isinstance(value, Mapping) else f"is {value!r:.60}, not text"
                raise self._fail(key, why)
            text = self._fill(key, str(value))
            if "\0" in text or "\n" in text.strip():
                raise self._fail(key, "holds a line break or NUL")
            return text.strip()
        return ""

    def _fill(self, key: str, text: str) -> str:
        # ansible-inventory prints templates as they stand. What inventories really use here are plain names.
        for _ in range(4):
            if "{{" not in text and "{%" not in text:
                return text
            text = _PLACEHOLDER.sub(self._value_of, text)
        if "{{" in text or "{%" in text:
            raise self._fail(key, f'is the template "{text[:60]}", which epdoctor does not evaluate')
        return text

    def _value_of(self, match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "inventory_hostname":
            return self.host
        if name == "inventory_hostname_short":
            return self.host.split(".")[0]
        value = self.vars.get(name)
        return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else match.group()

    def flag(self, *keys: str) -> bool | None:
        """None: not set."""
        for key in keys:
            value = self.vars.get(key)
            if value is None:
                continue
            if isinstance(value, bool):
                return value
            word = str(value).strip().lower()
            if word in _TRUE:
                return True
            if word in _FALSE:
                return False
            raise self._fail(key, f'is "{word[:40]}", not yes or no')
        return None

    def port(self) -> int | None:
        text = self.text("ansible_port", "ansible_ssh_port")
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) < 65536:
            raise self._fail("ansible_port", f'is "{text[:40]}", not a port')
        return int(text)

    def words(self, key: str) -> tuple[str, ...]:
        try:
            return tuple(shlex.split(self.text(key)))
        except ValueError as error:
            raise self._fail(key, f"cannot be split into words: {error}") from None
