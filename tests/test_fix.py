"""From failing findings to components, and the command line of `epdoctor fix`."""

from dataclasses import replace

import pytest

from epdoctor.catalog import load_checks
from epdoctor.cli.fix import fix_command
from epdoctor.exceptions import UsageError
from epdoctor.model import Finding, Problem, Severity, Status
from epdoctor.provision.components import components
from epdoctor.provision.mending import as_errors, plan_mending
from epdoctor.report.fix_line import fix_line
from tests.doctor import ROOT

NODES = ("gpu01", "gpu02", "gpu03")
CHECKS = load_checks()


def finding(check: str, node: str, status: Status = Status.FAIL, **fields: object) -> Finding:
    problem = Problem(found=f"{check} is wrong", expected="right")
    found = Finding(check, status, Severity.ERROR, node, (problem,) if status is Status.FAIL else ())
    return replace(found, **fields)  # type: ignore[arg-type]  # Finding judges them


def test_components_nodes_and_what_is_left() -> None:
    mending = plan_mending(
        [
            finding("gpudirect.memory-registrable", "gpu03"),
            finding("host.memlock-unlimited", "gpu01", severity=Severity.WARNING),
            finding("host.memlock-unlimited", "gpu02", Status.PASS),
            finding("host.nofile-enough", "gpu02", severity=Severity.INFO),
            finding("rdma.port-active", "gpu02"),
            finding("rdma.port-active", "gpu03"),
            finding("time.synchronised", "gpu01", severity=Severity.WARNING),
            finding("host.shm-large-enough", "gpu02", Status.UNKNOWN, reason="timeout"),
            finding("host.memlock-services", "gpu02", waived="until the move"),
        ],
        CHECKS,
        NODES,
        asked=False,
    )
    assert mending.where == {"gpudirect": ("gpu03",), "limits": ("gpu01",)}
    assert mending.nodes == ("gpu01", "gpu03")
    assert mending.checks == ("gpudirect.memory-registrable", "host.memlock-unlimited")
    assert [(one.check, one.nodes) for one in mending.by_hand] == [
        ("rdma.port-active", ("gpu02", "gpu03")),
        ("time.synchronised", ("gpu01",)),
    ]
    assert all(one.commands for one in mending.by_hand)
    assert mending.unknown == (("host.shm-large-enough", "gpu02", "timeout"),)


def test_information_counts_where_it_was_asked_for() -> None:
    found = [finding("host.nofile-enough", "gpu02", severity=Severity.INFO)]
    assert plan_mending(found, CHECKS, NODES, asked=False).components == ()
    assert plan_mending(found, CHECKS, NODES, asked=True).nodes == ("gpu02",)


def test_a_cluster_finding_is_mended_where_it_is_odd() -> None:
    check = replace(CHECKS["host.memlock-unlimited"], scope="cluster")
    odd = finding(check.id, "", problems=(Problem("a", "b", odd_nodes=("gpu02",)),))
    assert plan_mending([odd], {check.id: check}, NODES, asked=False).nodes == ("gpu02",)
    assert plan_mending([finding(check.id, "")], {check.id: check}, NODES, asked=False).nodes == NODES


def test_what_was_to_be_mended_is_an_error_until_it_passes() -> None:
    (check,) = as_errors(CHECKS, ["host.shm-large-enough"]).values()
    assert check.severity == {"default": Severity.ERROR}


def test_every_playbook_of_a_check_is_a_component_that_proves_it() -> None:
    known = {component.name: component for component in components()}
    for check in CHECKS.values():
        if not check.fix.playbook:
            assert not check.fix.tags, check.id
            continue
        assert (ROOT / "playbooks" / check.fix.playbook).is_file(), check.id
        assert check.fix.tags, check.id
        for tag in check.fix.tags:
            assert check.id in known[tag].checks, f"{check.id} is not among the checks of {tag}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["host.memlok-unlimited"], "did you mean host.memlock-unlimited"),
        (["--reboot", "when-needed"], "does not reboot the machine it runs on"),
        (["--limit", "gpu01"], "--limit goes with an inventory"),
        (["-i", "nowhere.ini"], "nowhere.ini does not exist"),
        (["--backend", "deepep_lowlatency"], "deepep_low_latency"),
        (["-e", "limits_nofile=1"], "no role has this variable"),
        (["launch.backend-exists"], "epdoctor lint"),
    ],
)
def test_bad_words_are_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        fix_command.main(words, prog_name="fix", standalone_mode=False)
    assert said in f"{raised.value} {raised.value.hint}"


PEERMEM = "gpudirect.memory-registrable"


@pytest.mark.parametrize(
    ("command", "check", "line"),
    [
        ("epdoctor check --all-nodes -i a.ini", PEERMEM, f"epdoctor fix -i a.ini {PEERMEM}"),
        (
            "epdoctor check -i 'my nodes.ini' --backend=nixl_ep -l gpu03",
            PEERMEM,
            f"epdoctor fix -i 'my nodes.ini' --backend nixl_ep --limit gpu03 {PEERMEM}",
        ),
        ("epdoctor check --all-nodes -i a.ini", "rdma.port-active", ""),
        ("epdoctor check --all-nodes", PEERMEM, ""),
        ("epdoctor check", PEERMEM, ""),
        ("epdoctor check -i 'gpu[01-16]'", PEERMEM, ""),
        ("epdoctor check -i a.ini -i b.ini", PEERMEM, ""),
        ("epdoctor check -i a.ini --via 'podman exec -i {node}'", PEERMEM, ""),
        ("epdoctor check --demo", PEERMEM, ""),
        ("epdoctor report x.json", PEERMEM, ""),
        ("epdoctor check -i 'a.ini", PEERMEM, ""),
        ("epdoctor check -i", PEERMEM, ""),
    ],
)
def test_the_command_that_mends_a_finding(command: str, check: str, line: str) -> None:
    assert fix_line(command, CHECKS[check]) == line
