"""What changed, for a person: the verdicts, then findings, then facts under the nodes that share them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from epdoctor.model import Severity, Status
from epdoctor.nodenames import fold
from epdoctor.report.layout import Layout, Line, Piece
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import group_findings
from epdoctor.report.verdict import headline, sentence, tally

if TYPE_CHECKING:
    from epdoctor.compare.difference import Difference, FactChange, FindingChange
    from epdoctor.compare.side import Side

_SHOWN_FINDINGS = 12
_SHOWN_OPEN = 6
_SHOWN_NODE_SETS = 12
_SHOWN_FACTS = 8
_SHOWN_TEXT = 300
_WORDS = {"appeared": "new", "went": "gone", "changed": "changed"}


class DiffText(Layout):
    """Renders one Difference."""

    break_long_words = False
    """Its first lines name files, to be copied."""

    def __init__(
        self,
        a: Side,
        b: Side,
        found: Difference,
        *,
        width: int = 80,
        unicode: bool = True,
        verbose: bool = False,
        judge: str = "",
        first: str = "before",
    ) -> None:
        super().__init__(width=width, unicode=unicode, verbose=verbose)
        self.a, self.b, self.found = a, b, found
        self.judge = judge
        """The command that judges `b` alone."""
        self.first = first
        """What `a` is called."""
        self.arrow = " → " if unicode else " -> "

    def lines(self) -> Iterator[Line]:
        found = self.found
        yield from self._side(self.first, self.a)
        yield from self._side("now", self.b)
        for note in found.notes:
            yield from self.field("!", note, "warn", indent=0, label_width=2)
        yield ()
        if found.same:
            yield (Piece("SAME", "good"), Piece("  nothing changed that epdoctor looks at"))
            if not self.a.has_facts or not self.b.has_facts:
                yield from self.field("", "findings only: a saved report holds no facts", "dim", 0, 0)
            yield ()
            yield from self._next()
            return
        yield (Piece("DIFFERENT", "warn"), Piece(f"  {self._counts()}"))
        yield from self._nodes()
        yield from self._findings()
        yield from self._facts()
        yield ()
        yield from self._next()

    # ------------------------------------------------------------ pieces

    def _side(self, name: str, side: Side) -> Iterator[Line]:
        report = side.report
        nodes = f"{len(side.nodes)} nodes" if len(side.nodes) != 1 else side.nodes[0]
        when = report.collected_at.replace("T", " ").replace("Z", " UTC")
        counts = tally(report)
        verdict = headline(report, counts)
        said = sentence(counts)
        verdict += f" ({said})" if said != "nothing found" else ""
        parts = [side.label, when, nodes, verdict]
        joint = " · " if self.unicode else " - "
        yield from self.field(name, joint.join(part for part in parts if part), "dim", indent=0)

    def _counts(self) -> str:
        found = self.found
        kinds: dict[str, set[str]] = {}
        for change in found.findings:
            kinds.setdefault(change.kind, set()).add(change.check)
        parts = [
            f"{len(kinds[kind])} {noun if len(kinds[kind]) == 1 else noun + 's'} {rest}".strip()
            for kind, noun, rest in (
                ("appeared", "finding", "new"),
                ("changed", "finding", "changed"),
                ("went", "finding", "gone"),
                ("unknown", "check", "unknown now"),
                ("known", "check", "known again"),
            )
            if kind in kinds
        ]
        facts = {change.fact for change in found.facts}
        if facts:
            parts.append(f"{len(facts)} fact{'s' if len(facts) != 1 else ''} changed")
        if found.nodes_new or found.nodes_gone or found.now_unreached or found.now_reached:
            parts.append("other nodes")
        text = ", ".join(parts)
        if found.changed_nodes and len(self.b.nodes) > 1:
            text += f", on {len(found.changed_nodes)} of {len(self.b.nodes)} nodes"
        return text

    def _nodes(self) -> Iterator[Line]:
        found = self.found
        rows = [
            ("new", fold(found.nodes_new) if found.nodes_new else "", ""),
            ("gone", fold(found.nodes_gone) if found.nodes_gone else "", ""),
            ("reached again", fold(found.now_reached) if found.now_reached else "", "good"),
        ]
        by_error: dict[str, list[str]] = {}
        for node, error in found.now_unreached.items():
            by_error.setdefault(error, []).append(node)
        rows += [("not reached", f"{fold(nodes)}: {error}", "bad") for error, nodes in by_error.items()]
        shown = [row for row in rows if row[1]]
        if shown:
            yield ()
            yield (Piece("Nodes", "head"),)
        for label, text, style in shown:
            yield from self.field(label, text, style, indent=2, label_width=15)

    def _findings(self) -> Iterator[Line]:
        told = [c for c in self.found.findings if c.kind in _WORDS]
        open_ = [c for c in self.found.findings if c.kind not in _WORDS]
        if told or open_:
            yield ()
            yield (Piece("Findings", "head"),)
        limit = len(told) if self.verbose else _SHOWN_FINDINGS
        for change in told[:limit]:
            yield from self._finding(change)
        if len(told) > limit:
            yield from self.field("", f"and {len(told) - limit} more (-v)", "dim", indent=2, label_width=0)
        for kind, words in (("unknown", "cannot be told now"), ("known", "can be told now")):
            same = [c for c in open_ if c.kind == kind]
            by_nodes: dict[tuple[tuple[str, ...], str], list[FindingChange]] = {}
            for change in same:
                reason = change.after if kind == "unknown" else ""
                by_nodes.setdefault((change.nodes, reason), []).append(change)
            rows = list(by_nodes.items())
            shown = len(rows) if self.verbose else _SHOWN_OPEN
            for (nodes, reason), changes in rows[:shown]:
                ids = [change.check for change in changes]
                text = ", ".join(ids if self.verbose else ids[:4])
                text += f" and {len(ids) - 4} more (-v)" if len(ids) > 4 and not self.verbose else ""
                where = f"{self.where(nodes)}: " if nodes else ""
                why = f" ({reason.partition(': ')[2]})" if ": " in reason else ""
                yield from self.field(
                    "?" if kind == "unknown" else "·" if self.unicode else "-",
                    f"{words}: {where}{text}{why}",
                    "warn" if kind == "unknown" else "dim",
                    indent=2,
                    label_width=2,
                )
            if len(rows) > shown:
                yield from self.field(
                    "", f"and {len(rows) - shown} more (-v)", "dim", indent=4, label_width=0
                )

    def _finding(self, change: FindingChange) -> Iterator[Line]:
        bad = change.kind != "went"
        error = change.severity is Severity.ERROR
        marks = ("✗", "!", "✓") if self.unicode else ("x", "!", "+")
        mark = marks[2] if not bad else marks[0] if error else marks[1]
        style = "good" if not bad else "bad" if error else "warn"
        where = self.where(change.nodes) or change.scope
        yield (
            Piece(f"{mark} {_WORDS[change.kind]:<8}", style),
            Piece(f"{sanitize(where)}  "),
            Piece(change.check, "dim"),
        )
        if bad:
            before = "" if change.kind == "appeared" and change.before == "pass" else change.before
            yield from self.field("now", _after_colon(change.after))
            if before:
                yield from self.field("before", _after_colon(before), "dim")
        else:
            yield from self.field("was", _after_colon(change.before), "dim")

    def _facts(self) -> Iterator[Line]:
        by_nodes: dict[tuple[str, ...], list[FactChange]] = {}
        for change in self.found.facts:
            by_nodes.setdefault(change.nodes, []).append(change)
        if by_nodes:
            yield ()
            yield (Piece("Facts", "head"),)
        rows = list(by_nodes.items())
        limit = len(rows) if self.verbose else _SHOWN_NODE_SETS
        for nodes, changes in rows[:limit]:
            yield (Piece(f"  {sanitize(self.where(nodes))}", "head"),)
            shown = len(changes) if self.verbose else _SHOWN_FACTS
            for change in changes[:shown]:
                yield from self._fact(change)
            if len(changes) > shown:
                rest = len(changes) - shown
                yield from self.field("", f"and {rest} more (-v)", "dim", indent=4, label_width=0)
        if len(rows) > limit:
            count = sum(len(changes) for _, changes in rows[limit:])
            yield from self.field("", f"and {count} more on other nodes (-v)", "dim", indent=2, label_width=0)

    def _fact(self, change: FactChange) -> Iterator[Line]:
        subjects = ", ".join(change.subjects if self.verbose else change.subjects[:4])
        if len(change.subjects) > 4 and not self.verbose:
            subjects += f" and {len(change.subjects) - 4} more"
        name = f"{change.fact} {subjects}".strip()
        before, after = self._cut(change.before), self._cut(change.after)
        absent = "not there"
        if change.kind == "appeared":
            before = absent
        elif change.kind == "went":
            after = absent
        style = "warn" if change.kind in ("unseen", "seen") else ""
        joined = f"{before or absent}{self.arrow}{after or absent}"
        if len(name) + len(joined) + 6 <= self.width:
            yield (Piece(f"    {sanitize(name)}  ", "dim"), Piece(sanitize(joined), style))
            return
        yield from self.field("", name, "dim", indent=4, label_width=0)
        yield from self.field("before", before or absent, "dim", indent=6, label_width=8)
        yield from self.field("now", after or absent, style, indent=6, label_width=8)

    def _next(self) -> Iterator[Line]:
        from epdoctor.report.next_step import next_command

        report = self.b.report
        appeared = {c.check for c in self.found.findings if c.kind in ("appeared", "changed")}
        failed = [
            group
            for group in group_findings(report, Status.FAIL)
            if group.check.id in appeared and not group.waived and group.severity is not Severity.INFO
        ]
        bar = [group for group in failed if group.severity.rank >= report.fail_on.rank]
        if bar:
            yield from self.field("next", next_command(report, bar, [], [], self.judge), "command", 0, 11)
        elif appeared:
            ids = ",".join(sorted(appeared)[:3])
            yield from self.field("next", f"{self.judge} --select {ids} -v", "command", 0, 11)
        else:
            yield from self.field("next", self.judge, "command", 0, 11)

    def _cut(self, text: str) -> str:
        return text if self.verbose or len(text) <= _SHOWN_TEXT else text[: _SHOWN_TEXT - 3] + "..."


def _after_colon(text: str) -> str:
    """ "fail: 8 MiB" as "8 MiB"; "pass" as it is."""
    head, colon, rest = text.partition(": ")
    return rest if colon and head == "fail" else text


def judge_command(side: Side) -> str:
    """What shows one side alone."""
    word = "check" if side.has_facts else "report"
    return f"epdoctor {word} --from {shlex.quote(side.label)}"
