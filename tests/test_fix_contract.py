"""The fix contract: a failing case + the fix's effect = pass; what is permanent still passes after a reboot; a second
application changes nothing. The commands are run, on a copy of the case's files (tests/fix_effects.py).

What cannot run here stands below, each check with the reason; whatever can run has to hold, and a check that is listed
although its fix runs and mends is refused.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from epdoctor.catalog import load_checks
from epdoctor.engine import Engine
from epdoctor.facts import Node
from epdoctor.facts.base import Source
from epdoctor.model import Finding, Status
from tests.case_files import Case, all_cases, goal_of, judge_case, options_of, probes_of
from tests.fix_effects import Machine, NotRun

_BY_REASON: dict[str, dict[str, str]] = {
    "now": {
        "a running service or job acts on it": """
            time.synchronised
        """,
        "it changes the kernel's state in a way that no file of a record shows": """
            host.shm-large-enough host.shm-no-leftovers
            network.mtu-same-on-rails network.ports-open
        """,
        "it installs or removes packages": """
            amd.mori-installed cudalib.torch-nccl-pin deepep.elastic-buffer-there deepep.generation-fits-vllm
            deepep.installed deepep.not-a-name-squat deepep.one-owner gpu.nvlsm-installed
            gpudirect.gdrdrv-new-enough
            nccl.version-fits-deepep-v2 nixl.cuda-variant-fits-torch nixl.ep-built-for-torch nixl.installed
            driver.built-for-next-kernel
            nixl.version-recent nvshmem.one-copy nvshmem.version-fits-deepep vllm.flashinfer-installed
            vllm.has-deepep-v2 vllm.torch-as-pinned xpu.level-zero-present
        """,
        "it is another way to start vLLM, a container or a shell": """
            amd.devices-accessible container.user-namespace cudalib.libcuda-not-compat host.nofile-enough
            host.stack-not-unlimited nccl.one-copy nvshmem.qp-depth-fits-tokens slurm.memlock-propagated
            vllm.backend-exists vllm.installed vllm.workers-agree-on-node xpu.devices-accessible
        """,
        "it looks, and what to do depends on what is seen": """
            amd.rocm-for-mori container.ipc-lock container.sys-ptrace cuda.nvcc-present
            imex.domain-up cuda.toolkit-not-newer-than-driver cuda.torch-fits-driver deepep.revision-as-pinned
            deepep.torch-new-enough driver.next-load-same driver.options-written-once gpu.bar1-large-enough
            gpu.count-matches-pci gpu.driver-loaded gpu.fabric-completed gpu.free-of-strangers
            gpu.fabric-manager-matches-driver gpu.not-throttled-by-hardware gpu.nvlinks-up gpu.nvml-answers gpu.p2p-available gpu.pcie-full-speed
            gpu.rows-remapped gpu.same-model host.glibc-fits-wheels host.kernel-recent host.libstdcxx-fits-wheels
            host.shm-has-space imex.nodes-listed
            kernel.no-aer-errors kernel.no-gpu-init-failures kernel.no-hung-tasks kernel.no-mlx5-errors
            kernel.no-oom-kills kernel.no-xid names.none-to-loopback
            network.address-usable network.nccl-hca-resolves network.nixl-side-channel-host-local
            network.vllm-host-ip-local network.vllm-ports-free nvshmem.without-ah-bug rdma.error-counters-quiet
            rdma.ecn-same-on-rails rdma.errors-not-growing rdma.firmware-same-on-node rdma.guid-assigned rdma.hca-present
            rdma.hcas-match-gpus rdma.link-not-flapping rdma.link-stays-up rdma.no-drops rdma.no-vf-for-ibgda
            pci.relaxed-ordering-enabled rdma.firmware-without-known-fault rdma.pfc-same-on-rails
            rdma.uar-space-enough rdma.devx-granted rdma.extended-atomics rdma.pci-atomics-enabled
            rdma.pause-frames-quiet rdma.phys-link-up rdma.pkey-full-member rdma.port-active rdma.rate-full
            rdma.roce-v2-gid-present rdma.subnet-manager rdma.user-space-fits-gin rdma.user-space-has-dmabuf
            slurm.processes-tracked topology.gpu-nic-affinity topology.gpus-share-nics-evenly
            vllm.moonep-installed
        """,
        "the driver, the GPU, the NIC or the fabric acts on it": """
            driver.user-space-matches-kernel efa.gdrcopy-for-nvshmem gpu.compute-mode-default gpu.device-nodes-accessible gpu.ecc-clean
            gpu.fabric-one-clique gpu.mig-off gpu.persistence-on gpudirect.gdrdrv-accessible imex.channel-usable
            kernel.no-sxid pci.acs-off-on-bridges rdma.uverbs-accessible
        """,
    },
    "permanent": {
        "a running service or job acts on it": """
            slurm.memlock-propagated time.synchronised
        """,
        "it changes the kernel's state in a way that no file of a record shows": """
            host.shm-large-enough
        """,
        "it installs or removes packages": """
            gpu.fabric-manager-matches-driver
        """,
        "it is a comment: the firmware setup": """
            gpu.bar1-large-enough pci.acs-off-on-bridges
        """,
        "it is a comment: the list is the site's": """
            imex.nodes-listed
        """,
        "it is a comment: the subnet manager is elsewhere": """
            rdma.pkey-full-member
        """,
        "the driver, the GPU, the NIC or the fabric acts on it": """
            efa.gdrcopy-for-nvshmem gpu.ecc-enabled gpu.fabric-completed gpu.persistence-on imex.channel-usable pci.iommu-passthrough
            rdma.firmware-same-on-node rdma.hca-present rdma.uverbs-accessible
            rdma.devx-granted rdma.extended-atomics rdma.pci-atomics-enabled
        """,
    },
}
NOT_RUN = {
    kind: {check: reason for reason, checks in reasons.items() for check in checks.split()}
    for kind, reasons in _BY_REASON.items()
}
"""Kind of command -> check -> why its commands' effect is not shown here."""


def _judge(check: str, machine: Machine, spec: dict[str, Any]) -> Finding:
    source = Source(machine.probes, root=bool(spec.get("root", True)))
    node = Node("n1", source, goal_of(spec), machine.options)
    return Engine({check: load_checks()[check]}, goal_of(spec)).judge_node(node).findings[0]


def _commands(case: Case, kind: str) -> list[str]:
    finding, _ = judge_case(case)
    fix = load_checks()[case.check].fix
    general = fix.now if kind == "now" else fix.permanent
    own = [(problem.now if kind == "now" else problem.permanent) or general for problem in finding.problems]
    return list(dict.fromkeys(command for commands in own for command in commands))


@cache
def _failing() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in all_cases():
        if case.verdict == "fail":
            found.setdefault(case.check, []).append(case)
    return found


def _cases(check: str, kind: str) -> list[tuple[Case, list[str]]]:
    """Failing cases whose finding gives commands of that kind, those of the same commands once."""
    found: dict[tuple[str, ...], Case] = {}
    for case in _failing().get(check, []):
        if commands := _commands(case, kind):
            found.setdefault(tuple(commands), case)
    return [(case, list(commands)) for commands, case in found.items()]


def outcome(case: Case, commands: list[str], kind: str, folder: Path) -> str:
    """ "mended", or what is wrong."""
    before, spec = judge_case(case)
    machine = Machine(probes_of(spec), options_of(spec), folder / "node")
    if kind == "permanent":
        machine.put_variables_on_disk()
    initial = machine.copy(folder / "initial") if kind == "permanent" else machine
    try:
        machine.run(commands)
        once = machine.state()
        machine.run(commands)
    except NotRun as command:
        return f"not run: {command}"
    if machine.state() != once:
        return "a second application changes something"
    if kind == "permanent":
        machine = machine.reboot(initial)
    after = _judge(case.check, machine, spec)
    # Unset, there is nothing to judge; less severe is what a workaround is for.
    if after.status in (Status.PASS, Status.SKIP) or (
        after.status is Status.FAIL and after.severity.rank < before.severity.rank
    ):
        return "mended"
    return f"{after.status.value}: {after.reason or '; '.join(problem.found for problem in after.problems)}"


@pytest.mark.parametrize("kind", ["now", "permanent"])
@pytest.mark.parametrize("check", [check.id for check in load_checks().values() if check.scope == "node"])
def test_the_fix_mends_what_the_case_shows(kind: str, check: str, tmp_path: Path) -> None:
    outcomes = {
        case.name: outcome(case, commands, kind, tmp_path / str(number))
        for number, (case, commands) in enumerate(_cases(check, kind))
    }
    broken = {name: text for name, text in outcomes.items() if text != "mended"}
    if check in NOT_RUN[kind]:
        assert broken, f"{check}: its fix runs and mends; take it off the list"
        assert "a second application changes something" not in broken.values(), broken
    else:
        assert not broken, broken


def test_a_fix_that_does_nothing_is_noticed(tmp_path: Path) -> None:
    (case,) = [
        case for case in all_cases() if case.id.startswith("host.max-map-count/") and case.verdict == "fail"
    ]
    _, spec = judge_case(case)
    machine = Machine(probes_of(spec), options_of(spec), tmp_path / "node")
    machine.run(["true"])
    assert _judge(case.check, machine, spec).status is Status.FAIL
    with pytest.raises(NotRun):
        machine.run(["sudo rm -rf /etc/nothing"])
