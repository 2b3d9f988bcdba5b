"""Rules on vLLM itself: its version, its back end, its variables and its running processes."""

from __future__ import annotations

from collections.abc import Iterator

from epdoctor import compat
from epdoctor.backends import available, backends, resolve_backend
from epdoctor.exceptions import Unmeasured, UsageError
from epdoctor.facts import Node
from epdoctor.facts.environment import Sourced
from epdoctor.facts.launch import launches
from epdoctor.model import Problem
from epdoctor.rules import need, node_rule
from epdoctor.rules.environment import unset_command
from epdoctor.rules.versions import python_of


@need("workers")
def has_workers(node: Node) -> bool:
    """No vLLM process runs here"""
    return bool(node.processes.workers)


def _vllm_version(node: Node) -> str:
    """Installed, else --vllm; empty where neither tells."""
    try:
        return node.python_env.packages.get("vllm", "") or node.goal.vllm_version
    except Unmeasured:
        return node.goal.vllm_version


@node_rule
def vllm_installed(node: Node) -> Iterator[Problem]:
    """The target interpreter has vLLM."""
    environment = node.python_env
    if "vllm" not in environment.packages:
        yield Problem(
            found=f"no vLLM in {environment.prefix} ({environment.chosen_by})",
            expected="vLLM in the interpreter that serves",
            now=("epdoctor check --python /path/to/venv/bin/python",),
        )


def _asked_backends(node: Node) -> list[Sourced]:
    asked = [
        Sourced(launch.all2all_backend, launch.source) for launch in launches(node) if launch.all2all_backend
    ]
    name = node.goal.requested_backend or node.goal.backend
    return asked + ([Sourced(name, "--backend")] if name else [])


@node_rule
def backend_exists(node: Node) -> Iterator[Problem]:
    """For a back end that it removed, vLLM warns and runs allgather_reducescatter."""
    asked = _asked_backends(node)
    if not asked:
        return
    number = _vllm_version(node)
    for given in asked:
        try:
            resolved = resolve_backend(given.value, "")
        except UsageError as error:
            yield Problem(found=f"{given}: {error}", expected="a back end that vLLM has", subject=given.value)
            continue
        known = backends()[given.value.strip().lower().replace("-", "_")]
        why = (
            available(known.name, number) if number else (resolved.note if known.status == "removed" else "")
        )
        if why:
            fallback = known.falls_back_to
            yield Problem(
                found=f"{given}: {why}" + (f"; it runs {fallback} instead" if number and fallback else ""),
                expected=f"a back end that vLLM {number} has" if number else "a back end that vLLM has",
                now=(f"vllm serve ... --all2all-backend {fallback or 'allgather_reducescatter'}",),
                subject=given.value,
            )


@node_rule
def vllm_has_backend(node: Node, *, backend: str) -> Iterator[Problem]:
    """The installed vLLM is new enough for a back end."""
    number = _vllm_version(node)
    if not number:
        raise Unmeasured("vLLM's version is not told; give --vllm VERSION")
    why = available(backend, number)
    if why:
        yield Problem(
            found=why,
            expected=f"vLLM {backends()[backend].since} or newer",
            now=(f"{python_of(node)} -m pip install 'vllm=={compat.table('backends')['newest_vllm']}'",),
        )


@node_rule
def no_removed_vllm_variables(node: Node) -> Iterator[Problem]:
    """vLLM only warns about a variable that it no longer reads."""
    environment = node.environment
    given = {
        row.name: (row, found) for row in compat.removed_variables() if (found := environment.get(row.name))
    }
    if not given:
        return
    number = compat.release(
        _vllm_version(node) or str(compat.table("backends")["newest_vllm"]), "vLLM's version"
    )
    for name, (row, found) in given.items():
        if number >= compat.release(row.gone_in):
            yield Problem(
                found=f"{name}={found.value} in {found.source}: "
                f"vLLM {number} does not read it (gone in {row.gone_in})",
                expected=f"{row.instead} instead" if row.instead != "nothing" else f"{name} not set",
                now=(unset_command(name, found),),
                subject=name,
            )


@node_rule
def side_channel_host_set(node: Node) -> Iterator[Problem]:
    """NIXL tells other nodes "localhost" unless VLLM_NIXL_SIDE_CHANNEL_HOST names this one."""
    connectors = [launch for launch in launches(node) if launch.kv_connector.startswith("Nixl")]
    if not connectors:
        return
    given = node.environment.get("VLLM_NIXL_SIDE_CHANNEL_HOST")
    value = given.value.strip() if given is not None else ""
    if value in ("", "localhost", "127.0.0.1", "::1", "0.0.0.0"):  # noqa: S104 - compared, not bound
        launch = connectors[0]
        yield Problem(
            found=f"VLLM_NIXL_SIDE_CHANNEL_HOST={value} in {given.source}"
            if given is not None and value
            else "VLLM_NIXL_SIDE_CHANNEL_HOST not set (localhost); "
            f"{launch.source} uses {launch.kv_connector}",
            expected="this node's address on the network between prefill and decode",
            now=("export VLLM_NIXL_SIDE_CHANNEL_HOST=$(hostname -I | cut -d' ' -f1)",),
        )


@node_rule
def workers_agree_on_node(node: Node) -> Iterator[Problem]:
    """All vLLM processes of one node see the same EP variables."""
    environment = node.environment
    for difference in environment.differing():
        texts = [f"{value} ({process})" for value, process in difference.values[:4]]
        yield Problem(
            found=f"{difference.name}: {'; '.join(texts)}",
            expected="the same value for all vLLM processes of a node",
            subject=difference.name,
        )
