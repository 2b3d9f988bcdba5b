"""What explaining a text came to: ranked causes with their evidence, and the JSON that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from epdoctor.explain.causes import Cause

SCHEMA_VERSION = 1

CERTAIN, LIKELY, POSSIBLE = "certain", "likely", "possible"


@dataclass(frozen=True)
class Evidence:
    """One line that speaks for a cause, or that only follows from it."""

    file: str
    """Empty: standard input or the command line."""
    line: int
    text: str
    strength: str
    """strong | weak | context | follows"""
    program: str = ""
    count: int = 1
    """How many lines say the same; counting stops at 20."""

    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.file else f"line {self.line}"

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "line": self.line,
            "text": self.text,
            "strength": self.strength,
            "program": self.program,
            "count": self.count,
        }


@dataclass(frozen=True)
class CheckResult:
    """What one of a cause's checks says, run here or on a recording."""

    check: str
    status: str
    """fail | pass | skip | unknown | error"""
    nodes: tuple[str, ...] = ()
    found: str = ""
    """What the check found there, or why it is unknown."""


@dataclass
class Candidate:
    """A cause that the text points to."""

    cause: Cause
    score: float = 0.0
    strong: int = 0
    """Different strong signatures that matched."""
    said_by_program: bool = False
    """Whether one of them is a program's own text, not a person's words."""
    weak: int = 0
    context: int = 0
    typed: float = 0.0
    """How much of the typed words the cause covers, 0 to 1."""
    certainty: str = POSSIBLE
    evidence: list[Evidence] = field(default_factory=list)
    consequences: list[Evidence] = field(default_factory=list)
    also: list[str] = field(default_factory=list)
    """Ids of causes that only follow from this one here."""
    excluded: bool = False
    """Whether a line near its own says that it is something else, or all right."""
    first: tuple[float, int, int] = (float("inf"), 0, 0)
    """Where it shows first: time, file, line."""
    logs: dict[str, str] = field(default_factory=dict)
    """With several logs: log -> has | follows | clean | differs."""
    ranks: dict[str, str] = field(default_factory=dict)
    """With several ranks in one log: rank or process -> has | follows | clean | differs."""
    first_rank: str = ""
    """The rank that has it first: by time, or by order where a line has no time."""
    check_results: list[CheckResult] = field(default_factory=list)
    instead_of: str = ""
    """Id of the named cause whose neighbour this is: no line of its own, only the same words."""

    @property
    def confidence(self) -> float:
        """0 to 1: the score on a scale where 1 leaves no doubt."""
        return round(min(1.0, self.score / 16.0), 2)

    def to_json(self) -> dict[str, Any]:
        cause = self.cause
        return {
            "id": cause.id,
            "title": cause.title,
            "layer": cause.layer,
            "score": round(self.score, 2),
            "confidence": self.confidence,
            "certainty": self.certainty,
            "instead_of": self.instead_of,
            "meaning": cause.meaning,
            "evidence": [item.to_json() for item in self.evidence],
            "consequences": [item.to_json() for item in self.consequences],
            "also": self.also,
            "logs": self.logs,
            "ranks": self.ranks,
            "first_rank": self.first_rank,
            "fix": {
                "now": list(cause.fix_now),
                "permanent": list(cause.fix_permanent),
                "workaround": cause.workaround,
            },
            "action": cause.action,
            "tell_apart": cause.tell_apart,
            "versions": cause.versions,
            "checks": list(cause.checks),
            "check_results": [
                {"check": r.check, "status": r.status, "nodes": list(r.nodes), "found": r.found}
                for r in self.check_results
            ],
            "references": list(cause.references),
        }


@dataclass
class Explanation:
    """The whole answer."""

    results: list[Candidate]
    maybe: list[Candidate]
    """Nearest causes of a text that names none."""
    files: int = 0
    lines: int = 0
    size_bytes: int = 0
    error_lines: list[Evidence] = field(default_factory=list)
    """Of a text that names no cause: lines that look like errors."""
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "results": [candidate.to_json() for candidate in self.results],
            "maybe": [
                {
                    "id": c.cause.id,
                    "title": c.cause.title,
                    "confidence": c.confidence,
                    "checks": list(c.cause.checks),
                }
                for c in self.maybe
            ],
            "error_lines": [item.to_json() for item in self.error_lines],
            "files": self.files,
            "lines": self.lines,
            "bytes": self.size_bytes,
            "warnings": self.warnings,
        }
