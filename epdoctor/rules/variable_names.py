"""Names of variables that are one slip away from a known one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache

from epdoctor import compat
from epdoctor.facts import Node
from epdoctor.facts.environment import EP_ENV
from epdoctor.model import Problem
from epdoctor.rules import node_rule
from epdoctor.rules.environment import unset_command

TABLES = (
    ("VLLM_", "launch", "vllm_variables"),
    ("NCCL_", "launch", "nccl_variables"),
    ("UCX_", "ucx", "variables"),
)
"""Prefix, table and key. NVSHMEM's have a check of their own, nvshmem.no-mistyped."""


def slips(one: str, other: str, most: int) -> bool:
    """Whether at most so many letters are wrong, missing, too many or swapped with their neighbour."""
    if abs(len(one) - len(other)) > most:
        return False
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        last, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1] <= most


def nearest_name(name: str, known: Collection[str]) -> str:
    """The known name that this one is a slip of; "" where it is far from all.

    The slip is in one word, and makes a word that no known name has: MIN for MAX, HOST for PORT or V3 for V2 may
    well be a variable of another version. Or an underscore is missing or too many."""
    words = name.split("_")
    vocabulary = {word for other in known for word in other.split("_")}
    joined = name.replace("_", "")
    for other in sorted(known):
        theirs = other.split("_")
        if other.replace("_", "") == joined:
            return other
        different = [pair for pair in zip(words, theirs, strict=False) if pair[0] != pair[1]]
        if len(words) != len(theirs) or len(different) != 1:
            continue
        own, wanted = different[0]
        if own in vocabulary or any(letter.isdigit() for letter in own + wanted) or len(wanted) < 3:
            continue
        if slips(own, wanted, 2 if len(wanted) > 4 else 1):
            return other
    return ""


@cache
def _known(table: str, key: str) -> frozenset[str]:
    return frozenset(str(name) for name in compat.field(table, key, list))


@node_rule
def variables_spelt(node: Node) -> Iterator[Problem]:
    """Names one slip away from a variable that vLLM, NCCL or UCX reads."""
    environment = node.environment
    gone = {row.name for row in compat.removed_variables()}
    for prefix, table, key in TABLES:
        for name in environment.names:
            given = environment.get(name)
            if given is None or not name.startswith(prefix) or name in gone or len(name) > 80:
                continue
            known = _known(table, key)
            near = "" if name in known else nearest_name(name, known)
            if near:
                value = given.value if "'" not in given.value else "..."
                yield Problem(
                    found=f"{name}={given.value} in {given.source}: no such variable",
                    expected=f"{near}, if that is meant",
                    now=(unset_command(name, given), f"export {near}='{value}'"),
                    permanent=(f"sudo sed -i 's/^{name}=/{near}=/' {EP_ENV}",),
                    subject=name,
                )
