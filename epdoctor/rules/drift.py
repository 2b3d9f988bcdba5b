"""Values that should be the same on every node, by majority and without a golden file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from epdoctor.cluster import Cluster
from epdoctor.exceptions import Unmeasured
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, cluster_rule

_SHOWN = 4


def text_of(value: Any) -> str:
    """A digest value as one line; mappings and sequences in a fixed order."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={text_of(value[key])}" for key in sorted(value, key=str)) or "none"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(text_of(item) for item in value) or "none"
    return str(value).strip() or "none"


def named(nodes: list[str]) -> str:
    """ "n1, n2, n3, n4 and 12 more"."""
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return ", ".join(nodes[:_SHOWN]) + more


def _shorten(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."


def _groups(values: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """(value, nodes), most nodes first; nodes in inventory order."""
    groups: dict[str, list[str]] = {}
    for node, value in values.items():
        groups.setdefault(value, []).append(node)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def differences(
    values: Mapping[str, str], unmeasured: Mapping[str, str], subject: str = ""
) -> Iterator[Problem]:
    """A problem per value that is not the majority's; one problem for all where no value has a majority.

    Majority: more than half of the nodes that were measured. Nodes that were not are evidence, never equal.
    """
    groups = _groups(values)
    if len(groups) < 2:
        return
    missing = tuple(f"{node}: not measured, {reason}" for node, reason in sorted(unmeasured.items()))
    evidence = tuple(f"{_shorten(value)}: {', '.join(nodes)}" for value, nodes in groups) + missing
    label = f"{subject}: " if subject else ""
    right, holders = groups[0]
    if len(holders) * 2 > len(values):
        for value, nodes in groups[1:]:
            yield Problem(
                f"{label}{_shorten(value)} ({len(holders)} x {_shorten(right)})",
                f"{_shorten(right)}, as on {len(holders)} of {len(values)} nodes",
                evidence,
                subject=subject,
                odd_nodes=tuple(nodes),
            )
        return
    parts = [f"{named(nodes)} {_shorten(value)}" for value, nodes in groups[:6]]
    parts += [f"{len(groups) - 6} further values"] if len(groups) > 6 else []
    yield Problem(
        label + "; ".join(parts) if any("," in part for part in parts) else label + ", ".join(parts),
        "the same on every node (no value has a majority)",
        evidence,
        subject=subject,
        odd_nodes=tuple(values),
    )


def _measured(cluster: Cluster, value: str) -> dict[str, Any]:
    """Values by node. Raises NotApplicable for one node, Unmeasured for fewer than two measured ones."""
    if len(cluster.nodes) < 2:
        raise NotApplicable("One node: nothing to compare with")
    measured, unmeasured = cluster.measured(value), cluster.unmeasured(value)
    if len(measured) >= 2:
        return measured
    if unmeasured:
        node = min(unmeasured)
        raise Unmeasured(
            f"{value} was measured on {len(measured)} of {len(cluster.nodes)} nodes; "
            f"{node}: {unmeasured[node]}"
        )
    raise NotApplicable(f"{len(measured)} of {len(cluster.nodes)} nodes have it: nothing to compare")


def _refuse_gaps(problems: int, unmeasured: Mapping[str, str], value: str) -> None:
    """Equal where measured is no pass while a node is unknown."""
    if unmeasured and not problems:
        node = min(unmeasured)
        raise Unmeasured(
            f"{value} is equal where measured, unknown on {named(sorted(unmeasured))}; "
            f"{node}: {unmeasured[node]}"
        )


@cluster_rule
def same_everywhere(cluster: Cluster, *, value: str) -> Iterator[Problem]:
    """A digest value is the same on every node that has it."""
    measured, unmeasured = _measured(cluster, value), cluster.unmeasured(value)
    problems = list(differences({node: text_of(found) for node, found in measured.items()}, unmeasured))
    yield from problems
    _refuse_gaps(len(problems), unmeasured, value)


@cluster_rule
def present_everywhere(cluster: Cluster, *, value: str) -> Iterator[Problem]:
    """A digest value is there and the same on every node: a node without it is odd, too."""
    unmeasured = cluster.unmeasured(value)
    if not cluster.measured(value) or len(cluster.nodes) - len(unmeasured) < 2:
        _measured(cluster, value)  # says why there is nothing to compare
    values = {
        node: "none" if found.get(value) is None else text_of(found[value])
        for node, found in cluster.digests.items()
        if node not in unmeasured
    }
    problems = list(differences(values, unmeasured))
    yield from problems
    _refuse_gaps(len(problems), unmeasured, value)


def variables(text: str) -> dict[str, str]:
    """ "A=1 B=x y" as {"A": "1", "B": "x y"}: a word without "=" belongs to the value before it."""
    found: dict[str, str] = {}
    name = ""
    for word in text.split():
        head, equals, value = word.partition("=")
        if equals and head.replace("_", "").isalnum() and head.upper() == head and not head[0].isdigit():
            name = head
            found[name] = value
        elif name:
            found[name] += f" {word}"
    return found


@cluster_rule
def same_variables(cluster: Cluster, *, value: str) -> Iterator[Problem]:
    """Each variable of a family ("NAME=VALUE NAME=VALUE") is the same on every node, unset included."""
    measured, unmeasured = _measured(cluster, value), cluster.unmeasured(value)
    by_node = {
        node: dict(found) if isinstance(found, Mapping) else variables(str(found))
        for node, found in measured.items()
    }
    problems = 0
    for name in sorted({name for found in by_node.values() for name in found}):
        values = {
            node: text_of(found[name]) if name in found else "not set" for node, found in by_node.items()
        }
        for problem in differences(values, unmeasured, subject=name):
            problems += 1
            yield problem
    _refuse_gaps(problems, unmeasured, value)
