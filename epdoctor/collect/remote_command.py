"""The command that starts the node's interpreter; the agent follows on its stdin. Nothing is installed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from epdoctor.collect.targets import Target

PYTHONS = ("python3", "/usr/libexec/platform-python")
"""platform-python is the system interpreter of EL 8, which has no python3 by default."""
NO_PYTHON = "epdoctor: no python3 on this node"
FLAGS = ("-IB", "-")
"""Isolated from the login's environment, no .pyc files, program on stdin."""


def bootstrap(size: int) -> tuple[str, ...]:
    """Flags for a program of `size` bytes that goes on reading its stdin: `-` would read to its end first."""
    return ("-IBc", f"import sys;exec(compile(sys.stdin.buffer.read({size}),'epdoctor','exec'))")


def over_ssh(target: Target, *, become: bool, flags: tuple[str, ...] = FLAGS) -> str:
    """For the login shell of the node, whichever it is (sh, csh, fish): one `sh -c` with quoted words."""
    quoted = [shlex.quote(flag) for flag in flags]
    if target.python_interpreter:
        words = _words(target.python_interpreter)
        start = f"command -v {words[0]} >/dev/null 2>&1 && exec {' '.join((*words, *quoted))}"
    else:
        found = f"command -v $p >/dev/null 2>&1 && exec $p {' '.join(quoted)}"
        start = f"for p in {' '.join(PYTHONS)}; do {found}; done"
    script = f'{start}; echo "{NO_PYTHON}" >&2; exit 127'
    if not (become or target.become):
        return f"sh -c {shlex.quote(script)}"
    if target.become_user:
        outer = f'exec sudo -n -u {shlex.quote(target.become_user)} -- sh -c "$0"'
    else:  # a root login may have no sudo at all
        outer = 'if [ "$(id -u)" = 0 ]; then exec sh -c "$0"; fi; exec sudo -n -- sh -c "$0"'
    return f"sh -c {shlex.quote(outer)} {shlex.quote(script)}"


def _words(interpreter: str) -> list[str]:
    """`/usr/bin/env python3` is two words in Ansible too, and `~` is the login's home."""
    out = []
    for word in interpreter.split():
        home = word.startswith("~/")
        out.append('"$HOME"/' + shlex.quote(word[2:]) if home else shlex.quote(word))
    return out


def as_argv(target: Target, *, become: bool, flags: tuple[str, ...] = FLAGS) -> list[str]:
    """For `--via`, appended to the template: no shell in between."""
    python: Sequence[str] = target.python_interpreter.split() or PYTHONS[:1]
    sudo: list[str] = []
    if become or target.become:
        sudo = ["sudo", "-n", *(["-u", target.become_user] if target.become_user else []), "--"]
    return [*sudo, *python, *flags]
