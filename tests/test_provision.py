"""Provisioning without nodes: the journal and the reader on real folders, events, arguments, texts, pages."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.collect.store import load
from epdoctor.exceptions import UsageError
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions, FileSet
from epdoctor.facts.modprobe import parse_options, reading_order, registry_dwords
from epdoctor.model import Finding, Goal, Problem, Severity, Status
from epdoctor.provision import screen
from epdoctor.provision.arguments import pages, parse_extra, roles
from epdoctor.provision.components import choose, components
from epdoctor.provision.environment import compute
from epdoctor.provision.events import EventReader, diff_text, error_text
from epdoctor.provision.journal import choose_run, restored_by_node, runs_by_node
from epdoctor.provision.result import Change, Failure, Remark, RunResult, exit_code, wrong_after
from epdoctor.provision.runner import Job, _environment

ROOT = Path(__file__).parents[1]
PLAYBOOKS = ROOT / "playbooks"
JOURNAL = PLAYBOOKS / "roles/journal/files/journal.py"
STATE = runpy.run_path(str(PLAYBOOKS / "roles/node_state/files/state.py"), run_name="state")
EVENTS = ROOT / "tests/records/raw/provision/events.json"


# ---------------------------------------------------------------- the journal on a node


def journal(base: Path, **wish: Any) -> dict[str, Any]:
    wish["base"] = str(base)
    argv = [sys.executable, "-IB", "-", json.dumps(wish)]
    done = subprocess.run(argv, input=JOURNAL.read_text(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_journal_restores_bytes_mode_and_absence(tmp_path: Path) -> None:
    base, old, new = tmp_path / "j", tmp_path / "old.conf", tmp_path / "made/by/us.conf"
    old.write_bytes(b"\x00\xff as it was\r\n")
    old.chmod(0o640)
    os.utime(old, (1, 1))
    save = {"do": "save", "run": "r1", "component": "limits"}
    import hashlib

    after = hashlib.sha256(b"after\n").hexdigest()
    journal(base, **save, files={str(old): after, str(new): after}, notes=["a module stays loaded"])
    for path in (old, new):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("after\n")
        path.chmod(0o644)
    (listed,) = journal(base, do="list")["runs"]
    assert listed["files"] == sorted([str(new), str(old)])
    assert listed["notes"] == ["a module stays loaded"]
    dry = journal(base, do="restore", run="r1", dry=True)
    assert {row["did"] for row in dry["files"]} == {"restored", "removed"}
    assert old.read_text() == "after\n"
    done = journal(base, do="restore", run="r1")
    assert {row["path"]: row["did"] for row in done["files"]} == {str(old): "restored", str(new): "removed"}
    assert old.read_bytes() == b"\x00\xff as it was\r\n"
    assert old.stat().st_mode & 0o777 == 0o640
    assert old.stat().st_mtime == 1
    assert not (tmp_path / "made").exists()
    assert {row["did"] for row in journal(base, do="restore", run="r1")["files"]} == {"already"}
    assert not journal(base, do="list")["runs"][0]["undone"]
    journal(base, do="mark", run="r1")
    assert journal(base, do="list")["runs"][0]["undone"]


def test_journal_keeps_a_later_change_by_hand(tmp_path: Path) -> None:
    base, path = tmp_path / "j", tmp_path / "x.conf"
    path.write_text("before")
    journal(base, do="save", run="r1", component="env", files={str(path): "0" * 64})
    path.write_text("by hand")
    assert journal(base, do="restore", run="r1")["files"] == [{"path": str(path), "did": "changed-since"}]
    assert path.read_text() == "by hand"
    assert journal(base, do="restore", run="r1", force=True)["files"][0]["did"] == "restored"
    assert path.read_text() == "before"


def test_journal_keeps_the_first_copy_and_sees_a_damaged_one(tmp_path: Path) -> None:
    base, path = tmp_path / "j", tmp_path / "x.conf"
    path.write_text("first")
    journal(base, do="save", run="r1", component="env", files={str(path): "0" * 64})
    path.write_text("second")
    assert journal(base, do="save", run="r1", component="env", files={str(path): "1" * 64})["saved"] == []
    (base / "r1/001.before").write_text("damaged")
    assert journal(base, do="restore", run="r1", force=True)["files"][0]["did"] == "damaged"
    assert path.read_text() == "second"


@pytest.mark.parametrize("run", ["../x", "a/b", "a b", "a;b"])
def test_journal_refuses_names_that_leave_its_folder(tmp_path: Path, run: str) -> None:
    wish = json.dumps({"do": "restore", "base": str(tmp_path), "run": run})
    done = subprocess.run([sys.executable, str(JOURNAL), wish], capture_output=True, text=True)
    assert done.returncode != 0
    assert "is not a name" in done.stderr


# ---------------------------------------------------------------- what a node is read for


def options(tmp_path: Path, **files: str) -> dict[str, Any]:
    paths = []
    for name, text in files.items():
        path = tmp_path / f"{name.replace('_', '-')}.conf"
        path.write_text(text)
        paths.append(str(path))
    found = STATE["driver_options"](STATE["nvidia_options"](sorted(paths)))
    assert isinstance(found, dict)
    return found


def test_registry_dwords_are_merged(tmp_path: Path) -> None:
    found = options(
        tmp_path,
        nvidia='options nvidia NVreg_RegistryDwords="Old=1;" NVreg_EnableStreamMemOPs=0\n',
        site='options nvidia \\\n NVreg_RegistryDwords="RMForce=1; Other=0x2;PeerMappingOverride=0;"\n',
        zz_epdoctor_nvidia='options nvidia NVreg_RegistryDwords="Stale=1;PeerMappingOverride=1;"\n',
    )
    # The last line of others is in force; Old=1 was not. Ours does not feed itself.
    assert found["dwords"] == "RMForce=1;Other=0x2;PeerMappingOverride=1;"
    assert not found["right_without_us"]
    assert found["not_understood"] == found["read_after_us"] == []


def test_options_that_are_right_need_no_file(tmp_path: Path) -> None:
    line = 'options nvidia NVreg_EnableStreamMemOPs=1 NVreg_RegistryDwords="PeerMappingOverride=1;"\n'
    assert options(tmp_path, nvidia=line)["right_without_us"]
    assert not options(tmp_path, nvidia=line, x="options nvidia NVreg_EnableStreamMemOPs=0\n")[
        "right_without_us"
    ]


def test_a_file_read_after_ours_and_odd_entries_are_told(tmp_path: Path) -> None:
    found = options(tmp_path, zzz='options nvidia NVreg_RegistryDwords="A=1;$(reboot);"\n')
    assert found["read_after_us"] == [str(tmp_path / "zzz.conf")]
    assert found["not_understood"] == ["$(reboot)"]
    assert found["dwords"] == "A=1;PeerMappingOverride=1;"


@given(st.text(alphabet='options nvidia=";\\\nNVreg_RegistryDwords1 #-', max_size=200))
def test_options_are_read_as_the_checks_read_them(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("modprobe") / "a.conf"
    path.write_text("options nvidia NVreg_RegistryDwords=A=1\n" + text)
    lines = STATE["nvidia_options"]([str(path)])
    merged: dict[str, str] = {}
    for _, parameters in lines:
        merged.update(parameters)
    by_facts: dict[str, str] = {}
    shown = FileSet({"/etc/modprobe.d/a.conf": path.read_text()}, {})
    assert reading_order(shown)
    for line in parse_options(shown):
        if line.module == "nvidia":
            by_facts.update(line.parameters)
    assert merged.get("NVreg_RegistryDwords", "").strip('"') == by_facts.get(
        "NVreg_RegistryDwords", ""
    ).strip('"')
    assert registry_dwords(STATE["driver_options"](lines)["dwords"])["peermappingoverride"] == "1"


def test_limits_of_others(tmp_path: Path) -> None:
    conf, later = tmp_path / "limits.conf", tmp_path / "limits.d/zzz.conf"
    later.parent.mkdir()
    conf.write_text(
        "# * hard memlock 1\n* - memlock 64\n@gpu hard memlock 64 # old\n* soft nofile 2000\nroot - nofile unlimited\n"
    )
    later.write_text("* hard memlock 128\n* hard memlock unlimited\nbroken line\n")
    lines = STATE["pam_limits"]([str(conf), str(later)])
    # Ours is read after limits.conf and beats its "*"; a group and a later file beat ours.
    assert STATE["overriding_limits"](lines) == [
        f"{conf}:3 (@gpu hard memlock 64)",
        f"{later}:1 (* hard memlock 128)",
    ]
    assert STATE["nofile_highest"](lines) == {"soft": 1 << 30, "hard": 1 << 30}


def test_drop_ins_of_others(tmp_path: Path) -> None:
    texts = {
        "override.conf": "LimitMEMLOCK=64K",
        "zzz-low.conf": "LimitMEMLOCK=infinity\n LimitMEMLOCK = 65536",
        "zzz-high.conf": "LimitMEMLOCK=65536\nLimitMEMLOCK=infinity",
        "zzz-other.conf": "#LimitMEMLOCK=1\nLimitNOFILE=5",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(f"[Service]\n{text}\n")
    paths = [str(tmp_path / name) for name in (*texts, "gone.conf")]
    # Ours is read after override.conf; of those that come later, one is smaller.
    assert STATE["weaker_drop_ins"](paths) == [f"{tmp_path}/zzz-low.conf (LimitMEMLOCK=65536)"]


def test_the_reader_runs_anywhere_and_changes_nothing() -> None:
    script = (PLAYBOOKS / "roles/node_state/files/state.py").read_text()
    done = subprocess.run(
        [sys.executable, "-IB", "-"], input=script, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["os"]["id"]
    assert isinstance(found["units"]["found"], list)


# ---------------------------------------------------------------- a node's environment


def demo_nodes(goal: Goal) -> dict[str, Node]:
    recording, items = load(ROOT / "epdoctor/demo/demo.tar.gz")
    records = [item.read() for item in items]
    return {r.node: Node(r.node, r.source(), goal, recording.options) for r in records if r.reached}


def test_the_environment_names_what_is_on_the_node() -> None:
    goal = Goal(backend="deepep_low_latency", multinode=True, max_num_batched_tokens=4096)
    node = demo_nodes(goal)["gpu01"]
    found = compute(node, "gpu01", goal.backend)
    assert found.notes == ()
    # gpu01 has eight compute HCAs and a bond for storage, which is left out.
    assert found.values["NCCL_IB_HCA"] == "=" + ",".join(node.compute_hcas.names)
    assert "mlx5_bond_0" not in found.values["NCCL_IB_HCA"]
    assert found.values["GLOO_SOCKET_IFNAME"] == "eth0"
    assert found.values["NCCL_SOCKET_IFNAME"] == "=eth0"
    assert found.values["VLLM_HOST_IP"] == found.values["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.40.0.11"
    assert found.values["NVSHMEM_QP_DEPTH"] == str(2 * (4096 + 1))


def test_the_environment_leaves_out_what_is_not_needed_or_not_possible() -> None:
    few = Goal(backend="deepep_low_latency", multinode=True, max_num_batched_tokens=256)
    assert "NVSHMEM_QP_DEPTH" not in compute(demo_nodes(few)["gpu01"], "gpu01", few.backend).values
    many = Goal(backend="deepep_low_latency", multinode=True, max_num_batched_tokens=20000)
    found = compute(demo_nodes(many)["gpu01"], "gpu01", many.backend)
    assert "NVSHMEM_QP_DEPTH" not in found.values
    assert any("more than 32768" in note for note in found.notes)
    nccl = Goal(backend="deepep_v2", multinode=True)
    values = compute(demo_nodes(nccl)["gpu01"], "gpu01", nccl.backend).values
    assert not any(name.startswith("NVSHMEM_") for name in values)


def test_the_environment_of_a_node_of_which_nothing_is_known() -> None:
    node = Node("a", demo_nodes(Goal())["gpu01"].source, Goal(), CollectOptions())
    blind = Node("a", type(node.source)({}), Goal(), CollectOptions())
    found = compute(blind, "a", "")
    assert "GLOO_SOCKET_IFNAME" not in found.values
    assert found.notes


# ---------------------------------------------------------------- events and results


def recorded() -> RunResult:
    result = RunResult(("node1", "node3", "ghost"), ("limits", "gpudirect"))
    reader = EventReader(result)
    for event in json.loads(EVENTS.read_text()):
        reader.feed(event)
    return result


def test_a_recorded_run_is_read() -> None:
    """Recorded with ansible-runner 2.4.3 and ansible-core 2.19.14: node1's modprobe fails, ghost is away."""
    result = recorded()
    assert result.unreachable == {"ghost": "ssh: connect to host 10.97.0.99 port 22: No route to host"}
    (failure,) = result.failures
    assert failure.error == (
        "modprobe nvidia_peermem ended with 1: modprobe: ERROR: could not insert nvidia_peermem: Invalid argument"
    )
    assert (failure.node, failure.component, failure.task) == ("node1", "gpudirect", "Load nvidia_peermem")
    assert failure.where.startswith("roles/gpudirect/tasks/main.yml:")
    assert {change.what for change in result.changes} == {
        "/etc/security/limits.d/zz-epdoctor-limits.conf",
        "/etc/systemd/system/ssh.service.d/epdoctor-memlock.conf",
    }
    assert result.state("limits", "node1") == result.state("limits", "node3") == "change"
    assert result.state("gpudirect", "node1") == "failed"
    assert result.state("gpudirect", "node3") == "absent"
    assert result.state("limits", "ghost") == "unreachable"
    assert result.lost == {"ghost": ("limits", "Read the node")}
    assert exit_code(result, {}) == 1
    text = "\n".join(screen.troubles(result, {}))
    assert "FAILED  gpudirect on node1: modprobe nvidia_peermem ended with 1" in text
    assert "NOT REACHED  ghost: " in text


def ran(component: str, node: str, kind: str = "runner_on_ok") -> dict[str, Any]:
    data = {"play": f"Component {component}", "host": node, "task": "x", "res": {"msg": "no"}}
    return {"event": kind, "event_data": data}


def test_a_component_is_judged_only_where_it_was_asked_for() -> None:
    result = RunResult(("a", "b"), ("limits", "env"), where={"limits": ("a",)})
    result.finished |= {"limits", "env"}
    result.visited |= {("limits", "a"), ("env", "a"), ("env", "b")}
    assert [result.state("limits", node) for node in ("a", "b")] == ["right", "not-asked"]
    assert [result.state("env", node) for node in ("a", "b")] == ["right", "right"]
    assert [line.split() for line in screen.table(result, plan=True)] == [
        ["limits", "right", "already", "a"],
        ["env", "right", "already", "a,b"],
    ]


def test_what_was_not_seen_to_the_end_is_not_right() -> None:
    result = RunResult(("a",), ("limits", "env"))
    reader = EventReader(result)
    reader.feed({"event": "playbook_on_play_start", "event_data": {"name": "Component limits"}})
    assert result.state("limits", "a") == "not-tried"
    reader.feed(ran("limits", "a"))
    reader.feed({"event": "playbook_on_play_start", "event_data": {"name": "Component env"}})
    assert result.state("limits", "a") == "right"
    assert result.state("env", "a") == "not-tried"


garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
kinds = st.sampled_from(
    [
        "runner_on_ok",
        "runner_item_on_ok",
        "runner_on_failed",
        "runner_on_unreachable",
        "playbook_on_play_start",
    ]
)


@given(
    kinds,
    st.fixed_dictionaries({}, optional=dict.fromkeys(("host", "task", "play", "name", "task_path"), garbage)),
    garbage,
)
def test_events_of_any_shape_do_no_harm(kind: str, data: dict[str, Any], res: Any) -> None:
    result = RunResult(("a",), ("limits",))
    EventReader(result).feed({"event": kind, "event_data": {**data, "host": "a", "res": res}})
    json.dumps(screen.as_json(result, {}))


@given(garbage)
def test_error_text_of_any_shape(value: Any) -> None:
    assert error_text({"msg": value, "stderr": value, "cmd": value, "rc": 1})


def test_hidden_output_stays_hidden() -> None:
    assert "hidden" in error_text({"censored": "the output has been hidden", "msg": "secret"})


def test_a_secret_is_not_shown_in_a_diff() -> None:
    text = diff_text(
        {"diff": [{"before": "", "after": "HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz0123456789\n"}]}
    )
    assert "HF_TOKEN" in text
    assert "hf_abc" not in text


def finding(status: Status, node: str = "a", severity: Severity = Severity.ERROR) -> Finding:
    return Finding("host.memlock-unlimited", status, severity, node, (Problem("64 KiB", "unlimited"),))


def test_a_node_that_is_lost_in_the_middle() -> None:
    """What was done before stays told; a shared connection that breaks has no words of its own."""
    result = RunResult(("a",), ("limits", "gpudirect", "env"))
    reader = EventReader(result)
    for component, event in (
        ("limits", {"changed": True}),
        ("gpudirect", {"msg": "Data could not be sent. Make sure this host can be reached over ssh: "}),
    ):
        reader.feed({"event": "playbook_on_play_start", "event_data": {"name": f"Component {component}"}})
        kind = "runner_on_unreachable" if "msg" in event else "runner_on_ok"
        data = {"play": f"Component {component}", "host": "a", "task": f"{component} : Load it", "res": event}
        reader.feed({"event": kind, "event_data": data})
    assert [result.state(name, "a") for name in result.components] == ["change", "unreachable", "unreachable"]
    assert screen.troubles(result, {}) == [
        "NOT REACHED  a: the SSH connection broke off",
        "        lost in gpudirect, task 'Load it': a",
    ]


@pytest.mark.parametrize("where", ["environment", "ansible.cfg", "nowhere"])
def test_a_silent_node_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """What the site sets stands first, and ssh takes the first value."""
    config = tmp_path / "ansible.cfg"
    config.write_text(f"[ssh_connection]\nssh_extra_args = {'-o A=1' if where == 'ansible.cfg' else ''}\n")
    monkeypatch.setenv("ANSIBLE_CONFIG", str(config))
    monkeypatch.delenv("ANSIBLE_SSH_EXTRA_ARGS", raising=False)
    if where == "environment":
        monkeypatch.setenv("ANSIBLE_SSH_EXTRA_ARGS", "-o A=1")
    found = _environment(tmp_path, Job("site.yml", tmp_path / "inventory.ini", ("a",)))
    own = "-o ServerAliveInterval=10 -o ServerAliveCountMax=3"
    assert found["ANSIBLE_SSH_EXTRA_ARGS"] == (own if where == "nowhere" else f"-o A=1 {own}")


def test_exit_codes() -> None:
    def result(**fields: Any) -> RunResult:
        return RunResult(("a", "b"), ("limits",), finished={"limits"}, **fields)

    reboot = Remark("a", "ibgda_driver", "reboot", "x")
    assert exit_code(result(), {}) == 0
    assert exit_code(result(failures=[Failure("a", "limits", "t", "e", "w")]), {}) == 1
    assert exit_code(result(remarks=[reboot]), {}) == 3
    assert exit_code(result(), {"b": "refused"}) == 3
    assert exit_code(result(unreachable={"b": "refused"}), {}) == 3
    assert exit_code(result(), {}, failing=[finding(Status.FAIL)]) == 1
    assert exit_code(result(remarks=[reboot]), {}, failing=[finding(Status.FAIL)]) == 3
    assert exit_code(result(remarks=[reboot]), {}, failing=[finding(Status.FAIL, "b")]) == 1
    assert exit_code(result(), {}, unknown=[finding(Status.UNKNOWN)]) == 3
    assert exit_code(result(stopped="interrupted"), {}) == 130
    assert exit_code(result(stopped="timeout"), {}) == 1
    assert exit_code(result(crashed="ERROR! x"), {}) == 1
    failing, unknown = wrong_after(
        [finding(Status.FAIL), finding(Status.UNKNOWN), finding(Status.FAIL, severity=Severity.WARNING)],
        ["host.memlock-unlimited"],
    )
    assert (len(failing), len(unknown)) == (1, 1)


def test_before_and_after() -> None:
    rows = screen.before_after(
        [finding(Status.FAIL)], [finding(Status.PASS)], ["host.memlock-unlimited", "x.y"]
    )
    assert rows == [("host.memlock-unlimited", "1 fail", "1 pass")]
    assert (
        screen.before_after([finding(Status.PASS)], [finding(Status.PASS)], ["host.memlock-unlimited"]) == []
    )


def test_the_plan_folds_nodes_and_tames_their_text() -> None:
    result = RunResult(("gpu01", "gpu02"), ("env",), finished={"env"})
    result.changes = [Change(n, "env", "/etc/\x1b[31mx", "+A=1\n+# comment\n-B") for n in ("gpu02", "gpu01")]
    text = "\n".join(screen.table(result, plan=True))
    assert "will change    gpu[01,02]" in text
    assert "\x1b" not in text
    assert "+A=1" in text
    assert "comment" not in text


# ---------------------------------------------------------------- which run to undo


def listed(**nodes: list[dict[str, Any]]) -> RunResult:
    result = RunResult(tuple(nodes), ())
    for node, runs in nodes.items():
        result.outputs[node, "Read the journal"] = json.dumps({"runs": runs})
    return result


def test_the_last_run_that_is_not_undone() -> None:
    one = {"run": "r1", "at": 1, "undone": False, "files": ["/x"], "notes": []}
    two = {"run": "r2", "at": 2, "undone": True, "files": ["/x"], "notes": []}
    by_node = runs_by_node(listed(a=[two, one], b=[one]))
    assert [run.run for run in by_node["a"]] == ["r1", "r2"]
    assert choose_run(by_node, "") == "r1"
    assert choose_run(by_node, "r2") == "r2"
    with pytest.raises(UsageError, match="no node's journal has run 'r9'"):
        choose_run(by_node, "r9")
    assert choose_run({}, "") == ""


@given(
    st.text(max_size=60)
    | garbage.map(json.dumps)
    | garbage.map(lambda x: json.dumps({"runs": x, "files": x}))
)
def test_journal_answers_of_any_shape(text: str) -> None:
    result = RunResult(("a",), ())
    result.outputs["a", "Read the journal"] = text
    result.outputs["a", "Restore the files"] = text
    choose_run(runs_by_node(result), "")
    restored_by_node(result)


# ---------------------------------------------------------------- options, variables, pages


def test_components_by_back_end_and_tag() -> None:
    def names(*words: Any, **more: Any) -> list[str]:
        return [component.name for component in choose(*words, **more).components]

    assert {"limits", "ibgda_driver", "gpudirect", "env"} <= set(names("", (), ()))
    assert names("", (), ())[0] == "limits"
    assert names("", (), ())[-1] == "env"
    assert "ibgda_driver" not in names("deepep_v2", (), ())
    assert names("deepep_v2", ("ibgda_driver",), ()) == ["ibgda_driver"]
    assert names("", ("env", "limits", "gpudirect"), ("env",)) == ["limits", "gpudirect"]
    assert names("", (), (), named=("gpudirect", "limits")) == ["limits", "gpudirect"]
    with pytest.raises(UsageError, match="did you mean limits"):
        choose("", ("limit",), ())
    with pytest.raises(UsageError, match="leave no component"):
        choose("", ("env",), ("env",))


def test_every_component_has_a_role_a_playbook_and_known_checks() -> None:
    from epdoctor.backends import canonical_backends
    from epdoctor.catalog import load_checks

    site = yaml.safe_load((PLAYBOOKS / "site.yml").read_text())
    assert [play["ansible.builtin.import_playbook"] for play in site] == [
        f"{c.name}.yml" for c in components()
    ]
    assert [play.get("tags", []) for play in site] == [[] if c.default else ["never"] for c in components()]
    known = {role.name for role in roles()}
    assert known == {path.name for path in (PLAYBOOKS / "roles").iterdir()}
    for component in components():
        (play,) = yaml.safe_load((PLAYBOOKS / f"{component.name}.yml").read_text())
        assert play["name"] == f"Component {component.name}"
        assert play["tags"] == [component.name]
        assert f"(epdoctor_nodes | default({{}})).{component.name} | default('all')" in play["hosts"]
        (task,) = play["tasks"]
        role = {"name": component.name, "rolespec_validate": False}
        assert task["ansible.builtin.import_role"] == role
        assert component.name in known
        assert set(component.checks) <= set(load_checks())
        assert set(component.backends) <= set(canonical_backends())


def test_extra_variables_are_typed() -> None:
    assert parse_extra(
        ["limits_nofile_soft=1000", "env_profile=no", "env_extra={A: b}", "ansible_user=x"]
    ) == {
        "limits_nofile_soft": 1000,
        "env_profile": False,
        "env_extra": {"A": "b"},
        "ansible_user": "x",
    }
    for word, said in (
        ("limits_nofile_soft=many", "it takes int"),
        ("limits_nofile_sof=1", "did you mean limits_nofile_soft"),
        ("gpudirect_method=x", "it takes auto, peermem, dmabuf"),
        ("nothing", "not var=value"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_extra([word])


def test_specs_say_the_defaults_that_hold() -> None:
    for role in roles():
        path = PLAYBOOKS / "roles" / role.name / "defaults/main.yml"
        defaults = yaml.safe_load(path.read_text()) if path.exists() else {}
        named = {option.name: option.default for option in role.options if not option.required}
        assert named.keys() == (defaults or {}).keys(), role.name
        for name, value in (defaults or {}).items():
            # A list of rows has no place in a table of defaults.
            if "{{" not in str(value) and name != "versions_releases":
                assert value == named[name], name


def test_arguments_of_all_roles_are_checked_at_once() -> None:
    """By the first task on a node: Ansible's own check would be a task a role, dependency, play and node."""
    names = yaml.safe_load((PLAYBOOKS / "roles/node_state/vars/main.yml").read_text())["node_state_roles"]
    # journal has arguments of its callers only; reboot is a playbook of its own, which Ansible checks.
    assert {*names, "journal", "reboot"} == {role.name for role in roles()}
    depended: set[str] = set()
    for name in names:
        meta = yaml.safe_load((PLAYBOOKS / f"roles/{name}/meta/main.yml").read_text())
        depended |= {dependency["role"] for dependency in meta["dependencies"]}
    for name in names:
        points = yaml.safe_load((PLAYBOOKS / f"roles/{name}/meta/argument_specs.yml").read_text())
        assert next(iter(points["argument_specs"])) == ("defaults" if name in depended else "main"), name


def test_versions_agree_with_the_checks() -> None:
    pins = yaml.safe_load((PLAYBOOKS / "roles/versions/defaults/main.yml").read_text())
    memory = yaml.safe_load((ROOT / "checks/gpudirect/memory-registrable.yaml").read_text())
    gdaki = yaml.safe_load((ROOT / "checks/gpudirect/gdaki-registrable.yaml").read_text())
    nofile = yaml.safe_load((ROOT / "checks/host/nofile-enough.yaml").read_text())
    from epdoctor.rules.gpudirect import DMABUF_DRIVER

    assert pins["versions_dmabuf_kernel"] == memory["with"]["kernel"]
    assert pins["versions_gdaki_kernel"] == gdaki["with"]["kernel"]
    assert pins["versions_dmabuf_driver"] == DMABUF_DRIVER
    assert pins["versions_nofile_soft"] == nofile["with"]["minimum"]


def test_pages_name_every_variable() -> None:
    found = pages()
    for role in roles():
        page = found[f"playbooks/{role.name}.md"]
        assert all(f"`{option.name}`" in page for option in role.options)
    assert "`/etc/epdoctor/ep.env`" not in found["playbooks/limits.md"]


def test_only_builtin_modules() -> None:
    for path in PLAYBOOKS.rglob("*.yml"):
        for word in path.read_text().split():
            if word.startswith(("community.", "ansible.posix")):
                raise AssertionError(f"{path}: {word}")


@pytest.mark.parametrize("name", ["site", "rollback", "journal_runs"])
def test_syntax(name: str) -> None:
    argv = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        "--syntax-check",
        "-i",
        "localhost,",
        f"{name}.yml",
    ]
    done = subprocess.run(argv, cwd=PLAYBOOKS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_node_scripts_are_python_36() -> None:
    import ast

    for path in PLAYBOOKS.glob("roles/*/files/*.py"):
        ast.parse(path.read_text(), feature_version=(3, 6))
