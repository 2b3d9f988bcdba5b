"""The report as the JSON that the page's scripts read: what is alike on many nodes stands once. Pure.

Nodes and checks are numbers (places in `nodes` and `checks`); a set of nodes is a text, "0-299,305". The marks of a
node are a text with a letter a check: E W I failed (error, warning, info), U unknown where it decides, u unknown,
w waived, p passed, s does not apply, X node not reached, "." not judged on this node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from epdoctor import __version__
from epdoctor.model import Check, Finding, Problem, Report, Severity, Status, Waiver
from epdoctor.nodenames import fold
from epdoctor.report.next_step import next_command
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import Group, exit_code, group_findings, no_gpu
from epdoctor.report.verdict import about, headline, sentence, tally

TEXT_BUDGET = 2_000_000
"""Characters of findings' texts that differ from node to node. Beyond it only the first variants of each are kept
(and the page says so), so that no cluster makes a page that a browser cannot open."""
ALWAYS = 3
"""Variants of a finding that are kept whatever the budget."""
MAX_NAME = 120

_FAILED = {Severity.ERROR: "E", Severity.WARNING: "W", Severity.INFO: "I"}


def page_data(report: Report, command: str) -> dict[str, Any]:
    places = {outcome.node: index for index, outcome in enumerate(report.outcomes)}
    checks = {check: index for index, check in enumerate(report.checks)}
    told = {finding.check for finding in report.findings if finding.status not in (Status.PASS, Status.SKIP)}
    return {
        "run": _run(report, command),
        "readiness": _readiness(report),
        "nodes": [sanitize(node, MAX_NAME) for node in places],
        "rows": _rows(report, places, checks),
        "checks": [_check(check, told=check.id in told) for check in report.checks.values()],
        "groups": _groups(report, places, checks),
        "outcomes": _outcomes(report, places),
        "waivers": _waivers(report),
        "drift": _drift(report),
    }


def ranges(nodes: Iterable[str], places: dict[str, int]) -> str:
    """Places of nodes as "0-299,305"."""
    found = sorted({places[node] for node in nodes if node in places})
    parts: list[list[int]] = []
    for place in found:
        if parts and place == parts[-1][1] + 1:
            parts[-1][1] = place
        else:
            parts.append([place, place])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in parts)


def _run(report: Report, command: str) -> dict[str, Any]:
    counts = tally(report)
    goal = report.goal
    numbers = sorted(version for version in report.vllm_versions if version[:1].isdigit())
    facts = [
        f"{len(report.outcomes)} nodes" if len(report.outcomes) != 1 else sanitize(report.outcomes[0].node),
        f"in {report.seconds:.1f} s",
        sanitize(report.source),
        f"{goal.backend or 'all back ends'} {'across nodes' if goal.multinode else 'on a single node'}",
        f"vLLM {', '.join(numbers)}" if numbers else "no vLLM found" if report.vllm_versions else "",
        f"catalogue of {report.catalogue_date}" if report.catalogue_date else "",
        f"epdoctor {report.tool_version or __version__}",
    ]
    word = headline(report, counts)
    shown = [*counts.errors, *counts.warnings]
    return {
        "headline": word,
        "level": _level(word),
        "sentence": sanitize(sentence(counts)),
        "facts": [sanitize(fact, 300) for fact in facts if fact],
        "collected_at": sanitize(report.collected_at, 40),
        "exit_code": exit_code(report),
        "fail_on": report.fail_on.value,
        "warnings": [sanitize(text) for text in report.warnings[:50]],
        "hcas": [
            [sanitize(how, 400), sanitize(fold(nodes), 400)]
            for how, nodes in sorted(report.hca_sets.items(), key=lambda item: -len(item[1]))[:6]
        ],
        "next": _next(next_command(report, shown, counts.unknown, [], command), report),
        "no_gpu": no_gpu(report),
    }


def _next(text: str, report: Report) -> list[str]:
    """[the node to type it on, or "", the command]: what is copied is a command and nothing else."""
    node = next((o.node for o in report.outcomes if text.startswith(f"on {o.node}: ")), "")
    return [sanitize(node, MAX_NAME), sanitize(text[len(f"on {node}: ") if node else 0 :], 4000)]


def _level(word: str) -> str:
    if word in ("READY", "PASS"):
        return "ok"
    return "bad" if word in ("NOT READY", "WAIVER EXPIRED") else "unknown"


def _readiness(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "backend": row.backend,
            "ready": len(row.ready),
            "not_ready": len(row.not_ready),
            "unknown": len(row.unknown),
            "where": [sanitize(fold(nodes), 300) for nodes in (row.ready, row.not_ready, row.unknown)],
            "because": list(row.because[:12]),
            "more": max(len(row.because) - 12, 0),
            "waived": list(row.waived[:12]),
        }
        for row in ([] if report.selected else report.readiness)
    ]


def _check(check: Check, *, told: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": sanitize(check.id, 200),
        "title": sanitize(check.title, 300),
        "scope": check.scope,
    }
    if told:
        fix = check.fix
        data["why"] = sanitize(check.why)
        data["by_hand"] = _command(check.by_hand)
        data["now"] = [_command(line) for line in fix.now]
        data["permanent"] = [_command(line) for line in fix.permanent]
        data["workaround"] = sanitize(fix.workaround)
        data["playbook"] = sanitize(fix.playbook, 200)
        data["action"] = fix.action.value
        data["references"] = [sanitize(text, 300) for text in check.references[:8]]
    return data


def _command(text: str) -> str:
    """Every line made harmless, and kept: what is shown is what the button copies."""
    return "\n".join(sanitize(line, 4000) for line in text.splitlines()[:80])


# ---------------------------------------------------------------- findings


def _kind(status: Status, severity: Severity, report: Report) -> str:
    if status is Status.FAIL:
        return _FAILED[severity]
    if status is Status.SKIP:
        return "s"
    return "U" if severity.rank >= report.fail_on.rank else "u"


def _letter(finding: Finding, report: Report) -> str:
    if finding.waived:
        return "w"
    return "p" if finding.status is Status.PASS else _kind(finding.status, finding.severity, report)


def _rows(report: Report, places: dict[str, int], checks: dict[str, int]) -> list[list[str]]:
    """[marks, nodes] for every distinct row of the map."""
    blank = "." * len(checks)
    missed = "".join("X" if check.scope == "node" else "." for check in report.checks.values())
    marks = [list(missed if outcome.error else blank) for outcome in report.outcomes]
    for finding in report.findings:
        letter = _letter(finding, report)
        column = checks[finding.check]
        if finding.node:
            if finding.node in places:
                marks[places[finding.node]][column] = letter
            continue
        for problem in finding.problems:
            for node in problem.odd_nodes:
                if node in places:
                    marks[places[node]][column] = letter
    alike: dict[str, list[str]] = {}
    for outcome, row in zip(report.outcomes, marks, strict=True):
        alike.setdefault("".join(row), []).append(outcome.node)
    return [[row, ranges(nodes, places)] for row, nodes in alike.items()]


def _groups(report: Report, places: dict[str, int], checks: dict[str, int]) -> list[dict[str, Any]]:
    groups = [
        group
        for status in (Status.FAIL, Status.UNKNOWN, Status.ERROR, Status.SKIP)
        for group in group_findings(report, status)
    ]
    traces = {finding.check: finding.traceback for finding in report.findings if finding.traceback}
    left = TEXT_BUDGET
    found = []
    for group in groups:
        data, left = _group(group, report, places, checks, left)
        if group.status is Status.ERROR:
            data["trace"] = sanitize(traces.get(group.check.id, "").replace("\n", " | "), 3000)
        found.append(data)
    return found


def _group(
    group: Group, report: Report, places: dict[str, int], checks: dict[str, int], left: int
) -> tuple[dict[str, Any], int]:
    """A group's data, and what of the budget is left."""
    data: dict[str, Any] = {
        "c": checks[group.check.id],
        "k": _kind(group.status, group.severity, report),
        "n": ranges(group.nodes, places),
    }
    if group.waived:
        data["waived"] = _waiver(group.waiver) if group.waiver else sanitize(group.waived)
    elif group.waiver is not None:
        data["expired"] = _waiver(group.waiver)
    if group.blocks:
        data["blocks"] = list(group.blocks)
    for key, items in (("v", group.variants), ("r", group.reasons)):
        if (group.status is Status.FAIL and key == "r") or (group.status is not Status.FAIL and key == "v"):
            continue
        kept: list[dict[str, Any]] = []
        for item in items:
            if len(kept) >= ALWAYS and left <= 0:
                break
            if isinstance(item, tuple):
                entry: dict[str, Any] = {"t": sanitize(item[0], 600), "n": ranges(item[1], places)}
                left -= len(entry["t"]) + 20
            else:
                entry = {"p": [_problem(p) for p in item.problems[:40]], "n": ranges(item.nodes, places)}
                if len(item.problems) > 40:
                    entry["more"] = len(item.problems) - 40
                left -= sum(_size(problem) for problem in entry["p"]) + 20
            kept.append(entry)
        data[key] = kept
        if len(items) > len(kept):
            data["cut"] = len(items) - len(kept)
    return data, left


def _problem(problem: Problem) -> dict[str, Any]:
    data: dict[str, Any] = {"f": sanitize(about(problem))}
    if problem.expected:
        data["x"] = sanitize(problem.expected)
    if problem.evidence:
        data["e"] = [sanitize(line, 400) for line in problem.evidence[:12]]
    if problem.now:
        data["now"] = [_command(line) for line in problem.now[:40]]
    if problem.permanent:
        data["perm"] = [_command(line) for line in problem.permanent[:40]]
    return data


def _size(problem: dict[str, Any]) -> int:
    lists = sum(len(line) + 4 for key in ("e", "now", "perm") for line in problem.get(key, ()))
    return len(problem["f"]) + len(problem.get("x", "")) + lists + 20


# ---------------------------------------------------------------- the rest


def _outcomes(report: Report, places: dict[str, int]) -> dict[str, Any]:
    probes = sorted({outcome.slowest_probe for outcome in report.outcomes})
    number = {probe: index for index, probe in enumerate(probes)}
    warnings: dict[str, list[str]] = {}
    errors: dict[tuple[str, str], list[str]] = {}
    for outcome in report.outcomes:
        for text in outcome.warnings[:20]:
            warnings.setdefault(text, []).append(outcome.node)
        if outcome.error:
            errors.setdefault((outcome.error, outcome.hint), []).append(outcome.node)
    return {
        "probes": [sanitize(probe, 80) for probe in probes],
        "times": [
            [round(o.seconds, 2), number[o.slowest_probe], round(o.slowest_probe_s, 2)]
            for o in report.outcomes
        ],
        "errors": [
            {"t": sanitize(error, 600), "hint": sanitize(hint, 1000), "n": ranges(nodes, places)}
            for (error, hint), nodes in errors.items()
        ],
        "warnings": [
            {"t": sanitize(text, 600), "n": ranges(nodes, places)}
            for text, nodes in sorted(warnings.items(), key=lambda item: -len(item[1]))[:100]
        ],
    }


def _waiver(waiver: Waiver) -> str:
    from epdoctor.waivers import waiver_text

    return sanitize(waiver_text(waiver), 600)


def _waivers(report: Report) -> list[dict[str, Any]]:
    """Those that fit a finding, and those that have expired."""
    counts: dict[Waiver, int] = {}
    for finding in report.findings:
        if finding.waiver is not None:
            counts[finding.waiver] = counts.get(finding.waiver, 0) + 1
    for waiver in report.expired_waivers:
        counts.setdefault(waiver, 0)
    return [
        {
            "check": sanitize(waiver.check, 200),
            "nodes": sanitize(waiver.nodes, 300) or "every node",
            "reason": sanitize(waiver.reason, 600),
            "expires": sanitize(waiver.expires, 40),
            "owner": sanitize(waiver.owner, 120),
            "expired": waiver.expired,
            "findings": count,
            "where": sanitize(str(waiver.location), 300) if waiver.location is not None else "",
        }
        for waiver, count in counts.items()
    ]


def _drift(report: Report) -> dict[str, Any]:
    """What is not alike on all nodes: a row a value, by the checks of scope cluster that name odd nodes."""
    rows = []
    alike = []
    for finding in report.findings:
        check = report.checks[finding.check]
        if finding.node or check.scope != "cluster":
            continue
        if finding.status is Status.PASS:
            alike.append(sanitize(check.title, 200))
        if finding.status is not Status.FAIL:
            continue
        rows += [
            {
                "title": sanitize(check.title, 300),
                "id": sanitize(check.id, 200),
                "kind": _letter(finding, report),
                "found": sanitize(about(problem), 400),
                "expected": sanitize(problem.expected, 400),
                "nodes": sanitize(fold(problem.odd_nodes), 400),
            }
            for problem in finding.problems[:20]
            if problem.odd_nodes
        ]
    return {"rows": rows, "alike": alike}
