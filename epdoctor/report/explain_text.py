"""What `epdoctor explain` prints: cause, evidence, so, now, for good, what proves it; the next command last."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from epdoctor.explain.result import CERTAIN, Candidate, Evidence, Explanation
from epdoctor.nodenames import fold
from epdoctor.report.layout import Layout, Line, Piece
from epdoctor.report.sanitize import sanitize

_NEEDS = {
    "reboot": "a reboot",
    "fabric-admin": "the fabric's admin",
    "replace-hardware": "new hardware",
}
_MAX_SHOWN = 3
_STATES = {"has": "has it", "follows": "follows", "differs": "other error", "clean": "clean"}


class ExplainText(Layout):
    """Renders one Explanation in the layout of the check report."""

    def __init__(
        self,
        answer: Explanation,
        *,
        width: int = 80,
        unicode: bool = True,
        verbose: bool = False,
        source: str = "",
    ) -> None:
        super().__init__(width=width, unicode=unicode, verbose=verbose)
        self.answer = answer
        self.source = source

    def lines(self) -> Iterator[Line]:
        answer = self.answer
        if answer.files > 1 or answer.lines > 20:
            files = f"{answer.files} logs, " if answer.files > 1 else ""
            size = (
                f"{answer.size_bytes / 1e6:,.1f} MB"
                if answer.size_bytes >= 1e5
                else f"{answer.size_bytes:,} B"
            )
            yield from self.wrapped([f"{files}{answer.lines:,} lines, {size}"], "", "dim")
            yield ()
        for warning in answer.warnings:
            yield from self.field(self.marks["warn"], warning, "warn", indent=0, label_width=2)
        if not answer.results:
            yield from self._nothing()
            return
        yield from self._cause(answer.results[0])
        others = [c for c in answer.results[1:] if not c.instead_of or c.check_results]
        for index, candidate in enumerate(c for c in answer.results[1:] if c not in others):
            text = f"{sanitize(candidate.cause.title)} ({candidate.cause.id})"
            yield from self.field("or else" if index == 0 else "", text)
        for candidate in others if self.verbose else others[: _MAX_SHOWN - 1]:
            yield ()
            if self.verbose:
                yield from self._cause(candidate)
            else:
                yield from self._other(candidate)
        hidden = len(others) - (_MAX_SHOWN - 1)
        if hidden > 0 and not self.verbose:
            yield from self.field("", f"and {hidden} less likely (-v)", "dim")
        yield ()
        yield from self.field("next", self._next_command(), "command", indent=0, label_width=11)

    # ------------------------------------------------------------ one cause

    def _cause(self, candidate: Candidate) -> Iterator[Line]:
        cause = candidate.cause
        sure = candidate.certainty == CERTAIN
        mark, style = (self.marks["fail"], "bad") if sure else (self.marks["warn"], "warn")
        yield from self.title(mark, style, cause.title, "", cause.id)
        yield from self.field("certainty", self._certainty(candidate), "" if sure else "warn")
        shown = candidate.evidence if self.verbose else candidate.evidence[:4]
        for index, item in enumerate(shown):
            yield from self._evidence("evidence" if index == 0 else "", item)
        yield from self.field("so", cause.meaning)
        yield from self._logs(candidate)
        follows = candidate.consequences if self.verbose else candidate.consequences[:2]
        for index, item in enumerate(follows):
            yield from self._evidence("follows" if index == 0 else "", item)
        more = len(candidate.consequences) - len(follows)
        if more:
            yield from self.field("", f"and {more} more lines that only follow (-v)", "dim")
        yield from self._checks(candidate)
        yield from self.commands("now", cause.fix_now)
        yield from self.commands("for good", cause.fix_permanent)
        if cause.workaround:
            yield from self.commands("meanwhile", (cause.workaround,))
        if cause.action in _NEEDS:
            yield from self.field("needs", _NEEDS[cause.action])
        if cause.versions:
            yield from self.field("versions", cause.versions)
        if cause.tell_apart:
            yield from self.field("proof", cause.tell_apart)
        if cause.checks:
            yield from self.field("verify", f"epdoctor check --select {','.join(cause.checks)}", "command")
        if self.verbose:
            for index, reference in enumerate(cause.references):
                yield from self.field("source" if index == 0 else "", reference, "dim")

    def _certainty(self, candidate: Candidate) -> str:
        counts = [
            f"{number} {word} signature{'s' if number != 1 else ''}"
            for number, word in ((candidate.strong, "strong"), (candidate.weak, "weak"))
            if number
        ]
        if candidate.context:
            counts.append(f"{candidate.context} in the lines around")
        if candidate.typed and not counts:
            counts.append("by the words typed")
        return f"{candidate.certainty} ({', '.join(counts)})"

    def _evidence(self, label: str, item: Evidence) -> Iterator[Line]:
        many = f" ({'20+' if item.count >= 20 else item.count} lines)" if item.count > 1 else ""
        text = sanitize(item.text, 400 if self.verbose else 220)
        if self.answer.lines <= 1 and not item.file:
            yield from self.field(label, text + many, "dim")
            return
        yield from self.field(label, f"{item.where()}{many}  {text}", "dim")

    def _checks(self, candidate: Candidate) -> Iterator[Line]:
        label = "check"
        for result in candidate.check_results:
            if result.status in ("fail", "pass"):
                where = f" on {fold(result.nodes)}" if any(result.nodes) else ""
                proof = "this is it" if result.status == "fail" else "not now"
                text = f"{result.check}{where}: {result.found or 'passes'} ({proof})"
                yield from self.field(label, text, "bad" if result.status == "fail" else "good")
                label = ""
        for status, word in (("unknown", "cannot tell"), ("error", "broke"), ("skip", "does not apply")):
            own = [result for result in candidate.check_results if result.status == status]
            if own:
                reasons = list(dict.fromkeys(result.found for result in own if result.found))
                names = ", ".join(result.check for result in own)
                yield from self.field(label, f"{word}: {names} ({'; '.join(reasons[:2])})", "dim")
                label = ""

    def _logs(self, candidate: Candidate) -> Iterator[Line]:
        yield from self._states("logs", candidate.logs)
        if candidate.first_rank:
            yield from self.field("first", sanitize(candidate.first_rank, 160), "bad")
        yield from self._states("ranks", candidate.ranks)

    def _states(self, label: str, states: dict[str, str]) -> Iterator[Line]:
        groups: dict[str, list[str]] = {}
        for name, state in states.items():
            groups.setdefault(state, []).append(name)
        for index, state in enumerate(s for s in _STATES if s in groups):
            names = groups[state]
            shown = fold(names) if len(names) <= 200 else f"{len(names)} {label}"
            text = f"{_STATES[state]}: {len(names)} of {len(states)}  {sanitize(shown, 160)}"
            yield from self.field(label if index == 0 else "", text, "bad" if state == "has" else "")

    def _other(self, candidate: Candidate) -> Iterator[Line]:
        cause = candidate.cause
        yield from self.title(self.marks["unknown"], "warn", f"or: {cause.title}", "", cause.id)
        strongest = candidate.evidence[0] if candidate.evidence else None
        yield from self.field("certainty", self._certainty(candidate), "dim")
        if strongest is not None:
            yield from self._evidence("evidence", strongest)
        yield from self._checks(candidate)
        if cause.tell_apart:
            yield from self.field("proof", cause.tell_apart)

    def _next_command(self) -> str:
        checks = list(dict.fromkeys(c for r in self.answer.results[:3] for c in r.cause.checks))
        if checks and not any(r.check_results for r in self.answer.results):
            return f"epdoctor check --select {','.join(checks[:6])}"
        first = self.answer.results[0]
        commands = first.cause.fix_now or first.cause.fix_permanent
        if not commands:
            return "epdoctor check"
        proven = [node for r in first.check_results if r.status == "fail" for node in r.nodes if node]
        where = f"on {fold(list(dict.fromkeys(proven)))}: " if proven else ""
        return where + commands[0].splitlines()[0]

    # ------------------------------------------------------------ nothing known

    def _nothing(self) -> Iterator[Line]:
        what = f"no known cause in {self.answer.lines:,} line{'s' if self.answer.lines != 1 else ''}"
        yield (Piece("NOT KNOWN", "warn"), Piece(f"  {what}"))
        for index, item in enumerate(self.answer.error_lines):
            yield from self._evidence("says" if index == 0 else "", item)
        for index, candidate in enumerate(self.answer.maybe):
            cause = candidate.cause
            for part_index, part in enumerate(
                textwrap.wrap(f"{sanitize(cause.title)} ({cause.id})", max(20, self.width - 14)) or [""]
            ):
                label = "maybe" if index == 0 and part_index == 0 else ""
                yield (Piece("    " + label.ljust(10), "dim"), Piece(part))
        yield ()
        yield from self.field(
            "next", "epdoctor collect -o report.tar.gz", "command", indent=0, label_width=11
        )
        yield from self.field(
            "",
            "what a maintainer needs: that file and the log from its first line on",
            "dim",
            indent=0,
            label_width=11,
        )
