"""A report's JSON (epdoctor/report/report_schema.json) back into a Report: the same report, not judged anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from epdoctor.exceptions import RecordError
from epdoctor.model import (
    Action,
    Check,
    Disruption,
    Finding,
    Fix,
    Goal,
    Location,
    NodeOutcome,
    Problem,
    Readiness,
    Report,
    Severity,
    SharedTopology,
    Status,
    Waiver,
)
from epdoctor.report.json_report import SCHEMA_VERSION

MAX_BYTES = 512 << 20


def is_report(path: Path) -> bool:
    """Whether a file is the JSON of a report and not a node's record (where a quote within a text has a \\)."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if not head.lstrip().startswith(b"{"):
                return False
            return b'"schema_version"' in head + file.read(MAX_BYTES)
    except OSError:
        return False


def load_report(path: Path) -> Report:
    """Raises RecordError where the file is no report, does not fit the schema, or is of a newer one."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecordError(f"{path}: larger than {MAX_BYTES >> 20} MiB, no report is")
        raw = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON ({error})") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise RecordError(
            f"{path}: not a report (no schema_version)", hint="epdoctor check --format json -o report.json"
        )
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{path}: schema {version} is newer than this epdoctor reads ({SCHEMA_VERSION})",
            hint="pip install --upgrade epdoctor",
        )
    from jsonschema.exceptions import best_match

    wrong = best_match(_validator().iter_errors(data))
    if wrong is not None:
        where = "/".join(str(part) for part in wrong.absolute_path) or "the whole"
        raise RecordError(f"{path}: does not fit the report's schema at {where}: {wrong.message[:160]}")
    return _report(data)


@cache
def _validator() -> Any:
    """The shipped schema, but for fields that a later version may have added."""
    from jsonschema import Draft202012Validator

    schema = json.loads((Path(__file__).parent / "report_schema.json").read_text())
    return Draft202012Validator(_open(schema))


def _open(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {k: _open(v) for k, v in schema.items() if not (k == "additionalProperties" and v is False)}
    return [_open(item) for item in schema] if isinstance(schema, list) else schema


def _report(data: Mapping[str, Any]) -> Report:
    checks = _checks(data["findings"])
    goal = data["goal"]
    report = Report(
        Goal(
            backend=goal["backend"],
            requested_backend=goal["requested_backend"],
            multinode=goal["multinode"],
            multinode_reason=goal["multinode_reason"],
            vllm_version=goal["vllm_version"],
            max_num_batched_tokens=goal["max_num_batched_tokens"],
        ),
        [
            NodeOutcome(
                node["name"],
                node["error"],
                node["kind"],
                node["hint"],
                tuple(node["warnings"]),
                node["seconds"],
                node["slowest_probe"],
                node["slowest_probe_seconds"],
            )
            for node in data["nodes"]
        ],
        [finding for entry in data["findings"] for finding in _findings(entry)],
        checks,
        seconds=data["seconds"],
        source=data["source"],
        interrupted=data["interrupted"],
        warnings=list(data["warnings"]),
        fail_on=Severity(data.get("fail_on", "error")),
        collected_at=data["collected_at"],
        catalogue_date=data["tool"]["catalogue"],
        vllm_versions={str(k): list(v) for k, v in data.get("vllm_versions", {}).items()},
        hca_sets={str(k): list(v) for k, v in data.get("hca_sets", {}).items()},
        selected=data["selected"],
        tool_version=data["tool"]["version"],
    )
    report.readiness = [
        Readiness(
            row["backend"],
            tuple(row["ready"]),
            tuple(row["not_ready"]),
            tuple(row["unknown"]),
            tuple(row["because"]),
            tuple(row.get("waived", ())),
        )
        for row in data["readiness"]
    ]
    report.expired_waivers = [_waiver(entry) for entry in data.get("expired_waivers", ())]
    report.fail_on_expired_waiver = data.get("fail_on_expired_waiver", False)
    report.topologies = [
        SharedTopology(tuple(entry["nodes"]), entry["shape"]) for entry in data.get("topologies", ())
    ]
    return report


def _checks(entries: list[dict[str, Any]]) -> dict[str, Check]:
    """The checks as the report tells them: what it left out (parameters, needs) no form of it shows."""
    checks: dict[str, Check] = {}
    for check_id, same in _by_id(entries).items():
        # Skipped and passed entries tell less; one whose problems have commands of their own hides the check's.
        told = next((entry for entry in same if "fix" in entry), same[0])
        fix = told.get("fix", {})
        checks[check_id] = Check(
            id=check_id,
            title=told["title"],
            severity={"default": Severity(told["severity"])},
            scope=told.get("scope", "node"),
            rule="",
            params={},
            why=told.get("why", ""),
            by_hand=told.get("by_hand", ""),
            fix=Fix(
                _commands(same, "now"),
                _commands(same, "permanent"),
                fix.get("workaround", ""),
                fix.get("playbook", ""),
                tuple(fix.get("tags", ())),
                Action(fix.get("action", "none")),
                Disruption(fix.get("disruption", "none")),
            ),
            causes=tuple(told.get("causes", ())),
            references=tuple(told.get("references", ())),
        )
    return checks


def _by_id(entries: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(entry["id"], []).append(entry)
    return found


def _commands(entries: list[dict[str, Any]], key: str) -> tuple[str, ...]:
    """The check's own commands, from an entry whose problems have none."""
    for entry in entries:
        if "fix" in entry and not any(problem[key] for problem in entry.get("problems", ())):
            return tuple(entry["fix"][key])
    return ()


def _findings(entry: dict[str, Any]) -> list[Finding]:
    """One finding a node; the time of folded ones is on the first."""
    nodes = entry["nodes"] if entry.get("scope", "node") == "node" and entry["nodes"] else [""]
    if any(problem["odd_nodes"] for problem in entry.get("problems", ())):
        nodes = [""]
    waiver = _waiver(entry["waiver"]) if "waiver" in entry else None
    problems = tuple(_problem(problem) for problem in entry.get("problems", ()))
    return [
        Finding(
            check=entry["id"],
            status=Status(entry["status"]),
            severity=Severity(entry["severity"]),
            node=node,
            problems=problems,
            reason=entry.get("reason", ""),
            needs_root=entry.get("needs_root", False),
            traceback=entry.get("traceback", ""),
            blocks=tuple(entry.get("blocks", ())),
            waived=entry.get("waived", ""),
            seconds=entry.get("seconds", 0.0) if index == 0 else 0.0,
            waiver=waiver,
        )
        for index, node in enumerate(nodes)
    ]


def _problem(value: dict[str, Any]) -> Problem:
    return Problem(
        found=value["found"],
        expected=value["expected"],
        evidence=tuple(value["evidence"]),
        severity=Severity(value["severity"]) if "severity" in value else None,
        now=tuple(value["now"]),
        permanent=tuple(value["permanent"]),
        subject=value["subject"],
        odd_nodes=tuple(value["odd_nodes"]),
        location=_location(value["location"]) if "location" in value else None,
    )


def _location(value: dict[str, Any]) -> Location:
    return Location(value["path"], value["line"], value["column"])


def _waiver(value: dict[str, Any]) -> Waiver:
    return Waiver(
        value["check"],
        value["reason"],
        value["nodes"],
        value["expires"],
        value["owner"],
        _location(value["location"]) if "location" in value else None,
        value["expired"],
    )
