"""Load and validate the check files under checks/ (field reference: checks/README.md)."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from epdoctor.compiled import load_compiled, read_yaml, yaml_files
from epdoctor.exceptions import CatalogError, UsageError
from epdoctor.model import Action, Check, Disruption, Fix, Severity
from epdoctor.paths import data_dir

NOT_CHECKS = ("errors", "compat", "profiles", "demo", "rules")
"""Folders of checks/ that hold something else."""

_REQUIRED = {"id", "title", "severity", "scope", "rule", "why", "by_hand", "fix", "references", "since"}
_OPTIONAL = {"needs", "applies", "with", "causes", "tags"}
_FIX_KEYS = {"now", "permanent", "workaround", "playbook", "tags", "action", "disruption"}


@cache
def load_checks(folder: Path | None = None) -> Mapping[str, Check]:
    """Every check by id, in id order. Raises CatalogError that starts with the file's name."""
    root = folder or data_dir("checks")
    raw: dict[str, Any] = load_compiled(
        "checks" if folder is None else "checks-site", [root], lambda: compile_checks(root)
    )
    return checks_from_json(raw)


def checks_from_json(raw: Mapping[str, Any]) -> dict[str, Check]:
    """What compile_checks() gave, as Checks."""
    return {check_id: _from_json(value) for check_id, value in raw.items()}


def compile_checks(root: Path) -> dict[str, Any]:
    """Every check file below a folder, validated, as JSON values by id. Raises CatalogError by file name."""
    found: dict[str, Any] = {}
    for subfolder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in NOT_CHECKS):
        for entry in yaml_files(subfolder):
            value = read_yaml(entry.path)
            _validate(value, Path(entry.path))
            if value["id"] in found:
                raise CatalogError(f"{entry.path}: the id {value['id']} is taken")
            found[value["id"]] = value
    return dict(sorted(found.items()))


def _validate(value: Any, path: Path) -> None:
    def refuse(text: str) -> typing.NoReturn:
        raise CatalogError(f"{path}: {text}")

    if not isinstance(value, dict):
        refuse("not a mapping")
    missing = _REQUIRED - value.keys()
    extra = value.keys() - _REQUIRED - _OPTIONAL
    if missing or extra:
        refuse("; ".join(filter(None, (_list("missing", missing), _list("unknown field", extra)))))
    expected_id = f"{path.parent.name}.{path.stem}"
    if value["id"] != expected_id:
        refuse(f"id is {value['id']!r}, the file's place says {expected_id!r}")
    for key in ("title", "why", "by_hand", "rule"):
        if not isinstance(value[key], str) or not value[key].strip():
            refuse(f"{key} must be a text")
    if value["scope"] not in ("node", "cluster", "launch"):
        refuse("scope must be node, cluster or launch")
    severities = value["severity"] if isinstance(value["severity"], dict) else {"default": value["severity"]}
    if "default" not in severities:
        refuse("severity has no default")
    for level in severities.values():
        if level not in {severity.value for severity in Severity}:
            refuse(f"severity {level!r} is not error, warning or info")
    applies = value.get("applies") or {}
    if not isinstance(applies, dict) or applies.keys() - {"backends", "multinode"}:
        refuse("applies takes backends and multinode")
    from epdoctor.backends import canonical_backends

    known = set(canonical_backends())
    for name in [*severities.keys() - {"default"}, *applies.get("backends", [])]:
        if name not in known:
            refuse(f"{name!r} is not a back end")
    fix = value["fix"]
    if not isinstance(fix, dict) or fix.keys() - _FIX_KEYS:
        refuse(f"fix takes {', '.join(sorted(_FIX_KEYS))}")
    for key in ("needs", "causes", "references", "tags"):
        _strings(value.get(key, []), key, refuse)
    for key in ("now", "permanent", "tags"):
        _strings(fix.get(key, []), f"fix.{key}", refuse)
    if not value["references"]:
        refuse("references is empty: every fact has a source")
    for key, kind in (("action", Action), ("disruption", Disruption)):
        if fix.get(key, "none") not in {item.value for item in kind}:
            refuse(f"fix.{key} {fix[key]!r} is not one of {', '.join(item.value for item in kind)}")
    _validate_rule(value, refuse)


def _strings(value: Any, key: str, refuse: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        refuse(f"{key} must be a list of texts")


def _list(what: str, names: Iterable[Any]) -> str:
    return f"{what} {', '.join(sorted(map(str, names)))}" if names else ""


def _validate_rule(value: dict[str, Any], refuse: Any) -> None:
    from epdoctor.rules import all_needs, all_rules, rule_parameters

    rules, needs = all_rules(), all_needs()
    rule = rules.get(value["rule"])
    if rule is None:
        refuse(f"unknown rule {value['rule']}{did_you_mean(value['rule'], rules)}")
    assert rule is not None
    if rule.scope != value["scope"]:
        refuse(f"rule {rule.name} is for scope {rule.scope}")
    for name in value.get("needs", []):
        if name not in needs:
            refuse(f"unknown need {name}{did_you_mean(name, needs)}")
    given = value.get("with") or {}
    if not isinstance(given, dict):
        refuse("with must be a mapping")
    refuse_parameters(rule.name, given, refuse)
    for name, parameter in rule_parameters(rule).items():
        if name not in given and parameter.default is parameter.empty:
            refuse(f"rule {rule.name} wants the parameter {name}")


def refuse_parameters(rule_name: str, given: Mapping[str, Any], refuse: Callable[[str], Any]) -> None:
    """`refuse(text)` for a parameter that the rule does not have or that has the wrong type."""
    from epdoctor.rules import all_rules, rule_parameters

    rule = all_rules()[rule_name]
    parameters = rule_parameters(rule)
    hints = typing.get_type_hints(rule.function) if given else {}
    for name, value in given.items():
        if name not in parameters:
            refuse(f"rule {rule.name} has no parameter {name}{did_you_mean(name, parameters)}")
        if not _fits(value, hints.get(name, object)):
            refuse(f"parameter {name} of rule {rule.name} must be {hints[name]}, not {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value fits a rule's annotation (str, int, float, bool, tuple/list/dict of them, None)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (tuple, list):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict or origin is Mapping or hint is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else False


def _from_json(value: dict[str, Any]) -> Check:
    severity = value["severity"] if isinstance(value["severity"], dict) else {"default": value["severity"]}
    applies = value.get("applies") or {}
    fix = value["fix"]
    return Check(
        id=value["id"],
        title=value["title"].strip(),
        severity={name: Severity(level) for name, level in severity.items()},
        scope=value["scope"],
        rule=value["rule"],
        params={name: _frozen(item) for name, item in (value.get("with") or {}).items()},
        why=value["why"].strip(),
        by_hand=value["by_hand"].strip(),
        fix=Fix(
            now=tuple(fix.get("now", ())),
            permanent=tuple(fix.get("permanent", ())),
            workaround=str(fix.get("workaround", "")).strip(),
            playbook=str(fix.get("playbook", "")),
            tags=tuple(fix.get("tags", ())),
            action=Action(fix.get("action", "none")),
            disruption=Disruption(fix.get("disruption", "none")),
        ),
        needs=tuple(value.get("needs", ())),
        backends=tuple(applies.get("backends", ())),
        multinode=applies.get("multinode"),
        causes=tuple(value.get("causes", ())),
        references=tuple(value.get("references", ())),
        tags=tuple(value.get("tags", ())),
        since=str(value["since"]),
    )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ ", did you mean X?" or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""


def select_checks(
    checks: Mapping[str, Check], select: Iterable[str], ignore: Iterable[str]
) -> dict[str, Check]:
    """Checks by id, id prefix ("gpu", "gpu.") or tag. Raises UsageError for a word that fits nothing."""

    def fits(check: Check, word: str) -> bool:
        return check.id == word or check.id.startswith(word.rstrip(".") + ".") or word in check.tags

    select, ignore = list(select), list(ignore)
    for word in [*select, *ignore]:
        if not any(fits(check, word) for check in checks.values()):
            known = [
                *checks,
                *{check.category for check in checks.values()},
                *(t for c in checks.values() for t in c.tags),
            ]
            raise UsageError(
                f"no check, prefix or tag {word!r}{did_you_mean(word, known)}", hint="epdoctor list checks"
            )
    return {
        check_id: check
        for check_id, check in checks.items()
        if (not select or any(fits(check, word) for word in select))
        and not any(fits(check, word) for word in ignore)
    }
