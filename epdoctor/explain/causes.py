"""Load and validate the cause files under checks/errors/ (field reference: checks/errors/README.md)."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from epdoctor.compiled import load_compiled, read_yaml, yaml_files
from epdoctor.exceptions import CatalogError
from epdoctor.explain.literals import MIN_LENGTH, required_literals
from epdoctor.explain.match import DIFFER, SAME
from epdoctor.model import Action
from epdoctor.paths import data_dir

STRENGTHS = ("strong", "weak", "context", "deciding", "excluding")
_AROUND = ("context", "deciding", "excluding")
PERSON = "any"
"""The `program` of a signature for what people and notes of any origin say."""
_FORMAT = 9
"""Part of the cache's name: raised whenever the compiled form changes."""

_REQUIRED = {"id", "title", "layer", "action", "meaning", "signatures", "fix", "references", "since"}
_OPTIONAL = {
    "silent", "not", "consequences", "say", "tell_apart", "checks", "versions", "reports", "ambiguous_with",
    "neighbours", "goes_on",
}  # fmt: skip
_SIGNATURE = {
    "regex", "strength", "program", "version", "example", "more_examples", "literal", "captures"
}  # fmt: skip


@dataclass(frozen=True)
class Signature:
    """How one program says it."""

    regex: str
    strength: str
    """strong: names the cause by itself; weak: several causes print it; context: only raises a named cause;
    deciding: raises it above the neighbours that print the same line; excluding: it is not this cause."""
    program: str
    version: str
    example: str
    more_examples: tuple[str, ...] = ()
    captures: str = ""
    """differ | same: what the groups hold must differ, or be the same, around the cause's line (`match.compared`)."""


@dataclass(frozen=True)
class Cause:
    """One cause file."""

    id: str
    title: str
    layer: str
    action: str
    meaning: str
    signatures: tuple[Signature, ...]
    fix_now: tuple[str, ...] = ()
    fix_permanent: tuple[str, ...] = ()
    workaround: str = ""
    tell_apart: str = ""
    checks: tuple[str, ...] = ()
    """Ids of the checks that prove it or rule it out."""
    consequences: tuple[str, ...] = ()
    """Regexes of lines that this cause also triggers further down."""
    look_alikes: tuple[str, ...] = ()
    """Lines that must not name this cause (`not` in the file)."""
    say: tuple[str, ...] = ()
    """How a person would type it."""
    ambiguous_with: tuple[str, ...] = ()
    """Causes that print the same text: they may rank first on its examples."""
    neighbours: tuple[str, ...] = ()
    """Causes that the same words may mean where no detail decides, the likeliest first."""
    goes_on: bool = False
    """vLLM may serve with it all the same: over a slower path, with wrong results, or until later."""
    references: tuple[str, ...] = ()
    since: str = ""
    versions: str = ""
    silent: bool = False
    """No program prints anything: only a check finds it."""
    reports: int = 0
    """Public reports found; decides between causes that the text leaves equal."""

    def of(self, strength: str) -> tuple[Signature, ...]:
        """The signatures of this strength."""
        return tuple(s for s in self.signatures if s.strength == strength)


@dataclass(frozen=True)
class Pattern:
    """A regex that is sought in every line, with all the causes that it points to."""

    regex: str
    literals: tuple[str, ...]
    strong: tuple[str, ...]
    weak: tuple[str, ...]
    follows: tuple[str, ...]
    """Causes of which such a line is only a consequence."""
    phrase: bool = False
    """A person's words rather than a program's: in a program's line they may stand for anything."""


class Catalogue:
    """All causes; each is built from the compiled form when it is first asked for."""

    def __init__(self, compiled: Mapping[str, Any]) -> None:
        self._raw: dict[str, Any] = compiled["causes"]
        self._built: dict[str, Cause] = {}
        self._patterns = compiled["patterns"]

    def __len__(self) -> int:
        return len(self._raw)

    def __contains__(self, cause_id: object) -> bool:
        return cause_id in self._raw

    def __iter__(self) -> typing.Iterator[str]:
        return iter(self._raw)

    def __getitem__(self, cause_id: str) -> Cause:
        cause = self._built.get(cause_id)
        if cause is None:
            cause = self._built[cause_id] = _cause(self._raw[cause_id])
        return cause

    @cached_property
    def lasting(self) -> frozenset[int]:
        """Numbers of the patterns that point to a cause with which vLLM may serve all the same."""
        goes_on = {cause_id for cause_id, raw in self._raw.items() if raw.get("goes_on")}
        return frozenset(
            number
            for number, pattern in enumerate(self.patterns)
            if not goes_on.isdisjoint((*pattern.strong, *pattern.weak))
        )

    @cached_property
    def patterns(self) -> list[Pattern]:
        return [
            Pattern(r, tuple(literals), tuple(s), tuple(w), tuple(f), phrase)
            for r, literals, s, w, f, phrase in self._patterns
        ]


@cache
def load_causes(folder: Path | None = None) -> Catalogue:
    """Every cause in id order. Raises CatalogError that starts with the file's name."""
    root = folder or data_dir("checks") / "errors"
    kind = f"causes-{_FORMAT}" if folder is None else f"causes-site-{_FORMAT}"
    return Catalogue(load_compiled(kind, [root], lambda: _compile(root)))


def _compile(root: Path) -> dict[str, Any]:
    causes: dict[str, Any] = {}
    for entry in yaml_files(root):
        value = read_yaml(entry.path)
        for one in value if isinstance(value, list) else [value]:
            validate(one, Path(entry.path), single=not isinstance(value, list))
            if one["id"] in causes:
                raise CatalogError(f"{entry.path}: the id {one['id']} is taken")
            causes[one["id"]] = one
    found: dict[str, list[list[str]]] = {}
    for cause_id, value in sorted(causes.items()):
        for signature in value["signatures"]:
            if signature["strength"] not in _AROUND:
                kinds = found.setdefault(signature["regex"], [[], [], []])
                kinds[STRENGTHS.index(signature["strength"])].append(cause_id)
        for regex in value.get("consequences", []):
            found.setdefault(regex, [[], [], []])[2].append(cause_id)
    own = {
        s["regex"]: [str(s["literal"]).lower()]
        for value in causes.values()
        for s in value["signatures"]
        if s.get("literal")
    }
    spoken = {
        s["regex"]
        for value in causes.values()
        for s in value["signatures"]
        if s["program"] == PERSON or s["program"].startswith(f"{PERSON} ")
    }
    patterns = [
        [regex, own.get(regex) or required_literals(regex), *kinds, regex in spoken]
        for regex, kinds in found.items()
    ]
    return {"causes": dict(sorted(causes.items())), "patterns": patterns}


def validate(value: Any, path: Path, *, single: bool = True) -> None:
    """Raises CatalogError with the file's name. `single`: the file's name is the id."""

    def refuse(text: str) -> typing.NoReturn:
        raise CatalogError(f"{path}: {text}")

    if not isinstance(value, dict):
        refuse("not a mapping")
    missing, extra = _REQUIRED - value.keys(), value.keys() - _REQUIRED - _OPTIONAL
    if missing or extra:
        refuse(f"missing {sorted(missing)}, unknown field {sorted(map(str, extra))}")
    if single and value["id"] != path.stem:
        refuse(f"id is {value['id']!r}, the file's name says {path.stem!r}")
    for key in ("id", "title", "layer", "meaning"):
        if not isinstance(value[key], str) or not value[key].strip():
            refuse(f"{value.get('id')}: {key} must be a text")
    if value["action"] not in {action.value for action in Action}:
        refuse(f"action {value['action']!r} is not one of {', '.join(a.value for a in Action)}")
    for key in ("not", "consequences", "say", "checks", "references", "ambiguous_with", "neighbours"):
        _texts(value.get(key, []), key, refuse)
    fix = value["fix"]
    if not isinstance(fix, dict) or fix.keys() - {"now", "permanent", "workaround"}:
        refuse("fix takes now, permanent and workaround")
    for key in ("now", "permanent"):
        _texts(fix.get(key, []), f"fix.{key}", refuse)
    if not isinstance(value["signatures"], list):
        refuse("signatures must be a list")
    if not value["signatures"] and not value.get("silent"):
        refuse("no signatures: a cause without any text says `silent: true`")
    for signature in value["signatures"]:
        _validate_signature(signature, refuse)
    for regex in value.get("consequences", []):
        _validate_regex(regex, "", refuse, literal=True)


def _texts(value: Any, key: str, refuse: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        refuse(f"{key} must be a list of texts")


def _validate_signature(signature: Any, refuse: Any) -> None:
    if not isinstance(signature, dict) or signature.keys() - _SIGNATURE:
        refuse(f"a signature takes {', '.join(sorted(_SIGNATURE))}")
    for key in ("regex", "strength", "program", "example"):
        if not isinstance(signature.get(key), str) or not signature[key].strip():
            refuse(f"signature {signature.get('regex')!r}: {key} must be a text")
    if signature["strength"] not in STRENGTHS:
        refuse(f"strength {signature['strength']!r} is not strong, weak, context, deciding or excluding")
    _texts(signature.get("more_examples", []), "more_examples", refuse)
    if (captures := signature.get("captures", "")) not in ("", DIFFER, SAME):
        refuse(f"captures {captures!r} is not {DIFFER} or {SAME}")
    if captures and signature["strength"] not in _AROUND:
        refuse("captures: for context, deciding and excluding signatures")
    for example in (signature["example"], *signature.get("more_examples", [])):
        needs = signature["strength"] not in _AROUND and not signature.get("literal")
        _validate_regex(signature["regex"], example, refuse, literal=needs, captures=captures)


def _validate_regex(regex: str, example: str, refuse: Any, *, literal: bool, captures: str = "") -> None:
    import re2

    from epdoctor.explain.match import compared, compile_once, spans_lines

    try:
        compiled = compile_once(regex, captures=bool(captures))
    except re2.error as error:
        raise refuse(f"regex {regex!r}: {error}") from error
    if captures:
        if compiled.groups not in (1, 2):
            refuse(
                f"regex {regex!r} needs one group or two, whose texts are compared; write others as (?:...)"
            )
        if compared(compiled, captures, example.encode()) is None:
            refuse(f"what regex {regex!r} captures in {example!r} is not {captures}")
        return
    texts = [example] if spans_lines(regex) and not literal else example.splitlines()
    if example and not any(compiled.search(text.encode()) for text in texts):
        refuse(f"regex {regex!r} does not match its example {example!r}")
    if literal and not required_literals(regex):
        refuse(f"regex {regex!r} has no literal of {MIN_LENGTH} characters that every match contains")


def _cause(raw: Mapping[str, Any]) -> Cause:
    fix = raw["fix"]
    return Cause(
        id=raw["id"],
        title=raw["title"].strip(),
        layer=raw["layer"],
        action=raw["action"],
        meaning=" ".join(raw["meaning"].split()),
        signatures=tuple(
            Signature(
                s["regex"],
                s["strength"],
                s["program"],
                str(s.get("version", "")),
                s["example"],
                tuple(s.get("more_examples", ())),
                s.get("captures", ""),
            )
            for s in raw["signatures"]
        ),
        fix_now=tuple(fix.get("now", ())),
        fix_permanent=tuple(fix.get("permanent", ())),
        workaround=str(fix.get("workaround", "")).strip(),
        tell_apart=" ".join(str(raw.get("tell_apart", "")).split()),
        checks=tuple(raw.get("checks", ())),
        consequences=tuple(raw.get("consequences", ())),
        look_alikes=tuple(raw.get("not", ())),
        say=tuple(raw.get("say", ())),
        ambiguous_with=tuple(raw.get("ambiguous_with", ())),
        neighbours=tuple(raw.get("neighbours", ())),
        goes_on=bool(raw.get("goes_on", False)),
        references=tuple(raw["references"]),
        since=str(raw["since"]),
        versions=str(raw.get("versions", "")),
        silent=bool(raw.get("silent", False)),
        reports=int(raw.get("reports", 0)),
    )
