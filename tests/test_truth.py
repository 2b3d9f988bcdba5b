"""The catalogue against recorded machines, and each check against its neighbours.

A healthy machine makes no noise: whatever is said of a recorded one stands here with its explanation, information
included. A check counts only if its failing case changes a fact that no other check's failing case changes.
"""

from __future__ import annotations

from functools import cache

import pytest

from epdoctor.catalog import load_checks
from epdoctor.collect.store import parse_record
from epdoctor.compiled import read_yaml
from epdoctor.engine import Engine
from epdoctor.facts.base import CollectOptions
from epdoctor.judge import JudgedNode, build_report, judge_record
from epdoctor.model import Finding, Goal, Severity
from tests.case_facts import FactName, changed_facts
from tests.case_files import MACHINES as RECORDED
from tests.case_files import RECORDS, Case, all_cases, bases_of

MACHINES = ("h100x1", "h200x2", "h200x2-nobody")
NCCL = "allgather_reducescatter"

# ------------------------------------------------------------------------------------------ recorded machines

NO_VLLM = {"fail vllm.installed": "its environment holds torch and no vLLM"}
NOT_INSTALLED = {
    **NO_VLLM,
    "fail deepep.installed": "no DeepEP there: only deepep_* need it",
    "fail nixl.installed": "no NIXL there: only nixl_ep needs it",
}
ONE_NODE_ONLY = {
    "fail vllm.flashinfer-installed": "no FlashInfer there: only flashinfer_* need it",
    "fail vllm.moonep-installed": "no moonep there: only moonep needs it",
}
NVLS_SET = {"fail nvshmem.no-overwritten-variables": "that machine's session has NVSHMEM_DISABLE_NVLS=1"}
NOT_ROOT = {
    f"unknown kernel.{name}": "user nobody may not read the kernel log: --become"
    for name in (
        "no-aer-errors",
        "no-gpu-init-failures",
        "no-hung-tasks",
        "no-oom-kills",
        "no-sxid",
        "no-xid",
    )
}
VM_AMONG_NODES = {
    "fail names.own-name-not-loopback": "/etc/hosts has 127.0.0.1 for the VM's name: other nodes would be sent there",
    "fail rdma.hca-present": "the VM has no RDMA device: across nodes it would serve over TCP",
    "fail time.synchronised": "no time service runs in the VM (adjtimex: unsynchronised)",
    "unknown network.ports-open": "the firewall could not be read whole, and no rule is no proof of none",
}
FEW_FILES = {"fail host.nofile-enough": "20000 open files (1024 for nobody): only GIN at scale needs more"}

ALONE: dict[str, dict[str, str]] = {
    "h100x1": NOT_INSTALLED | ONE_NODE_ONLY,
    "h200x2": NOT_INSTALLED | ONE_NODE_ONLY | NVLS_SET,
    "h200x2-nobody": NOT_INSTALLED | ONE_NODE_ONLY | NVLS_SET | NOT_ROOT,
}
"""Single node, all back ends. For NCCL's alone: what NCCL_NEEDS keeps of it."""
AMONG: dict[str, dict[str, str]] = {
    "h100x1": NOT_INSTALLED | VM_AMONG_NODES | FEW_FILES,
    "h200x2": NOT_INSTALLED | VM_AMONG_NODES | FEW_FILES | NVLS_SET,
    "h200x2-nobody": NOT_INSTALLED | VM_AMONG_NODES | FEW_FILES | NVLS_SET | NOT_ROOT,
}
"""Several nodes, all back ends."""
NCCL_NEEDS = NO_VLLM.keys() | NOT_ROOT.keys() | VM_AMONG_NODES.keys()
ERRORS = {False: set[str](), True: {"names.own-name-not-loopback"}}


@cache
def judged(machine: str, multinode: bool, backend: str) -> tuple[JudgedNode, Engine]:
    engine = Engine(load_checks(), Goal(backend=backend, multinode=multinode))
    record = parse_record((RECORDS / f"{machine}.json").read_bytes(), machine)
    return judge_record(record, engine, CollectOptions()), engine


def said(machine: str, multinode: bool, backend: str) -> list[Finding]:
    node, _ = judged(machine, multinode, backend)
    assert node.judgement is not None
    return [f for f in node.judgement.findings if f.status.value not in ("pass", "skip")]


@pytest.mark.parametrize("backend", ["", NCCL])
@pytest.mark.parametrize("multinode", [False, True], ids=["one-node", "several-nodes"])
@pytest.mark.parametrize("machine", MACHINES)
def test_every_finding_on_a_recorded_machine_is_explained(
    machine: str, multinode: bool, backend: str
) -> None:
    explained = (AMONG if multinode else ALONE)[machine]
    expected = {line for line in explained if not backend or line in NCCL_NEEDS}
    found = said(machine, multinode, backend)
    assert {f"{f.status.value} {f.check}" for f in found} == expected
    assert all(explained[line] for line in expected)
    errors = {f.check for f in found if f.severity is Severity.ERROR}
    assert errors == ERRORS[multinode]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_recorded_machine_is_ready_for_the_default_back_end_on_one_node(machine: str) -> None:
    node, engine = judged(machine, False, "")
    report = build_report([node], engine, load_checks(), source="recording", fail_on=Severity.ERROR)
    (nccl,) = [item for item in report.readiness if item.backend == NCCL]
    assert (nccl.ready, nccl.because) == ((machine,), ())


# ------------------------------------------------------------------------------------------ a fact of its own


@cache
def changes() -> dict[str, list[frozenset[FactName]]]:
    """Check -> what each of its failing cases changes."""
    by_check: dict[str, list[Case]] = {}
    for case in all_cases():
        by_check.setdefault(case.check, []).append(case)
    return {
        check: [
            changed_facts(case, [other for other in cases if other.verdict == "pass"])
            for case in cases
            if case.verdict == "fail"
        ]
        for check, cases in by_check.items()
    }


def test_each_check_fails_on_a_fact_of_its_own() -> None:
    users: dict[FactName, set[str]] = {}
    for check, edits in changes().items():
        for fact in frozenset().union(*edits):
            users.setdefault(fact, set()).add(check)
    without = {
        check
        for check, edits in changes().items()
        if not any(users[fact] == {check} for edit in edits for fact in edit)
    }
    assert without == set()


def test_most_failing_cases_are_a_recorded_machine_with_a_named_edit() -> None:
    """Derived: starts from records of real machines and replaces no probe as a whole, only rows by name. Of the
    cases that judge machines; a launch's are scripts."""
    checks = load_checks()
    failing = [
        read_yaml(case.path)
        for case in all_cases()
        if case.verdict == "fail" and checks[case.check].scope != "launch"
    ]
    derived = [
        spec
        for spec in failing
        if bases_of(spec) and set(bases_of(spec)) <= set(RECORDED) and not spec.get("probes")
    ]
    assert len(derived) >= 0.6 * len(failing), f"{len(derived)} of {len(failing)}"


def test_a_failing_case_differs_from_a_passing_one_in_its_facts() -> None:
    empty = [check for check, edits in changes().items() if not all(edits)]
    assert empty == []
