"""What a bundle for nodes without network holds, from the components and the pins. Pure but for reading files.

A bundle is a folder: wheels/, packages/ (archives of sources, debs, with a SHA256SUMS of their own),
epdoctor/ (epdoctor's wheel with what it needs), manifest.json, and SHA256SUMS over all of it. A component says
what it needs in playbooks/roles/<component>/meta/bundle.yml:

    wheels: ["nvidia-nccl-cu{versions_cuda_major}=={versions_nccl}"]   # {name}: a role variable
    dependencies: true             # with all that they need; false: only them
    sources:                       # git repositories with their submodules, as packages/NAME.tar.gz
      - {name: "deep-ep-{deepep_revision}", url: "{deepep_git_url}", revision: "{deepep_revision}"}
    debs: [rdma-core]              # with all that they need, from this machine's apt
    variables: {gdrcopy_source: tarball}     # set where the bundle is the source
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epdoctor.compiled import read_yaml
from epdoctor.exceptions import CatalogError, UsageError
from epdoctor.paths import data_dir
from epdoctor.provision.components import Component

SCHEMA = 1
MANIFEST = "manifest.json"
_KEYS = {"wheels", "dependencies", "sources", "debs", "variables"}
_VARIABLE = re.compile(r"\{\{ ([a-z_]{1,60}) \}\}\Z")
_NAME = re.compile(r"[A-Za-z0-9._+-]{1,200}\Z")


@dataclass(frozen=True)
class GitSource:
    name: str
    """Of the archive, without .tar.gz."""
    url: str
    revision: str


@dataclass(frozen=True)
class Contents:
    """What one component needs."""

    component: str
    wheels: tuple[str, ...] = ()
    """Requirements."""
    dependencies: bool = False
    sources: tuple[GitSource, ...] = ()
    debs: tuple[str, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not (self.wheels or self.sources or self.debs)


def role_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every role's defaults with `given` over them; a default that names another variable takes its value."""
    values: dict[str, Any] = {}
    for path in sorted(data_dir("playbooks").glob("roles/*/defaults/main.yml")):
        values |= read_yaml(path) or {}
    values |= given
    for name, value in list(values.items()):
        seen = {name}
        while isinstance(value, str) and (match := _VARIABLE.match(value)) and match[1] not in seen:
            seen.add(match[1])
            value = values.get(match[1])
        values[name] = value
    return values


def contents(components: Sequence[Component], given: Mapping[str, Any]) -> tuple[Contents, ...]:
    """What the components need; `given`: pins and variables. Raises CatalogError for a malformed bundle.yml,
    UsageError for a variable that cannot be a file's name."""
    values = role_values(given)
    return tuple(_contents(component.name, values) for component in components)


def _contents(component: str, values: Mapping[str, Any]) -> Contents:
    path = data_dir("playbooks") / "roles" / component / "meta/bundle.yml"
    if not path.exists():
        return Contents(component)
    raw = read_yaml(path)
    if not isinstance(raw, dict) or not set(raw) <= _KEYS:
        raise CatalogError(f"{path}: takes {', '.join(sorted(_KEYS))}")
    try:
        sources = []
        for row in raw.get("sources", ()):
            # An empty revision: this vLLM brings the package, or has no use for it.
            source = GitSource(*(str(row[key]).format_map(values) for key in ("name", "url", "revision")))
            if source.revision:
                sources.append(source)
        wheels = tuple(str(word).format_map(values) for word in raw.get("wheels", ()))
    except (KeyError, ValueError, TypeError) as error:
        raise CatalogError(f"{path}: {error!r}") from error
    if "sources" in raw and not sources:
        return Contents(component)
    for source in sources:
        if not _NAME.match(source.name) or source.revision.startswith("-"):
            raise UsageError(f"{component}: {source.name!r} cannot be the name of an archive")
    return Contents(
        component,
        wheels,
        bool(raw.get("dependencies", False)),
        tuple(sources),
        tuple(str(name) for name in raw.get("debs", ())),
        dict(raw.get("variables", {})),
    )


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """manifest.json of a bundle. Raises UsageError where the folder is none, or is of a newer epdoctor."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder}: not a bundle ({MANIFEST}: {error})", hint="epdoctor provision --bundle DIR makes one"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("vllm"), str):
        raise UsageError(f"{path}: not the manifest of a bundle")
    if found.get("schema") != SCHEMA:
        raise UsageError(f"{path}: schema {found.get('schema')!r}; this epdoctor reads {SCHEMA}")
    variables = found.get("variables", {})
    if not isinstance(variables, dict):
        raise UsageError(f"{path}: variables must be a map")
    from epdoctor.provision.arguments import check_variables

    try:
        check_variables(variables)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return found
