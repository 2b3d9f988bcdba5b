"""What a container must be allowed: lock memory, take a peer's file descriptors, share user ids."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor.facts import Node
from epdoctor.facts.base import require
from epdoctor.facts.container import CAP_IPC_LOCK, CAP_SYS_PTRACE, has_capability
from epdoctor.facts.limits import limit_text, session_limit
from epdoctor.model import Problem
from epdoctor.rules import need, node_rule


@need("container")
def in_container(node: Node) -> bool:
    """Not in a container"""
    return require(node.container.in_container)


@node_rule
def container_may_lock_memory(node: Node) -> Iterator[Problem]:
    """CAP_IPC_LOCK, or an unlimited locked-memory limit."""
    soft, _ = session_limit(node.limits, "memlock")
    if soft is None or has_capability(require(node.container.cap_eff), CAP_IPC_LOCK):
        return
    yield Problem(
        f"{limit_text(soft)} may be locked, and no CAP_IPC_LOCK",
        "CAP_IPC_LOCK, or memlock unlimited",
        (
            f"/proc/self/limits: Max locked memory {soft}",
            f"CapEff {require(node.container.cap_eff):016x}: bit {CAP_IPC_LOCK}, CAP_IPC_LOCK, is clear",
        ),
        subject=node.container.runtime or "container",
    )


@node_rule
def container_may_ptrace(node: Node) -> Iterator[Problem]:
    """CAP_SYS_PTRACE, or no seccomp filter: the runtimes' default filter refuses pidfd_getfd without it."""
    if require(node.container.seccomp) != 2 or has_capability(
        require(node.container.cap_eff), CAP_SYS_PTRACE
    ):
        return
    yield Problem(
        "a seccomp filter and no CAP_SYS_PTRACE",
        "CAP_SYS_PTRACE, or seccomp unconfined",
        (
            "/proc/self/status: Seccomp 2",
            f"CapEff {require(node.container.cap_eff):016x} (bit {CAP_SYS_PTRACE})",
        ),
        subject=node.container.runtime or "container",
    )


@node_rule
def container_shares_user_ids(node: Node) -> Iterator[Problem]:
    """The container is in the host's user namespace, or maps its ids one to one."""
    own = require(node.container.own_namespaces)
    if "user" in own and not require(node.container.identity_uid_map):
        yield Problem(
            "a user namespace of its own",
            "the host's user namespace",
            ("/proc/self/ns/user is not the initial one", "/proc/self/uid_map is not 0 0 4294967295"),
            subject=node.container.runtime or "container",
        )
