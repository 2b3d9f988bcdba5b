"""Rules with one condition turned round, and what the cases say of them.

A rule's module is parsed, one comparison or condition in the rule (or in a function of the same module that it
calls) is inverted, and the module's functions are compiled again in a copy of its namespace. Nothing is
registered. Conditions of `while` stay as they are: turned round they may never end.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

from epdoctor.catalog import load_checks
from epdoctor.cluster import Cluster
from epdoctor.engine import Engine
from epdoctor.facts import Node
from epdoctor.launch.judge import _over
from epdoctor.launch.layout import fleets
from epdoctor.launch.model import LaunchSet
from epdoctor.model import Check, Finding
from epdoctor.rules import Rule, RuleFunction, all_rules
from tests.case_files import Case, all_cases, complaint, goal_of, prepare

_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


_OVER: dict[str, Callable[[RuleFunction], RuleFunction]] = {
    "server_rule": lambda f: lambda launch: _over(launch.servers, lambda server: f(launch, server)),
    "fleet_rule": lambda f: lambda launch: _over(fleets(launch), lambda servers: f(launch, servers)),
}
"""What these decorators make of a function, without the registration."""


@dataclass(frozen=True)
class Mutant:
    """One inverted condition: "gpu.py:120 gpu_ecc_clean: count"."""

    where: str
    function: RuleFunction


class JudgedCase:
    """A case with its facts parsed once, to be judged by many variants of its rule."""

    def __init__(self, case: Case) -> None:
        self.case = case
        facts, self.spec = prepare(case)
        self.check: Check = load_checks()[case.check]
        self.engine = Engine({self.check.id: self.check}, goal_of(self.spec))
        self._facts: Node | LaunchSet | Mapping[str, Mapping[str, Any]] = facts

    def judge(self, function: RuleFunction | None = None) -> Finding:
        rules = all_case_rules()
        rule = rules[self.check.rule]
        if function is not None:
            rule = replace(rule, function=function)
        self.engine._rules = {rule.name: rule}
        if isinstance(self._facts, Node):
            return self.engine._judge_on_node(self.check, self._facts)
        if isinstance(self._facts, LaunchSet):
            return self.engine._judge_on_launch(self.check, self._facts)
        return self.engine._judge_on_cluster(self.check, Cluster(self.engine.goal, self._facts))

    def breaks(self, function: RuleFunction) -> bool:
        """Whether tests/test_cases.py would fail on this case with that rule."""
        return bool(complaint(self.case, self.judge(function), self.spec))


@cache
def all_case_rules() -> dict[str, Rule]:
    return all_rules()


@cache
def cases_by_rule() -> dict[str, list[JudgedCase]]:
    checks = load_checks()
    found: dict[str, list[JudgedCase]] = {}
    for case in all_cases():
        found.setdefault(checks[case.check].rule, []).append(JudgedCase(case))
    return found


@cache
def _module_functions(module: ModuleType) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(inspect.getsource(module))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _called(function: ast.FunctionDef, functions: Mapping[str, ast.FunctionDef]) -> Iterator[str]:
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id in functions:
                yield node.id


def _reachable(name: str, functions: Mapping[str, ast.FunctionDef]) -> list[str]:
    """The rule first, then what it calls, nearest first."""
    order = [name]
    for current in order:
        order += [other for other in _called(functions[current], functions) if other not in order]
    return order


def _conditions(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """Each comparison, and each condition that is none, in source order."""
    kept = {
        id(inner)
        for node in ast.walk(function)
        if isinstance(node, ast.While)
        for inner in ast.walk(node.test)
    }
    found: dict[int, ast.expr] = {}
    for node in (inner for statement in function.body for inner in ast.walk(statement)):
        tests = [node.test] if isinstance(node, (ast.If, ast.IfExp)) else []
        if isinstance(node, ast.comprehension):
            tests += node.ifs
        if isinstance(node, ast.Compare):
            tests.append(node)
        for test in tests:
            if id(test) not in kept:
                found[id(test)] = test
    return iter(sorted(found.values(), key=lambda test: (test.lineno, test.col_offset, -len(ast.dump(test)))))


def _parents(function: ast.FunctionDef) -> dict[int, tuple[ast.AST, str, int | None]]:
    """Where each expression stands: its parent, the field, and the place in it where that is a list."""
    found: dict[int, tuple[ast.AST, str, int | None]] = {}
    for node in ast.walk(function):
        for field, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                found[id(value)] = (node, field, None)
            elif isinstance(value, list):
                found.update({id(item): (node, field, n) for n, item in enumerate(value)})
    return found


@contextmanager
def _turned(test: ast.expr, parents: Mapping[int, tuple[ast.AST, str, int | None]]) -> Iterator[None]:
    """The condition inverted, in its place, and put back: a copy of every function would cost more than the rest."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        kept, test.ops = test.ops, [_OPPOSITE[type(test.ops[0])]()]
        try:
            yield
        finally:
            test.ops = kept
        return
    parent, field, place = parents[id(test)]
    inverted = ast.copy_location(ast.UnaryOp(ast.Not(), test), test)

    def put(node: ast.expr) -> None:
        if place is None:
            setattr(parent, field, node)
        else:
            getattr(parent, field)[place] = node

    put(inverted)
    try:
        yield
    finally:
        put(test)


_FUTURE = ast.parse("from __future__ import annotations").body[0]


def _run(module: ModuleType, functions: list[ast.FunctionDef], namespace: dict[str, Any]) -> None:
    exec(compile(ast.Module([_FUTURE, *functions], []), str(module.__file__), "exec"), namespace)


def _namespace(
    module: ModuleType, functions: Mapping[str, ast.FunctionDef], wanted: list[str]
) -> dict[str, Any]:
    """The module's names, with the wanted functions compiled again."""
    decorators = [
        inner.id
        for one in wanted
        for decorator in functions[one].decorator_list
        for inner in ast.walk(decorator)
        if isinstance(inner, ast.Name) and inner.id in functions
    ]
    namespace = dict(vars(module))
    # Compiled again, a rule must not register itself again.
    plain = {
        **{key: lambda f: f for key in ("node_rule", "cluster_rule", "launch_rule", *_OVER)},
        "need": lambda _: lambda f: f,
    }
    namespace.update({key: value for key, value in plain.items() if key in namespace})
    _run(module, [functions[one] for one in functions if one in wanted or one in decorators], namespace)
    return namespace


def _rule_function(namespace: Mapping[str, Any], definition: ast.FunctionDef) -> RuleFunction:
    function: RuleFunction = namespace[definition.name]
    for decorator in definition.decorator_list:
        if isinstance(decorator, ast.Name) and decorator.id in _OVER:
            return _OVER[decorator.id](function)
    return function


def mutants(rule: Rule, limit: int) -> Iterator[Mutant]:
    """The rule with one condition inverted at a time: its own first, then those of what it calls. A mutant is what it
    is until the next one is asked for."""
    module = importlib.import_module(rule.function.__module__)
    functions = _module_functions(module)
    wanted = _reachable(rule.name, functions)
    namespace = _namespace(module, functions, wanted)
    made = 0
    for name in wanted:
        parents = _parents(functions[name])
        unchanged_function = namespace[name]
        for test in _conditions(functions[name]):
            if made == limit:
                return
            made += 1
            where = f"{module.__name__.rpartition('.')[2]}.py:{test.lineno} {name}: {ast.unparse(test)}"
            with _turned(test, parents):
                _run(module, [functions[name]], namespace)
            yield Mutant(where, _rule_function(namespace, functions[rule.name]))
            namespace[name] = unchanged_function


def unchanged(rule: Rule) -> RuleFunction:
    """The rule compiled again as it is: it must give what the rule itself gives."""
    module = importlib.import_module(rule.function.__module__)
    functions = _module_functions(module)
    namespace = _namespace(module, functions, _reachable(rule.name, functions))
    return _rule_function(namespace, functions[rule.name])


def verdicts(name: str, limit: int) -> tuple[tuple[str, bool], ...]:
    """Each mutant of the rule, and whether one of its cases notices it."""
    cases = cases_by_rule()[name]
    return tuple(
        (mutant.where, any(case.breaks(mutant.function) for case in cases))
        for mutant in mutants(all_case_rules()[name], limit)
    )


if __name__ == "__main__":
    found: dict[str, bool] = {}
    for rule in cases_by_rule():
        for where, broke in verdicts(rule, 60):
            found[where] = found.get(where, False) or broke
    print("\n".join(sorted(where for where, broke in found.items() if not broke)))
