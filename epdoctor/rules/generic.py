"""Rules that several checks share: a sysctl has a value, a kernel is new enough."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.system import version_numbers
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, node_rule


@node_rule
def sysctl_at_least(node: Node, *, key: str, minimum: int) -> Iterator[Problem]:
    """A numeric sysctl reaches a minimum; skipped where the kernel has no such key."""
    value = node.system.sysctl(key)
    if value is None:
        raise NotApplicable(f"This kernel has no {key}")
    if value < minimum:
        yield Problem(f"{key} = {value}", f"at least {minimum}", (f"{key}={value}",), subject=key)


@node_rule
def kernel_at_least(node: Node, *, minimum: str) -> Iterator[Problem]:
    """The running kernel's version reaches "5.6"."""
    release = require(node.system.kernel_release)
    if tuple(require(node.system.kernel_version)) < version_numbers(minimum):
        yield Problem(f"Linux {release}", f"{minimum} or newer", (f"/proc/sys/kernel/osrelease: {release}",))
