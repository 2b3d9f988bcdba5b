"""Version tables and back end names."""

from __future__ import annotations

import contextlib
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from epdoctor import compat
from epdoctor.backends import applicable_backends, available, backends, canonical_backends, resolve_backend
from epdoctor.exceptions import CatalogError, Unmeasured, UsageError
from epdoctor.facts.python_env import GENERATIONS

CANONICAL = [
    "allgather_reducescatter", "deepep_high_throughput", "deepep_low_latency", "deepep_v2", "nixl_ep",
    "mori_high_throughput", "mori_low_latency", "moonep", "flashinfer_nvlink_two_sided",
    "flashinfer_nvlink_one_sided",
]  # fmt: skip


def test_canonical_names() -> None:
    assert list(canonical_backends()) == CANONICAL


@pytest.mark.parametrize("name", sorted(compat.tables()))
def test_table_is_dated_and_sourced(name: str) -> None:
    table = compat.table(name)
    assert isinstance(table["as_of"], datetime.date)
    assert len(table["source"]) > 10


def test_names_refer_to_names() -> None:
    for backend in backends().values():
        assert backend.status in ("supported", "internal", "alias", "removed")
        for other in (backend.falls_back_to, backend.alias_of):
            assert not other or backends()[other].status == "supported"
        assert (backend.status == "removed") == bool(backend.removed_in and backend.falls_back_to)
        for number in (backend.since, backend.removed_in):
            assert not number or str(Version(number)) == number


def test_generations_are_told_apart_by_their_classes() -> None:
    assert {name: generation.classes for name, generation in compat.generations().items()} == {
        name: classes for classes, name in GENERATIONS.items()
    }


def test_across_nodes_and_vendors() -> None:
    assert set(applicable_backends(True)) == set(CANONICAL[:5])
    assert "mori_low_latency" in applicable_backends(True, "amd")
    assert "flashinfer_nvlink_one_sided" in applicable_backends(False)
    assert "deepep_v2" not in applicable_backends(False, "amd")


def test_removed_alias_and_unknown_names() -> None:
    removed = resolve_backend("pplx", "0.33.0")
    assert removed.name == "allgather_reducescatter"
    assert "0.17.0" in removed.note
    assert resolve_backend("flashinfer_all2allv").name == "flashinfer_nvlink_two_sided"
    assert resolve_backend(" DeepEP-Low-Latency ").name == "deepep_low_latency"
    assert "since 0.23.0" in resolve_backend("deepep_v2", "0.22.1").note
    assert resolve_backend("deepep_v2", "0.33.0").note == ""
    with pytest.raises(UsageError, match="did you mean deepep_low_latency"):
        resolve_backend("deepep_lowlatency")
    with pytest.raises(UsageError, match="internal"):
        resolve_backend("passthrough")
    with pytest.raises(UsageError, match="not a version"):
        resolve_backend("deepep_v2", "newest")


def test_pins() -> None:
    assert compat.vllm_pins("0.33.1")["torch"] == "2.14.0"
    assert compat.vllm_pins("0.20.0") == {}
    assert compat.torch_pins("2.14.0+cu130")["nccl"] == "2.30.7"
    assert compat.torch_pins("2.15.0") == {}
    assert compat.nixl_minimum("0.33.0") == "1.5.0"
    assert compat.nixl_minimum("0.20.0") == ""
    assert compat.nixl_ep_torch("1.5.1") == ("2.12", "2.13", "2.14")


def test_development_builds_count_as_their_release() -> None:
    assert compat.release("0.33.1.dev12+g7cfb97e") == Version("0.33.1")
    assert available("deepep_v2", "0.23.0rc1") == ""
    with pytest.raises(Unmeasured):
        compat.release("dev")


def test_wrong_tables_are_refused_by_name() -> None:
    with pytest.raises(CatalogError, match=r"nothere\.yaml"):
        compat.table("nothere")
    with pytest.raises(CatalogError, match="qp_depth must be a list"):
        compat.field("nvshmem", "qp_depth", list)


@given(st.text(max_size=60))
def test_any_name_resolves_or_is_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert resolve_backend(text, text).name in canonical_backends()
