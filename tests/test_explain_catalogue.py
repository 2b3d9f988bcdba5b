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
SIGNATURES = [
    pytest.param(cause_id, signature, id=f"{cause_id}-{number}")
    for cause_id in CATALOGUE
    for number, signature in enumerate(CATALOGUE[cause_id].signatures)
]
STRONG = [p for p in SIGNATURES if p.values[1].strength == "strong"]  # type: ignore[union-attr]  # a Signature


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


@pytest.mark.parametrize(("cause_id", "signature"), SIGNATURES)
def test_literal_is_in_every_example(cause_id: str, signature: Signature) -> None:
    literals = required_literals(signature.regex)
    regex = compile_regex(signature.regex)
    for example in (signature.example, *signature.more_examples):
        # What lies around a hit may be told by two lines together; then the lines' end is in the regex.
        around = signature.strength not in ("strong", "weak") and spans_lines(signature.regex)
        texts = [example] if around else example.splitlines()
        lines = [text for text in texts if regex.search(text.encode())]
        assert lines
        if literals:
            assert any(literal in lines[0].lower() for literal in literals)


@pytest.mark.parametrize(("cause_id", "signature"), STRONG)
def test_strong_example_names_its_cause(cause_id: str, signature: Signature) -> None:
    for example in (signature.example, *signature.more_examples):
        named = [candidate.cause.id for candidate in explain_text(example.encode()).results]
        assert cause_id in named[:3]
        other = named[0]
        ambiguous = {cause_id, *CATALOGUE[cause_id].ambiguous_with}
        assert other in ambiguous or cause_id in CATALOGUE[other].ambiguous_with


@pytest.mark.parametrize(
    ("cause_id", "line"),
    [
        pytest.param(c, line, id=f"{c}-{n}")
        for c in CATALOGUE
        for n, line in enumerate(CATALOGUE[c].look_alikes)
    ],
)
def test_look_alike_does_not_name_it(cause_id: str, line: str) -> None:
    assert cause_id not in [candidate.cause.id for candidate in explain_text(line.encode()).results[:1]]


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
    )
    for change in changes:
        with pytest.raises(CatalogError, match=r"x\.yaml"):
            validate({**good, **change}, path)


def test_every_regex_is_linear() -> None:
    """google-re2 refuses what could backtrack; the compiled program must also stay small."""
    for pattern in CATALOGUE.patterns:
        assert isinstance(compile_regex(pattern.regex), re2._Regexp)
        assert compile_regex(pattern.regex).programsize < 20_000
