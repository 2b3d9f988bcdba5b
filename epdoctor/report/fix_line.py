"""The `epdoctor fix` command that mends a finding, from the check command as it was typed. Pure."""

from __future__ import annotations

import shlex

from epdoctor.model import Check

_CARRIED = ("--backend", "--vllm", "--max-num-batched-tokens", "--limit")
"""Options that mean the same to check and fix."""
_ELSEWHERE = ("--from", "--demo", "--via", "--checks")
"""A recording cannot be mended, nor a container through a command; a site's own checks name no playbook of ours."""


def fix_line(command: str, *checks: Check) -> str:
    """ "epdoctor fix -i inventory.ini gpudirect.memory-registrable"; empty where no playbook mends it all, or the
    check ran on anything else than the nodes of one inventory file."""
    if not checks or not all(check.fix.playbook and check.fix.tags for check in checks):
        return ""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if words[:2] != ["epdoctor", "check"]:
        return ""
    found: dict[str, list[str]] = {}
    rest = iter(words[2:])
    for word in rest:
        name, equals, value = word.partition("=")
        name = {"-i": "--inventory", "-l": "--limit"}.get(name, name)
        if name in _ELSEWHERE:
            return ""
        if name == "--inventory" or name in _CARRIED:
            found.setdefault(name, []).append(value if equals else next(rest, ""))
    inventories = found.pop("--inventory", [])
    # `gpu[01-16]` and `gpu01,gpu02` are lists of hosts, which Ansible takes no connection variables from.
    if len(inventories) != 1 or not inventories[0] or set(inventories[0]) & set("[,"):
        return ""
    options = [word for name, values in found.items() for word in (name, values[-1])]
    return shlex.join(["epdoctor", "fix", "-i", inventories[0], *options, *(check.id for check in checks)])
