"""Rules on environment variables: NVSHMEM_*, NCCL_* and the like as vLLM's processes have them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from epdoctor import compat
from epdoctor.facts import Node
from epdoctor.facts.environment import Environment, Sourced
from epdoctor.facts.launch import parse_number, token_limit
from epdoctor.model import Problem
from epdoctor.rules import NotApplicable, node_rule


def unset_command(name: str, found: Sourced) -> str:
    """The command that takes a variable out of where it was found."""
    if found.source.startswith("/"):
        return f"sudo sed -i '/^\\(export \\)\\?{name}=/d' {found.source}"
    return f"unset {name}"


def _shown(name: str, found: Sourced) -> str:
    return f"{name}={found.value} in {found.source}"


@node_rule
def nvshmem_qp_depth_fits_tokens(node: Node) -> Iterator[Problem]:
    """NVSHMEM_QP_DEPTH >= 2 * (tokens + 1), which DeepEP's low-latency mode asserts without a message."""
    limits = compat.field("nvshmem", "qp_depth", dict)
    environment = node.environment
    limit = token_limit(node)
    given = environment.get("NVSHMEM_QP_DEPTH")
    depth = parse_number(given.value) if given is not None else int(limits["default"])
    if depth is None or not int(limits["min"]) <= depth <= int(limits["max"]):
        raise NotApplicable("NVSHMEM_QP_DEPTH is not a depth: see nvshmem.qp-depth-in-range")
    needed = 2 * (limit.tokens + 1)
    if depth >= needed:
        return
    where = (
        f"NVSHMEM_QP_DEPTH={depth} in {given.source}"
        if given
        else f"NVSHMEM_QP_DEPTH not set ({depth} by default)"
    )
    most = int(limits["max"]) // 2 - 1
    if needed > int(limits["max"]):
        command = f"vllm serve ... --max-num-batched-tokens {most}"
    else:
        command = f"export NVSHMEM_QP_DEPTH={needed}"
    yield Problem(
        found=f"{where}: enough for up to {depth // 2 - 1} tokens; "
        f"the limit is {limit.tokens} ({limit.source})",
        expected=f"NVSHMEM_QP_DEPTH of {needed} or more for {limit.tokens} tokens"
        if needed <= int(limits["max"])
        else f"at most {most} tokens, since NVSHMEM_QP_DEPTH ends at {limits['max']}",
        evidence=(f"looked in {environment.described}",),
        now=(command,),
    )


@node_rule
def nvshmem_qp_depth_in_range(node: Node) -> Iterator[Problem]:
    """A depth that IBGDA takes."""
    limits = compat.field("nvshmem", "qp_depth", dict)
    given = node.environment.get("NVSHMEM_QP_DEPTH")
    if given is None:
        return
    text = given.value.strip()
    depth = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    if depth is None or not int(limits["min"]) <= depth <= int(limits["max"]):
        yield Problem(
            found=_shown("NVSHMEM_QP_DEPTH", given),
            expected=f"a number from {limits['min']} to {limits['max']}",
            now=(unset_command("NVSHMEM_QP_DEPTH", given),),
        )


@node_rule
def nvshmem_remote_transport_valid(node: Node) -> Iterator[Problem]:
    """A value of NVSHMEM_REMOTE_TRANSPORT that NVSHMEM knows."""
    valid = [str(name) for name in compat.field("nvshmem", "remote_transports", list)]
    given = node.environment.get("NVSHMEM_REMOTE_TRANSPORT")
    if given is not None and given.value.strip().lower() not in valid:
        yield Problem(
            found=_shown("NVSHMEM_REMOTE_TRANSPORT", given),
            expected="one of "
            + ", ".join(valid)
            + ", or not set; IBGDA is chosen by NVSHMEM_IB_ENABLE_IBGDA=1",
            now=(unset_command("NVSHMEM_REMOTE_TRANSPORT", given),),
        )


@node_rule
def nvshmem_hca_list_effective(node: Node) -> Iterator[Problem]:
    """HCA_LIST and HCA_PE_MAPPING count only with NVSHMEM_ENABLE_NIC_PE_MAPPING=1."""
    environment = node.environment
    if environment.enabled("NVSHMEM_ENABLE_NIC_PE_MAPPING"):
        return
    for name in ("NVSHMEM_HCA_LIST", "NVSHMEM_HCA_PE_MAPPING"):
        given = environment.get(name)
        if given is not None and given.value:
            yield Problem(
                found=f"{_shown(name, given)} without NVSHMEM_ENABLE_NIC_PE_MAPPING=1: ignored",
                expected="NVSHMEM_ENABLE_NIC_PE_MAPPING=1 beside it, or neither",
                now=("export NVSHMEM_ENABLE_NIC_PE_MAPPING=1",),
                subject=name,
            )


@node_rule
def not_both_set(node: Node, *, first: str, second: str) -> Iterator[Problem]:
    """Two variables that exclude each other."""
    one, other = node.environment.get(first), node.environment.get(second)
    if one is not None and other is not None and one.value and other.value:
        yield Problem(
            found=f"{_shown(first, one)} and {_shown(second, other)}",
            expected=f"{first} or {second}, not both",
            now=(unset_command(second, other),),
        )


@node_rule
def set_together(node: Node, *, first: str, second: str) -> Iterator[Problem]:
    """Two variables of which each needs the other."""
    pair = {name: node.environment.get(name) for name in (first, second)}
    given = {name: value for name, value in pair.items() if value is not None and value.value}
    if len(given) == 1:
        ((name, value),) = given.items()
        other = second if name == first else first
        yield Problem(
            found=f"{_shown(name, value)}; {other} not set",
            expected=f"{first} and {second} together, or neither",
            now=(unset_command(name, value),),
        )


@node_rule
def no_mistyped_nvshmem_variables(node: Node) -> Iterator[Problem]:
    """NVSHMEM ignores a variable that it does not know, without a word."""
    known = [str(name) for name in compat.field("nvshmem", "variables", list)]
    mistyped = compat.field("nvshmem", "mistyped", dict)
    environment = node.environment
    for name in environment.names:
        given = environment.get(name)
        if not name.startswith("NVSHMEM") or name in known or given is None:
            continue
        # Distance 0.93: one letter off in a name of 20; a variable merely unknown to the table is left alone.
        near = (
            [str(mistyped[name])]
            if name in mistyped
            else difflib.get_close_matches(name, known, n=1, cutoff=0.93)
        )
        if near:
            yield Problem(
                found=f"{_shown(name, given)}: no such variable",
                expected=near[0],
                now=(
                    unset_command(name, given),
                    f"export {near[0]}='{given.value}'" if "'" not in given.value else "",
                ),
                subject=name,
            )


@node_rule
def no_variables_set(node: Node, *, names: list[str], instead: str) -> Iterator[Problem]:
    """Variables that do nothing, or nothing good, here."""
    environment = node.environment
    for name in names:
        given = environment.get(str(name))
        if given is not None:
            yield Problem(
                found=_shown(str(name), given),
                expected=instead,
                now=(unset_command(str(name), given),),
                subject=str(name),
            )


@node_rule
def no_overwritten_nvshmem_variables(node: Node) -> Iterator[Problem]:
    """DeepEP's legacy Buffer overwrites these, whatever the launch says."""
    environment = node.environment
    for name in compat.field("nvshmem", "overwritten_by_deepep", list):
        given = environment.get(str(name))
        if given is not None:
            yield Problem(
                found=f"{_shown(name, given)}: DeepEP overwrites it",
                expected=f"{name} not set",
                now=(unset_command(name, given),),
                subject=str(name),
            )


@node_rule
def variable_not(node: Node, *, name: str, values: list[str], expected: str) -> Iterator[Problem]:
    """A variable that must not have one of these values (compared in lower case)."""
    given = node.environment.get(name)
    if given is not None and given.value.strip().lower() in [str(value).lower() for value in values]:
        yield Problem(found=_shown(name, given), expected=expected, now=(unset_command(name, given),))


@node_rule
def variable_lacks(node: Node, *, name: str, text: str, expected: str) -> Iterator[Problem]:
    """A variable that must not hold this text."""
    given = node.environment.get(name)
    if given is not None and text.lower() in given.value.lower():
        yield Problem(found=_shown(name, given), expected=expected, now=(unset_command(name, given),))


@node_rule
def nccl_gid_index_automatic(node: Node) -> Iterator[Problem]:
    """From 2.21 on NCCL finds the GID index of each port; a pinned one is wrong on some node some day."""
    given = node.environment.get("NCCL_IB_GID_INDEX")
    if given is None or given.value.strip() in ("", "-1"):
        return
    since = str(compat.table("nccl")["gid_automatic_from"])
    if compat.release(node.libraries.version_of("nccl"), "NCCL's version") < compat.release(since):
        raise NotApplicable(f"NCCL older than {since} needs NCCL_IB_GID_INDEX")
    yield Problem(
        found=_shown("NCCL_IB_GID_INDEX", given),
        expected=f"not set: NCCL {since} and newer choose the index of each port",
        now=(unset_command("NCCL_IB_GID_INDEX", given),),
    )


@node_rule
def ucx_tls_keeps_cuda(node: Node) -> Iterator[Problem]:
    """UCX_TLS names transports; without a CUDA one UCX moves no GPU memory."""
    given = node.environment.get("UCX_TLS")
    if given is None:
        return
    names = [part.strip().lower() for part in given.value.split(",")]
    if given.value.startswith("^"):
        lost = [name for name in names if name.lstrip("^") in ("cuda", "cuda_copy")]
    else:
        lost = [] if {"all", "cuda", "cuda_copy"} & set(names) else ["cuda_copy"]
    if lost:
        yield Problem(
            found=f"{_shown('UCX_TLS', given)}: no CUDA transport",
            expected="UCX_TLS not set, or with cuda_copy and cuda_ipc in it",
            now=(unset_command("UCX_TLS", given),),
        )


def _covered(host: str, patterns: list[str]) -> bool:
    host = host.lower().partition(":")[0]
    for pattern in patterns:
        bare = pattern.lstrip("*").lstrip(".").partition(":")[0]
        if pattern == "*" or host == bare or (bare and host.endswith("." + bare)):
            return True
        if "/" in pattern and _in_network(host, pattern):
            return True
    return False


def _in_network(host: str, network: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _proxy(environment: Environment) -> Sourced | None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy"):
        given = environment.get(name)
        if given is not None and given.value:
            return Sourced(f"{name}={given.value}", given.source)
    return None


@node_rule
def proxies_exclude_nodes(node: Node) -> Iterator[Problem]:
    """With a proxy set, no_proxy must name the other nodes."""
    environment = node.environment
    given = _proxy(environment)
    if given is None:
        return
    others = [name for name in node.options.node_names if name != node.name]
    if not others:
        raise NotApplicable("no other nodes are known")
    text = ",".join(environment.text(name) for name in ("no_proxy", "NO_PROXY"))
    patterns = [part.strip().lower() for part in text.split(",") if part.strip()]
    missed = [name for name in others if not _covered(name, patterns)]
    if missed:
        shown = ", ".join(missed[:4]) + (f" and {len(missed) - 4} more" if len(missed) > 4 else "")
        yield Problem(
            found=f"{given.value} in {given.source}; no_proxy lacks {shown}",
            expected="no_proxy with every node's name and address",
            now=(f"export no_proxy=localhost,127.0.0.1,{','.join(others[:64])}",),
        )
