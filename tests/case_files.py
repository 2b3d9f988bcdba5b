"""Case files: pieces of records with the verdict in the file's name (format: checks/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
from epdoctor.launch.model import LaunchSet
from epdoctor.model import Finding, Goal
from tests.launch_files import launch_of

ROOT = Path(__file__).parent
CASES = ROOT / "cases"
RECORDS = ROOT / "records"
VERDICTS = ("pass", "fail", "skip", "unknown")
MACHINES = ("h100x1", "h200x2", "h200x2-nobody", "h100-8hca")
"""Records of real machines, as they stand. h100-8hca holds a machine's RDMA devices alone."""
_KEYS = {
    "goal", "options", "based_on", "edit", "probes", "remove", "root", "nodes", "expect", "source", "after_fix",
    "launch",
}  # fmt: skip


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


def _row_edited(row: list[Any], replace: list[list[str]]) -> list[Any]:
    if len(row) > 1 and isinstance(row[1], str):
        for old, new in replace:
            row = [row[0], row[1].replace(old, new), *row[2:]]
    return row


def edited(entry: dict[str, Any], edit: dict[str, Any], where: str) -> dict[str, Any]:
    """A probe's entry with a named edit (checks/README.md). Every word of an edit must find what it edits."""
    assert edit.keys() <= {"set", "add", "drop", "replace", "merge"}, f"{where}: {sorted(edit)}"
    entry = dict(entry)
    if "data" in entry:
        rows = list(entry["data"])
        for pattern in edit.get("drop", ()):
            kept = [row for row in rows if not fnmatchcase(row[0], pattern)]
            assert len(kept) < len(rows), f"{where}: nothing to drop at {pattern}"
            rows = kept
        for path, *pairs in edit.get("replace", ()):
            places = [n for n, row in enumerate(rows) if fnmatchcase(row[0], path)]
            assert any(old in str(rows[n][1]) for old, _ in pairs for n in places), f"{where}: no such text"
            for n in places:
                rows[n] = _row_edited(rows[n], pairs)
        for key, patch in edit.get("merge", ()):
            places = [n for n, row in enumerate(rows) if row[0] == key]
            assert places, f"{where}: no row {key}"
            rows[places[0]] = [key, {**rows[places[0]][1], **patch}]
        for row in edit.get("set", ()):
            places = [n for n, old in enumerate(rows) if old[0] == row[0]]
            if places:
                rows[places[0]] = row
            else:
                rows.append(row)
        entry["data"] = rows + list(edit.get("add", ()))
    else:
        assert edit.keys() <= {"replace"}, f"{where}: has no rows"
        for old, new in edit.get("replace", ()):
            assert old in entry.get("stdout", ""), f"{where}: no such text {old!r}"
            entry["stdout"] = entry["stdout"].replace(old, new)
    return entry


def bases_of(spec: dict[str, Any]) -> list[str]:
    """Records that a case starts from; what a later one holds replaces the earlier one's."""
    bases = spec.get("based_on") or []
    return [bases] if isinstance(bases, str) else list(bases)


def probes_of(spec: dict[str, Any]) -> dict[str, Any]:
    probes: dict[str, Any] = {}
    for record in bases_of(spec):
        probes.update(base_probes(record))
    for name, edit in (spec.get("edit") or {}).items():
        base = probes.get(name, {"status": "ran", "rc": 0, "seconds": 0.01, "data": []})
        probes[name] = edited(base, edit, f"edit of {name}")
    for name, entry in (spec.get("probes") or {}).items():
        probes[name] = (
            {"status": "ran", "rc": 0, "seconds": 0.01, **entry} if isinstance(entry, dict) else entry
        )
    for name in spec.get("remove") or ():
        probes.pop(name, None)
    return probes


def goal_of(spec: dict[str, Any]) -> Goal:
    return Goal(**(spec.get("goal") or {}))


def options_of(spec: dict[str, Any]) -> CollectOptions:
    given = dict(spec.get("options") or {})
    if "node_names" in given:
        given["node_names"] = tuple(given["node_names"])
    return CollectOptions(**given)


def node_of(spec: dict[str, Any], name: str = "n1", goal: Goal | None = None) -> Node:
    source = Source(probes_of(spec), root=bool(spec.get("root", True)))
    return Node(name, source, goal or goal_of(spec), options_of(spec))


def prepare(case: Case) -> tuple[Node | LaunchSet | dict[str, dict[str, Any]], dict[str, Any]]:
    """What the case's check is judged on (a node, or every node's digest), and the case's content."""
    spec = read_yaml(case.path)
    assert isinstance(spec, dict), case.path
    assert spec.keys() <= _KEYS, f"{case.path}: unknown keys {spec.keys() - _KEYS}"
    assert spec.get("source"), f"{case.path}: says not where its text comes from"
    scope = load_checks()[case.check].scope
    if scope == "launch":
        nodes = {
            name: node_of(node, name, goal_of(spec)) for name, node in spec["launch"].get("nodes", {}).items()
        }
        return launch_of(spec["launch"], nodes), spec
    if scope == "node":
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
    if isinstance(facts, LaunchSet):
        return engine.judge_launch(facts)[0], spec
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
