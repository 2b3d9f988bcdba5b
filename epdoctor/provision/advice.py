"""What to do about a failure that a playbook's own words do not explain. Pure."""

from __future__ import annotations

from collections.abc import Iterable

_ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("missing sudo password", "sudo: a password is required"), "--ask-become-pass, --become-password-file FILE, or a vault"),
    (("incorrect sudo password", "incorrect password attempt"), "give the password that sudo wants there: --ask-become-pass"),
    (
        ("not in the sudoers file", "not allowed to execute", "may not run sudo"),
        "log in as root, or as a user whom sudo lets become root (ansible_user in the inventory)",
    ),
    (("sudo: not found", "sudo: command not found", "no such file or directory: b'sudo'"), "log in as root (ansible_user=root), or install sudo there"),
    (
        ("could not get lock", "unable to acquire the dpkg frontend lock", "failed to lock apt", "is locked by another process"),
        "another package manager runs there. Wait for it, then run this again: sudo fuser -v /var/lib/dpkg/lock-frontend",
    ),
    (("no space left on device",), "make room there, then run this again: df -h"),
    (("read-only file system",), "mount it writable there, then run this again: findmnt -O ro"),
    (
        ("timed out after 60 second",),
        "the node is slow or hangs: look with uptime and dmesg there; -e node_state_timeout_s=300 waits longer",
    ),
    (("timed out waiting for last boot time check", "timed out waiting for post-reboot"), "look at its console; --limit goes on with the others"),
)  # fmt: skip
"""(texts of which one stands in the error, in lower case; what to do). sudo 1.9 and apt 2.6 print these texts."""

_SUDO = ("sudoers", "not allowed to execute", "may not run sudo", "sudo:")


def advice(errors: Iterable[str]) -> list[str]:
    """What to do about these errors, each once."""
    found: dict[str, None] = {}
    for error in errors:
        text = error.lower()
        for words, what in _ADVICE:
            if any(word in text for word in words):
                found[what] = None
    return list(found)


def sudo_words(text: str) -> str:
    """The line in which sudo says why it refuses; empty where it does not."""
    return next((line.strip() for line in text.splitlines() if any(word in line for word in _SUDO)), "")
