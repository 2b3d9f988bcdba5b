"""Which nodes there are: Ansible inventories, plain host lists, `node[01-64]`, a Slurm allocation.

Ansible files are read by running `ansible-inventory --list` (exact semantics, never by importing ansible).
A file that holds nothing but names is read here, because that command costs about 0.4 s of CPU.

Where the nodes come from, first hit wins: the given sources, `$EPDOCTOR_INVENTORY`, the `inventory` key of
epdoctor.toml, `./inventory.{ini,yml,yaml}`, `$SLURM_JOB_NODELIST`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from epdoctor.collect.targets import Inventory
from epdoctor.exceptions import InventoryError
from epdoctor.inventory import ansible, patterns, plain, variables
from epdoctor.nodenames import NodeNamesError, expand, natural_key

__all__ = ["Inventory", "load_inventory"]

DEFAULT_FILES = ("inventory.ini", "inventory.yml", "inventory.yaml")
SLURM_VARIABLES = ("SLURM_JOB_NODELIST", "SLURM_NODELIST")


@dataclass(frozen=True)
class _Source:
    text: str
    """A path, or a list of names."""
    shown: str
    path: Path | None = None


def load_inventory(
    sources: Sequence[str] = (),
    *,
    limit: str = "",
    dynamic: bool = False,
    configured: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Inventory:
    """Nodes in natural order.

    `sources` are files, folders, or lists such as "gpu[01-08],login1" (one name: "gpu01,"), as given with -i;
    `limit` is an Ansible host pattern in which `gpu[01-07]` also works; `dynamic` allows an executable
    inventory to run; `configured` is the `inventory` key of epdoctor.toml.
    Raises InventoryError: nothing found, missing or malformed file, unknown pattern, nothing matched, or a
    variable that cannot be honoured. No node is touched.
    """
    env = os.environ if env is None else env
    found = _find(sources, configured, env, cwd or Path.cwd())
    source = ", ".join(item.shown for item in found)
    warnings: tuple[str, ...] = ()
    names = _plain_names(found, dynamic)
    texts = [item.text for item in found]
    if names is not None and limit:
        texts = [",".join(names) + ","]  # as a list of hosts, should Ansible have to judge the pattern
        names = patterns.limit_plain(names, limit)
    if names is None:
        hosts, warnings = ansible.read(
            texts,
            limit=patterns.for_ansible(limit),
            env=env,
            dynamic=dynamic,
            shown=source,
        )
        nodes = [variables.target(name, groups, hostvars, source) for name, groups, hostvars in hosts]
    else:
        nodes = [variables.target(name, (), {}, source) for name in names]
    if not nodes:
        raise InventoryError(
            f'--limit "{limit}" matches no node of {source}' if limit else f"{source} names no node",
            hint=f"ansible-inventory --graph -i {found[0].text}" if found[0].path else "",
        )
    nodes.sort(key=lambda node: natural_key(node.name))
    return Inventory(tuple(nodes), source, warnings)


def _find(sources: Sequence[str], configured: str, env: Mapping[str, str], cwd: Path) -> list[_Source]:
    if sources:
        return [_source(text, "", cwd) for text in sources]
    if env.get("EPDOCTOR_INVENTORY"):
        return [_source(env["EPDOCTOR_INVENTORY"], "$EPDOCTOR_INVENTORY", cwd)]
    if configured:
        return [_source(configured, "epdoctor.toml", cwd)]
    for name in DEFAULT_FILES:
        if (cwd / name).is_file():
            return [_source(name, "", cwd)]
    for name in SLURM_VARIABLES:
        if env.get(name):
            job = env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID") or ""
            return [_Source(env[name], f"Slurm job {job}" if job else f"${name}")]
    raise InventoryError(
        "no inventory: give -i FILE or -i 'gpu[01-08]', set $EPDOCTOR_INVENTORY, "
        f"or put {DEFAULT_FILES[0]} here (not in a Slurm allocation either)",
        hint="epdoctor check --all-nodes -i 'gpu[01-08]'",
    )


def _source(text: str, origin: str, cwd: Path) -> _Source:
    text = text.strip()
    path = Path(text).expanduser()
    path = path if path.is_absolute() else cwd / path
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long for a path, or a NUL in it
        exists = False
    if exists:
        return _Source(str(path), text, path)
    if "/" not in text and ("," in text or "[" in text):
        return _Source(text, text if len(text) <= 60 else text[:57] + "...")
    where = f" (from {origin})" if origin else ""
    raise InventoryError(
        f"inventory {text}{where}: no such file",
        hint=f"ls {text}   # one host without a file: -i '{text},'",
    )


def _plain_names(found: Sequence[_Source], dynamic: bool) -> list[str] | None:
    """Names, or None when ansible-inventory has to read at least one of the sources."""
    names: dict[str, None] = {}
    for item in found:
        if item.path is None:
            try:
                some: Sequence[str] | None = expand(item.text)
            except NodeNamesError as error:
                # Ansible's own host_list also knows ports and [a:b] ranges
                if ":" not in item.text:
                    raise InventoryError(f"-i {item.shown}: {error}") from None
                some = None
        else:
            _refuse_executable(item, dynamic)
            some = plain.names_in(item.path)
        if some is None:
            return None
        names.update(dict.fromkeys(some))
    return list(names)


def _refuse_executable(item: _Source, dynamic: bool) -> None:
    """A program is never run, nor read as data, unless the user said so."""
    path = item.path
    if path is None or dynamic or not path.is_file():
        return
    try:
        if not path.stat().st_mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
            return
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InventoryError(f"inventory {item.shown}: {error.strerror or error}") from None
    # File systems without modes show every file as executable: a text file named .ini is not a program.
    if path.suffix in {".ini", ".yml", ".yaml", ".cfg", ".txt"} and not start.startswith((b"#!", b"\x7fELF")):
        return
    raise InventoryError(
        f"inventory {item.shown} is executable, and epdoctor runs an inventory only when told to",
        hint=f"epdoctor check --all-nodes -i {item.shown} --dynamic-inventory   # or: chmod -x {item.shown}",
    )
