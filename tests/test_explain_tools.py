"""explain names the fault from what RDMA tools really printed under it (tests/records/raw/soft-roce)."""

from pathlib import Path

import pytest

from epdoctor.explain.answer import explain_text

FOLDER = Path(__file__).parent / "records" / "raw" / "soft-roce"
CAUSES = {
    "gid-index": "roce-wrong-gid-index",
    "link-down": "rdma-port-down",
    "memlock-64": "memlock-limit",
    "module": "rdma-kernel-modules-not-loaded",
    "permission": "rdma-uverbs-permission-denied",
}
TEXTS = sorted(FOLDER.glob("*.txt"))
ALSO = {"module.ibv_devinfo"}
"""Texts that fit another cause as well: the right one is among the first two."""


def named(path: Path) -> list[str]:
    return [candidate.cause.id for candidate in explain_text(path.read_bytes()).results]


@pytest.mark.parametrize(
    "path", [path for path in TEXTS if not path.stem.startswith("healthy")], ids=lambda path: path.stem
)
def test_cause_from_a_tools_output(path: Path) -> None:
    found = named(path)
    right = CAUSES[path.stem.partition(".")[0]]
    assert right in found[: 2 if path.stem in ALSO else 1]


@pytest.mark.parametrize(
    "path", [path for path in TEXTS if path.stem.startswith("healthy")], ids=lambda path: path.stem
)
def test_healthy_output_has_no_cause(path: Path) -> None:
    assert named(path) == []
