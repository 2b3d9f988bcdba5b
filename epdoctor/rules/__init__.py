"""The registry of rules. A rule is a small typed function that judges facts:

    @node_rule
    def sysctl_at_least(node: Node, *, key: str, minimum: int) -> Iterator[Problem]: ...

    @cluster_rule
    def same_everywhere(cluster: Cluster, *, value: str) -> Iterator[Problem]: ...

No problem yielded = pass. A fact that is not there raises Unmeasured by itself: the engine turns that into
"unknown", so rules hold no such handling. `raise NotApplicable("reason")` turns into skip. Parameters come
from the check file's `with:`; names and types are checked against the annotations when checks are loaded.
Modules of this package are found by themselves: adding a rule is adding a function.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from epdoctor.model import Problem

RuleFunction = Callable[..., Iterator[Problem]]
F = TypeVar("F", bound=RuleFunction)


class NotApplicable(Exception):  # noqa: N818 - a state, not an error: becomes "skip"
    """The check makes no sense on this node; `str()` names the absent need."""


@dataclass(frozen=True)
class Rule:
    name: str
    scope: str
    """node | cluster | launch"""
    function: Callable[..., Iterator[Problem]]


_REGISTRY: dict[str, Rule] = {}
_NEEDS: dict[str, Callable[[Any], bool]] = {}
N = TypeVar("N", bound=Callable[[Any], bool])


def _register(function: RuleFunction, scope: str) -> None:
    name = function.__name__
    known = _REGISTRY.get(name)
    if known is not None and known.function.__module__ != function.__module__:
        raise RuntimeError(
            f"two rules are called {name}: {known.function.__module__} and {function.__module__}"
        )
    _REGISTRY[name] = Rule(name, scope, function)


def node_rule(function: F) -> F:
    """Register a rule whose first argument is a Node."""
    _register(function, "node")
    return function


def cluster_rule(function: F) -> F:
    """Register a rule whose first argument is a Cluster."""
    _register(function, "cluster")
    return function


def launch_rule(function: F) -> F:
    """Register a rule whose first argument is a LaunchSet (epdoctor/launch/model.py): what will be started."""
    _register(function, "launch")
    return function


def need(name: str) -> Callable[[N], N]:
    """Register a predicate for a check's `needs:`, `def has_gpu(node: Node) -> bool`. False = skip; the text
    of the skip is the function's docstring. Unmeasured inside = unknown."""

    def register(function: N) -> N:
        known = _NEEDS.get(name)
        if known is not None and known.__module__ != function.__module__:
            raise RuntimeError(f"two needs are called {name}: {known.__module__} and {function.__module__}")
        _NEEDS[name] = function
        return function

    return register


@functools.cache
def _import_all(prefix: str = "") -> None:
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith(prefix):
            importlib.import_module(f"{__name__}.{module.name}")


def all_rules(prefix: str = "") -> dict[str, Rule]:
    """Every rule by name; imports each module of this package once, with a prefix only those."""
    _import_all(prefix)
    return dict(_REGISTRY)


def all_needs(prefix: str = "") -> dict[str, Callable[[Any], bool]]:
    """Every need by name."""
    _import_all(prefix)
    return dict(_NEEDS)


def rule_parameters(rule: Rule) -> dict[str, Any]:
    """Parameter name -> inspect.Parameter, without the first (node, cluster or launch)."""
    import inspect

    return dict(list(inspect.signature(rule.function).parameters.items())[1:])
