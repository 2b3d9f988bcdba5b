"""Both SSH transports against real sshd processes: every way to fail is one clean outcome on that node."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.common import cMSG_CHANNEL_CLOSE, cMSG_CHANNEL_DATA

from epdoctor.collect import jump_hosts
from epdoctor.collect import transport as transport_module
from epdoctor.collect.fanout import run_fleet
from tests.sshd_lab import ADDRESS, BOTH, HELLO, SshdLab, ask, ask_one, free_port, listener, node, running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshdLab]:
    with running_lab(tmp_path_factory) as started:
        yield started


@pytest.fixture(scope="module")
def good(lab: SshdLab) -> int:
    return lab.start()


@BOTH
def test_healthy_node_answers_and_the_clock_times_are_in_order(
    lab: SshdLab, good: int, transport: str
) -> None:
    before = time.time()
    result = ask_one(node(lab, "gpu01", good), transport=transport)
    assert (result.kind, result.stdout, result.rc, result.error) == ("ok", b"hello\n", 0, "")
    assert result.sent_at is not None
    assert result.first_byte_at is not None
    assert before < result.sent_at <= result.first_byte_at <= time.time()


@BOTH
def test_a_payload_larger_than_the_ssh_window_arrives_whole(lab: SshdLab, good: int, transport: str) -> None:
    payload = b"DATA = '" + b"x" * 5_000_000 + b"'\nprint(len(DATA))"
    assert ask_one(node(lab, "gpu01", good), payload=payload, transport=transport).stdout == b"5000000\n"


@BOTH
def test_output_before_the_payload_is_read_does_not_block(lab: SshdLab, transport: str) -> None:
    port = lab.start('ForceCommand head -c 5000000 /dev/zero | tr "\\0" n; sh -c "$SSH_ORIGINAL_COMMAND"')
    payload = b"DATA = '" + b"x" * 5_000_000 + b"'\nprint(len(DATA))"
    result = ask_one(node(lab, "gpu01", port), payload=payload, transport=transport)
    assert result.kind == "ok"
    assert result.stdout == b"n" * 5_000_000 + b"5000000\n"


@BOTH
def test_banner_and_shell_noise_stay_before_the_answer(lab: SshdLab, tmp_path: Path, transport: str) -> None:
    banner = tmp_path / "banner"
    banner.write_text("AUTHORISED USE ONLY\n" * 40)
    port = lab.start(
        f"Banner {banner}", 'ForceCommand echo noise; echo oops >&2; sh -c "$SSH_ORIGINAL_COMMAND"'
    )
    result = ask_one(node(lab, "gpu01", port), transport=transport)
    assert (result.kind, result.stdout) == ("ok", b"noise\nhello\n")


@BOTH
def test_refused(lab: SshdLab, transport: str) -> None:
    result = ask_one(node(lab, "gpu01", free_port()), transport=transport)
    assert result.kind == "refused"
    assert "gpu01 (127.0.0.1)" in result.error


@BOTH
def test_name_that_does_not_resolve(lab: SshdLab, transport: str) -> None:
    result = ask_one(node(lab, "gpu01", 22, host="gpu01.invalid"), transport=transport)
    assert (result.kind, result.error) == ("dns", "gpu01.invalid cannot be resolved")


@BOTH
def test_no_route(lab: SshdLab, transport: str) -> None:
    result = ask_one(node(lab, "gpu01", 22, host="255.255.255.255"), transport=transport)
    assert result.kind in {"unreachable", "closed"}  # the kernel says "unreachable" or "permission denied"


@BOTH
def test_authentication_refused(lab: SshdLab, transport: str) -> None:
    port = lab.start("AuthorizedKeysFile none")
    result = ask_one(node(lab, "gpu01", port), transport=transport)
    assert result.kind == "auth"
    assert "refuse" in result.error
    assert result.hint.startswith("ssh ")


def test_encrypted_key_without_agent_says_so(lab: SshdLab, good: int) -> None:
    key = lab.keygen("id_secret", passphrase="correct horse")
    result = ask_one(node(lab, "gpu01", good, private_key_file=str(key), ssh_args=without_key(lab)))
    assert result.kind == "auth"
    assert f"{key} has a passphrase and is in no agent" in result.error


def without_key(lab: SshdLab) -> tuple[str, ...]:
    config = lab.folder / "no_key"
    config.write_text(
        f"IdentitiesOnly yes\nIdentityAgent none\nUserKnownHostsFile {lab.known_hosts}\nUser {lab.user}\n"
    )
    return ("-F", str(config))


def test_agent_holds_the_encrypted_key_for_many_nodes_at_once(lab: SshdLab, tmp_path: Path) -> None:
    key = lab.keygen("id_agent", passphrase="correct horse")
    port = lab.start(f"AuthorizedKeysFile {key}.pub")
    sock = tmp_path / "agent"
    askpass = tmp_path / "askpass"
    askpass.write_text("#!/bin/sh\necho correct horse\n")
    askpass.chmod(0o700)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        env = {
            **os.environ,
            "SSH_AUTH_SOCK": str(sock),
            "SSH_ASKPASS": str(askpass),
            "SSH_ASKPASS_REQUIRE": "force",
        }
        # The socket's file is there before the agent listens on it: ask until it answers (ssh-add(1), status 2).
        while subprocess.run(["ssh-add", "-l"], env=env, capture_output=True, check=False).returncode == 2:
            time.sleep(0.02)
        subprocess.run(["ssh-add", "-q", str(key)], env=env, check=True, stdin=subprocess.DEVNULL)
        args = ("-oIdentityFile=" + str(key), f"-oIdentityAgent={sock}", *without_agent_line(lab))
        results = ask(*(node(lab, f"gpu{i}", port, ssh_args=args) for i in range(12)))
    finally:
        agent.terminate()
        agent.wait()
    assert {result.kind for result in results.values()} == {"ok"}, [r.error for r in results.values()]


def without_agent_line(lab: SshdLab) -> tuple[str, ...]:
    config = lab.folder / "with_agent"
    config.write_text(f"IdentitiesOnly yes\nUserKnownHostsFile {lab.known_hosts}\nUser {lab.user}\n")
    return ("-F", str(config))


@BOTH
def test_user_certificate_beside_the_key(lab: SshdLab, transport: str) -> None:
    authority = lab.keygen(f"ca_{transport}")
    key = lab.keygen(f"id_certified_{transport}")
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", "-n", lab.user, f"{key}.pub"]
    subprocess.run(sign, check=True, stdin=subprocess.DEVNULL)
    port = lab.start("AuthorizedKeysFile none", f"TrustedUserCAKeys {authority}.pub")
    result = ask_one(
        node(lab, "gpu01", port, private_key_file=str(key), ssh_args=without_key(lab)), transport=transport
    )
    assert (result.kind, result.error) == ("ok", "")


@BOTH
def test_unknown_host_key_is_refused(lab: SshdLab, transport: str) -> None:
    port = lab.start(known=False)
    before = lab.known_hosts.read_text()
    result = ask_one(node(lab, "gpu01", port), transport=transport)
    assert result.kind == "host-key-unknown"
    assert result.error == "host key of gpu01 (127.0.0.1) is not known"
    assert result.hint.startswith("ssh ")
    assert result.stdout == b""
    assert lab.known_hosts.read_text() == before


@BOTH
def test_changed_host_key_is_refused(lab: SshdLab, transport: str) -> None:
    other = lab.keygen(f"host_key_{transport}")
    port = lab.start(known=False)
    lab.trust(port, other)
    result = ask_one(node(lab, "gpu01", port), transport=transport)
    assert result.kind == "host-key-changed"
    assert result.error == "host key of gpu01 (127.0.0.1) has changed"
    assert "ssh-keygen -R" in result.hint
    assert result.stdout == b""


def test_known_key_of_another_type_is_asked_for(lab: SshdLab) -> None:
    rsa = lab.keygen("host_rsa", kind="rsa")
    port = lab.start(f"HostKey {lab.host_key}", host_key=rsa)  # the server would prefer ed25519
    assert ask_one(node(lab, "gpu01", port)).kind == "ok"


@BOTH
def test_strict_host_key_checking_no_is_honoured(lab: SshdLab, transport: str) -> None:
    port = lab.start(known=False)
    args = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-F", str(lab.config))
    result = ask_one(node(lab, "gpu01", port, ssh_args=args), transport=transport)
    assert result.kind == "ok"
    assert "StrictHostKeyChecking is no" in result.warnings[0]
    assert ask_one(node(lab, "gpu01", port, accept_any_host_key=True, ssh_args=args[2:])).kind == "ok"


def test_accept_new_stores_the_key_and_then_notices_a_change(lab: SshdLab, tmp_path: Path) -> None:
    known = tmp_path / "known"
    args = (
        "-o",
        "StrictHostKeyChecking=accept-new",
        "-o",
        f"UserKnownHostsFile={known}",
        "-F",
        str(lab.config),
    )
    port = lab.start(known=False)
    first = ask_one(node(lab, "gpu01", port, ssh_args=args))
    assert (first.kind, len(first.warnings)) == ("ok", 1)
    again = ask_one(node(lab, "gpu01", port, ssh_args=args))
    assert (again.kind, again.warnings) == ("ok", ())
    other = lab.start(known=False, host_key=lab.keygen("host_new"))
    known.write_text(known.read_text().replace(f":{port} ", f":{other} "))
    assert ask_one(node(lab, "gpu02", other, ssh_args=args)).kind == "host-key-changed"


@BOTH
def test_no_python(lab: SshdLab, transport: str) -> None:
    empty = lab.start('ForceCommand export PATH=/nonexistent; eval "/bin/$SSH_ORIGINAL_COMMAND"')
    result = ask_one(node(lab, "gpu01", empty), transport=transport)
    assert (result.kind, result.error) == ("no-python", "no python3 on gpu01 (127.0.0.1)")
    named = ask_one(node(lab, "gpu02", empty, python_interpreter="/opt/my env/python"), transport=transport)
    assert named.kind == "no-python"
    assert "/opt/my env/python" in named.error


@BOTH
def test_interpreter_of_the_inventory_is_used(lab: SshdLab, good: int, transport: str) -> None:
    payload = b"import sys; print(sys.executable, sys.flags.isolated, sys.flags.dont_write_bytecode)"
    python = str(Path(sys.executable).resolve())
    result = ask_one(node(lab, "a", good, python_interpreter=python), payload=payload, transport=transport)
    assert result.stdout.decode().split() == [python, "1", "1"]
    env = node(lab, "a", good, python_interpreter="/usr/bin/env python3")
    assert ask_one(env, transport=transport).stdout == b"hello\n"


@BOTH
def test_garbage_flood_and_silence(lab: SshdLab, transport: str) -> None:
    flood = lab.start("ForceCommand head -c 50000000 /dev/zero")
    silent = lab.start("ForceCommand true")
    binary = lab.start(r"ForceCommand printf '\377\376\000\033[31mred'")
    failing = lab.start("ForceCommand echo This account is currently not available.; exit 1")
    results = ask(
        node(lab, "flood", flood),
        node(lab, "silent", silent),
        node(lab, "binary", binary),
        node(lab, "failing", failing),
        transport=transport,
    )
    assert results["flood"].kind == "garbage"
    assert "more than 32 MiB" in results["flood"].error
    assert len(results["flood"].stdout) == transport_module.MAX_STDOUT_BYTES
    assert results["silent"].kind == "garbage"
    assert (results["binary"].kind, results["binary"].stdout) == ("ok", b"\xff\xfe\0\x1b[31mred")
    assert results["failing"].kind == "truncated"
    assert "not available" in results["failing"].error


def test_stderr_flood_does_not_block_and_only_its_tail_is_kept(lab: SshdLab) -> None:
    port = lab.start(
        'ForceCommand head -c 20000000 /dev/zero >&2; echo last >&2; sh -c "$SSH_ORIGINAL_COMMAND"'
    )
    result = ask_one(node(lab, "gpu01", port))
    assert (result.kind, result.stdout) == ("ok", b"hello\n")
    assert len(result.stderr_tail) <= 2 * transport_module.STDERR_TAIL_BYTES
    assert result.stderr_tail.endswith("last\n")


@BOTH
def test_connection_that_dies_keeps_what_it_sent(lab: SshdLab, transport: str) -> None:
    port = lab.start("ForceCommand echo partial; sleep 0.3; kill -9 $PPID")
    result = ask_one(node(lab, "gpu01", port), transport=transport)
    assert (result.kind, result.stdout) == ("closed", b"partial\n")


@BOTH
def test_port_that_accepts_and_says_nothing(lab: SshdLab, transport: str) -> None:
    with listener() as port:
        result = ask_one(node(lab, "gpu01", port), timeout_s=2, transport=transport)
    assert result.kind == "timeout"
    assert "within 2 s" in result.error


def test_frozen_sshd_is_noticed_before_the_deadline(lab: SshdLab, monkeypatch: pytest.MonkeyPatch) -> None:
    from epdoctor.collect import transport_fabric

    monkeypatch.setattr(transport_fabric, "BANNER_TIMEOUT_S", 1.5)
    with listener() as port:
        result = ask_one(node(lab, "gpu01", port))
    assert (result.kind, result.seconds < 5) == ("timeout", True)
    assert "sent no SSH greeting" in result.error


@BOTH
def test_port_that_speaks_something_else(lab: SshdLab, transport: str) -> None:
    with listener(greet=b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        result = ask_one(node(lab, "gpu01", port), transport=transport)
    assert result.kind == "closed"
    assert "\n" not in result.error


@BOTH
def test_dropped_handshake_is_tried_once_more(lab: SshdLab, good: int, transport: str) -> None:
    with listener(relay_to=good) as port:
        lab.trust(port, lab.host_key)
        assert ask_one(node(lab, "gpu01", port), transport=transport).kind == "ok"


def test_jump_host_is_shared_and_loses_nobody(lab: SshdLab) -> None:
    bastion = lab.start("MaxStartups 10:30:60")
    # One sshd stands for 24 nodes here: its own limit on handshakes must not count.
    nodes = lab.start("MaxStartups 100:30:200")
    config = lab.folder / "jump"
    config.write_text(f"Host bastion\n  HostName {ADDRESS}\n  Port {bastion}\n{lab.config.read_text()}")
    args = ("-F", str(config), "-J", "bastion")
    results = ask(*(node(lab, f"gpu{i:02}", nodes, ssh_args=args) for i in range(24)))
    assert {result.kind for result in results.values()} == {"ok"}, [r.error for r in results.values()]
    logins = (lab.folder / f"log_{bastion}").read_text().count("Accepted publickey")
    assert logins == 1


def test_a_word_after_a_channels_end_costs_the_other_nodes_nothing(lab: SshdLab, good: int) -> None:
    """paramiko issue 1115: a message built before another thread's CLOSE, sent after it."""
    gone = threading.Event()

    class Late(jump_hosts._LastWord):
        def _send_user_message(self, message: Any) -> None:
            super()._send_user_message(message)
            if message.asbytes()[:1] == cMSG_CHANNEL_CLOSE:
                stale = paramiko.Message()
                stale.add_byte(cMSG_CHANNEL_DATA)
                stale.add_int(int.from_bytes(message.asbytes()[1:5], "big"))
                stale.add_string(b"late")
                time.sleep(0.3)  # sshd has forgotten the channel by then
                super()._send_user_message(stale)
                gone.set()

    bastion = lab.start()
    args = ("-F", str(lab.config), "-J", f"{ADDRESS}:{bastion}")
    slow = node(lab, "gpu01", good, ssh_args=args)
    quick = node(lab, "gpu02", good, ssh_args=args)
    payloads = {"gpu01": b"import time; time.sleep(1.5); print('hello')", "gpu02": HELLO}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jump_hosts, "_LastWord", Late)
        run = run_fleet((slow, quick), lambda target: payloads[target.name], node_timeout_s=20)
        results = {result.target.name: result for result in run}
    assert gone.is_set()
    assert {name: result.kind for name, result in results.items()} == {"gpu01": "ok", "gpu02": "ok"}


def test_two_jumps_and_a_dead_one(lab: SshdLab, good: int) -> None:
    first, second = lab.start(), lab.start()
    chain = f"{ADDRESS}:{first},{ADDRESS}:{second}"
    args = ("-F", str(lab.config), "-J", chain)
    assert ask_one(node(lab, "gpu01", good, ssh_args=args)).kind == "ok"
    dead = ("-F", str(lab.config), "-J", f"{ADDRESS}:{free_port()}")
    results = ask(*(node(lab, f"gpu{i}", good, ssh_args=dead) for i in range(6)))
    assert {result.kind for result in results.values()} == {"refused"}
    assert all("jump host 127.0.0.1" in result.error for result in results.values())
    behind = ask_one(node(lab, "gpu01", free_port(), ssh_args=(*args[:2], "-J", f"{ADDRESS}:{first}")))
    assert behind.kind == "unreachable"  # the jump host does not tell more
    assert "through 127.0.0.1" in behind.error


def test_proxy_command(lab: SshdLab, good: int) -> None:
    relay = f"{sys.executable} {lab.folder / 'relay.py'} %h %p"
    (lab.folder / "relay.py").write_text(
        "import socket,sys,threading,os\n"
        "s=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n"
        "def up():\n"
        "    while (d:=os.read(0,65536)): s.sendall(d)\n"
        "threading.Thread(target=up,daemon=True).start()\n"
        "while (d:=s.recv(65536)): os.write(1,d)\n"
    )
    args = ("-F", str(lab.config), "-o", f"ProxyCommand={relay}")
    assert ask_one(node(lab, "gpu01", good, ssh_args=args)).kind == "ok"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give up root before sudo")
def test_sudo_that_wants_a_password(lab: SshdLab) -> None:
    port = lab.start(
        'ForceCommand exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$SSH_ORIGINAL_COMMAND"'
    )
    result = ask_one(node(lab, "gpu01", port), become=True)
    assert result.kind == "sudo"
    assert result.error == "sudo on gpu01 (127.0.0.1) wants a password"
    plain = ask_one(node(lab, "gpu01", port), payload=b"import os; print(os.getuid())")
    assert plain.stdout == b"65534\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs a login that is root")
def test_become_as_root_and_as_another_user(lab: SshdLab, good: int) -> None:
    payload = b"import os; print(os.getuid())"
    assert ask_one(node(lab, "a", good), payload=payload, become=True).stdout == b"0\n"
    nobody = node(lab, "a", good, become=True, become_user="nobody")
    assert ask_one(nobody, payload=payload).stdout == b"65534\n"
