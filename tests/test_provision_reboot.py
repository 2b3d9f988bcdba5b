"""Which nodes are rebooted, and what a reboot settles."""

import uuid

import pytest

from epdoctor.provision import screen
from epdoctor.provision.advice import advice
from epdoctor.provision.events import error_text
from epdoctor.provision.reboot import (
    BACK_TASK,
    DEFAULT_TIMEOUT_S,
    add_reboots,
    controller_variables,
    rebooted_nodes,
    refused,
    waiting_nodes,
)
from epdoctor.provision.result import Change, Failure, Remark, RunResult, exit_code

NODES = ("gpu01", "gpu02", "gpu03")


def waits(node: str, kind: str = "reboot") -> Remark:
    return Remark(node, "ibgda_driver", kind, "the driver options are live after the next boot")


def result(**fields: object) -> RunResult:
    return RunResult(NODES, ("ibgda_driver",), **fields)  # type: ignore[arg-type]  # RunResult judges them


def test_only_nodes_that_wait_and_did_not_fail() -> None:
    run = result(
        remarks=[waits("gpu03"), waits("gpu01"), waits("gpu02"), waits("gpu01", "restart")],
        failures=[Failure("gpu02", "limits", "x", "y", "z")],
    )
    assert waiting_nodes(run) == ("gpu01", "gpu03")
    run.unreachable["gpu03"] = "no route"
    assert waiting_nodes(run) == ("gpu01",)
    # Steps for a person end in a reboot, too; none is made before them.
    assert waiting_nodes(result(remarks=[waits("gpu01", "by-hand")])) == ()
    assert exit_code(result(remarks=[waits("gpu01", "by-hand")]), {}) == 3


def test_a_reboot_settles_what_waited_on_its_node_alone() -> None:
    run = result(remarks=[waits("gpu01"), waits("gpu01", "restart"), waits("gpu02"), waits("gpu01", "note")])
    reboots = RunResult(
        ("gpu01", "gpu02"),
        (),
        changes=[Change("gpu01", "reboot", BACK_TASK)],
        remarks=[Remark("gpu02", "reboot", "refused", "its GPUs are used by 17 python3")],
    )
    assert rebooted_nodes(reboots) == ("gpu01",)
    assert refused(reboots) == {"gpu02": "its GPUs are used by 17 python3"}
    add_reboots(run, reboots)
    assert [(remark.node, remark.kind) for remark in run.pending()] == [("gpu02", "reboot")]
    assert exit_code(run, {}) == 3
    lines = "\n".join((*screen.rebooted(run.changes), *screen.waiting(run.remarks)))
    assert "rebooted        gpu01: each is back with another boot id" in lines
    assert "not rebooted    gpu02: its GPUs are used by 17 python3" in lines


def test_a_node_that_does_not_come_back() -> None:
    run = result(remarks=[waits("gpu01"), waits("gpu02")])
    reboots = RunResult(
        ("gpu01", "gpu02"),
        (),
        failures=[
            Failure(
                "gpu01", "", BACK_TASK, "Timed out waiting for the node", "roles/reboot/tasks/main.yml:22"
            )
        ],
        changes=[Change("gpu02", "reboot", BACK_TASK)],
    )
    reboots.unreachable["gpu02"] = "no route to host"
    add_reboots(run, reboots)
    assert rebooted_nodes(reboots) == ()
    assert run.failures[0].component == "reboot"
    assert {remark.node for remark in run.pending()} == {"gpu01", "gpu02"}
    assert exit_code(run, {}) == 1


def test_this_machine_is_known_by_its_boot() -> None:
    found = controller_variables()
    assert str(uuid.UUID(found["reboot_controller_boot"])) == found["reboot_controller_boot"]
    assert set(found) == {"reboot_controller_boot", "reboot_controller_machine"}


def test_the_role_and_the_program_agree() -> None:
    from epdoctor.provision.arguments import roles

    (role,) = (role for role in roles() if role.name == "reboot")
    options = {option.name: option.default for option in role.options}
    assert options["reboot_timeout_s"] == DEFAULT_TIMEOUT_S
    assert set(controller_variables()) <= set(options)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        ("Missing sudo password", "--ask-become-pass"),
        ("Incorrect sudo password", "give the password that sudo wants there"),
        ("plain is not in the sudoers file.", "log in as root"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 4711", "fuser"),
        ("[Errno 28] No space left on device", "df -h"),
        ("Timed out after 60 second(s).", "node_state_timeout_s"),
        ("nvidia_peermem not found", ""),
    ],
)
def test_what_to_do_about_an_error(error: str, what: str) -> None:
    found = advice([error, error])
    assert len(found) == bool(what)
    assert what in " ".join(found)


def test_sudo_says_why_in_place_of_the_module() -> None:
    # By hand, from ansible-core 2.19's result for a user whom sudo does not know.
    res = {
        "msg": "Module result deserialization failed: No start of json char found",
        "module_stderr": "plain is not in the sudoers file.\nThis incident has been reported.\n",
        "rc": 1,
    }
    assert error_text(res) == "plain is not in the sudoers file."
    assert error_text({"msg": "Task failed: Missing sudo password"}) == "Missing sudo password"
