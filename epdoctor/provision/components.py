"""What `epdoctor provision` can put in order: one role, one playbook and one tag each.

A component is a role that has `meta/component.yml`, a playbook of the same name and its line in site.yml:

    title: locked memory and open files   # as the plan shows it
    order: 10                             # components run in this order, that of site.yml
    backends: []                          # canonical names of the back ends that need it; none: all
    stack: false                          # true: part of vLLM's own environment; runs only where --backend,
                                          # --vllm, a profile or --tags asks for a serving stack
    default: true                         # false: only where --tags or a profile names it
    why_off: ""                           # where default is false: why
    checks: [host.memlock-unlimited]      # prove it; they run before and after
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from epdoctor.catalog import did_you_mean
from epdoctor.compiled import read_yaml
from epdoctor.exceptions import CatalogError, UsageError
from epdoctor.paths import data_dir


@dataclass(frozen=True)
class Component:
    """A role of playbooks/roles with its meta/component.yml."""

    name: str
    title: str
    order: int
    backends: tuple[str, ...]
    """Back ends that need it; empty: all. Without a back end it runs all the same."""
    checks: tuple[str, ...]
    """Checks that show whether it is right; they run before and after."""
    stack: bool = False
    """Part of vLLM's environment: runs only where a serving stack is asked for."""
    default: bool = True
    why_off: str = ""
    """Why it runs only where it is named; empty where it is on by default."""


_KINDS: Mapping[str, type] = {
    "title": str,
    "order": int,
    "backends": list,
    "checks": list,
    "stack": bool,
    "default": bool,
    "why_off": str,
}
_REQUIRED = ("title", "order", "checks")


def _refuse(path: Path, text: str) -> NoReturn:
    raise CatalogError(f"{path}: {text}")


def _component(path: Path) -> Component:
    value: Any = read_yaml(path)
    if not isinstance(value, dict):
        _refuse(path, "not a mapping")
    for key, item in value.items():
        if key not in _KINDS:
            _refuse(path, f"unknown field {key}{did_you_mean(str(key), _KINDS)}")
        if type(item) is not _KINDS[key]:
            _refuse(path, f"{key} must be a {_KINDS[key].__name__}")
    for key in _REQUIRED:
        if key not in value:
            _refuse(path, f"{key} is missing")
    for key in ("backends", "checks"):
        if not all(isinstance(word, str) for word in value.get(key, [])):
            _refuse(path, f"{key} must be a list of names")
    if value.get("default", True) == bool(value.get("why_off", "")):
        _refuse(path, "why_off goes with default: false, and only with it")
    return Component(
        name=path.parts[-3],
        title=value["title"],
        order=value["order"],
        backends=tuple(value.get("backends", ())),
        checks=tuple(value["checks"]),
        stack=value.get("stack", False),
        default=value.get("default", True),
        why_off=value.get("why_off", ""),
    )


@functools.cache
def components(folder: Path | None = None) -> tuple[Component, ...]:
    """Every component in its order; `folder`: another one than the shipped playbooks.

    Raises CatalogError that starts with the file's name where one is malformed."""
    roles = (folder or data_dir("playbooks")) / "roles"
    found = [_component(path) for path in roles.glob("*/meta/component.yml")]
    return tuple(sorted(found, key=lambda component: (component.order, component.name)))


@dataclass(frozen=True)
class Choice:
    """Which components run, and why others do not."""

    components: tuple[Component, ...]
    left_out: Mapping[str, str]
    """Component -> why; what the back end simply does not need is not listed."""


NOT_ASKED = "part of vLLM's environment; --backend or --vllm asks for it"


def choose(
    backend: str,
    tags: Sequence[str],
    skip_tags: Sequence[str],
    *,
    named: Sequence[str] = (),
    stack: bool = False,
) -> Choice:
    """What to run: the tags, else what the profile names, else what the back end needs.

    `named`: components of the profile; `stack`: a serving stack is asked for (--vllm). Raises UsageError for an
    unknown tag."""
    every = components()
    names = [component.name for component in every]
    for word in (*tags, *skip_tags, *named):
        if word not in names:
            raise UsageError(
                f"no component {word!r}{did_you_mean(word, names)}; there are {', '.join(names)}"
            )
    wanted = tags or named
    chosen, left_out = [], {}
    for component in every:
        if component.name in skip_tags:
            continue
        if wanted:
            if component.name in wanted:
                chosen.append(component)
        elif backend and component.backends and backend not in component.backends:
            continue
        elif not component.default:
            left_out[component.name] = component.why_off
        elif component.stack and not (backend or stack):
            left_out[component.name] = NOT_ASKED
        else:
            chosen.append(component)
    if not chosen:
        raise UsageError("--tags and --skip-tags leave no component", hint=f"there are {', '.join(names)}")
    return Choice(tuple(chosen), left_out)
