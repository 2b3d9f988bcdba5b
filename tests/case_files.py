"""Case files: pieces of records with the verdict in the file's name (format: checks/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from epdoctor.catalog import load_checks
from epdoctor.cluster import digest
from epdoctor.compiled import read_yaml
from epdoctor.engine import Engine
from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.facts.base import CollectOptions, Source
from epdoctor.model import Finding, Goal

ROOT = Path(__file__).parent
CASES = ROOT / "cases"
RECORDS = ROOT / "records"
VERDICTS = ("pass", "fail", "skip", "unknown")
_KEYS = {"goal", "options", "based_on", "probes", "remove", "root", "nodes", "expect", "source"}


@dataclass(frozen=True)
class Case:
    path: Path
    check: str
    name: str
    verdict: str

    @property
    def id(self) -> str:
        return f"{self.check}/{self.name}.{self.verdict}"


def all_cases() -> list[Case]:
    """Every case file, by its name alone."""
    found = []
    for path in sorted(CASES.glob("*/*.yaml")):
        name, _, verdict = path.stem.rpartition(".")
        found.append(Case(path, path.parent.name, name, verdict))
    return found


@cache
def base_probes(name: str) -> dict[str, Any]:
    """Probes of a whole recorded node under tests/records."""
    value = json.loads((RECORDS / f"{name}.json").read_text())
    probes: dict[str, Any] = value["probes"]
    return probes


def probes_of(spec: dict[str, Any]) -> dict[str, Any]:
    probes = dict(base_probes(spec["based_on"])) if spec.get("based_on") else {}
    for name, entry in (spec.get("probes") or {}).items():
        probes[name] = (
            {"status": "ran", "rc": 0, "seconds": 0.01, **entry} if isinstance(entry, dict) else entry
        )
    for name in spec.get("remove") or ():
        probes.pop(name, None)
    return probes


def goal_of(spec: dict[str, Any]) -> Goal:
    return Goal(**(spec.get("goal") or {}))


def _options(spec: dict[str, Any]) -> CollectOptions:
    given = dict(spec.get("options") or {})
    if "node_names" in given:
        given["node_names"] = tuple(given["node_names"])
    return CollectOptions(**given)


def node_of(spec: dict[str, Any], name: str = "n1", goal: Goal | None = None) -> Node:
    source = Source(probes_of(spec), root=bool(spec.get("root", True)))
    return Node(name, source, goal or goal_of(spec), _options(spec))


def prepare(case: Case) -> tuple[Node | dict[str, dict[str, Any]], dict[str, Any]]:
    """What the case's check is judged on (a node, or every node's digest), and the case's content."""
    spec = read_yaml(case.path)
    assert isinstance(spec, dict), case.path
    assert spec.keys() <= _KEYS, f"{case.path}: unknown keys {spec.keys() - _KEYS}"
    assert spec.get("source"), f"{case.path}: says not where its text comes from"
    if load_checks()[case.check].scope == "node":
        return node_of(spec), spec
    digests: dict[str, dict[str, Any]] = {}
    for name, node_spec in spec["nodes"].items():
        values = {}
        if "probes" in node_spec or "based_on" in node_spec:
            values = digest(node_of({**spec, **node_spec}, name, goal_of(spec)))
        for key, value in (node_spec.get("digest") or {}).items():
            values[key] = (
                Unmeasured(value["unmeasured"])
                if isinstance(value, dict) and "unmeasured" in value
                else value
            )
        digests[name] = values
    return digests, spec


def judge_case(case: Case) -> tuple[Finding, dict[str, Any]]:
    """The finding of the case's own check, and the case's content."""
    facts, spec = prepare(case)
    check = load_checks()[case.check]
    engine = Engine({check.id: check}, goal_of(spec))
    if isinstance(facts, Node):
        return engine.judge_node(facts).findings[0], spec
    return engine.judge_cluster(facts)[0], spec


def complaint(case: Case, finding: Finding, spec: dict[str, Any]) -> str:
    """Empty, or how a finding is not what the case's name and its `expect` say."""
    shown = finding.traceback or finding.reason or "; ".join(problem.found for problem in finding.problems)
    if finding.status.value != case.verdict:
        return f"{finding.status.value}: {shown}"
    if case.verdict == "fail" and not all(problem.found and problem.expected for problem in finding.problems):
        return "a problem says not what was found or expected"
    for key, text in (spec.get("expect") or {}).items():
        if key == "severity":
            if finding.severity.value != text:
                return f"severity {finding.severity.value}, not {text}"
        elif key == "reason":
            if text not in finding.reason:
                return f"reason {finding.reason!r}, without {text!r}"
        else:
            texts = [getattr(problem, key) for problem in finding.problems]
            flat = [item for value in texts for item in ([value] if isinstance(value, str) else value)]
            wanted = text if isinstance(text, list) else [text]
            if not all(any(word in item for item in flat) for word in wanted):
                return f"{key} is {flat}, without {wanted}"
    return ""
