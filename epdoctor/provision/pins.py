"""The pins of playbooks/roles/versions for a vLLM, as Ansible will see them. Pure but for reading the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from epdoctor import compat
from epdoctor.compiled import read_yaml
from epdoctor.exceptions import CatalogError, Unmeasured, UsageError
from epdoctor.paths import data_dir

_OF_ROW = re.compile(r"\{\{ versions_release\.([a-z_]+) \}\}\Z")


def _defaults() -> Mapping[str, Any]:
    path = data_dir("playbooks") / "roles/versions/defaults/main.yml"
    found = read_yaml(path)
    if not isinstance(found, dict) or not isinstance(found.get("versions_releases"), list):
        raise CatalogError(f"{path}: versions_releases must be a list")
    return found


def newest() -> str:
    """The vLLM that is prepared for where none is named."""
    return str(_defaults()["versions_vllm"])


def pins(vllm_version: str = "") -> dict[str, Any]:
    """versions_* by name, for this vLLM or the newest of the table.

    Raises UsageError for what is no version, and for a vLLM older than the table."""
    defaults = _defaults()
    wanted = vllm_version or str(defaults["versions_vllm"])
    try:
        release = compat.version(wanted)
    except Unmeasured as error:
        raise UsageError(f"--vllm {wanted}: not a version", hint="--vllm 0.33.0") from error
    rows = [row for row in defaults["versions_releases"] if compat.version(str(row["vllm"])) <= release]
    if not rows:
        oldest = defaults["versions_releases"][-1]["vllm"]
        raise UsageError(
            f"--vllm {wanted}: no pins are known for vLLM before {oldest}",
            hint="choose a newer vLLM, or set versions_releases in the inventory",
        )
    row = rows[0]
    found: dict[str, Any] = {}
    for name, value in defaults.items():
        match = _OF_ROW.match(value) if isinstance(value, str) else None
        if match:
            found[name] = row[match[1]]
        elif name != "versions_releases":
            found[name] = value
    found["versions_vllm"] = wanted
    return found


def newer_than_known(vllm_version: str) -> str:
    """A warning where the table ends before this vLLM; empty otherwise."""
    known = newest()
    if vllm_version and compat.release(vllm_version) > compat.release(known):
        return f"vLLM {vllm_version} is newer than the version tables: the pins of {known} are taken"
    return ""
