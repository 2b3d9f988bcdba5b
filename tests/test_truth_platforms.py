"""Other platforms: one hand-made record each, exactly what is said of it, and nothing about hardware it has not.

The records are made by hand on top of `8xh200-ib`; each says in its header from what its values are. What is said of
that base as well stands in BASE.
"""

from __future__ import annotations

import json

import pytest

from epdoctor.model import Severity
from tests.case_files import RECORDS
from tests.test_truth import NCCL, judged, said

BASE = {
    "fail host.ptrace-allows-peers": "Ubuntu's default; only deepep_v2 minds, and not as root",
    "fail host.removeipc-off": "systemd's default; only for users that log out",
}
NOT_INSTALLED = {"fail nixl.installed": "only nixl_ep needs it"}
NO_MATRIX = {
    f"unknown topology.{name}": "nvidia-smi topo -m is not part of that record"
    for name in ("gpu-nic-affinity", "gpus-share-nics-evenly")
}
RAIL = {
    "fail rdma.link-not-flapping": "mlx5_1 of the public recording went down 255 times since boot: information"
}
NO_DEEPEP = {"fail deepep.installed": "the image has none: only deepep_* need it"}
EFA_IS_NOT_MLX5 = {
    "fail rdma.mlx5-for-ibgda": "IBGDA is for mlx5: true of EFA, and information unless deepep_* is chosen"
}

SAID = {
    ("p5-efa", ""): BASE | NOT_INSTALLED | NO_MATRIX | EFA_IS_NOT_MLX5,
    ("p5-efa", NCCL): BASE | NO_MATRIX,
    ("p5-efa", "deepep_low_latency"): BASE | NO_MATRIX | EFA_IS_NOT_MLX5,
    ("gb200-nvl72", ""): BASE | NOT_INSTALLED | NO_MATRIX | RAIL,
    ("gb200-nvl72", "flashinfer_nvlink_one_sided"): BASE | NO_MATRIX | RAIL,
    ("mi300x-mori", ""): BASE | NOT_INSTALLED | RAIL | NO_DEEPEP,
    ("mi300x-mori", "mori_low_latency"): BASE | RAIL,
    ("b60-xpu", ""): BASE | NOT_INSTALLED | NO_DEEPEP,
    ("b60-xpu", NCCL): BASE,
}
ERRORS = {("p5-efa", "deepep_low_latency"): {"rdma.mlx5-for-ibgda"}}
ALL_BACKENDS_ONLY = {"fail host.ptrace-allows-peers"}
"""Of BASE: applies to deepep_v2 alone."""


@pytest.mark.parametrize(("machine", "backend"), SAID, ids=lambda value: value or "all")
def test_exactly_this_is_said_of_another_platform(machine: str, backend: str) -> None:
    expected = {line for line in SAID[machine, backend] if not backend or line not in ALL_BACKENDS_ONLY}
    found = said(machine, True, backend)
    assert {f"{f.status.value} {f.check}" for f in found} == expected
    assert {f.check for f in found if f.severity is Severity.ERROR} == ERRORS.get((machine, backend), set())


@pytest.mark.parametrize(
    ("machine", "foreign"),
    [
        ("p5-efa", ("infiniband", "roce", "amd.", "xpu.", "imex.")),
        ("gb200-nvl72", ("efa.", "amd.", "xpu.")),
        ("mi300x-mori", ("gpu.", "driver.", "gpudirect.", "efa.", "xpu.", "imex.")),
        ("b60-xpu", ("gpu.", "driver.", "gpudirect.", "rdma.", "efa.", "amd.", "imex.")),
    ],
)
def test_nothing_is_judged_that_the_platform_has_not(machine: str, foreign: tuple[str, ...]) -> None:
    node, _ = judged(machine, True, "")
    assert node.judgement is not None
    judged_there = {f.check for f in node.judgement.findings if f.status.value != "skip"}
    assert not {check for check in judged_there if check.startswith(foreign)} - {"gpu.driver-loaded"}


@pytest.mark.parametrize(
    ("machine", "backend", "own"),
    [
        ("p5-efa", NCCL, {"efa.hugepages-reserved", "efa.nccl-plugin-not-off"}),
        ("gb200-nvl72", NCCL, {"imex.channel-usable", "imex.nodes-listed", "imex.mnnvl-not-off"}),
        (
            "mi300x-mori",
            "mori_low_latency",
            {
                "amd.devices-accessible",
                "amd.gpu-for-mori",
                "amd.rocm-for-mori",
                "amd.mori-installed",
                "amd.nic-for-mori",
            },
        ),
        ("b60-xpu", NCCL, {"xpu.devices-accessible", "xpu.level-zero-present"}),
    ],
)
def test_a_platforms_own_checks_pass_on_its_record(machine: str, backend: str, own: set[str]) -> None:
    node, _ = judged(machine, True, backend)
    assert node.judgement is not None
    assert own <= {f.check for f in node.judgement.findings if f.status.value == "pass"}


@pytest.mark.parametrize("machine", sorted({machine for machine, _ in SAID}))
def test_a_hand_made_record_says_so_and_from_what(machine: str) -> None:
    source = json.loads((RECORDS / f"{machine}.json").read_text())["source"]
    assert source.startswith("by hand on 8xh200-ib")
    assert "Values:" in source
