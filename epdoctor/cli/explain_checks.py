"""Judge the checks of some causes for explain: on this machine, on all nodes, or on a recording."""

from __future__ import annotations

from typing import Any

from epdoctor.exceptions import UsageError
from epdoctor.explain.result import CheckResult
from epdoctor.model import Check, Finding, Goal, Report, Severity, Status

_DEFAULTS: dict[str, Any] = {
    "forks": None,
    "timeout_s": None,
    "via": "",
    "transport": "fabric",
    "dynamic_inventory": False,
    "python": "",
    "env_file": None,
    "max_num_batched_tokens": None,
    "backend": "",
    "vllm_version": "",
}


def check_results(checks: dict[str, Check], values: dict[str, Any]) -> dict[str, CheckResult]:
    """What each check says, over all nodes that were looked at. `values`: explain's options.

    Raises UsageError or RecordError before or while a recording or an inventory is read."""
    values = {**_DEFAULTS, **values}
    many = values["all_nodes"] or values["inventory"] or values["limit"]
    if values["from_"] is not None and many:
        raise UsageError("--from judges a recording; it does not go with --all-nodes, -i or --limit")
    report = _recorded(checks, values) if values["from_"] is not None else _live(checks, values)
    by_check: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_check.setdefault(finding.check, []).append(finding)
    return {check_id: summarise(check_id, found) for check_id, found in by_check.items()}


def summarise(check_id: str, found: list[Finding]) -> CheckResult:
    """One check over all nodes: the worst status decides, and the nodes that have it are named. Pure."""
    for status in (Status.FAIL, Status.ERROR, Status.UNKNOWN, Status.PASS, Status.SKIP):
        own = [finding for finding in found if finding.status is status]
        if own:
            nodes = tuple(
                dict.fromkeys(
                    node
                    for finding in own
                    for node in (
                        (finding.node,)
                        if finding.node
                        else [n for p in finding.problems for n in p.odd_nodes]
                    )
                )
            )
            texts = list(dict.fromkeys(p.found for finding in own for p in finding.problems))
            text = "; ".join(texts[:2]) if texts else own[0].reason
            return CheckResult(check_id, status.value, nodes if status is Status.FAIL else (), text)
    return CheckResult(check_id, Status.UNKNOWN.value, (), "not judged")


def _recorded(checks: dict[str, Check], values: dict[str, Any]) -> Report:
    from epdoctor.judge import build_report, judge_recording

    engine, _, judged = judge_recording(values["from_"], checks, Goal(), True, {})
    return build_report(judged, engine, checks, source="recording", fail_on=Severity.ERROR)


def _live(checks: dict[str, Check], values: dict[str, Any]) -> Report:
    from epdoctor.cli.gather import gather
    from epdoctor.cli.options import node_choice
    from epdoctor.engine import Engine
    from epdoctor.judge import build_report, judge_record

    gathered = gather(node_choice(values), values)
    options = gathered.recording.options
    records = gathered.records
    # Whoever explains an error wants every check that can prove it, also on the only node at hand.
    engine = Engine(checks, Goal(multinode=True, multinode_reason="an error to explain"))
    judged = (judge_record(record, engine, options) for record in records)
    return build_report(judged, engine, checks, source="live", fail_on=Severity.ERROR)
