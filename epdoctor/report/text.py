"""The report that a person reads from the top: verdict, worst first, what to type, next command last."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.model import Problem, Report, Severity, Status
from epdoctor.report.fix_line import fix_line
from epdoctor.report.layout import Layout, Line, Piece, counted
from epdoctor.report.next_step import first_line
from epdoctor.report.sanitize import sanitize
from epdoctor.report.summary import Group, Variant, group_findings
from epdoctor.report.text_foot import category_lines, readiness_lines, waived_lines
from epdoctor.report.verdict_text import verdict_line
from epdoctor.waivers import waiver_text

_MAX_VARIANTS = 3
_MAX_PROBLEMS = 3
_MAX_UNKNOWN = 6


class TextReport(Layout):
    """Renders one Report."""

    def __init__(
        self,
        report: Report,
        *,
        width: int = 80,
        unicode: bool = True,
        verbose: bool = False,
        command: str = "epdoctor check",
    ) -> None:
        super().__init__(width=width, unicode=unicode, verbose=verbose)
        self.report = report
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
        yield verdict_line(self.report, failed, unknown, width=self.width, launch=self.launch)
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
                yield from self.field(
                    self.marks["unknown"],
                    f"and {len(important) - len(listed)} more unknown (-v): {rest}",
                    "warn",
                    indent=0,
                    label_width=2,
                )
        if self.verbose:
            yield from self._verbose(notes, minor, waived)
        yield ()
        yield from category_lines(self, self.report, notes, minor, waived)
        yield from waived_lines(self, waived)
        yield from readiness_lines(self, self.report)
        yield from self._next(shown, important, minor)

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
        yield from self.wrapped([sanitize(part) for part in parts if part], joint, "dim")
        for how, nodes in sorted(report.hca_sets.items(), key=lambda item: -len(item[1]))[:2]:
            where = f" on {self.where(nodes)}" if len(report.hca_sets) > 1 else ""
            yield from self.field("HCAs", f"{how}{where}", "dim", indent=0)
        for warning in report.warnings:
            yield from self.field(self.marks["warn"], warning, "warn", indent=0, label_width=2)

    def _node_name(self) -> str:
        return self.report.outcomes[0].node if self.report.outcomes else "no node"

    def _matters(self, group: Group) -> bool:
        """Unknown at the bar that decides the exit code."""
        return not group.waived and group.severity.rank >= self.report.fail_on.rank

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
            yield from self.title(
                self.marks["fail"], "bad", "Not reached", self.where(nodes), f"ssh.{key[0] or 'failed'}"
            )
            yield from self.field("found", text)
            if hints[key]:
                yield from self.field("now", hints[key], "command")

    def _finding(self, group: Group) -> Iterator[Line]:
        error = group.severity is Severity.ERROR
        mark, style = (self.marks["fail"], "bad") if error else (self.marks["warn"], "warn")
        yield from self.title(mark, style, group.check.title, self.where(group.nodes), group.check.id)
        variants = group.variants if self.verbose else group.variants[:_MAX_VARIANTS]
        for variant in variants:
            where = f" (on {self.where(variant.nodes)})" if len(group.variants) > 1 and variant.nodes else ""
            problems = variant.problems if self.verbose else variant.problems[:_MAX_PROBLEMS]
            for index, problem in enumerate(problems):
                more = len(variant.problems) - len(problems)
                tail = f" (+{more} more, -v)" if more and index == len(problems) - 1 else ""
                yield from self.field("found" if index == 0 else "", _about(problem) + where + tail)
                if self.verbose:
                    for line in problem.evidence:
                        yield from self.field("", line, "dim")
        if len(group.variants) > len(variants):
            rest = group.variants[len(variants) :]
            yield from self.field(
                "",
                f"and {len(rest)} more kinds on {self.where([n for v in rest for n in v.nodes])} (-v)",
                "dim",
            )
        expected = list(dict.fromkeys(p.expected for v in variants for p in v.problems if p.expected))
        for index, text in enumerate(expected if self.verbose else expected[:2]):
            yield from self.field("expected" if index == 0 else "", text)
        if group.waiver is not None and not group.waived:
            yield from self.field("waiver", waiver_text(group.waiver), "warn")
        yield from self.field("so", group.check.why if self.verbose else _first_sentences(group.check.why))
        if group.blocks and not self.report.goal.backend:
            every = len(group.blocks) == len(self.report.readiness)
            yield from self.field("blocks", "every back end" if every else ", ".join(group.blocks))
        yield from self.commands("now", _now(group.variants[0], group))
        mend = fix_line(self.command, group.check)
        yield from self.commands("for good", (mend,) if mend else _permanent(group.variants[0], group))
        if group.check.fix.action.value in ("reboot", "fabric-admin", "replace-hardware"):
            yield from self.field(
                "needs",
                {
                    "reboot": "a reboot",
                    "fabric-admin": "the fabric's admin",
                    "replace-hardware": "new hardware",
                }[group.check.fix.action.value],
            )

    def _unknown(self, group: Group) -> Iterator[Line]:
        yield from self.title(
            self.marks["unknown"], "warn", group.check.title, self.where(group.nodes), group.check.id
        )
        for index, (reason, nodes) in enumerate(group.reasons if self.verbose else group.reasons[:2]):
            where = f" (on {self.where(nodes)})" if len(group.reasons) > 1 and any(nodes) else ""
            yield from self.field("unknown" if index == 0 else "", reason + where)
        if group.blocks and not self.report.goal.backend:
            yield from self.field("blocks", ", ".join(group.blocks))
        if group.check.by_hand:
            yield from self.field("by hand", first_line(group.check.by_hand), "command")

    def _not_resolved(self, groups: list[Group]) -> Iterator[Line]:
        """One value that the files lack leaves many checks of a launch open: each reason once."""
        reasons: dict[str, list[str]] = {}
        for group in groups:
            for reason, _ in group.reasons:
                reasons.setdefault(reason, []).append(group.check.id)
        for reason, ids in sorted(reasons.items(), key=lambda item: -len(item[1]))[:_MAX_PROBLEMS]:
            yield from self.title(
                self.marks["unknown"], "warn", "Cannot tell", "", f"{counted(len(ids), 'check')}"
            )
            yield from self.field("unknown", reason)
            more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
            yield from self.field("checks", ", ".join(ids[:4]) + more)
        if len(reasons) > _MAX_PROBLEMS:
            yield from self.field("", f"and {len(reasons) - _MAX_PROBLEMS} more reasons (-v)", "dim")

    def _verbose(self, notes: list[Group], minor: list[Group], waived: list[Group]) -> Iterator[Line]:
        for group in notes:
            yield ()
            yield from self.title(
                self.marks["info"], "dim", group.check.title, self.where(group.nodes), group.check.id
            )
            for variant in group.variants:
                for problem in variant.problems:
                    yield from self.field("found", _about(problem))
                    yield from self.field("expected", problem.expected)
                    for line in problem.evidence:
                        yield from self.field("", line, "dim")
        for group in minor:
            yield ()
            yield from self._unknown(group)
        for group in waived:
            yield ()
            yield from self.title(
                self.marks["info"], "dim", group.check.title, self.where(group.nodes), group.check.id
            )
            for variant in group.variants:
                for problem in variant.problems:
                    yield from self.field("found", _about(problem))
            for reason, _ in group.reasons:
                yield from self.field("unknown", reason)
            yield from self.field("waived", waiver_text(group.waiver) if group.waiver else group.waived)
        skipped: dict[str, list[str]] = {}
        for group in group_findings(self.report, Status.SKIP):
            skipped.setdefault(group.reasons[0][0] if group.reasons else "", []).append(group.check.id)
        if skipped:
            yield ()
            yield (Piece("does not apply", "head"),)
            for reason, ids in sorted(skipped.items(), key=lambda item: -len(item[1])):
                yield from self.field(str(len(ids)), f"{reason}: {', '.join(ids)}", "dim", label_width=4)
        slow = max(self.report.outcomes, key=lambda outcome: outcome.slowest_probe_s, default=None)
        if slow is not None and slow.slowest_probe:
            yield ()
            yield from self.field(
                "slowest",
                f"{slow.slowest_probe} on {slow.node}: {slow.slowest_probe_s:.1f} s",
                "dim",
                indent=0,
            )

    def _next(self, shown: list[Group], important: list[Group], minor: list[Group]) -> Iterator[Line]:
        from epdoctor.report.next_step import next_command

        yield from self.field(
            "next",
            next_command(self.report, shown, important, minor, self.command),
            "command",
            indent=0,
            label_width=11,
        )


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
