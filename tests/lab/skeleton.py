"""Files that every netns node gets in place of the machine's own."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

SUDO_PASSWORD = "epdlab-secret"
"""Password of the user ``operator``, whose sudo asks for it. ``admin`` has NOPASSWD."""

USERS = {"admin": 7001, "operator": 7002}

SSHD_CONFIG = """\
Include /etc/ssh/sshd_config.d/*.conf
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys .ssh/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {pam}
UseDNS no
PrintMotd no
MaxStartups {max_startups}
MaxSessions 100
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""

SUDOERS = """\
admin ALL=(ALL:ALL) NOPASSWD: ALL
operator ALL=(ALL:ALL) ALL
"""


def make_key(path: Path, comment: str) -> None:
    """Make an ed25519 key pair at ``path`` and ``path``.pub."""
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def host_key_line(public_key: Path) -> str:
    """Type and base64 of a public key file, as known_hosts wants them."""
    return " ".join(public_key.read_text().split()[:2])


def _accounts(etc: Path) -> None:
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=SUDO_PASSWORD, text=True, capture_output=True, check=True
    ).stdout.strip()
    passwd = Path("/etc/passwd").read_text()
    shadow = Path("/etc/shadow").read_text()
    group = Path("/etc/group").read_text()
    for user, uid in USERS.items():
        passwd += f"{user}:x:{uid}:{uid}::/home/{user}:/bin/bash\n"
        shadow += f"{user}:{hashed}:19000:0:99999:7:::\n"
        group += f"{user}:x:{uid}:\n"
    (etc / "passwd").write_text(passwd)
    (etc / "group").write_text(group)
    (etc / "shadow").write_text(shadow)
    (etc / "shadow").chmod(0o600)
    (etc / "sudoers.d").mkdir()
    (etc / "sudoers.d" / "epdlab").write_text(SUDOERS)
    (etc / "sudoers.d" / "epdlab").chmod(0o440)


def write_skeleton(fleet_dir: Path, hosts: Mapping[str, str], *, pam: bool, max_startups: int) -> None:
    """Write ``skel`` (laid over /) and ``skel-root`` (the nodes' /root) below ``fleet_dir``.

    ``hosts`` maps node name to address; every node's /etc/hosts names them all, as on a cluster.
    ``fleet_dir`` must already hold ``id_ed25519.pub`` and ``host_key``.
    """
    etc = fleet_dir / "skel" / "etc"
    (etc / "ssh").mkdir(parents=True)
    for directory in (fleet_dir / "skel", etc, etc / "ssh"):
        directory.chmod(0o755)
    _accounts(etc)
    config = SSHD_CONFIG.format(pam="yes" if pam else "no", max_startups=max_startups)
    (etc / "ssh" / "sshd_config").write_text(config)
    (etc / "ssh" / "authorized_keys").write_text((fleet_dir / "id_ed25519.pub").read_text())
    (etc / "ssh" / "authorized_keys").chmod(0o644)
    for suffix, mode in (("", 0o600), (".pub", 0o644)):
        target = etc / "ssh" / f"ssh_host_ed25519_key{suffix}"
        target.write_bytes((fleet_dir / f"host_key{suffix}").read_bytes())
        target.chmod(mode)
    lines = ["127.0.0.1\tlocalhost", *(f"{address}\t{name}" for name, address in hosts.items())]
    (etc / "hosts").write_text("\n".join(lines) + "\n")
    (etc / "hosts").chmod(0o644)
    # Without a name server of its own a lookup asks 127.0.0.1, which refuses at once; any other
    # address would let every unknown name wait for a time-out.
    (etc / "resolv.conf").write_text("# no name server\n")
    home = fleet_dir / "skel-root"
    home.mkdir()
    (home / ".bashrc").write_text("")
    (home / ".profile").write_text("")
