"""SSH options as ssh itself sees them, known_hosts, and the sentences for how commands end."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.collect import endings, remote_command, ssh_options
from epdoctor.collect.host_keys import HostKeyStore, KnownHosts, hashed_name, lookup_name
from epdoctor.collect.ssh_config_files import Sharing
from epdoctor.collect.ssh_options import SshOptions, SshOptionsReader
from epdoctor.collect.targets import Target
from epdoctor.exceptions import UsageError

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="not installed: ssh")


def read(
    tmp_path: Path, config: str, *targets: Target, refuse: bool = True
) -> tuple[dict[str, SshOptions], int]:
    file = tmp_path / "config"
    file.write_text(config)
    reader = SshOptionsReader(refuse=refuse)
    nodes = [
        Target(t.name, t.host, t.port, t.user, ssh_args=("-F", str(file), *t.ssh_args))
        for t in targets or (Target("gpu01"),)
    ]
    return reader.read(nodes), reader.processes


@needs_ssh
def test_options_that_matter(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host gpu*\n  User admin\n  Port 2200\n")
    config = f"""Include {tmp_path}/more
Host *
  HostName %h.example.org
  IdentityFile ~/.ssh/%h_key
  IdentitiesOnly yes
  UserKnownHostsFile /kh/%h /kh/all
  GlobalKnownHostsFile none
  StrictHostKeyChecking accept-new
  ProxyJump me@bastion:2022,inner
  ConnectTimeout 7
  IdentityAgent none
"""
    found, _ = read(tmp_path, config)
    one = found["gpu01"]
    assert (one.hostname, one.port, one.user) == ("gpu01.example.org", 2200, "admin")
    assert one.identity_files == (f"{Path.home()}/.ssh/gpu01.example.org_key",)
    assert one.user_known_hosts == ("/kh/gpu01.example.org", "/kh/all")
    assert one.global_known_hosts == ()
    assert (one.strict, one.proxy_jump, one.connect_timeout_s) == ("accept-new", "me@bastion:2022,inner", 7)
    assert (one.identities_only, one.identity_agent) == (True, "")


@needs_ssh
def test_arguments_win_over_the_file(tmp_path: Path) -> None:
    config = "Host *\n  User file\n  Port 1\n  ConnectTimeout 1\n"
    target = Target("n", "10.0.0.1", port=22, user="inv", ssh_args=("-o", "ConnectTimeout=9", "-oUser=later"))
    one = read(tmp_path, config, target)[0]["n"]
    assert (one.hostname, one.port, one.connect_timeout_s) == ("10.0.0.1", 22, 9)
    assert one.user == "later"  # ssh's own rule: the first on its command line


@needs_ssh
@pytest.mark.parametrize(
    ("config", "processes"),
    [
        ("", 1),
        ("Host *\n  User x\n", 1),
        ("Host gpu*\n  User x\nHost login\n  User y\n", 1),
        ("Host gpu01\n  User x\n", 2),
        ("Host *\n  HostName %h.example.org\n", 4),
        ("Host *\n  UserKnownHostsFile /kh/%h\n", 4),
        ("Match host gpu01\n  User x\n", 4),
    ],
)
def test_ssh_is_asked_once_for_hosts_treated_alike(tmp_path: Path, config: str, processes: int) -> None:
    nodes = [Target(f"gpu0{i}") for i in range(1, 5)]
    shared, count = read(tmp_path, config, *nodes)
    assert count == processes
    for target in nodes:
        alone, _ = read(tmp_path, config, target)
        assert shared[target.name] == alone[target.name]


@needs_ssh
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("CertificateFile=/c", "CertificateFile"),
        ("KnownHostsCommand=/bin/true", "KnownHostsCommand"),
        ("RevokedHostKeys=/r", "RevokedHostKeys"),
        ("PubkeyAuthentication=no", "PubkeyAuthentication"),
        ("PreferredAuthentications=password", "PreferredAuthentications"),
        ("Nonsense=1", "Bad configuration option"),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, option: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        read(tmp_path, "", Target("gpu01", ssh_args=("-o", option)))
    if named != "Bad configuration option":
        assert read(tmp_path, "", Target("gpu01", ssh_args=("-o", option)), refuse=False)


@pytest.mark.parametrize(
    "args",
    [
        ("-N",),
        ("-L", "1:h:2"),
        ("host",),
        ("-o",),
        ("--", "x"),
        ("-F", "/no/config"),
        ("-i", "/no/key"),
        ("-f",),
    ],
)
def test_arguments_that_are_no_connection_options(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        ssh_options.check_args(Target("n", ssh_args=args))


def test_ansible_control_options_are_accepted() -> None:
    args = ("-C", "-o", "ControlMaster=auto", "-oControlPersist=60s", "-4", "-vvv", "-J", "a,b")
    ssh_options.check_args(Target("n", ssh_args=args))


@pytest.mark.parametrize(
    ("hop", "parts"),
    [
        ("h", ("", "h", None)),
        ("u@h:22", ("u", "h", 22)),
        ("ssh://u@h:2222", ("u", "h", 2222)),
        ("[fe80::1]:22", ("", "fe80::1", 22)),
        ("fe80::1", ("", "fe80::1", None)),
        ("a@b@h", ("a@b", "h", None)),
    ],
)
def test_hops(hop: str, parts: tuple[str, str, int | None]) -> None:
    assert ssh_options.split_hop(hop) == parts


@given(st.text(max_size=40))
def test_any_hop_is_split_or_refused(hop: str) -> None:
    try:
        _, host, _ = ssh_options.split_hop(hop)
    except UsageError:
        return
    assert host
    assert not host.startswith("-")


@given(st.lists(st.text(max_size=8) | st.sampled_from(["-o", "-i", "-F", "-Jx", "-p22", "-vv"]), max_size=5))
def test_any_arguments_are_accepted_or_refused(args: list[str]) -> None:
    try:
        ssh_options.check_args(Target("n", ssh_args=tuple(args)))
    except (UsageError, ValueError):  # ValueError: a NUL in a path
        return


@given(
    st.text()
    | st.lists(st.sampled_from(["port x", "port -1", "identityfile %", "stricthostkeychecking"])).map(
        "\n".join
    )
)
def test_any_output_of_ssh_g_is_read(text: str) -> None:
    options = ssh_options.parse(ssh_options.parse_lines(text), Target("n"), refuse=False)
    assert 0 <= options.port < 100000


@given(st.text("Hosthinclude Match*?!\"'=\n#%$[] ", max_size=80))
def test_any_config_is_understood_or_asked_about(text: str) -> None:
    folder = Path("/nonexistent")
    assert Sharing.of((str(folder / "x"),)).signature("h") == ()
    from epdoctor.collect import ssh_config_files

    for line in text.splitlines():
        ssh_config_files._line(line, folder, [], 15)


BLOB = base64.b64encode(b"key one").decode()
OTHER = base64.b64encode(b"key two").decode()


def store_of(tmp_path: Path, text: str, **more: object) -> tuple[HostKeyStore, SshOptions]:
    file = tmp_path / "known_hosts"
    file.write_text(text)
    fields: dict[str, object] = {
        "hostname": "gpu01",
        "port": 22,
        "user": "u",
        "user_known_hosts": (str(file),),
        **more,
    }
    return HostKeyStore(), SshOptions(**fields)  # type: ignore[arg-type]  # the dataclass's signature judges them


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (f"gpu01 ssh-ed25519 {BLOB}\n", "ok"),
        (f"GPU01,10.0.0.1 ssh-ed25519 {BLOB} comment\n", "ok"),
        (f"gpu* ssh-ed25519 {BLOB}\n", "ok"),
        (f"gpu*,!gpu01 ssh-ed25519 {BLOB}\n", "unknown"),
        (f"gpu01 ssh-ed25519 {OTHER}\n", "changed"),
        (f"gpu01 ssh-ed25519 {OTHER}\ngpu01 ssh-ed25519 {BLOB}\n", "ok"),
        (f"gpu01 ssh-rsa {OTHER}\n", "unknown"),
        (f"@revoked * ssh-ed25519 {BLOB}\ngpu01 ssh-ed25519 {BLOB}\n", "revoked"),
        (f"@cert-authority * ssh-ed25519 {BLOB}\n", "unknown"),
        (f"# gpu01 ssh-ed25519 {BLOB}\n", "unknown"),
        ("gpu01 ssh-ed25519 !!!\ngarbage\n|1|x|y ssh-ed25519 AAAA\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_judging_a_host_key(tmp_path: Path, text: str, state: str) -> None:
    store, options = store_of(tmp_path, text)
    assert store.judge(options, "ssh-ed25519", b"key one").state == state


def test_hashed_names_ports_and_aliases(tmp_path: Path) -> None:
    text = f"{hashed_name('[gpu01]:2222', b's' * 20)} ssh-ed25519 {BLOB}\n"
    store, options = store_of(tmp_path, text, port=2222)
    assert lookup_name(options) == "[gpu01]:2222"
    assert store.judge(options, "ssh-ed25519", b"key one").state == "ok"
    store, options = store_of(tmp_path, f"gpu01 ssh-ed25519 {BLOB}\n", port=2222)
    assert store.judge(options, "ssh-ed25519", b"key one").state == "ok"  # ssh looks without the port too
    assert store.judge(options, "ssh-ed25519", b"key two").state == "unknown"
    store, options = store_of(tmp_path, f"rack ssh-ed25519 {BLOB}\n", port=2222, host_key_alias="rack")
    assert store.judge(options, "ssh-ed25519", b"key one").state == "ok"


@needs_ssh
def test_a_key_that_is_remembered_is_found_by_ssh_keygen(tmp_path: Path) -> None:
    key = tmp_path / "k"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    blob = base64.b64decode(key.with_suffix(".pub").read_text().split()[1])
    store, options = store_of(tmp_path, "", hash_known_hosts=True, port=2222)
    store.remember(options, "ssh-ed25519", blob)
    argv = ["ssh-keygen", "-F", "[gpu01]:2222", "-f", options.user_known_hosts[0]]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    assert HostKeyStore().judge(options, "ssh-ed25519", blob).state == "ok"


@given(st.text(), st.text(max_size=20))
def test_any_known_hosts_text_is_read(text: str, name: str) -> None:
    known = KnownHosts()
    known.add(text, "file")
    known.keys_of(name)


@pytest.mark.parametrize("become", [False, True])
@pytest.mark.parametrize("interpreter", ["", "/usr/bin/env python3", "/opt/it's here/python"])
def test_the_remote_command_is_one_sh_for_any_login_shell(interpreter: str, become: bool) -> None:
    command = remote_command.over_ssh(Target("n", python_interpreter=interpreter), become=become)
    assert command.startswith("sh -c ")
    assert "\n" not in command
    assert "!" not in command  # csh expands it even in quotes
    if not become:
        for shell in filter(shutil.which, ("sh", "bash", "dash", "fish", "csh", "tcsh", "zsh")):
            done = subprocess.run(
                [shell, "-c", command], input=b"print(6*7)", capture_output=True, check=False
            )
            expected = (127, b"") if "it's" in interpreter else (0, b"42\n")
            assert (done.returncode, done.stdout) == expected, shell


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        ("sudo: a password is required\n", "sudo on n wants a password"),
        ("sudo: sorry, you must have a tty to run sudo\n", "sudo on n wants a terminal (requiretty)"),
        ("eve is not in the sudoers file.\n", "this user may not use sudo on n"),
        (
            "Sorry, user eve is not allowed to execute '/bin/sh' as root on n.\n",
            "this user may not use sudo on n",
        ),
        ("sh: 1: exec: sudo: not found\n", "no sudo on n"),
        ("sudo: Passwort benötigt\n", "sudo failed on n: Passwort benötigt"),
    ],
)
def test_sudo_refusals(stderr: str, sentence: str) -> None:
    failure = endings.of_shell(Target("n"), 1, b"", stderr, become=True)
    assert failure is not None
    assert (failure.kind, str(failure)) == ("sudo", sentence)


@given(st.integers(-1, 255) | st.none(), st.binary(max_size=20), st.text(), st.booleans())
def test_any_ending_is_one_printable_sentence(
    rc: int | None, stdout: bytes, stderr: str, become: bool
) -> None:
    target = Target("n", "10.0.0.1")
    argv = ["kubectl", "python3", "-IB", "-"]
    for failure in (
        endings.of_shell(target, rc, stdout, stderr, become=become),
        endings.of_openssh(target, rc, stdout, stderr, become=become),
        endings.of_via(target, argv, rc, stdout, stderr, become=become),
    ):
        if failure is None:
            assert rc == 0
            assert stdout
        else:
            assert str(failure).isprintable()
            assert len(str(failure)) < 400
