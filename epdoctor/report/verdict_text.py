"""The line that a tired admin reads first: READY, NOT READY, CANNOT TELL, and how much of it."""

from __future__ import annotations

from epdoctor.model import Report, Severity
from epdoctor.report.layout import Line, Piece, counted
from epdoctor.report.summary import Group, no_gpu


def verdict_line(
    report: Report, failed: list[Group], unknown: list[Group], *, width: int, launch: bool
) -> Line:
    """`launch`: of files and processes, not of nodes."""
    errors = [g for g in failed if g.severity is Severity.ERROR and not g.waived]
    warnings = [g for g in failed if g.severity is Severity.WARNING and not g.waived]
    open_ = [g for g in unknown if not g.waived and g.severity.rank >= report.fail_on.rank]
    missed = [outcome for outcome in report.outcomes if outcome.error]
    nodes = {node for group in errors + warnings for node in group.nodes}
    counts = ", ".join(
        filter(
            None,
            (
                counted(len(errors), "error"),
                counted(len(warnings), "warning"),
                f"{len(open_)} unknown" if open_ else "",
            ),
        )
    )
    where = f" on {len(nodes)} of {len(report.outcomes)} nodes" if len(report.outcomes) > 1 and nodes else ""
    waived = sum(1 for g in failed + unknown if g.waived)
    accepted = f", {waived} waived" if waived else ""
    expired = len(report.expired_waivers) if report.fail_on_expired_waiver else 0
    if missed:
        counts = ", ".join(
            filter(None, (counts + where, f"{len(missed)} of {len(report.outcomes)} nodes not reached"))
        )
        where = ""
    if report.interrupted:
        return (Piece("INTERRUPTED", "warn"), Piece(f"  {counts or 'nothing found so far'}{where}"))
    if errors:
        return (Piece("NOT READY", "bad"), Piece(f"  {counts}{where}{accepted}"))
    if expired:
        more = f", {counts}{where}" if counts else ""
        return (Piece("WAIVER EXPIRED", "bad"), Piece(f"  {counted(expired, 'waiver')}{more}{accepted}"))
    if open_ or missed:
        return (Piece("CANNOT TELL", "warn"), Piece(f"  {counts}{where}{accepted}"))
    if report.selected or launch:
        part = "the selected checks" if report.selected else "this launch"
        return (
            Piece("PASS", "good"),
            Piece(f"  {counts + where if counts else 'nothing found'} in {part}{accepted}"),
        )
    if no_gpu(report):
        return (
            Piece("NO GPU HERE", "warn"),
            Piece(f"  what applies without one {'passes' if not warnings else 'gives ' + counts}{where}"),
        )
    blocked = [r for r in report.readiness if not r.ready]
    ready = [r for r in report.readiness if r.ready and not r.not_ready and not r.unknown]
    head = "READY" if ready or not blocked else "NOT READY"
    text = counts + where if counts else ("nothing else found" if waived else "nothing found")
    if head == "READY" and ready and len(ready) < len(report.readiness):
        names = [r.backend for r in ready]
        shown = [
            name for i, name in enumerate(names) if len(", ".join(names[: i + 1])) < width - 30 - len(text)
        ]
        rest = len(names) - len(shown)
        more = (f" and {rest} more" if shown else f"{rest} back ends") if rest else ""
        head = f"READY for {', '.join(shown)}{more}"
    if waived:
        head += f" with {waived} waived"
    return (Piece(head, "bad" if head == "NOT READY" else "good"), Piece(f"  {text}"))
