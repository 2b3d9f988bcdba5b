"""The roles' variables, from their meta/argument_specs.yml: what -e may set, and the pages of docs/playbooks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from epdoctor.catalog import did_you_mean
from epdoctor.exceptions import EpdoctorError, UsageError
from epdoctor.paths import data_dir

NOTE = "<!-- Generated from playbooks/roles/{role}/meta/argument_specs.yml. Edit that file, not this page. -->\n\n"
_CODE = re.compile(r"C\(([^)]{1,80})\)")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": (str, int, float),
    "path": str,
    "int": int,
    "bool": bool,
    "list": list,
    "dict": dict,
}


@dataclass(frozen=True)
class Option:
    name: str
    type: str
    default: Any
    required: bool
    choices: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Role:
    name: str
    title: str
    description: tuple[str, ...]
    options: tuple[Option, ...]


def _lines(value: object) -> tuple[str, ...]:
    return tuple(str(line) for line in value) if isinstance(value, list) else (str(value),) if value else ()


def roles(folder: Path | None = None) -> tuple[Role, ...]:
    """Every role with the options of all its entry points. Raises EpdoctorError naming a malformed file."""
    found = []
    for path in sorted((folder or data_dir("playbooks")).glob("roles/*/meta/argument_specs.yml")):
        try:
            points = yaml.safe_load(path.read_text("utf-8"))["argument_specs"]
            main = next(iter(points.values()))
            specs = {
                name: spec for point in points.values() for name, spec in (point.get("options") or {}).items()
            }
            options = tuple(
                Option(
                    name,
                    str(spec["type"]),
                    spec.get("default"),
                    bool(spec.get("required", False)),
                    tuple(str(choice) for choice in spec.get("choices", ())),
                    " ".join(_lines(spec["description"])),
                )
                for name, spec in specs.items()
            )
            found.append(
                Role(path.parts[-3], str(main["short_description"]), _lines(main.get("description")), options)
            )
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise EpdoctorError(f"{path}: {error!r}") from error
    return tuple(found)


def parse_extra(words: Sequence[str]) -> dict[str, Any]:
    """`-e var=value` words, typed by the roles' specs.

    Raises UsageError for a word without "=", an unknown variable, or a value of the wrong type."""
    known = {option.name: option for role in roles() for option in role.options}
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"-e {word}: not var=value")
        option = known.get(name)
        if option is None and not name.startswith("ansible_"):
            raise UsageError(f"-e {name}: no role has this variable{did_you_mean(name, known)}")
        values[name] = text if option is None else _typed(option, text)
    return values


def check_variables(values: Mapping[str, Any]) -> None:
    """Raises UsageError for a variable that no role has, or a value of the wrong type."""
    known = {option.name: option for role in roles() for option in role.options}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"no role has the variable {name}{did_you_mean(name, known)}")
        option = known[name]
        wrong = not isinstance(value, _TYPES[option.type]) or (
            option.type != "bool" and isinstance(value, bool)
        )
        if wrong or not _chosen(option, value):
            raise UsageError(f"{name}: it takes {', '.join(option.choices) or option.type}")


def _chosen(option: Option, value: Any) -> bool:
    """Of the choices, where there are some; of a list each element."""
    items = value if isinstance(value, list) else [value]
    return not option.choices or all(item in option.choices for item in items)


def _typed(option: Option, text: str) -> Any:
    if option.type in ("str", "path"):
        value: Any = text
    else:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = None
    wrong = not isinstance(value, _TYPES[option.type]) or (option.type == "int" and isinstance(value, bool))
    if wrong:
        raise UsageError(f"-e {option.name}={text}: it takes {option.type}")
    if not _chosen(option, value):
        raise UsageError(f"-e {option.name}={text}: it takes {', '.join(option.choices)}")
    return value


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown: one page a role and an index."""
    found: dict[str, str] = {}
    index = ["# Roles", "", "| role | what it does |", "| --- | --- |"]
    for role in roles():
        lines = [f"# {role.name}", "", f"{role.title}.", ""]
        lines += [f"- {_plain(text)}" for text in role.description]
        if role.options:
            lines += ["", "| variable | type | default | meaning |", "| --- | --- | --- | --- |"]
        for option in role.options:
            default = "required" if option.required else f"`{_yaml(option.default)}`"
            kind = " or ".join(f"`{choice}`" for choice in option.choices) or option.type
            lines.append(f"| `{option.name}` | {kind} | {default} | {_plain(option.description)} |")
        found[f"playbooks/{role.name}.md"] = NOTE.format(role=role.name) + "\n".join(lines) + "\n"
        index.append(f"| [{role.name}]({role.name}.md) | {role.title} |")
    found["playbooks/index.md"] = NOTE.format(role="*") + "\n".join(index) + "\n"
    return found


def _yaml(value: object) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _plain(text: str) -> str:
    """Ansible's C(x) markup as Markdown."""
    return _CODE.sub(r"`\1`", text)
