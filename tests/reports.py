"""Reports made of whatever text: what the formats have to stand, and one as large as a big cluster's."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from epdoctor.model import (
    Check,
    Finding,
    Fix,
    Goal,
    Location,
    NodeOutcome,
    Problem,
    Readiness,
    Report,
    Severity,
    Status,
    Waiver,
)

NASTY = (
    "\x00", "\x1b[31m", "\x07", "\x0b", "\x85", "\ufffe", "\uffff", "\ud800", "\udcff", "\u202e", "\u2028", "\r\n", "\t",
    "]]>", "<script>alert(1)</script>", "<!--", "&amp;", "&#0;", '"', "'", "`", "```", "~~~", "|", "\\", "\\|", "%", "%0A",
    "::error file=x::y", "##[error]", "=1+1", "@SUM(A1)", "+1", "-1", "\uff1d1", ";=1", ",=1", "[x](https://evil.example)",
    "![x](https://evil.example)", "https://evil.example", "@everyone", "#1", "{0}", "${HOME}", "$(id)", "'; drop", " ", "\n# x",
    "# EOF", '{a="b"} 1', "..", "/etc/passwd", "a" * 5000,
)  # fmt: skip

hostile = st.lists(
    st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=()), max_size=12), max_size=5
).map("".join)
_line = st.integers(0, 10**6)
locations = st.builds(Location, hostile.filter(bool), _line, _line)
severities = st.sampled_from(Severity)


def problems(names: list[str]) -> st.SearchStrategy[Problem]:
    return st.builds(
        Problem,
        found=hostile, expected=hostile, evidence=st.lists(hostile, max_size=2).map(tuple),
        severity=st.none() | severities, now=st.lists(hostile, max_size=2).map(tuple),
        permanent=st.lists(hostile, max_size=1).map(tuple), subject=hostile,
        odd_nodes=st.lists(st.sampled_from(names), max_size=2, unique=True).map(tuple),
        location=st.none() | locations,
    )  # fmt: skip


def check(check_id: str, **change: Any) -> Check:
    fields: dict[str, Any] = {
        "id": check_id, "title": "A title", "severity": {"default": Severity.ERROR}, "scope": "node", "rule": "r",
        "params": {}, "why": "It breaks.", "by_hand": "ls", "fix": Fix(now=("true",)),
        "references": ("NCCL: https://docs.example/nccl.html",),
    }  # fmt: skip
    return Check(**{**fields, **change})


@st.composite
def reports(draw: st.DrawFn) -> Report:
    """Every status and scope, with text from anywhere in every place where text from outside can be."""
    names = draw(st.lists(hostile.filter(bool), min_size=1, max_size=3, unique=True))
    checks = {
        c.id: c
        for c in (
            check("gpu.a", why=draw(hostile), by_hand="x" + draw(hostile), title=draw(hostile)),
            check("gpu.b", references=(draw(hostile),)),
            check("drift.c", scope="cluster"),
            check("launch.d", scope="launch"),
        )
    }
    waivers = st.builds(
        Waiver, st.just("gpu"), hostile, hostile, st.just("2020-01-01"), hostile, locations, st.booleans()
    )
    findings = []
    for node in names:
        findings += [draw(_findings(check_id, node, names, waivers)) for check_id in ("gpu.a", "gpu.b")]
    findings += [draw(_findings(check_id, "", names, waivers)) for check_id in ("drift.c", "launch.d")]
    outcomes = [NodeOutcome(name, error=draw(st.just("") | hostile), kind=draw(hostile), hint=draw(hostile)) for name in names]  # fmt: skip
    report = Report(
        Goal(backend=draw(st.sampled_from(["", "deepep_v2"])), multinode=True), outcomes, findings, checks
    )
    report.source = draw(hostile)
    report.warnings = draw(st.lists(hostile, max_size=2))
    report.collected_at = draw(st.sampled_from(["", "2026-11-22T02:00:00Z", "0001-01-01"]) | hostile)
    report.catalogue_date = "2026-11-22"
    report.fail_on = draw(severities)
    report.interrupted = draw(st.booleans())
    report.expired_waivers = draw(st.lists(waivers, max_size=2))
    report.fail_on_expired_waiver = draw(st.booleans())
    report.selected = draw(st.booleans())
    report.readiness = [Readiness("deepep_v2", tuple(names), (), (), ("gpu.a",), ("gpu.b",))]
    report.vllm_versions = {draw(hostile): names}
    report.hca_sets = {draw(hostile): names}
    return report


@st.composite
def _findings(
    draw: st.DrawFn, check_id: str, node: str, names: list[str], waivers: st.SearchStrategy[Waiver]
) -> Finding:
    status = draw(st.sampled_from(Status))
    waiver = draw(st.none() | waivers) if status in (Status.FAIL, Status.UNKNOWN) else None
    return Finding(
        check_id,
        status,
        draw(severities),
        node,
        problems=tuple(draw(st.lists(_of_node if node else problems(names), min_size=1, max_size=2))) if status is Status.FAIL else (),
        reason=draw(hostile) if status is not Status.PASS else "",
        traceback=draw(hostile) if status is Status.ERROR else "",
        blocks=("deepep_v2",) if draw(st.booleans()) else (),
        waiver=waiver,
        waived=waiver.reason if waiver is not None and not waiver.expired else "",
        seconds=0.25,
    )  # fmt: skip


_of_node = problems(["x"]).map(
    lambda p: Problem(p.found, p.expected, p.evidence, p.severity, p.now, p.permanent, p.subject)
)


def large_report(nodes: int = 512, checks: int = 150, *, spread: int = 300) -> Report:
    """`checks` checks on `nodes` nodes; one fault on `spread` of them, a few others here and there."""
    names = [f"gpu{number:04d}" for number in range(1, nodes + 1)]
    known = {
        f"area{number % 12}.check-{number:03d}": check(
            f"area{number % 12}.check-{number:03d}",
            title=f"Check {number} of the cluster holds on every node",
        )
        for number in range(checks)
    }
    ids = list(known)
    findings = []
    for index, node in enumerate(names):
        for number, check_id in enumerate(ids):
            if number == 0 and index % nodes < spread:
                problem = Problem(
                    "8 MiB in containerd.service (LimitMEMLOCK)", "unlimited", ("a: b",), subject="x"
                )
                findings.append(
                    Finding(check_id, Status.FAIL, Severity.ERROR, node, (problem,), seconds=0.001)
                )
            elif number == 1 and index % 100 == 7:
                problem = Problem(f"link {index} down", "every link up", subject="mlx5_3")
                findings.append(
                    Finding(check_id, Status.FAIL, Severity.WARNING, node, (problem,), seconds=0.001)
                )
            elif number % 5 == 4:
                findings.append(
                    Finding(check_id, Status.SKIP, Severity.ERROR, node, reason="No RDMA device on this node")
                )
            elif number == 2 and index % 50 == 3:
                findings.append(
                    Finding(
                        check_id,
                        Status.UNKNOWN,
                        Severity.INFO,
                        node,
                        reason="/sys/x: EACCES",
                        needs_root=True,
                    )
                )
            else:
                findings.append(Finding(check_id, Status.PASS, Severity.ERROR, node, seconds=0.001))
    outcomes = [
        NodeOutcome(name, seconds=1.0, slowest_probe="gpu.nvml", slowest_probe_s=0.4) for name in names
    ]
    report = Report(
        Goal(backend="deepep_v2", multinode=True),
        outcomes,
        findings,
        known,
        seconds=5.0,
        source="inventory.ini",
    )
    report.collected_at, report.catalogue_date = "2026-11-22T02:00:00Z", "2026-11-22"
    report.readiness = [Readiness("deepep_v2", tuple(names[spread:]), tuple(names[:spread]), (), (ids[0],))]
    return report
