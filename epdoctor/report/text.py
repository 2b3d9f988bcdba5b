"""The report that a person reads from the top: verdict, worst first, what to type, next command last."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from epdoctor.model import Problem, Report, Severity, Status
from epdoctor.nodenames import fold, natural_key
from epdoctor.report.fix_line import fix_line
from epdoctor.report.next_step import first_line
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import Group, Variant, counts_by_category, group_findings, no_gpu
from epdoctor.waivers import waiver_text

STYLES = {
    "bad": "bold red",
    "warn": "yellow",
    "good": "green",
    "dim": "dim",
    "head": "bold",
    "command": "cyan",
    "": "",
}
_MARKS = {
    True: {"fail": "✗", "warn": "!", "pass": "✓", "unknown": "?", "info": "·", "dot": "·"},
    False: {"fail": "x", "warn": "!", "pass": "+", "unknown": "?", "info": "-", "dot": "-"},
}
_LABEL = 10
_MAX_VARIANTS = 3
_MAX_PROBLEMS = 3
_MAX_COMMANDS = 6
_MAX_WAIVED = 5
_MAX_WHERE = 60
_MAX_UNKNOWN = 6
_AFTER_COMMA = re.compile(r",(?=[A-Za-z_])")


@dataclass(frozen=True)
class Piece:
    """A run of text in one style (a key of STYLES)."""

    text: str
    style: str = ""


Line = tuple[Piece, ...]


class TextReport:
    """Renders one Report. `width` in columns; `unicode` False draws with ASCII only."""

    def __init__(
        self,
        report: Report,
        *,
        width: int = 80,
        unicode: bool = True,
        verbose: bool = False,
        command: str = "epdoctor check",
    ) -> None:
        self.report = report
        self.width = max(40, width)
        self.marks = _MARKS[unicode]
        self.unicode = unicode
        self.verbose = verbose
        self.command = command
        """The command line as typed, for the next step."""
        self.several = len(report.outcomes) > 1
        self.launch = bool(report.checks) and all(c.scope == "launch" for c in report.checks.values())
        """The report of lint: about files and processes, not about nodes."""

    # ------------------------------------------------------------ whole

    def lines(self) -> Iterator[Line]:
        yield from self._header()
        yield ()
        failed = group_findings(self.report, Status.FAIL)
        unknown = group_findings(self.report, Status.UNKNOWN) + group_findings(self.report, Status.ERROR)
        yield from self._verdict(failed, unknown)
        yield from self._unreached()
        shown = [group for group in failed if group.severity is not Severity.INFO and not group.waived]
        notes = [group for group in failed if group.severity is Severity.INFO and not group.waived]
        for group in shown:
            yield ()
            yield from self._finding(group)
        important = [g for g in unknown if self._matters(g)]
        minor = [g for g in unknown if not self._matters(g) and not g.waived]
        waived = [g for g in failed + unknown if g.waived]
        if important:
            yield ()
            listed = important if self.verbose else [] if self.launch else important[:_MAX_UNKNOWN]
            for group in listed:
                yield from self._unknown(group)
            if self.launch and not self.verbose:
                yield from self._not_resolved(important)
            elif len(important) > len(listed):
                rest = ", ".join(group.check.id for group in important[len(listed) :])
                yield from self._field(
                    self.marks["unknown"],
                    f"and {len(important) - len(listed)} more unknown (-v): {rest}",
                    "warn",
                    indent=0,
                    label_width=2,
                )
        if self.verbose:
            yield from self._verbose(notes, minor, waived)
        yield ()
        yield from self._categories(notes, minor, waived)
        yield from self._waived(waived)
        yield from self._readiness()
        yield from self._next(shown, important, minor)

    def plain(self) -> str:
        """The report as one text without styles."""
        return "\n".join("".join(piece.text for piece in line).rstrip() for line in self.lines()) + "\n"

    # ------------------------------------------------------------ pieces

    def _header(self) -> Iterator[Line]:
        report = self.report
        what = f"{len(report.outcomes)} nodes" if self.several else self._node_name()
        parts = [f"{what} in {report.seconds:.1f} s", report.source]
        goal = report.goal
        backend = goal.backend or "all back ends"
        parts.append(f"{backend} {'across nodes' if goal.multinode else 'on a single node'}")
        if self.launch:
            parts = [report.source, f"{report.seconds:.1f} s"]
        numbers = sorted(version for version in report.vllm_versions if version[:1].isdigit())
        if numbers:
            parts.append(f"vLLM {', '.join(numbers)}")
        elif report.vllm_versions:
            parts.append("no vLLM found")
        if report.catalogue_date:
            parts.append(f"catalogue of {report.catalogue_date}")
        joint = " · " if self.unicode else " - "
        yield from self._wrapped([sanitize(part) for part in parts if part], joint, "dim")
        for how, nodes in sorted(report.hca_sets.items(), key=lambda item: -len(item[1]))[:2]:
            where = f" on {self._where(nodes)}" if len(report.hca_sets) > 1 else ""
            yield from self._field("HCAs", f"{how}{where}", "dim", indent=0)
        for warning in report.warnings:
            yield from self._field(self.marks["warn"], warning, "warn", indent=0, label_width=2)

    def _where(self, nodes: Iterable[str]) -> str:
        """Node names, folded; of many scattered ones the first and how many more (-v shows all)."""
        names = list(nodes)
        text = fold(names)
        if self.verbose or len(text) <= _MAX_WHERE:
            return text
        count = len(set(names))
        return f"{min(names, key=natural_key)} and {count - 1} more"

    def _node_name(self) -> str:
        return self.report.outcomes[0].node if self.report.outcomes else "no node"

    def _matters(self, group: Group) -> bool:
        """Unknown at the bar that decides the exit code."""
        return not group.waived and group.severity.rank >= self.report.fail_on.rank

    def _verdict(self, failed: list[Group], unknown: list[Group]) -> Iterator[Line]:
        errors = [g for g in failed if g.severity is Severity.ERROR and not g.waived]
        warnings = [g for g in failed if g.severity is Severity.WARNING and not g.waived]
        open_ = [g for g in unknown if self._matters(g)]
        missed = [outcome for outcome in self.report.outcomes if outcome.error]
        nodes = {node for group in errors + warnings for node in group.nodes}
        counts = ", ".join(
            filter(
                None,
                (
                    _count(len(errors), "error"),
                    _count(len(warnings), "warning"),
                    f"{len(open_)} unknown" if open_ else "",
                ),
            )
        )
        where = f" on {len(nodes)} of {len(self.report.outcomes)} nodes" if self.several and nodes else ""
        waived = sum(1 for g in failed + unknown if g.waived)
        accepted = f", {waived} waived" if waived else ""
        expired = len(self.report.expired_waivers) if self.report.fail_on_expired_waiver else 0
        if missed:
            counts = ", ".join(
                filter(
                    None, (counts + where, f"{len(missed)} of {len(self.report.outcomes)} nodes not reached")
                )
            )
            where = ""
        if self.report.interrupted:
            yield (Piece("INTERRUPTED", "warn"), Piece(f"  {counts or 'nothing found so far'}{where}"))
        elif errors:
            yield (Piece("NOT READY", "bad"), Piece(f"  {counts}{where}{accepted}"))
        elif expired:
            more = f", {counts}{where}" if counts else ""
            yield (Piece("WAIVER EXPIRED", "bad"), Piece(f"  {_count(expired, 'waiver')}{more}{accepted}"))
        elif open_ or missed:
            yield (Piece("CANNOT TELL", "warn"), Piece(f"  {counts}{where}{accepted}"))
        elif self.report.selected or self.launch:
            part = "the selected checks" if self.report.selected else "this launch"
            yield (
                Piece("PASS", "good"),
                Piece(f"  {counts + where if counts else 'nothing found'} in {part}{accepted}"),
            )
        elif self._no_gpu():
            yield (
                Piece("NO GPU HERE", "warn"),
                Piece(f"  what applies without one {'passes' if not warnings else 'gives ' + counts}{where}"),
            )
        else:
            blocked = [r for r in self.report.readiness if not r.ready]
            ready = [r for r in self.report.readiness if r.ready and not r.not_ready and not r.unknown]
            head = "READY" if ready or not blocked else "NOT READY"
            text = counts + where if counts else ("nothing else found" if waived else "nothing found")
            if head == "READY" and ready and len(ready) < len(self.report.readiness):
                names = [r.backend for r in ready]
                shown = [
                    name
                    for i, name in enumerate(names)
                    if len(", ".join(names[: i + 1])) < self.width - 30 - len(text)
                ]
                rest = len(names) - len(shown)
                more = (f" and {rest} more" if shown else f"{rest} back ends") if rest else ""
                head = f"READY for {', '.join(shown)}{more}"
            if waived:
                head += f" with {waived} waived"
            yield (Piece(head, "bad" if head == "NOT READY" else "good"), Piece(f"  {text}"))

    def _no_gpu(self) -> bool:
        return no_gpu(self.report)

    def _unreached(self) -> Iterator[Line]:
        groups: dict[tuple[str, str], list[str]] = {}
        hints: dict[tuple[str, str], str] = {}
        for outcome in self.report.outcomes:
            if outcome.error:
                key = (
                    outcome.kind,
                    outcome.error if not self.several else outcome.error.replace(outcome.node, "NODE"),
                )
                groups.setdefault(key, []).append(outcome.node)
                hints.setdefault(key, outcome.hint)
        for key, nodes in sorted(groups.items(), key=lambda item: -len(item[1])):
            text = key[1].replace("NODE", nodes[0]) if len(nodes) == 1 else key[1].replace("NODE", "the node")
            yield ()
            yield from self._title(
                self.marks["fail"], "bad", "Not reached", self._where(nodes), f"ssh.{key[0] or 'failed'}"
            )
            yield from self._field("found", text)
            if hints[key]:
                yield from self._field("now", hints[key], "command")

    def _title(self, mark: str, style: str, title: str, nodes: str, check_id: str) -> Iterator[Line]:
        right = "  ".join(
            filter(None, (sanitize(nodes, 4000) if self.several else "", sanitize(check_id, 80)))
        )
        title = sanitize(title)
        room = self.width - 2 - len(right) - 2
        if len(title) <= room:
            yield (Piece(mark + " ", style), Piece(title.ljust(room) + "  ", "head"), Piece(right, "dim"))
            return
        for index, part in enumerate(textwrap.wrap(title, self.width - 2) or [""]):
            yield (Piece((mark if index == 0 else " ") + " ", style), Piece(part, "head"))
        for part in textwrap.wrap(right, self.width - 4) or [""]:
            yield (Piece("    " + part, "dim"),)

    def _finding(self, group: Group) -> Iterator[Line]:
        error = group.severity is Severity.ERROR
        mark, style = (self.marks["fail"], "bad") if error else (self.marks["warn"], "warn")
        yield from self._title(mark, style, group.check.title, self._where(group.nodes), group.check.id)
        variants = group.variants if self.verbose else group.variants[:_MAX_VARIANTS]
        for variant in variants:
            where = f" (on {self._where(variant.nodes)})" if len(group.variants) > 1 and variant.nodes else ""
            problems = variant.problems if self.verbose else variant.problems[:_MAX_PROBLEMS]
            for index, problem in enumerate(problems):
                more = len(variant.problems) - len(problems)
                tail = f" (+{more} more, -v)" if more and index == len(problems) - 1 else ""
                yield from self._field("found" if index == 0 else "", _about(problem) + where + tail)
                if self.verbose:
                    for line in problem.evidence:
                        yield from self._field("", line, "dim")
        if len(group.variants) > len(variants):
            rest = group.variants[len(variants) :]
            yield from self._field(
                "",
                f"and {len(rest)} more kinds on {self._where([n for v in rest for n in v.nodes])} (-v)",
                "dim",
            )
        expected = list(dict.fromkeys(p.expected for v in variants for p in v.problems if p.expected))
        for index, text in enumerate(expected if self.verbose else expected[:2]):
            yield from self._field("expected" if index == 0 else "", text)
        if group.waiver is not None and not group.waived:
            yield from self._field("waiver", waiver_text(group.waiver), "warn")
        yield from self._field("so", group.check.why if self.verbose else _first_sentences(group.check.why))
        if group.blocks and not self.report.goal.backend:
            every = len(group.blocks) == len(self.report.readiness)
            yield from self._field("blocks", "every back end" if every else ", ".join(group.blocks))
        yield from self._commands("now", _now(group.variants[0], group))
        mend = fix_line(self.command, group.check)
        yield from self._commands("for good", (mend,) if mend else _permanent(group.variants[0], group))
        if group.check.fix.action.value in ("reboot", "fabric-admin", "replace-hardware"):
            yield from self._field(
                "needs",
                {
                    "reboot": "a reboot",
                    "fabric-admin": "the fabric's admin",
                    "replace-hardware": "new hardware",
                }[group.check.fix.action.value],
            )

    def _unknown(self, group: Group) -> Iterator[Line]:
        yield from self._title(
            self.marks["unknown"], "warn", group.check.title, self._where(group.nodes), group.check.id
        )
        for index, (reason, nodes) in enumerate(group.reasons if self.verbose else group.reasons[:2]):
            where = f" (on {self._where(nodes)})" if len(group.reasons) > 1 and any(nodes) else ""
            yield from self._field("unknown" if index == 0 else "", reason + where)
        if group.blocks and not self.report.goal.backend:
            yield from self._field("blocks", ", ".join(group.blocks))
        if group.check.by_hand:
            yield from self._field("by hand", first_line(group.check.by_hand), "command")

    def _not_resolved(self, groups: list[Group]) -> Iterator[Line]:
        """One value that the files lack leaves many checks of a launch open: each reason once."""
        reasons: dict[str, list[str]] = {}
        for group in groups:
            for reason, _ in group.reasons:
                reasons.setdefault(reason, []).append(group.check.id)
        for reason, ids in sorted(reasons.items(), key=lambda item: -len(item[1]))[:_MAX_PROBLEMS]:
            yield from self._title(
                self.marks["unknown"], "warn", "Cannot tell", "", f"{_count(len(ids), 'check')}"
            )
            yield from self._field("unknown", reason)
            more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
            yield from self._field("checks", ", ".join(ids[:4]) + more)
        if len(reasons) > _MAX_PROBLEMS:
            yield from self._field("", f"and {len(reasons) - _MAX_PROBLEMS} more reasons (-v)", "dim")

    def _verbose(self, notes: list[Group], minor: list[Group], waived: list[Group]) -> Iterator[Line]:
        for group in notes:
            yield ()
            yield from self._title(
                self.marks["info"], "dim", group.check.title, self._where(group.nodes), group.check.id
            )
            for variant in group.variants:
                for problem in variant.problems:
                    yield from self._field("found", _about(problem))
                    yield from self._field("expected", problem.expected)
                    for line in problem.evidence:
                        yield from self._field("", line, "dim")
        for group in minor:
            yield ()
            yield from self._unknown(group)
        for group in waived:
            yield ()
            yield from self._title(
                self.marks["info"], "dim", group.check.title, self._where(group.nodes), group.check.id
            )
            for variant in group.variants:
                for problem in variant.problems:
                    yield from self._field("found", _about(problem))
            for reason, _ in group.reasons:
                yield from self._field("unknown", reason)
            yield from self._field("waived", waiver_text(group.waiver) if group.waiver else group.waived)
        skipped: dict[str, list[str]] = {}
        for group in group_findings(self.report, Status.SKIP):
            skipped.setdefault(group.reasons[0][0] if group.reasons else "", []).append(group.check.id)
        if skipped:
            yield ()
            yield (Piece("does not apply", "head"),)
            for reason, ids in sorted(skipped.items(), key=lambda item: -len(item[1])):
                yield from self._field(str(len(ids)), f"{reason}: {', '.join(ids)}", "dim", label_width=4)
        slow = max(self.report.outcomes, key=lambda outcome: outcome.slowest_probe_s, default=None)
        if slow is not None and slow.slowest_probe:
            yield ()
            yield from self._field(
                "slowest",
                f"{slow.slowest_probe} on {slow.node}: {slow.slowest_probe_s:.1f} s",
                "dim",
                indent=0,
            )

    def _categories(self, notes: list[Group], minor: list[Group], waived: list[Group]) -> Iterator[Line]:
        passed, other, skipped = [], [], 0
        for category, row in sorted(counts_by_category(self.report).items()):
            skipped += row.get(Status.SKIP, 0)
            good = row.get(Status.PASS, 0)
            if good and row.keys() <= {Status.PASS, Status.SKIP}:
                passed.append(f"{self.marks['pass']} {category} {good}")
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
            tail.append(f"{_count(len(notes), 'note')} (-v)")
        if waived:
            tail.append(f"{len(waived)} waived")
        if passed:
            yield from self._wrapped(passed, "   ", "good")
        if other:
            yield from self._wrapped(other, "   ", "")
        if tail:
            yield from self._wrapped(tail, " · " if self.unicode else ", ", "dim")

    def _waived(self, waived: list[Group]) -> Iterator[Line]:
        """A line each: what is accepted is not forgotten."""
        shown = waived if self.verbose else waived[:_MAX_WAIVED]
        for index, group in enumerate(shown):
            where = f" on {sanitize(self._where(group.nodes), 60)}" if self.several and group.nodes else ""
            text = waiver_text(group.waiver) if group.waiver else group.waived
            yield from self._field(
                "waived" if index == 0 else "",
                f"{group.check.id}{where}: {text}",
                "dim",
                indent=0,
                label_width=11,
            )
        if len(waived) > len(shown):
            yield from self._field(
                "", f"and {len(waived) - len(shown)} more (-v)", "dim", indent=0, label_width=11
            )

    def _readiness(self) -> Iterator[Line]:
        report = self.report
        if not report.readiness or self._no_gpu() or report.selected:
            return
        ready = [r for r in report.readiness if r.ready and not r.not_ready and not r.unknown]
        partly = [r for r in report.readiness if r.ready and (r.not_ready or r.unknown)]
        not_ready = [r for r in report.readiness if r.not_ready and not r.ready]
        unsure = [r for r in report.readiness if r.unknown and not r.ready and not r.not_ready]
        yield ()
        if ready:
            where = f" on {len(ready[0].ready)} nodes" if self.several else ""
            yield from self._field(
                "ready", ", ".join(r.backend for r in ready) + where, "good", indent=0, label_width=11
            )
            accepted = list(dict.fromkeys(check for r in ready for check in r.waived))
            if accepted:
                yield from self._field(
                    "", f"but for what is waived: {', '.join(accepted)}", "warn", indent=0, label_width=11
                )
        for r in partly:
            rest = self._where([*r.not_ready, *r.unknown])
            why = f" ({', '.join(r.because[:2])})" if r.because else "" if r.unknown else " (no GPU there)"
            yield from self._field(
                "partly",
                f"{r.backend} on {self._where(r.ready)}, not on {rest}{why}",
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
                yield from self._field(label, ", ".join(names) + why, style, indent=0, label_width=11)
        serve = next((r.backend for r in ready), "")
        if serve:
            yield from self._field(
                "serve now", f"--all2all-backend {serve}", "command", indent=0, label_width=11
            )

    def _next(self, shown: list[Group], important: list[Group], minor: list[Group]) -> Iterator[Line]:
        from epdoctor.report.next_step import next_command

        yield from self._field(
            "next",
            next_command(self.report, shown, important, minor, self.command),
            "command",
            indent=0,
            label_width=11,
        )

    # ------------------------------------------------------------ layout

    def _commands(self, label: str, commands: tuple[str, ...]) -> Iterator[Line]:
        lines = [line for command in commands for line in command.rstrip().splitlines()]
        shown = lines if self.verbose else lines[:_MAX_COMMANDS]
        for index, line in enumerate(shown):
            # A command is never broken: what is copied must run.
            yield (
                Piece("    " + (label if index == 0 else "").ljust(_LABEL), "dim"),
                Piece(sanitize(line), "command"),
            )
        if len(lines) > len(shown):
            yield from self._field("", f"... {len(lines) - len(shown)} more lines (-v)", "dim")

    def _field(
        self, label: str, text: str, style: str = "", indent: int = 4, label_width: int = _LABEL
    ) -> Iterator[Line]:
        text = sanitize(text, limit=20000 if self.verbose else 2000)
        head = " " * indent + label.ljust(label_width)
        if style == "command":
            yield (Piece(head, "dim"), Piece(text, style))
            return
        room = max(20, self.width - len(head))
        # A long list of nodes is one word: it may be broken behind a comma, never inside a name.
        text = " ".join(
            _AFTER_COMMA.sub(", ", word) if len(word) > room else word for word in text.split(" ")
        )
        for index, part in enumerate(textwrap.wrap(text, room, break_on_hyphens=False) or [""]):
            yield (Piece(head if index == 0 else " " * len(head), "dim"), Piece(part, style))

    def _wrapped(self, parts: list[str], joint: str, style: str) -> Iterator[Line]:
        line = ""
        for part in parts:
            if line and len(line) + len(joint) + len(part) > self.width:
                yield (Piece(line, style),)
                line = part
            else:
                line = f"{line}{joint}{part}" if line else part
        if line:
            yield (Piece(line, style),)


def _now(variant: Variant, group: Group) -> tuple[str, ...]:
    own = tuple(dict.fromkeys(command for problem in variant.problems for command in problem.now))
    if group.check.scope == "launch" and not own:
        from epdoctor.report.next_step import edit_command

        places = [
            p.location for p in variant.problems if p.location and p.location.line and p.location.path != "--"
        ]
        own = tuple(dict.fromkeys(edit_command(place) for place in places))[:_MAX_PROBLEMS]
    return own or group.check.fix.now


def _about(problem: Problem) -> str:
    """What was found, and where and on what if the text itself does not say."""
    text = problem.found
    if problem.subject and problem.subject not in text:
        text = f"{problem.subject}: {text}"
    return f"{problem.location}: {text}" if problem.location else text


def _permanent(variant: Variant, group: Group) -> tuple[str, ...]:
    own = tuple(dict.fromkeys(command for problem in variant.problems for command in problem.permanent))
    return own or group.check.fix.permanent


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}" if number else ""


def _first_sentences(text: str, limit: int = 220) -> str:
    """As many whole sentences as fit, at least one."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    cut = 0
    for index, character in enumerate(text):
        if (
            character in ".!?"
            and text[index + 1 : index + 2] in (" ", "")
            and text[index - 2 : index] != ".."
        ):
            if index + 1 > limit and cut:
                break
            cut = index + 1
            if cut >= limit:
                break
    return text[: cut or limit]
