"""The become password and the vault, as Ansible has them. Neither is ever an argument, a variable or a log line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from epdoctor.exceptions import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = [
    click.option("-K", "--ask-become-pass", is_flag=True, help="Ask for the password that sudo wants on the nodes."),
    click.option("--become-password-file", type=click.Path(path_type=Path), metavar="FILE", help="File that holds it."),
    click.option("--vault-password-file", type=click.Path(path_type=Path), metavar="FILE", help="Password, or program that prints it, of the inventory's vault."),
]  # fmt: skip


def secret_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def use_vault(path: Path | None) -> None:
    """Let ansible-inventory and ansible-playbook open the vault. Raises UsageError for a file that is not there."""
    if path is None:
        return
    full = path.expanduser().resolve()
    if not full.is_file() or not os.access(full, os.R_OK):
        raise UsageError(f"--vault-password-file {path}: cannot be read", hint=f"ls -l {path}")
    # Ansible's own way; its programs are children of this process.
    os.environ["ANSIBLE_VAULT_PASSWORD_FILE"] = str(full)


def become_password(values: dict[str, Any]) -> str:
    """What --become-password-file holds or the user types; "" where neither was asked for. Raises UsageError."""
    path = values["become_password_file"]
    if path is not None:
        try:
            text: str = path.expanduser().read_text("utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--become-password-file {path}: cannot be read", hint=f"ls -l {path}"
            ) from error
        if not text:
            raise UsageError(f"--become-password-file {path}: it is empty")
        return text
    if not values["ask_become_pass"]:
        return ""
    if not sys.stdin.isatty():
        raise UsageError(
            "--ask-become-pass: there is no terminal to ask on",
            hint="--become-password-file FILE, or a vault",
        )
    return str(click.prompt("BECOME password", hide_input=True, err=True))
