"""Drift by majority: who is odd, who is not judged, and what is said when nobody has a majority."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdoctor.cluster import Cluster
from epdoctor.exceptions import Unmeasured
from epdoctor.model import Goal, Problem
from epdoctor.rules import NotApplicable
from epdoctor.rules.clock import clocks_agree
from epdoctor.rules.drift import differences, present_everywhere, same_everywhere, same_variables, variables


def cluster(*values: Any, name: str = "v") -> Cluster:
    return Cluster(Goal(multinode=True), {f"n{i}": {name: value} for i, value in enumerate(values, 1)})


def judge(*values: Any) -> list[Problem]:
    return list(same_everywhere(cluster(*values), value="v"))


def test_one_of_sixteen_is_odd() -> None:
    (problem,) = judge(*["580.95.05"] * 10, "580.65.06", *["580.95.05"] * 5)
    assert problem.found == "580.65.06 (15 x 580.95.05)"
    assert problem.odd_nodes == ("n11",)


def test_two_nodes_that_differ_are_both_named() -> None:
    (problem,) = judge("580.65", "580.95")
    assert problem.found == "n1 580.65, n2 580.95"
    assert problem.odd_nodes == ("n1", "n2")


def test_a_tie_names_both_groups() -> None:
    (problem,) = judge("a", "a", "b", "b")
    assert problem.found == "n1, n2 a; n3, n4 b"


def test_three_values_without_a_majority() -> None:
    (problem,) = judge("a", "a", "b", "c")
    assert problem.odd_nodes == ("n1", "n2", "n3", "n4")


def test_each_odd_value_is_a_problem_of_its_own() -> None:
    found = judge("a", "a", "a", "a", "b", "c")
    assert [problem.odd_nodes for problem in found] == [("n5",), ("n6",)]


def test_an_unmeasured_node_is_evidence_and_never_equal() -> None:
    (problem,) = judge("a", "a", "b", Unmeasured("timeout"))
    assert "n4: not measured, timeout" in problem.evidence
    assert problem.found == "b (2 x a)"
    with pytest.raises(Unmeasured, match="n3"):
        judge("a", "a", Unmeasured("timeout"))


def test_fewer_than_two_measured_nodes_are_unknown() -> None:
    with pytest.raises(Unmeasured, match="1 of 2"):
        judge("a", Unmeasured("no nvidia-smi"))


def test_one_node_or_no_value_is_not_compared() -> None:
    with pytest.raises(NotApplicable):
        judge("a")
    with pytest.raises(NotApplicable):
        judge(None, None)


def test_a_node_without_it_is_odd_where_it_must_be_present() -> None:
    (problem,) = present_everywhere(cluster("2.0.0", "2.0.0", None), value="v")
    assert problem.found == "none (2 x 2.0.0)"
    (problem,) = present_everywhere(cluster("2.0.0", None), value="v")
    assert problem.odd_nodes == ("n1", "n2")
    assert judge("2.0.0", "2.0.0", None) == []
    with pytest.raises(NotApplicable):
        list(present_everywhere(cluster(None, None), value="v"))


def test_variables_are_compared_one_by_one() -> None:
    found = list(
        same_variables(
            cluster("NCCL_ALGO=Ring NCCL_IB_HCA=mlx5", "NCCL_ALGO=Ring NCCL_IB_HCA=mlx5", "NCCL_ALGO=Tree"),
            value="v",
        )
    )
    assert [problem.found for problem in found] == [
        "NCCL_ALGO: Tree (2 x Ring)",
        "NCCL_IB_HCA: not set (2 x mlx5)",
    ]
    assert list(same_variables(cluster("none set", "none set"), value="v")) == []


def test_a_value_with_spaces_stays_whole() -> None:
    assert variables("A=x y B_C=z") == {"A": "x y", "B_C": "z"}
    assert variables("none set") == {}


def test_mappings_and_lists_are_compared_in_a_fixed_order() -> None:
    assert judge({"a": 1, "b": 2}, {"b": 2, "a": 1}) == []
    (problem,) = judge({"mlx5_0": 3}, {"mlx5_0": 3}, {"mlx5_0": 4})
    assert problem.found == "mlx5_0=4 (2 x mlx5_0=3)"


def test_clocks_are_judged_beyond_their_uncertainty() -> None:
    def spread(*offsets: tuple[float, float]) -> list[Problem]:
        return list(clocks_agree(cluster(*offsets, name="time.offset"), max_difference_s=1.0))

    assert spread((0.0, 0.1), (1.4, 0.6), (0.0, 0.1)) == []
    (problem,) = spread((0.0, 0.1), (-3.0, 0.6), (0.0, 0.1))
    assert problem.odd_nodes == ("n2",)


VALUES = st.lists(st.sampled_from("abcd"), min_size=2, max_size=24)


@given(VALUES)
def test_equal_values_are_the_only_ones_that_pass(values: list[str]) -> None:
    assert (judge(*values) == []) == (len(set(values)) == 1)


@given(VALUES)
def test_no_majority_node_is_called_odd(values: list[str]) -> None:
    by_node = {f"n{i}": value for i, value in enumerate(values)}
    top = max(sorted(set(values)), key=values.count)
    found = list(differences(by_node, {}))
    odd = [node for problem in found for node in problem.odd_nodes]
    assert len(odd) == len(set(odd))
    if values.count(top) * 2 > len(values):
        assert set(odd) == {node for node, value in by_node.items() if value != top}
    else:
        assert set(odd) == set(by_node)


@pytest.mark.parametrize("rule", [same_everywhere, present_everywhere, same_variables])
@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.none() | st.text(max_size=20) | st.integers() | st.just(Unmeasured("x")), max_size=8)
)
def test_any_digest_gives_problems_or_a_reason(
    rule: Callable[..., Iterator[Problem]], values: list[Any]
) -> None:
    try:
        found = list(rule(cluster(*values), value="v"))
    except (Unmeasured, NotApplicable):
        return
    assert all(problem.found and problem.expected and problem.odd_nodes for problem in found)
