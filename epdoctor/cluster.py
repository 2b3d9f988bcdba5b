"""What cluster rules see: a few small values of every node, so that thousands of nodes fit in memory.

A facts module offers values by a module-level `DIGEST`:

    DIGEST: dict[str, Callable[[Node], Any]] = {"gpu.driver-version": lambda node: node.gpu.driver_version}

The function returns a small picklable value (a string for drift), None where it does not apply, and lets
`Unmeasured` rise where it could not be measured.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import epdoctor.facts
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.model import Goal

Digest = Mapping[str, Any]
"""Value name -> value, None (does not apply) or an Unmeasured."""


@functools.cache
def digest_functions() -> dict[str, Callable[[Node], Any]]:
    """Every value that facts modules offer."""
    found: dict[str, Callable[[Node], Any]] = {}
    for module in pkgutil.iter_modules(epdoctor.facts.__path__):
        offered = getattr(importlib.import_module(f"epdoctor.facts.{module.name}"), "DIGEST", {})
        for name, function in offered.items():
            if name in found:
                raise RuntimeError(f"two facts modules offer the digest value {name}")
            found[name] = function
    return found


def digest(node: Node) -> dict[str, Any]:
    """All values of one node. A bug in one function costs that value only."""
    values: dict[str, Any] = {}
    for name, function in digest_functions().items():
        try:
            values[name] = function(node)
        except Unmeasured as reason:
            values[name] = reason
    return values


@dataclass(frozen=True)
class Cluster:
    """The nodes that were reached, in inventory order."""

    goal: Goal
    digests: Mapping[str, Digest]

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(self.digests)

    def measured(self, name: str) -> dict[str, Any]:
        """Value by node, for the nodes where it was measured and applies."""
        return {
            node: values[name]
            for node, values in self.digests.items()
            if values.get(name) is not None and not isinstance(values[name], Unmeasured)
        }

    def unmeasured(self, name: str) -> dict[str, str]:
        """Reason by node, for the nodes where it could not be measured."""
        return {
            node: str(values[name])
            for node, values in self.digests.items()
            if isinstance(values.get(name), Unmeasured)
        }
