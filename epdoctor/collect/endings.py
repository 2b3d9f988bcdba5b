"""What the end of a remote command means: sentences for one node, from its exit status and stderr.

The texts matched are those of sudo 1.8/1.9, dash, bash, OpenSSH 7 to 9 (sshconnect.c, sshconnect2.c, ssh.c),
docker, podman, kubectl and srun.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from epdoctor.collect.host_keys import lookup_name
from epdoctor.collect.remote_command import FLAGS, NO_PYTHON
from epdoctor.collect.ssh_options import SshOptions, argv_words, config_files
from epdoctor.collect.targets import Target
from epdoctor.collect.transport import NodeFailure

_ESCAPES = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
_PYTHON_MISSING = re.compile(
    r"python3?[^\n]{0,120}(?:not found|No such file)|(?:not found|No such file)[^\n]{0,120}python3?"
)


def one_line(text: str, limit: int = 200) -> str:
    """Text from a node for use inside a sentence: printable, one line, short."""
    text = " ".join(_ESCAPES.sub("", text[: limit * 8]).split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""


def ssh_command(target: Target, *remote: str, flags: tuple[str, ...] = ()) -> str:
    """The same login by hand."""
    return shlex.join(["ssh", *flags, *argv_words(target), target.address, *remote])


def hop_command(target: Target, hop: SshOptions) -> str:
    """A login on a jump host of this target by hand."""
    files = config_files(target.ssh_args)
    chosen = ["-F", files[0]] if len(files) == 1 else []
    port = ["-p", str(hop.port)] if hop.port != 22 else []
    return shlex.join(["ssh", *chosen, *port, f"{hop.user}@{hop.hostname}"])


def via_by_hand(argv: list[str]) -> str:
    """The `--via` command with something harmless in place of the agent."""
    return shlex.join([*argv[: -len(FLAGS)], "--version"])


def of_shell(
    target: Target, rc: int | None, stdout: bytes, stderr: str, *, become: bool
) -> NodeFailure | None:
    """Meaning of a remote `sh -c` that ended; None when it ended well and wrote something."""
    if rc == 0 and stdout:
        return None
    label = target.label
    if NO_PYTHON in stderr or (rc in (126, 127) and not stdout and _PYTHON_MISSING.search(stderr)):
        if target.python_interpreter:
            named = one_line(target.python_interpreter, 80)
            return NodeFailure(
                "no-python",
                f"{label} has no {named}, which the inventory names as its Python",
                hint=ssh_command(target, "command -v python3"),
            )
        return NodeFailure(
            "no-python",
            f"no python3 on {label}",
            hint=ssh_command(target, "command -v python3; head -2 /etc/os-release"),
        )
    if (become or target.become) and rc != 0 and (failure := _of_sudo(target, stderr)):
        return failure
    if rc is None:
        return NodeFailure(
            "closed",
            f"the connection to {label} ended before its answer was complete",
            hint=ssh_command(target),
        )
    if rc == 0:
        return NodeFailure(
            "garbage", f"{label} ran the command and answered nothing", hint=ssh_command(target, "echo ok")
        )
    # A short text on stdout is no answer of ours but a word of the login: nologin(8) speaks there.
    words = one_line(stdout.decode(errors="replace")) if len(stdout) < 400 else ""
    said = "; ".join(part for part in (words, last_line(stderr)) if part)
    ended = f"ended with status {rc}" if rc < 128 else f"ended with status {rc} (signal {rc - 128})"
    return NodeFailure(
        "truncated" if stdout else "garbage",
        f"the command on {label} {ended}" + (f": {said}" if said else ""),
        hint=ssh_command(target, "python3 --version"),
    )


_HARMLESS = "unable to resolve host"  # sudo says so, and goes on
_SUDO = (
    (
        ("password is required", "terminal is required to read the password"),
        "sudo on {label} wants a password",
    ),
    (("must have a tty",), "sudo on {label} wants a terminal (requiretty)"),
    (
        ("not in the sudoers file", "is not allowed to", "may not run sudo", "not allowed to run sudo"),
        "{user} may not use sudo on {label}",
    ),
    (("sudo: not found", "sudo: command not found", "sudo: No such file"), "no sudo on {label}"),
    (("unknown user",), "sudo on {label} does not know the user {become_user}"),
)


def _of_sudo(target: Target, stderr: str) -> NodeFailure | None:
    hint = ssh_command(target, "sudo -l", flags=("-t",))
    for needles, sentence in _SUDO:
        if any(needle in stderr for needle in needles):
            text = sentence.format(
                label=target.label, user=target.user or "this user", become_user=target.become_user or "root"
            )
            return NodeFailure("sudo", text, hint=hint)
    line = next(
        (line for line in stderr.splitlines() if line.startswith("sudo:") and _HARMLESS not in line), ""
    )
    return (
        NodeFailure("sudo", f"sudo failed on {target.label}: {one_line(line[5:])}", hint=hint)
        if line
        else None
    )


_OPENSSH = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "host-key-changed"),
    ("Host key verification failed", "host-key-unknown"),
    ("host key is known for", "host-key-unknown"),
    ("Permission denied", "auth"),
    ("Too many authentication failures", "auth"),
    ("Could not resolve hostname", "dns"),
    ("Connection refused", "refused"),
    ("No route to host", "unreachable"),
    ("Network is unreachable", "unreachable"),
    ("Connection timed out during banner exchange", "timeout"),
    ("timed out", "unreachable"),
    ("kex_exchange_identification", "closed"),
    ("Connection closed by", "closed"),
    ("Connection reset by", "closed"),
)


def of_openssh(
    target: Target,
    rc: int | None,
    stdout: bytes,
    stderr: str,
    *,
    become: bool,
    options: SshOptions | None = None,
) -> NodeFailure | None:
    """As of_shell, for the system's ssh: its status 255 is its own failure (ssh(1), EXIT STATUS).

    `options` tell the host's name in known_hosts, and which file that is.
    """
    if rc != 255:
        return of_shell(target, rc, stdout, stderr, become=become)
    label = target.label
    kind = next((kind for text, kind in _OPENSSH if text in stderr), "closed")
    if kind == "closed" and stdout:
        return NodeFailure("closed", f"the connection to {label} ended before its answer was complete")
    sentence = {
        "host-key-changed": host_key_changed(target),
        "host-key-unknown": host_key_unknown(target),
        "auth": f"login on {label} refused: {last_line(stderr)}",
        "dns": f"{target.address} cannot be resolved",
        "refused": f"{label} refuses connections",
        "timeout": f"{label} accepts connections but does not speak SSH",
    }.get(kind, f"ssh to {label} failed: {last_line(stderr) or 'no message'}")
    hint = {
        "host-key-changed": forget_command(ssh_command(target), options, target.address),
        "host-key-unknown": ssh_command(target),
        "dns": shlex.join(["getent", "hosts", target.address]),
    }.get(kind, ssh_command(target, "true"))
    return NodeFailure(kind, sentence, hint=hint, retry=kind == "closed")


def host_key_changed(target: Target) -> str:
    return f"host key of {target.label} has changed"


def host_key_unknown(target: Target) -> str:
    return f"host key of {target.label} is not known"


def forget_command(login: str, options: SshOptions | None, address: str = "") -> str:
    """Once the new key was verified: forget the old one, log in by hand, compare the fingerprint.

    `ssh-keygen -R` looks into ~/.ssh/known_hosts alone, so another file is named.
    """
    words = ["ssh-keygen", "-R", address if options is None else lookup_name(options)]
    known = options.user_known_hosts[:1] if options is not None else ()
    if known and Path(known[0]) != Path("~/.ssh/known_hosts").expanduser():
        words += ["-f", known[0]]
    return f"{shlex.join(words)} && {login}"


def of_via(
    target: Target, argv: list[str], rc: int | None, stdout: bytes, stderr: str, *, become: bool
) -> NodeFailure | None:
    """Meaning of a `--via` command that ended."""
    if rc == 0 and stdout:
        return None
    by_hand = via_by_hand(argv)
    if NO_PYTHON in stderr or (not stdout and _PYTHON_MISSING.search(stderr)):
        return NodeFailure("no-python", f"no python3 in {target.name}", hint=by_hand)
    if become and (failure := _of_sudo(target, stderr)):
        return NodeFailure("sudo", str(failure), hint=by_hand)
    program = argv[0].rpartition("/")[2]
    said = last_line(stderr) or (f"status {rc}" if rc else "it answered nothing")
    if stdout and rc != 0:
        return NodeFailure(
            "truncated", f"{program} for {target.name} ended with status {rc}: {said}", hint=by_hand
        )
    return NodeFailure("via-failed", f"{program} for {target.name}: {said}", hint=by_hand)
