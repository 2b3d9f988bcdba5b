"""Inventories: what Ansible reads, what is read here, and what is refused before any connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.exceptions import InventoryError
from epdoctor.inventory import ansible, load_inventory, patterns, plain, variables

INI = """\
[gpu]
gpu[01:04] ansible_user=root
[gpu:vars]
epdoctor_python=/opt/vllm/bin/python
ansible_ssh_common_args=-F /etc/ssh/cluster -o ServerAliveInterval=5
[login]
login1 ansible_connection=local
[big:children]
gpu
"""


def names(
    tmp_path: Path, text: str = INI, *, limit: str = "", name: str = "hosts.ini", **more: Any
) -> list[str]:
    path = tmp_path / name
    path.write_text(text)
    return [node.name for node in load_inventory([str(path)], limit=limit, cwd=tmp_path, **more).nodes]


def test_ansible_ini_with_groups_ranges_and_variables(tmp_path: Path) -> None:
    (tmp_path / "hosts.ini").write_text(INI)
    found = load_inventory(["hosts.ini"], cwd=tmp_path)
    assert found.source == "hosts.ini"
    assert [node.name for node in found.nodes] == ["gpu01", "gpu02", "gpu03", "gpu04", "login1"]
    first, last = found.nodes[0], found.nodes[-1]
    assert (first.user, first.vars) == ("root", {"epdoctor_python": "/opt/vllm/bin/python"})
    assert first.ssh_args == ("-F", "/etc/ssh/cluster", "-o", "ServerAliveInterval=5")
    assert first.groups == ("gpu",)
    assert last.connection == "local"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("gpu", "gpu01 gpu02 gpu03 gpu04"),
        ("gpu:!gpu02", "gpu01 gpu03 gpu04"),
        ("big:&gpu[01-02]", "gpu01 gpu02"),
        ("gpu[0:1]", "gpu01 gpu02"),
        ("gpu[01-02,04]", "gpu01 gpu02 gpu04"),
        ("all,!gpu[01-03]", "gpu04 login1"),
        ("~gpu0[13]", "gpu01 gpu03"),
        ("*1", "gpu01 login1"),
    ],
)
def test_limit_has_ansible_semantics_and_our_brackets(tmp_path: Path, limit: str, expected: str) -> None:
    assert names(tmp_path, limit=limit) == expected.split()


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("gpu9", '"gpu9"'),
        ("gpu:nope", '"nope"'),
        ("gpu:&login", "matches no node"),
        ("gpu[01-09]", '"gpu05"'),
    ],
)
def test_unknown_pattern_or_empty_match(tmp_path: Path, limit: str, says: str) -> None:
    with pytest.raises(InventoryError) as caught:
        names(tmp_path, limit=limit)
    assert says in str(caught.value)
    assert "hosts.ini" in str(caught.value)


def test_yaml_inventory_with_group_vars_folder(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "all.yml").write_text(
        "ansible_host: '{{ inventory_hostname }}.mgmt.example.org'\n"
    )
    (tmp_path / "list").write_text("gpu01\n")  # a plain list, but the folder beside it counts
    node = load_inventory(["list"], cwd=tmp_path).nodes[0]
    assert node.address == "gpu01.mgmt.example.org"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.ini", "[gpu\nx y=\n", "a.ini:1: "),
        ("a.ini", "[gpu]\nok\nbad foo bar\n", "a.ini:3: Expected key=value"),
        ("a.ini", "[gpu]\nok\n[gpu:children]\nnope\n", "a.ini:3: Section [gpu:children]"),
        ("a.yml", "all:\n  hosts:\n    a: [\n", "a.yml:4: "),
        ("a.yml", "- just\n- a list\n", "a.yml: "),
        ("a", "gpu01\ngpu[03-01]\n", "a:2: range 03-01"),
        ("a", "", "names no node"),
        ("a.yml", "all:\n  hosts: {n: {ansible_password: !vault x}}\n", "n has ansible_password"),
    ],
)
def test_malformed_inventory_is_named_with_its_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(InventoryError) as caught:
        names(tmp_path, text, name=name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hostvars", "says"),
    [
        ("n", {"ansible_password": "x"}, "n has ansible_password"),
        ("n", {"ansible_connection": "winrm"}, "ansible_connection=winrm"),
        ("n", {"ansible_host": "{{ lookup(1) }}"}, "template"),
        ("n", {"ansible_host": {"__ansible_vault": "x"}}, "vault-encrypted"),
        ("n", {"ansible_port": 99999}, "not a port"),
        ("n", {"ansible_ssh_private_key_file": "/no/key"}, "/no/key does not exist"),
        ("n", {"ansible_ssh_common_args": "-o 'x"}, "cannot be split"),
        ("n", {"ansible_become": True, "ansible_become_method": "su"}, "become_method=su"),
        ("n", {"ansible_become": "maybe"}, "not yes or no"),
        ("-oProxyCommand=x", {}, "cannot be a node name"),
        ("n", {"ansible_host": "-oProxyCommand=x"}, "cannot be an address"),
    ],
)
def test_variable_that_cannot_be_honoured_is_named(name: str, hostvars: dict[str, Any], says: str) -> None:
    with pytest.raises(InventoryError) as caught:
        variables.target(name, (), hostvars, "inv")
    assert says in str(caught.value)
    assert str(caught.value).startswith("inv: ")


def test_plain_list_is_read_without_ansible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ansible, "command", lambda: ["/no/such/ansible-inventory"])
    text = "# the rack\ngpu[01-02]\n\nlogin-1.example.org # head\n10.0.0.7\n"
    assert names(tmp_path, text, name="nodes") == ["10.0.0.7", "gpu01", "gpu02", "login-1.example.org"]
    assert names(tmp_path, text, name="nodes", limit="gpu[01-02]") == ["gpu01", "gpu02"]
    with pytest.raises(InventoryError, match="no node is called gpu03"):
        names(tmp_path, text, name="nodes", limit="gpu03")


@pytest.mark.parametrize("text", ["a b\n", "gpu01 slots=8\n", "[g]\na\n", "a:2222\n", "gpu[01:04]\n", "{}\n"])
def test_more_than_a_plain_list_is_left_to_ansible(text: str) -> None:
    assert plain.parse(text) is None


def test_lists_on_the_command_line(tmp_path: Path) -> None:
    assert [n.name for n in load_inventory(["gpu[01-02],x"], cwd=tmp_path).nodes] == ["gpu01", "gpu02", "x"]
    assert [n.name for n in load_inventory(["one,"], cwd=tmp_path).nodes] == ["one"]
    limited = load_inventory(["gpu[01-03]"], limit="gpu0?,!gpu02", cwd=tmp_path)
    assert [n.name for n in limited.nodes] == ["gpu01", "gpu03"]
    with pytest.raises(InventoryError, match="no such file"):
        load_inventory(["inventroy.ini"], cwd=tmp_path)
    with pytest.raises(InventoryError, match="runs backwards"):
        load_inventory(["gpu[03-01]"], cwd=tmp_path)


def test_where_an_inventory_is_looked_for(tmp_path: Path) -> None:
    slurm = {"SLURM_JOB_NODELIST": "n[1-2,4],m1", "SLURM_JOB_ID": "77"}
    found = load_inventory(cwd=tmp_path, env=slurm)
    assert (found.source, [n.name for n in found.nodes]) == ("Slurm job 77", ["m1", "n1", "n2", "n4"])
    (tmp_path / "inventory.yaml").write_text("all:\n  hosts: {y: {}}\n")
    assert load_inventory(cwd=tmp_path).source == "inventory.yaml"
    (tmp_path / "inventory.ini").write_text("i\n")
    assert load_inventory(cwd=tmp_path, env=slurm).source == "inventory.ini"
    assert load_inventory(cwd=tmp_path, env=slurm, configured="c,").nodes[0].name == "c"
    assert (
        load_inventory(cwd=tmp_path, env={"EPDOCTOR_INVENTORY": "e,"}, configured="c,").nodes[0].name == "e"
    )
    assert load_inventory(["s,"], cwd=tmp_path, env={"EPDOCTOR_INVENTORY": "e,"}).nodes[0].name == "s"


def test_no_inventory_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InventoryError) as caught:
        load_inventory(cwd=tmp_path, env={})
    assert "-i FILE" in str(caught.value)
    with pytest.raises(InventoryError, match=r"from \$EPDOCTOR_INVENTORY"):
        load_inventory(cwd=tmp_path, env={"EPDOCTOR_INVENTORY": "/no/file"})


def test_executable_inventory_runs_only_when_told_to(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = tmp_path / "dynamic"
    listing = json.dumps({"g": {"hosts": ["d1", "d2"]}, "_meta": {"hostvars": {}}})
    script.write_text(f"#!/bin/sh\ntouch {ran}\necho '{listing}'\n")
    script.chmod(0o755)
    with pytest.raises(InventoryError) as caught:
        load_inventory([str(script)], cwd=tmp_path)
    assert "--dynamic-inventory" in caught.value.hint
    assert not ran.exists()
    assert [n.name for n in load_inventory([str(script)], cwd=tmp_path, dynamic=True).nodes] == ["d1", "d2"]
    mounted = tmp_path / "hosts.ini"  # a file system without modes
    mounted.write_text("a\n")
    mounted.chmod(0o777)
    assert load_inventory(["hosts.ini"], cwd=tmp_path).nodes[0].name == "a"


def test_variables_that_decide_how_a_node_is_reached(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    node = variables.target(
        "n1",
        ("g",),
        {
            "ansible_host": "{{ ip }}",
            "ip": "10.0.0.1",
            "ansible_port": "2222",
            "ansible_ssh_user": "old",
            "ansible_python_interpreter": "auto_silent",
            "ansible_become": "yes",
            "ansible_become_user": "svc",
            "ansible_ssh_private_key_file": str(key),
            "ansible_ssh_args": "-C",
            "ansible_ssh_extra_args": "-4",
            "ansible_host_key_checking": False,
            "ansible_become_password": "only provisioning needs it",
            "other": 1,
        },
        "inv",
    )
    assert (node.address, node.port, node.user, node.python_interpreter) == ("10.0.0.1", 2222, "old", "")
    assert (node.become, node.become_user, node.ssh_args) == (True, "svc", ("-C", "-4"))
    assert node.accept_any_host_key
    assert node.vars == {}
    assert node.label == "n1 (10.0.0.1)"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.builds(
    "ansible_{}".format,
    st.sampled_from(
        ["host", "port", "user", "connection", "become", "ssh_common_args", "python_interpreter"]
    ),
)


@given(st.text(max_size=12), st.dictionaries(KEYS, JSON))
def test_any_variables_give_a_target_or_an_inventory_error(name: str, hostvars: dict[str, Any]) -> None:
    try:
        node = variables.target(name, (), hostvars, "inv")
    except InventoryError:
        return
    assert not node.address.startswith("-")


@given(JSON | st.fixed_dictionaries({"_meta": JSON, "g": st.fixed_dictionaries({"hosts": JSON})}))
def test_any_listing_gives_hosts_or_value_error(listing: object) -> None:
    try:
        hosts = ansible.hosts_of(listing)
    except ValueError:
        return
    assert all(isinstance(name, str) for name, _, _ in hosts)


@given(st.text())
def test_any_error_text_becomes_one_sentence(text: str) -> None:
    assert "\n" not in str(ansible.explain(text, ["/no/such/file.ini"], "x", ""))


@given(st.text("ab[]0123-,:!&~*?@ ", max_size=30))
def test_any_limit_is_rewritten_or_refused(limit: str) -> None:
    try:
        patterns.limit_plain(["a1", "b2"], limit)
    except InventoryError:
        return


@given(st.text())
def test_any_text_is_a_plain_list_or_not(text: str) -> None:
    try:
        found = plain.parse(text)
    except ValueError:
        return
    assert found is None or all(found)
