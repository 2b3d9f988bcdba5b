"""A baseline: the facts of nodes that were good, in one JSON file, and what has moved against it.

    {"baseline_version": 1, "tool_version", "collected_at", "source", "nodes": [...],
     "facts": {"gpu.driver-version": [{"value": "580.95.05", "nodes": ["gpu01", "gpu02"]}, ...], ...}}

Equal values of several nodes stand once. A fact that was not measured is not in it, so it is never compared.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from epdoctor import __version__
from epdoctor.compare.baseline_check import CHECK_ID
from epdoctor.compare.difference import FactChange, facts_difference
from epdoctor.compare.facts import IDENTITY, Facts, Value
from epdoctor.exceptions import Unmeasured, UsageError
from epdoctor.facts.environment import PER_NODE
from epdoctor.model import Finding, NodeOutcome, Problem, Severity, Status
from epdoctor.nodenames import fold

VERSION = 1
MAX_BYTES = 256 << 20
_REASONS_SHOWN = 3


@dataclass
class Baseline:
    """What good nodes looked like."""

    path: str
    collected_at: str
    source: str
    facts: dict[str, dict[str, Value]] = field(default_factory=dict)
    """By node."""

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(self.facts)


# ---------------------------------------------------------------- file


def baseline_text(facts: Mapping[str, Mapping[str, Value]], *, source: str, collected_at: str) -> str:
    """The file of these nodes."""
    folded: dict[str, list[dict[str, Any]]] = {}
    for name in sorted({name for found in facts.values() for name in found}):
        entries: dict[str, dict[str, Any]] = {}
        for node, found in facts.items():
            value = found.get(name)
            if name in found and not isinstance(value, Unmeasured):
                key = json.dumps(value, sort_keys=True)
                entries.setdefault(key, {"value": value, "nodes": []})["nodes"].append(node)
        if entries:
            folded[name] = list(entries.values())
    data = {
        "baseline_version": VERSION,
        "tool_version": __version__,
        "collected_at": collected_at,
        "source": source,
        "nodes": list(facts),
        "facts": folded,
    }
    return json.dumps(data, indent=1, ensure_ascii=True) + "\n"


def load_baseline(path: Path) -> Baseline:
    """Raises UsageError: no such file, no baseline, another version, malformed."""
    save = "epdoctor baseline save -o baseline.json"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES >> 20} MiB, no baseline is")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--baseline {path}: {error.strerror or error}", hint=save) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a baseline, not even JSON", hint=save) from error
    version = data.get("baseline_version") if isinstance(data, dict) else None
    if version is None:
        raise UsageError(f"{path}: not a baseline (no baseline_version)", hint=save)
    if version != VERSION or isinstance(version, bool):
        shown = version if isinstance(version, int) and not isinstance(version, bool) else "unreadable"
        raise UsageError(
            f"{path}: baseline version {shown}; this epdoctor reads version {VERSION}: save it anew",
            hint=save,
        )
    nodes, facts = data.get("nodes"), data.get("facts")
    if (
        not isinstance(nodes, list)
        or not isinstance(facts, dict)
        or not all(isinstance(n, str) for n in nodes)
    ):
        raise UsageError(f"{path}: a malformed baseline (nodes, facts)", hint=save)
    found: dict[str, dict[str, Value]] = {node: {} for node in nodes}
    for name, entries in facts.items():
        for entry in entries if isinstance(entries, list) else [None]:
            if not _is_entry(entry):
                raise UsageError(f"{path}: a malformed baseline (facts, {name[:80]})", hint=save)
            for node in entry["nodes"]:
                if node in found:
                    found[node][name] = entry["value"]
    if not found:
        raise UsageError(f"{path}: a baseline of no node", hint=save)
    return Baseline(str(path), str(data.get("collected_at", "")), str(data.get("source", "")), found)


def _is_entry(entry: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("nodes"), list) or "value" not in entry:
        return False
    value = entry["value"]
    plain = value is None or isinstance(value, str)
    return plain or (isinstance(value, dict) and all(isinstance(text, str) for text in value.values()))


# ---------------------------------------------------------------- findings


def moved(
    baseline: Baseline, facts: Mapping[str, Facts], outcomes: Iterable[NodeOutcome], *, roots: Collection[str]
) -> tuple[list[Finding], list[str]]:
    """A finding for each reached node, and warnings about nodes that only one side has.

    A baseline of one node stands for every node: then names, addresses and serial numbers are not compared with
    another node's. `roots`: the nodes that were looked at as root."""
    findings = []
    reached = [outcome.node for outcome in outcomes if not outcome.error]
    golden = baseline.nodes[0] if len(baseline.nodes) == 1 else ""
    for node in reached:
        like = node if node in baseline.facts else golden
        if not like:
            reason = f"not in the baseline {baseline.path} ({fold(baseline.nodes)})"
            findings.append(Finding(CHECK_ID, Status.UNKNOWN, Severity.WARNING, node, reason=reason))
            continue
        if node not in facts:
            findings.append(
                Finding(CHECK_ID, Status.UNKNOWN, Severity.WARNING, node, reason="no facts were read")
            )
            continue
        findings.append(_judge(baseline, node, like, facts[node], root=node in roots))
    warnings = []
    missing = [node for node in baseline.nodes if node not in {o.node for o in outcomes}]
    if missing and missing != [golden] and len(reached) > 1:
        warnings.append(f"in the baseline, not in this run: {fold(missing)}")
    return findings, warnings


def _judge(baseline: Baseline, node: str, like: str, new: Facts, *, root: bool) -> Finding:
    old: Facts = baseline.facts[like]
    if like != node:
        old, new = _shared(old), _shared(new)
    # Not measured now is told as such; what the baseline lacks is no promise.
    old = {name: value for name, value in old.items() if name in new}
    changes = facts_difference({node: old}, {node: new})
    unseen = [change for change in changes if change.kind == "unseen"]
    where = f" of {like}" if like != node else ""
    problems = tuple(_problem(change, where) for change in changes if change.kind not in ("unseen", "seen"))
    reason = ""
    if unseen:
        shown = "; ".join(f"{change.fact}: {change.after}" for change in unseen[:_REASONS_SHOWN])
        more = f"; and {len(unseen) - _REASONS_SHOWN} more" if len(unseen) > _REASONS_SHOWN else ""
        reason = shown + more
    if problems:
        return Finding(CHECK_ID, Status.FAIL, Severity.WARNING, node, problems=problems, reason=reason)
    if unseen:
        denied = not root and all("denied" in change.after or "EACCES" in change.after for change in unseen)
        return Finding(CHECK_ID, Status.UNKNOWN, Severity.WARNING, node, reason=reason, needs_root=denied)
    return Finding(CHECK_ID, Status.PASS, Severity.WARNING, node)


def _shared(facts: Facts) -> Facts:
    """Without what differs between healthy nodes."""
    found = {name: value for name, value in facts.items() if name not in IDENTITY}
    variables = found.get("env.variables")
    if isinstance(variables, dict):
        found["env.variables"] = {k: v for k, v in variables.items() if k not in PER_NODE and "RANK" not in k}
    return found


def _problem(change: FactChange, where: str) -> Problem:
    what = f"{change.fact} {', '.join(change.subjects)}".strip()
    now = "not there" if change.kind == "went" else change.after or "none"
    was = "not there" if change.kind == "appeared" else change.before or "none"
    return Problem(
        f"{what}: {now} (was {was})",
        f"as in the baseline{where}",
        (f"{what}: {was} -> {now}",),
        subject=what,
    )
