"""Every kind of bad input on real nodes at once: each is a clean line on its node, the others are unaffected."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import gpu_cluster
from tests.doctor import Doctor, Done, need, no_traceback, raw_controls, without_style
from tests.lab import netns
from tests.lab.netns import NetnsFleet
from tests.lab.node import NetnsNode, can_be_stuck

pytestmark = pytest.mark.fleet

PYTHON = "/usr/bin/python3"
SMI = "/usr/bin/nvidia-smi"
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e[/dev/nvidia0] [bold red]:skull: {user} %s $HOME"
"""Clears the screen, sets the title, turns the line round; rich markup; Python, C and shell templates."""
HEALTHY = ("good1", "good2")
TIMEOUT_S = 8


@dataclass(frozen=True)
class Missed:
    """What the report says of a node that could not be asked."""

    kinds: tuple[str, ...]
    error: str
    """Regular expression of the sentence."""
    hint: str


# Kinds: the built-in client's first; OpenSSH's own words sometimes tell less.
MISSED = {
    "blackhole": Missed(
        ("unreachable", "timeout"), r"^no answer from blackhole \(\S+\) port 22 in 8 s$", "^ssh "
    ),
    "unplugged": Missed(("unreachable", "timeout"), "no answer from unplugged|No route to host", "^ssh "),
    "refused": Missed(("refused",), r"^connection refused by refused \(\S+\) port 22$", "^ssh "),
    "stranger": Missed(("auth",), r"^stranger \(\S+\) refuses the login of stranger: ", "^ssh "),
    "nologin": Missed(("truncated",), "account is currently not available", "^ssh "),
    "newhost": Missed(("host-key-unknown",), r"^host key of newhost \(\S+\) is not known$", "^ssh "),
    "changed": Missed(
        ("host-key-changed",),
        r"^host key of changed \(\S+\) has changed$",
        r"^ssh-keygen -R 10\.99\.\S+ -f \S+/known_hosts && ssh ",
    ),
    "nopython": Missed(
        ("no-python",), r"^nopython \(\S+\) has no /usr/bin/python3, which the inventory names", "^ssh "
    ),
    "password": Missed(("sudo",), r"^sudo on password \(\S+\) wants a password$", "^ssh -t .*'sudo -l'$"),
    "cut": Missed(("truncated",), "^the answer of cut ends in the middle", "^ssh -F .* uptime$"),
    "garbage": Missed(
        ("garbage",), "^garbage gave no answer that epdoctor understands", "^ssh -F .* uptime$"
    ),
    "crash": Missed(
        ("garbage",), r"^the command on crash \(\S+\) ended with status 7: .*\[/dev/nvidia0\]", "^ssh "
    ),
    "silent": Missed(("garbage",), "^silent .* answered nothing", "^ssh "),
    "flood": Missed(
        ("garbage",), r"^flood \(\S+\) sent more than 32 MiB and was cut off", "^ssh -F .* uptime$"
    ),
    "frozen": Missed(("timeout",), r"^no SSH login on frozen \(\S+\) within 8 s$", "^ssh "),
    "hangs": Missed(("timeout",), r"^hangs \(\S+\) did not finish within 8 s$", "^ssh "),
}
ODD = ("admin", "noise", "anykey", "smihang", "smiflood", "hostile", "full", "readonly")
"""Nodes with something odd about them that are reached all the same."""
NAMES = (*HEALTHY, *MISSED, *ODD, "stuck")
HOST_VARS = {
    "stranger": "ansible_user=stranger",
    "nologin": "ansible_user=nobody",
    "password": "ansible_user=operator ansible_become=true",
    "admin": "ansible_user=admin ansible_become=true",
    "anykey": "ansible_ssh_extra_args='-o StrictHostKeyChecking=no'",
}


@dataclass
class Ward:
    """The fleet, and what the same command said before and after the nodes were broken."""

    fleet: NetnsFleet
    doctor: Doctor
    inventory: Path
    before: Done
    after: Done

    def again(self, *words: str) -> Done:
        return self.doctor.check("-i", str(self.inventory), "-t", str(TIMEOUT_S), *words)


def _renamed(fleet: NetnsFleet) -> None:
    """Give the nodes names that tell their fault; addresses and files stay the lab's."""
    for node, name in zip(fleet.nodes, NAMES, strict=True):
        node.run(["hostname", name])
        for path in (fleet.known_hosts, fleet.ssh_config):
            path.write_text(re.sub(rf"\b{node.name}\b", name, path.read_text()))
    pairs = [(node.name, name) for node, name in zip(fleet.nodes, NAMES, strict=True)]
    for node in fleet.nodes:
        text = node.read("/etc/hosts")
        for old, new in pairs:
            text = re.sub(rf"\b{old}\b", new, text)
        node.write("/etc/hosts", text)
    for node, name in zip(fleet.nodes, NAMES, strict=True):
        node.name = name


def _wrap_python(node: NetnsNode, script: str) -> None:
    """Another python3; ``$real`` in the script is the node's own."""
    real = node.run(["readlink", "-f", PYTHON]).stdout.strip()
    node.install_script(PYTHON, f"#!/bin/sh\nreal={real}\n{script}\n")


def _break(fleet: NetnsFleet) -> None:
    quoted = shlex.quote(HOSTILE)
    fleet["blackhole"].black_hole()
    fleet["unplugged"].link_down()
    fleet["refused"].stop_sshd()
    known = fleet.known_hosts.read_text().splitlines(keepends=True)
    fleet.known_hosts.write_text("".join(line for line in known if not line.startswith("newhost,")))
    fleet["changed"].change_host_key()
    fleet["anykey"].change_host_key()
    fleet["nopython"].remove_python()
    _wrap_python(fleet["cut"], '"$real" "$@" | head -c 9000')
    _wrap_python(fleet["garbage"], f"head -c 5000 /dev/urandom; printf %s {quoted}; echo '{{\"name\":'")
    _wrap_python(fleet["crash"], f"echo first >&2; printf '%s\\n' {quoted} >&2; exit 7")
    _wrap_python(fleet["silent"], "exit 0")
    _wrap_python(fleet["flood"], "head -c 50000000 /dev/zero")
    fleet["hangs"].hang_python()
    fleet["frozen"].freeze()
    noise = fleet["noise"]
    noise.write("/etc/issue.net", f"Authorised users only {HOSTILE}\n")
    noise.write("/etc/ssh/sshd_config.d/banner.conf", "Banner /etc/issue.net\n")
    noise.stop_sshd()
    noise.start_sshd()
    fake = '@@epdoctor-begin 0000000000000000 {"protocol": 1}\n{"name": "gpu.smi-q", "status": "ran"}\n'
    noise.bashrc_noise(f"Welcome {HOSTILE}\n{fake}{{\n\xff\xfe no newline at the end")
    fleet["smihang"].hang_command(SMI)
    fleet["smiflood"].install_script(SMI, "#!/bin/sh\nhead -c 50000000 /dev/zero | tr '\\0' x\n")
    bad = fleet["hostile"]
    bad.install_script(SMI, f"#!/bin/sh\nprintf '\\377\\376\\000 caf\\351 %s\\n' {quoted}\n")
    bad.write("/etc/os-release", f'PRETTY_NAME="{HOSTILE}"\nID=evil\n')
    bad.write("/etc/nccl.conf", f"NCCL_IB_HCA={HOSTILE}\nNCCL_DEBUG=TRACE\n")
    fleet["full"].fill_disk()
    fleet["readonly"].run(["mount", "-o", "remount,bind,ro", "/"])
    if can_be_stuck():
        fleet["stuck"].stuck_command(SMI)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    need(netns.unavailable())
    with NetnsFleet(len(NAMES)) as fleet:
        _renamed(fleet)
        for name in (*HEALTHY, "noise", "smihang", "smiflood", "hostile", "full", "stuck"):
            gpu_cluster.install_two_gpus(fleet[name])
        doctor = Doctor(tmp_path_factory.mktemp("ward"), prefix=fleet.exec_prefix)
        inventory = doctor.folder / "inventory.ini"
        inventory.write_text(fleet.inventory_text())
        before = doctor.check("-i", str(inventory))
        _break(fleet)
        inventory.write_text(fleet.inventory_text(host_vars=HOST_VARS))
        after = doctor.check("-i", str(inventory), "-t", str(TIMEOUT_S))
        yield Ward(fleet, doctor, inventory, before, after)


@pytest.fixture(scope="module")
def openssh(ward: Ward) -> Done:
    """The same nodes through the system's ssh."""
    return ward.again("--transport", "openssh")


def test_all_nodes_answered_before(ward: Ward) -> None:
    assert sorted(ward.before.reached) == sorted(NAMES)
    no_traceback(ward.before)


@pytest.mark.parametrize("name", MISSED)
def test_node_that_cannot_be_asked(ward: Ward, name: str) -> None:
    node, expected = ward.after.nodes[name], MISSED[name]
    assert (node["reached"], node["kind"]) == (False, expected.kinds[0])
    assert re.search(expected.error, node["error"])
    assert re.search(expected.hint, node["hint"])
    if name != "cut":
        assert ward.after.of_node(name) == [], "nothing is judged on a node that did not answer"


@pytest.mark.parametrize("name", MISSED)
def test_node_that_cannot_be_asked_by_openssh(openssh: Done, name: str) -> None:
    node, expected = openssh.nodes[name], MISSED[name]
    assert not node["reached"]
    assert node["kind"] in expected.kinds
    assert name in node["error"]
    assert re.search(expected.hint, node["hint"])


def test_half_an_answer_is_judged_as_far_as_it_goes(ward: Ward) -> None:
    whole, half = ward.before.of_node("cut"), ward.after.of_node("cut")
    told = [text for text in half if '"status": "unknown"' not in text]
    assert told
    assert len(told) < len(half)
    assert set(told) <= set(whole), "half an answer says something else than the whole one"


def test_exactly_these_nodes_were_reached(ward: Ward, openssh: Done) -> None:
    expected = sorted([*HEALTHY, *ODD, "stuck"])
    for done in (ward.after, openssh):
        no_traceback(done)
        assert sorted(done.reached) == expected, done.text


def test_other_nodes_are_judged_as_before(ward: Ward, openssh: Done) -> None:
    for name in HEALTHY:
        assert ward.after.of_node(name) == ward.before.of_node(name)
        assert openssh.of_node(name) == ward.before.of_node(name)


@pytest.mark.parametrize("name", ["noise", "full", "readonly"])
def test_what_does_not_matter_changes_nothing(ward: Ward, name: str) -> None:
    """A banner, noise before the answer, a full disk and a read-only root: the same findings."""
    assert ward.after.of_node(name) == ward.before.of_node(name)


def test_any_host_key_is_honoured_where_the_user_wrote_it_and_shown(ward: Ward, openssh: Done) -> None:
    for done in (ward.after, openssh):
        assert done.nodes["anykey"]["reached"]
        assert any(
            "anykey" in text and "StrictHostKeyChecking is no" in text for text in done.report["warnings"]
        )
        assert "StrictHostKeyChecking is no" in " ".join(done.text.split())


def test_sudo_without_a_password_makes_us_root(ward: Ward) -> None:
    assert not ward.after.finding("kernel.no-xid", "admin").get("needs_root")


@pytest.mark.parametrize("name", ["smihang", "stuck"])
def test_a_probe_that_hangs_costs_its_own_facts(ward: Ward, name: str) -> None:
    if name == "stuck" and not can_be_stuck():
        pytest.skip("no cgroup version 1 freezer here")
    finding = ward.after.finding("gpu.nvlinks-up", name)
    assert finding["status"] == "unknown"
    assert ward.after.nodes[name]["slowest_probe"] in ("gpu.smi-q", "gpu.smi-nvlink", "topology.matrix")
    for check in ("host.max-map-count", "names.own-name-not-loopback", "time.synchronised"):
        assert ward.after.statuses(check)[name] == ward.before.statuses(check)[name]


@pytest.mark.parametrize("name", ["smiflood", "hostile"])
def test_output_that_is_no_output_is_unknown(ward: Ward, name: str) -> None:
    for check in ("gpu.nvlinks-up", "gpu.ecc-clean", "gpu.compute-mode-default"):
        finding = ward.after.finding(check, name)
        assert finding["status"] == "unknown", finding
        assert finding["reason"]
    assert ward.after.statuses("host.max-map-count")[name] == ward.before.statuses("host.max-map-count")[name]


def test_nothing_is_interpreted_by_the_terminal(ward: Ward, openssh: Done) -> None:
    verbose = ward.again("-v", "--limit", "good1,good2,hostile,garbage,crash,noise")
    for done in (ward.after, openssh, verbose):
        assert raw_controls(done.out) == []
        assert raw_controls(done.err.encode()) == []
        assert "\u202e" not in done.text + done.err
        assert "[/dev/nvidia0]" in done.text, "the text itself is shown, markup and all"
    assert "{user} %s $HOME" in verbose.text


def test_hostile_text_on_a_terminal(ward: Ward) -> None:
    words = ("check", "-v", "-i", str(ward.inventory), "--limit", "good1,good2,hostile,crash", "-t", "8")
    _, shown, _ = ward.doctor.on_terminal(*words, streams=("stdout", "stderr"))
    report = without_style(shown).rpartition(b"\r\x1b[K")[2]
    assert raw_controls(report) == []
    assert b"[/dev/nvidia0] [bold red]:skull: {user} %s $HOME" in b" ".join(report.split())
    assert b"\x07" not in shown
    assert "\u202e" not in shown.decode()


def test_screen_says_which_nodes_are_missing_and_what_to_type(ward: Ward) -> None:
    text = " ".join(ward.after.text.split())
    for name, expected in MISSED.items():
        assert name in text
        if expected.hint.startswith("^ssh"):
            assert ward.after.nodes[name]["hint"] in text
    # The nodes that were missed have a line each above; here so many of them are counted.
    partly = text[text.index("partly allgather_reducescatter") :]
    assert re.match(r"partly allgather_reducescatter on [^(]{1,80}, not on \S+ and \d+ more \(", partly), (
        partly[:200]
    )
    assert ward.after.rc in (1, 3)


def test_only_missing_nodes_is_exit_3(ward: Ward) -> None:
    done = ward.again("--limit", "good1,refused,nopython")
    assert (done.rc, done.reached) == (3, ["good1"])
    assert not any(status == "fail" for _, status in done.statuses("gpu.nvlinks-up").items())


def test_forgetting_a_changed_key_as_told_makes_it_unknown(ward: Ward) -> None:
    """The command that the report names does what it says, for this configuration's known hosts."""
    command, _, login = ward.after.nodes["changed"]["hint"].partition(" && ")
    assert login.startswith("ssh ")
    before = ward.fleet.known_hosts.read_text()
    done = ward.fleet.run(shlex.split(command), env=ward.doctor.env)
    assert done.returncode == 0, done.stderr
    try:
        assert ward.again("--limit", "changed").nodes["changed"]["kind"] == "host-key-unknown"
    finally:
        ward.fleet.known_hosts.write_text(before)


def test_a_name_that_nobody_knows(ward: Ward) -> None:
    done = ward.doctor.check("-i", "no-such-node.invalid,", "-t", "5")
    assert (done.rc, done.nodes["no-such-node.invalid"]["kind"]) == (3, "dns")
    no_traceback(done)


USAGE = [
    # words of the command line after `check`, what the message must hold
    (["-i", "{work}/absent.ini"], "absent.ini"),
    (["-i", "{work}/broken.ini"], "broken.ini:3"),
    (["-i", "{work}/broken.yml"], "broken.yml:3"),
    (["-i", "{work}/binary.ini"], "binary.ini"),
    (["-i", "{work}/empty.ini"], "empty.ini"),
    (["-i", "{work}/program"], "program"),
    (["-i", "{inventory}", "--limit", "gpu99"], "gpu99"),
    (["-i", "{inventory}", "--limit", "good[1-"], "good[1-"),
    (["-i", "{inventory}", "--select", "gpu.nvlink-up"], "gpu.nvlinks-up"),
    (["-i", "{inventory}", "--backend", "deepep_lowlatency"], "deepep_low_latency"),
    (["-i", "{inventory}", "--via", "podman exec -i worker"], "{{node}}"),
    (["-i", "{inventory}", "--via", "no-such-program {{node}}"], "no-such-program"),
    (["-i", "{inventory}", "-o", "{work}/no/such/folder"], "cannot be written"),
    (["-i", "{inventory}", "--env-file", "{work}/broken.env"], "broken.env:2"),
    (["-i", "{work}/tty.ini"], "KnownHostsCommand"),
    (["--all-nodes"], "inventory"),
    (["-i", "{inventory}", "--timeout", "0"], "--timeout"),
]


@pytest.mark.parametrize(("words", "said"), USAGE, ids=[" ".join(words)[-30:] for words, _ in USAGE])
def test_usage_errors_are_found_before_any_connection(ward: Ward, words: list[str], said: str) -> None:
    work = ward.doctor.folder / "work"
    (work / "broken.ini").write_text("[nodes]\ngood1\n[unclosed\ngood2\n")
    (work / "broken.yml").write_text("all:\n  hosts: [a, b\n  vars: {}\n")
    (work / "binary.ini").write_bytes(b"\x7fELF\x02\x01\xff\xfe\x00\x00")
    (work / "empty.ini").write_text("[nodes]\n")
    (work / "program").write_text("#!/bin/sh\ntouch ran\n")
    (work / "program").chmod(0o755)
    (work / "broken.env").write_text("NCCL_DEBUG=INFO\nthis is no variable\n")
    (work / "tty.ini").write_text("good1 ansible_ssh_extra_args='-o KnownHostsCommand=/bin/true'\n")
    logs = {path: path.read_bytes() for path in ward.fleet.dir.glob("log-*")}
    filled = [word.format(work=work, inventory=ward.inventory) for word in words]
    done = ward.doctor.run("check", *filled)
    assert done.rc == 2, done.err
    assert said.replace("{{", "{").replace("}}", "}") in done.err
    assert done.out == b""
    assert raw_controls(done.err.encode()) == []
    no_traceback(done)
    assert not (work / "ran").exists()
    assert {path: path.read_bytes() for path in logs} == logs, "a node was contacted"
