"""Below the findings: what passed, what is waived, which back ends are ready."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.model import Report, Status
from epdoctor.report.layout import Layout, Line, counted
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import Group, counts_by_category, no_gpu
from epdoctor.waivers import waiver_text

_MAX_WAIVED = 5


def category_lines(
    layout: Layout, report: Report, notes: list[Group], minor: list[Group], waived: list[Group]
) -> Iterator[Line]:
    """What passed, by category, and how much was not shown above."""
    passed, other, skipped = [], [], 0
    for category, row in sorted(counts_by_category(report).items()):
        skipped += row.get(Status.SKIP, 0)
        good = row.get(Status.PASS, 0)
        if good and row.keys() <= {Status.PASS, Status.SKIP}:
            passed.append(f"{layout.marks['pass']} {category} {good}")
        elif good:
            total = sum(count for status, count in row.items() if status is not Status.SKIP)
            other.append(f"{category} {good}/{total}")
    tail = []
    if skipped:
        tail.append(f"{skipped} do not apply")
    root = sum(1 for group in minor if group.needs_root)
    if root:
        tail.append(f"{root} not seen without root (--become)")
    if len(minor) - root:
        tail.append(f"{len(minor) - root} unknown (-v)")
    if notes:
        tail.append(f"{counted(len(notes), 'note')} (-v)")
    if waived:
        tail.append(f"{len(waived)} waived")
    if passed:
        yield from layout.wrapped(passed, "   ", "good")
    if other:
        yield from layout.wrapped(other, "   ", "")
    if tail:
        yield from layout.wrapped(tail, " · " if layout.unicode else ", ", "dim")


def waived_lines(layout: Layout, waived: list[Group]) -> Iterator[Line]:
    """A line each: what is accepted is not forgotten."""
    shown = waived if layout.verbose else waived[:_MAX_WAIVED]
    for index, group in enumerate(shown):
        where = f" on {sanitize(layout.where(group.nodes), 60)}" if layout.several and group.nodes else ""
        text = waiver_text(group.waiver) if group.waiver else group.waived
        yield from layout.field(
            "waived" if index == 0 else "",
            f"{group.check.id}{where}: {text}",
            "dim",
            indent=0,
            label_width=11,
        )
    if len(waived) > len(shown):
        yield from layout.field(
            "", f"and {len(waived) - len(shown)} more (-v)", "dim", indent=0, label_width=11
        )


def readiness_lines(layout: Layout, report: Report) -> Iterator[Line]:
    """Back ends: ready, on some nodes, not ready and why; and what can be served now."""
    if not report.readiness or no_gpu(report) or report.selected:
        return
    ready = [r for r in report.readiness if r.ready and not r.not_ready and not r.unknown]
    partly = [r for r in report.readiness if r.ready and (r.not_ready or r.unknown)]
    not_ready = [r for r in report.readiness if r.not_ready and not r.ready]
    unsure = [r for r in report.readiness if r.unknown and not r.ready and not r.not_ready]
    yield ()
    if ready:
        where = f" on {len(ready[0].ready)} nodes" if layout.several else ""
        yield from layout.field(
            "ready", ", ".join(r.backend for r in ready) + where, "good", indent=0, label_width=11
        )
        accepted = list(dict.fromkeys(check for r in ready for check in r.waived))
        if accepted:
            yield from layout.field(
                "", f"but for what is waived: {', '.join(accepted)}", "warn", indent=0, label_width=11
            )
    for r in partly:
        rest = layout.where([*r.not_ready, *r.unknown])
        why = f" ({', '.join(r.because[:2])})" if r.because else "" if r.unknown else " (no GPU there)"
        yield from layout.field(
            "partly",
            f"{r.backend} on {layout.where(r.ready)}, not on {rest}{why}",
            "warn",
            indent=0,
            label_width=11,
        )
    for label, rows, style in (("not ready", not_ready, "bad"), ("unknown", unsure, "warn")):
        folded: dict[tuple[str, ...], list[str]] = {}
        for r in rows:
            folded.setdefault(r.because, []).append(r.backend)
        for because, names in folded.items():
            more = f" and {len(because) - 3} more" if len(because) > 3 else ""
            why = f" because of {', '.join(because[:3])}{more}" if because else ": no GPU on these nodes"
            why = why if because or label == "not ready" else ""
            yield from layout.field(label, ", ".join(names) + why, style, indent=0, label_width=11)
    serve = next((r.backend for r in ready), "")
    if serve:
        yield from layout.field(
            "serve now", f"--all2all-backend {serve}", "command", indent=0, label_width=11
        )
