"""Names in environment variables, by each program's own syntax."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.facts import selectors

PORTS = [("mlx5_0", 1), ("mlx5_1", 1), ("mlx5_1", 2), ("mlx5_10", 1), ("mlx5_bond_0", 1)]
INTERFACES = ["lo", "eth0", "eth1", "docker0", "ib0"]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("mlx5", ["mlx5_0", "mlx5_1", "mlx5_10", "mlx5_bond_0"]),
        ("mlx5_1", ["mlx5_1", "mlx5_10"]),
        ("=mlx5_1", ["mlx5_1"]),
        ("=mlx5_1,mlx5_0", ["mlx5_0", "mlx5_1"]),
        ("^mlx5_bond", ["mlx5_0", "mlx5_1", "mlx5_10"]),
        ("^=mlx5_1", ["mlx5_0", "mlx5_10", "mlx5_bond_0"]),
        ("mlx5_0:1:3:0", ["mlx5_0"]),
        ("ibp", []),
    ],
)
def test_nccl_ib_hca(value: str, names: list[str]) -> None:
    assert list(selectors.nccl_hcas(value, PORTS).names) == names


def test_nccl_ib_hca_port() -> None:
    assert selectors.nccl_hcas("=mlx5_1:2", PORTS).ports == (("mlx5_1", 2),)
    assert selectors.nccl_hcas("^=mlx5_1:2", PORTS).ports == tuple(p for p in PORTS if p != ("mlx5_1", 2))


def test_missing_names_are_told() -> None:
    assert selectors.nccl_hcas("=mlx5_0,mlx5_9", PORTS).missing == ("mlx5_9",)
    assert selectors.nccl_hcas("^mlx5_9", PORTS).missing == ()
    assert selectors.exact_interfaces("eth0,eth9", INTERFACES).missing == ("eth9",)
    assert selectors.ucx_devices("mlx5_0", PORTS, INTERFACES).missing == ("mlx5_0",)


def test_interface_prefix_and_whole_name() -> None:
    assert selectors.nccl_interfaces("eth", INTERFACES).names == ("eth0", "eth1")
    assert selectors.nccl_interfaces("=eth", INTERFACES).names == ()
    assert selectors.nccl_interfaces("^docker,lo", INTERFACES).names == ("eth0", "eth1", "ib0")
    assert selectors.exact_interfaces("eth", INTERFACES).names == ()


def test_nvshmem_hca_list_takes_whole_names() -> None:
    assert selectors.nvshmem_hcas("mlx5_1", PORTS).ports == (("mlx5_1", 1), ("mlx5_1", 2))
    assert selectors.nvshmem_hcas("^mlx5_1:1", PORTS).ports == tuple(p for p in PORTS if p != ("mlx5_1", 1))
    assert selectors.hca_prefix("ibp", ["ibp24s0", "mlx5_0"]).names == ("ibp24s0",)


def test_ucx_devices() -> None:
    assert selectors.ucx_devices("mlx5_0:1,eth0", PORTS, INTERFACES).names == ("mlx5_0:1", "eth0")
    assert len(selectors.ucx_devices("all", PORTS, INTERFACES).names) == len(PORTS) + len(INTERFACES)
    assert selectors.ucx_devices("mlx5_*:1", PORTS, INTERFACES).missing == ()


names = st.text(alphabet="amlx5_01b", min_size=1, max_size=5)
port_lists = st.lists(st.tuples(names, st.integers(1, 3)), unique=True, max_size=6)


@given(names, port_lists)
def test_exact_is_within_prefix_and_exclusion_is_the_rest(entry: str, ports: list[tuple[str, int]]) -> None:
    prefix, exact = selectors.nccl_hcas(entry, ports), selectors.nccl_hcas("=" + entry, ports)
    without = selectors.nccl_hcas("^" + entry, ports)
    assert set(exact.ports) <= set(prefix.ports)
    assert set(prefix.ports) | set(without.ports) == set(ports)
    assert not set(prefix.ports) & set(without.ports)


@given(st.text(max_size=60), port_lists, st.lists(names, max_size=5))
def test_any_text_selects_a_part_of_what_is_there(
    value: str, ports: list[tuple[str, int]], interfaces: list[str]
) -> None:
    for selection in (selectors.nccl_hcas(value, ports), selectors.nvshmem_hcas(value, ports)):
        assert set(selection.ports) <= set(ports)
    assert set(selectors.nccl_interfaces(value, interfaces).names) <= set(interfaces)
    assert set(selectors.exact_interfaces(value, interfaces).names) <= set(interfaces)
    assert set(selectors.hca_prefix(value, interfaces).names) <= set(interfaces)
    assert set(selectors.ucx_devices(value, ports, interfaces).ports) <= set(ports)
