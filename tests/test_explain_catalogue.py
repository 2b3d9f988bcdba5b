"""The cause files: complete, each example names its cause, and no example names another one first."""

from __future__ import annotations

from typing import Any

import pytest
import re2

from epdoctor.catalog import load_checks
from epdoctor.exceptions import CatalogError
from epdoctor.explain.answer import explain_text
from epdoctor.explain.causes import Signature, load_causes, validate
from epdoctor.explain.literals import required_literals
from epdoctor.explain.match import compile_regex, spans_lines
from epdoctor.paths import data_dir

CATALOGUE = load_causes()


def test_size() -> None:
    signatures = sum(len(CATALOGUE[cause_id].signatures) for cause_id in CATALOGUE)
    assert len(CATALOGUE) >= 235
    assert signatures >= 500


@pytest.mark.parametrize("cause_id", list(CATALOGUE))
def test_names_only_what_exists(cause_id: str) -> None:
    cause = CATALOGUE[cause_id]
    checks = load_checks()
    assert [check for check in cause.checks if check not in checks] == []
    assert [other for other in cause.ambiguous_with if other not in CATALOGUE] == []
    assert cause.signatures or cause.checks, "neither a text nor a check finds it"
    assert cause.fix_now or cause.fix_permanent or cause.workaround, "no fix"


def test_checks_name_only_causes_that_exist() -> None:
    missing = {f"{c.id}: {x}" for c in load_checks().values() for x in c.causes if x not in CATALOGUE}
    assert missing == set()


def named(text: str) -> list[str]:
    return [candidate.cause.id for candidate in explain_text(text.encode()).results]


def examples(signature: Signature) -> tuple[str, ...]:
    return (signature.example, *signature.more_examples)


def matching_lines(signature: Signature, example: str) -> list[str]:
    # What lies around a hit may be told by two lines together; then the lines' end is in the regex.
    around = signature.strength not in ("strong", "weak") and spans_lines(signature.regex)
    regex = compile_regex(signature.regex)
    return [text for text in ([example] if around else example.splitlines()) if regex.search(text.encode())]


@pytest.mark.parametrize("cause_id", list(CATALOGUE))
def test_literals_are_in_every_example(cause_id: str) -> None:
    wrong = []
    for signature in CATALOGUE[cause_id].signatures:
        literals = required_literals(signature.regex)
        for example in examples(signature):
            lines = matching_lines(signature, example)
            if not lines or (literals and not any(literal in lines[0].lower() for literal in literals)):
                wrong.append(example)
    assert wrong == []


@pytest.mark.parametrize("cause_id", list(CATALOGUE))
def test_strong_examples_name_their_cause(cause_id: str) -> None:
    wrong = []
    ambiguous = {cause_id, *CATALOGUE[cause_id].ambiguous_with}
    for signature in CATALOGUE[cause_id].signatures:
        if signature.strength != "strong":
            continue
        for example in examples(signature):
            found = named(example)
            first = found[0] if found else ""
            right = first in ambiguous or (first and cause_id in CATALOGUE[first].ambiguous_with)
            if cause_id not in found[:3] or not right:
                wrong.append((example, found[:3]))
    assert wrong == []


@pytest.mark.parametrize("cause_id", list(CATALOGUE))
def test_look_alikes_do_not_name_it(cause_id: str) -> None:
    assert [line for line in CATALOGUE[cause_id].look_alikes if named(line)[:1] == [cause_id]] == []


def test_refuses_what_is_wrong() -> None:
    good: dict[str, Any] = {
        "id": "x", "title": "X", "layer": "other", "action": "none", "meaning": "m", "fix": {}, "references": [],
        "since": "0.1",
        "signatures": [{"regex": "some text", "strength": "strong", "program": "p", "example": "some text"}],
    }  # fmt: skip
    path = data_dir("checks") / "errors" / "x.yaml"
    validate(good, path)
    changes: tuple[dict[str, Any], ...] = (
        {"id": "y"},
        {"extra": 1},
        {"action": "dance"},
        {"signatures": []},
        {"signatures": [{**good["signatures"][0], "regex": "other text"}]},
        {"signatures": [{**good["signatures"][0], "regex": "some(?=x)"}]},
        {"signatures": [{**good["signatures"][0], "regex": r"\S+ \S+"}]},
        {"signatures": [{**good["signatures"][0], "strength": "sure"}]},
        {"signatures": [{**good["signatures"][0], "regex": "(some) text", "captures": "differ"}]},
        {"signatures": [{**good["signatures"][0], "strength": "deciding", "captures": "differ"}]},
        {
            "signatures": [
                {**good["signatures"][0], "regex": "(text)", "strength": "deciding", "captures": "more"}
            ]
        },
        {
            "signatures": [
                {**good["signatures"][0], "regex": "(text)", "strength": "deciding", "captures": "differ"}
            ]
        },
    )
    for change in changes:
        with pytest.raises(CatalogError, match=r"x\.yaml"):
            validate({**good, **change}, path)


def test_every_regex_is_linear() -> None:
    """google-re2 refuses what could backtrack; the compiled program must also stay small."""
    for pattern in CATALOGUE.patterns:
        assert isinstance(compile_regex(pattern.regex), re2._Regexp)
        assert compile_regex(pattern.regex).programsize < 20_000
