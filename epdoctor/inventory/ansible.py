"""Ansible inventories, through `ansible-inventory --list` in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from epdoctor.exceptions import InventoryError

TIMEOUT_S = 60
Host = tuple[str, tuple[str, ...], Mapping[str, Any]]
"""Name, groups, variables."""

_UNKNOWN = re.compile(r"Could not match supplied host pattern, ignoring: (.{1,200}?)(?: \[WARNING\]|$)")
_CAUSE = re.compile(r"Failed to parse inventory(?: with '\w+' plugin)?: (.{1,300})")
_ORIGIN_LINE = re.compile(r"^Origin: .{1,300}?:(\d{1,7})(?::\d{1,7})?$", re.MULTILINE)
_OLD_LINE = re.compile(r"(?:\.ini|\.cfg|hosts|inventory\S{0,40}):(\d{1,7}): ")  # ansible-core up to 2.18


def read(
    sources: Sequence[str], *, limit: str, env: Mapping[str, str], dynamic: bool, shown: str
) -> tuple[list[Host], tuple[str, ...]]:
    """Hosts that the limit leaves, and Ansible's warnings.

    Raises InventoryError: ansible-inventory missing or too slow, a source that cannot be parsed (with file
    and line where known), or a pattern that matches nothing.
    """
    argv = command()
    for source in sources:
        argv += ["-i", source]
    argv += ["--list"]
    if limit:
        argv += ["--limit", limit]
    with tempfile.TemporaryDirectory(prefix="epdoctor-") as scratch:
        settings = {
            "LC_ALL": "C.UTF-8",  # ansible refuses to start in a locale that is not UTF-8
            "ANSIBLE_INVENTORY_ENABLED": "script,auto,yaml,ini,host_list"
            if dynamic
            else "host_list,yaml,ini",
            "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
            "ANSIBLE_HOST_PATTERN_MISMATCH": "error",
            "ANSIBLE_LOCAL_TEMP": scratch,
            **_own_home(env, scratch),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
        }
        try:
            done = subprocess.run(
                argv,
                env={**env, **settings},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InventoryError(f"{shown}: ansible-inventory took longer than {TIMEOUT_S} s") from None
        except OSError as error:
            raise InventoryError(f"{argv[0]}: {error.strerror or error}") from None
    stderr = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        raise explain(stderr, sources, shown, limit)
    try:
        listing = json.loads(done.stdout)
        return hosts_of(listing), _warnings(stderr)
    except (ValueError, RecursionError):
        raise InventoryError(f"{shown}: ansible-inventory printed no inventory") from None


def _own_home(env: Mapping[str, str], scratch: str) -> dict[str, str]:
    """ansible-inventory makes ~/.ansible where there is none; reading an inventory should leave nothing."""
    if env.get("ANSIBLE_HOME") or Path(env.get("HOME", "/nonexistent"), ".ansible").is_dir():
        return {}
    return {"ANSIBLE_HOME": scratch}


def command() -> list[str]:
    """argv that starts ansible-inventory: beside this interpreter first, so that versions fit; then PATH."""
    beside = Path(sys.executable).parent / "ansible-inventory"
    if beside.is_file():
        return [str(beside)]
    if importlib.util.find_spec("ansible") is not None:
        return [sys.executable, "-m", "ansible", "inventory"]
    found = shutil.which("ansible-inventory")
    if found:
        return [found]
    raise InventoryError(
        "this inventory needs ansible-inventory, which is not installed", hint="pip install ansible-core"
    )


def hosts_of(listing: object) -> list[Host]:
    """Hosts in the output of `ansible-inventory --list`. Raises ValueError when it has another shape."""
    if not isinstance(listing, dict):
        raise ValueError("not a mapping")
    meta = listing.get("_meta")
    hostvars = meta.get("hostvars") if isinstance(meta, dict) else {}
    if not isinstance(hostvars, dict):
        raise ValueError("no hostvars")
    groups: dict[str, list[str]] = {name: [] for name in hostvars}
    for group, body in listing.items():
        members = body.get("hosts") if isinstance(body, dict) and group != "_meta" else None
        for host in members if isinstance(members, list) else ():
            if not isinstance(host, str):
                raise ValueError("a host that is not text")
            groups.setdefault(host, []).append(group)
    return [
        (name, tuple(of), found if isinstance(found := hostvars.get(name), dict) else {})
        for name, of in groups.items()
    ]


def explain(stderr: str, sources: Sequence[str], shown: str, limit: str) -> InventoryError:
    """One sentence out of ansible-inventory's error text: file, line where there is one, reason."""
    flat = " ".join(stderr.split())
    if unknown := _UNKNOWN.search(flat):
        return InventoryError(
            f'no host or group in {shown} matches "{unknown.group(1).strip()}" of --limit',
            hint=f"ansible-inventory --graph -i {sources[0]}",
        )
    source = _blamed(stderr, sources)
    plugin = "yaml" if source.endswith((".yml", ".yaml", ".json")) else "ini"
    reason = ""
    for line in stderr.splitlines():
        match = _CAUSE.search(line)
        if match and (not reason or f"'{plugin}'" in line):
            reason = match.group(1).removeprefix("Failed to parse inventory: ").strip()
            if f"'{plugin}'" in line:
                break
    if not reason:
        errors = [line for line in stderr.splitlines() if line.startswith(("[ERROR]", "ERROR!"))]
        reason = (errors or [flat or "ansible-inventory failed without a word"])[0]
        reason = reason.removeprefix("[ERROR]: ").removeprefix("ERROR! ")[:300]
    number = _line_number(stderr, source, plugin, reason)
    if "not enough values to unpack" in reason and plugin == "ini":
        reason = 'a section header or host line is malformed (is a "]" missing?)'
    where = f"{source}:{number}" if number else source
    return InventoryError(
        f"{where}: {reason.rstrip('.')}", hint=f"ansible-inventory --list -i {source}" if limit else ""
    )


def _blamed(stderr: str, sources: Sequence[str]) -> str:
    for source in sources:
        if (
            f"parse inventory source {Path(source).resolve()}" in stderr
            or f"parse inventory source {source}" in stderr
        ):
            return source
    return sources[0]


def _line_number(stderr: str, source: str, plugin: str, reason: str) -> int | None:
    """Ansible's own line; else the YAML parser's; else the first INI line that shows the fault named."""
    if match := _ORIGIN_LINE.search(stderr) or _OLD_LINE.search(stderr):
        return int(match.group(1))
    try:
        text = Path(source).read_text("utf-8", errors="replace")
    except OSError:
        return None
    if plugin == "yaml":
        try:
            yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            return None if mark is None else int(mark.line) + 1
        except (yaml.YAMLError, RecursionError, ValueError):
            return None
        return None
    named = re.search(r"(?:got: |Section |group |pattern )['\"]?(\S{1,120})", reason)
    word = named.group(1).strip("'\"") if named else ""
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.split("#", 1)[0].strip()
        if bare.startswith("[") and "]" not in bare:
            return number
        if word and word in bare:
            return number
    return None


def _warnings(stderr: str) -> tuple[str, ...]:
    return tuple(
        line.removeprefix("[WARNING]: ").strip()[:300]
        for line in stderr.splitlines()
        if line.startswith("[WARNING]: ")
    )
