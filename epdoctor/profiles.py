"""Named selections of checks: checks/profiles/*.yaml, a site's own file, or profiles/ beside a site's checks.

    title: What it is for
    extends: nightly            # another profile by name, or a file beside this one
    select: [gpu, rdma]         # ids, prefixes, tags; added to what the parent selects; none at all: every check
    ignore: [gpu.ecc-enabled]   # added to the parent's
    severity: {gpu.ecc-clean: error}              # or a map by back end, as in a check file
    with: {host.nofile-enough: {minimum: 65536}}  # other values for a check's parameters
    backend: deepep_v2          # where --backend is not given
    timeout_s: 4                # seconds a node may take, where --timeout is not given
    provision:                  # for epdoctor provision
      components: [limits, rdma]              # these run; none: what the back end needs
      variables: {versions_vllm: "0.32.0"}    # of roles; an inventory wins over them

Pure but for reading the files. Nothing here is imported where no profile is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from epdoctor.catalog import did_you_mean, refuse_parameters, select_checks
from epdoctor.compiled import read_yaml, yaml_files
from epdoctor.exceptions import CatalogError, UsageError
from epdoctor.model import Check, Severity
from epdoctor.paths import data_dir

_KEYS = ("title", "extends", "select", "ignore", "severity", "with", "backend", "timeout_s", "provision")


@dataclass(frozen=True)
class Provision:
    """What a profile says to `epdoctor provision`. Its names are held against the roles there."""

    components: tuple[str, ...] = ()
    """Tags; empty: what the back end needs."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Of the roles. An inventory wins over them."""


@dataclass(frozen=True)
class Profile:
    """A profile with all that it extends already in it."""

    name: str
    path: str
    title: str = ""
    select: tuple[str, ...] = ()
    """Words for select_checks(); empty: every check."""
    ignore: tuple[str, ...] = ()
    severity: Mapping[str, Mapping[str, Severity]] = field(default_factory=dict)
    """Check id -> severity by back end, as Check.severity; without "default" the check's own stays."""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Check id -> parameters of its rule that get another value."""
    backend: str = ""
    timeout_s: float | None = None
    provision: Provision = field(default_factory=Provision)


def shipped_profiles() -> list[str]:
    """Names under checks/profiles."""
    return [entry.name[: -len(".yaml")] for entry in yaml_files(data_dir("checks") / "profiles", below=False)]


def load_profile(name: str, folders: tuple[Path, ...] = ()) -> Profile:
    """A profile by name, or a file (its name ends in .yaml or has a slash). `folders` are looked in first.

    Raises UsageError where there is none, CatalogError that starts with the file's name where one is wrong."""
    return _load(_find(name, folders), folders, ())


def _refuse(where: str, text: str) -> NoReturn:
    raise CatalogError(f"{where}: {text}")


def _is_file(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _find(name: str, folders: tuple[Path, ...], beside: Path | None = None) -> Path:
    if _is_file(name):
        path = (beside or Path()) / Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"profile {name}: no such file")
        return path
    for folder in (*folders, *([beside] if beside else []), data_dir("checks") / "profiles"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = shipped_profiles()
    raise UsageError(
        f"no profile {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}",
        hint="epdoctor list profiles",
    )


def _load(path: Path, folders: tuple[Path, ...], seen: tuple[Path, ...]) -> Profile:
    refuse = partial(_refuse, str(path))
    real = path.resolve()
    if real in seen:
        refuse(f"extends itself: {' -> '.join(p.stem for p in (*seen, real))}")
    value = read_yaml(path)
    if not isinstance(value, dict) or not value:
        refuse("not a mapping")
    for key in value:
        if key not in _KEYS:
            refuse(f"unknown field {key}{did_you_mean(str(key), _KEYS)}")
    for key in ("title", "extends", "backend"):
        if not isinstance(value.get(key, ""), str):
            refuse(f"{key} must be a text")
    for key in ("select", "ignore"):
        words = value.get(key, [])
        if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
            refuse(f"{key} must be a list of ids, prefixes or tags")
    timeout = value.get("timeout_s")
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 2
    ):
        refuse("timeout_s must be a number of seconds, 2 or more")
    backend = value.get("backend", "")
    if backend:
        from epdoctor.backends import canonical_backends

        if backend not in canonical_backends():
            refuse(f"{backend!r} is not a back end{did_you_mean(backend, canonical_backends())}")
    parent = Profile("", "")
    if value.get("extends"):
        try:
            parent = _load(_find(value["extends"], folders, path.parent), folders, (*seen, real))
        except UsageError as error:
            if isinstance(error, CatalogError):
                raise
            refuse(str(error))
    return Profile(
        name=path.stem,
        path=str(path),
        title=value.get("title", "").strip(),
        select=(*parent.select, *value.get("select", ())),
        ignore=(*parent.ignore, *value.get("ignore", ())),
        severity={**parent.severity, **_severities(value.get("severity") or {}, refuse)},
        parameters=_merged(parent.parameters, _parameters(value.get("with") or {}, refuse)),
        backend=backend or parent.backend,
        timeout_s=parent.timeout_s if timeout is None else float(timeout),
        provision=_provision(value.get("provision") or {}, parent.provision, refuse),
    )


def _provision(value: Any, parent: Provision, refuse: Any) -> Provision:
    if not isinstance(value, dict) or not set(value) <= {"components", "variables"}:
        refuse("provision takes components and variables")
    names, variables = value.get("components", []), value.get("variables", {})
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        refuse("provision: components must be a list of names")
    if not isinstance(variables, dict) or not all(isinstance(name, str) for name in variables):
        refuse("provision: variables must map names of role variables to values")
    if names or variables:
        from epdoctor.provision.arguments import check_variables
        from epdoctor.provision.components import components

        known = [component.name for component in components()]
        for name in names:
            if name not in known:
                refuse(f"provision: no component {name!r}{did_you_mean(name, known)}")
        try:
            check_variables(variables)
        except UsageError as error:
            refuse(f"provision: {error}")
    return Provision(tuple(names) or parent.components, {**parent.variables, **variables})


def _severities(value: Any, refuse: Any) -> dict[str, dict[str, Severity]]:
    from epdoctor.backends import canonical_backends

    if not isinstance(value, dict):
        refuse("severity must map check ids to severities")
    known = {"default", *canonical_backends()}
    found: dict[str, dict[str, Severity]] = {}
    for check_id, levels in value.items():
        by_backend = levels if isinstance(levels, dict) else {"default": levels}
        for backend, level in by_backend.items():
            if backend not in known:
                refuse(
                    f"severity of {check_id}: {backend!r} is not a back end{did_you_mean(str(backend), known)}"
                )
            if level not in {severity.value for severity in Severity}:
                refuse(f"severity of {check_id}: {level!r} is not error, warning or info")
        found[str(check_id)] = {backend: Severity(level) for backend, level in by_backend.items()}
        if not isinstance(levels, dict):
            # One word means every back end: the check's own map must not win over it.
            found[str(check_id)] |= {backend: Severity(levels) for backend in canonical_backends()}
    return found


def _parameters(value: Any, refuse: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(given, dict) for given in value.values()):
        refuse("with must map check ids to parameters")
    return {str(check_id): dict(given) for check_id, given in value.items()}


def _merged(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {check_id: {**old.get(check_id, {}), **new.get(check_id, {})} for check_id in (*old, *new)}


def regrade(profile: Profile, checks: Mapping[str, Check]) -> dict[str, Check]:
    """All checks, with the profile's severities and parameters. Raises CatalogError by file name for an id,
    prefix, tag or parameter of the profile that does not exist."""
    changed = dict(checks)
    for check_id in dict.fromkeys((*profile.severity, *profile.parameters)):
        check = changed.get(check_id)
        if check is None:
            _refuse(profile.path, f"no check {check_id!r}{did_you_mean(check_id, checks)}")
        given = profile.parameters.get(check_id, {})
        refuse_parameters(check.rule, given, partial(_refuse, f"{profile.path}: {check_id}"))
        changed[check_id] = replace(
            check,
            severity={**check.severity, **profile.severity.get(check_id, {})},
            params={
                **check.params,
                **{name: tuple(item) if isinstance(item, list) else item for name, item in given.items()},
            },
        )
    try:
        select_checks(changed, profile.select, profile.ignore)
    except UsageError as error:
        raise CatalogError(f"{profile.path}: {error}") from error
    return changed
