"""Rules on the environment of a launch: names, values, interfaces, what only a benchmark wants."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator, Mapping

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.launch.judge import (
    at_least,
    backend_of,
    fleet_rule,
    newest_version,
    server_rule,
    table,
    version_of,
)
from epdoctor.launch.layout import across_nodes, layout_of, require_known
from epdoctor.launch.model import LaunchSet, Server, Value
from epdoctor.model import Problem, Severity
from epdoctor.rules import need
from epdoctor.rules.launch_backends import connector_of

_NEAR = 0.88
"""Similarity from which a name is taken for a slip of a known one."""
_NEAR_WORD = 0.7
"""Likewise of one word of a name."""
_URL = re.compile(r"[a-z]{1,10}://", re.ASCII)


@need("launch-variables")
def launch_has_variables(launch: LaunchSet) -> bool:
    """No launch sets an environment variable"""
    return launch.live or any(server.environment or server.unexported for server in launch.servers)


def environment_of(launch: LaunchSet, server: Server) -> Mapping[str, Value]:
    """A server's variables. Raises Unmeasured where a live process did not show them."""
    if launch.live and not server.environment:
        raise Unmeasured(f"the environment of {server.name} was not read (--become)")
    return server.environment


@server_rule
def launch_no_removed_variables(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Variables that this vLLM no longer reads; it only warns."""
    version = version_of(launch, server)
    for row in compat.removed_variables():
        variable = environment_of(launch, server).get(row.name)
        if variable is None or not at_least(version, row.gone_in):
            continue
        shown = f"{row.name}={variable.text[:60]}" if variable.known else row.name
        instead = f"{row.instead} {variable.text}" if row.instead == "--all2all-backend" else row.instead
        lost = row.name == "VLLM_ALL2ALL_BACKEND" and server.option("all2all-backend") is None
        yield Problem(
            found=f"{shown}: gone since vLLM {row.gone_in}"
            + (f"; {backend_of(launch, server)} runs instead" if lost else ""),
            expected="no such variable" if row.instead == "nothing" else instead,
            severity=Severity.ERROR if lost and "allgather" not in variable.text else None,
            location=variable.location,
        )


@functools.cache
def _families() -> dict[str, frozenset[str]]:
    """Known names by their first word."""
    gone = [row.name for row in compat.removed_variables()]
    return {
        "VLLM_": frozenset([*table("vllm_variables"), *gone]),
        "NVSHMEM_": frozenset(str(name) for name in compat.field("nvshmem", "variables", list)),
        "NCCL_": frozenset(table("nccl_variables")),
        "GLOO_": frozenset(["GLOO_SOCKET_IFNAME"]),
    }


@server_rule
def launch_variables_spelt(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Names that are nearly those of a known variable: a slip, read by nobody."""
    mistyped = compat.field("nvshmem", "mistyped", dict)
    for name, variable in environment_of(launch, server).items():
        if name in mistyped:
            yield Problem(
                found=f"{name}: no program reads it",
                expected=f"{mistyped[name]}, or no such variable",
                location=variable.location,
            )
            continue
        for prefix, known in _families().items():
            slip = name.startswith(prefix) and name not in known
            # VLM_USE_DEEP_GEMM, GLOO_SOCKET_IFNAMES, NCLL_DEBUG: the prefix itself is wrong
            wrong = not name.startswith(tuple(_families())) and prefix[:-1] in _SLIPS.get(
                name.partition("_")[0], ()
            )
            if not slip and not wrong:
                continue
            near = [
                word for word in difflib.get_close_matches(name, known, cutoff=_NEAR) if is_slip(name, word)
            ]
            if near:
                yield Problem(
                    found=f"{name}: no such variable",
                    expected=f"did you mean {near[0]}?",
                    location=variable.location,
                )


def is_slip(name: str, known: str) -> bool:
    """Whether a name is a known one mistyped, and not the name of something similar (..._FP4 and ..._INT4)."""
    if name.replace("_", "") == known.replace("_", ""):
        return True
    one, two = name.split("_"), known.split("_")
    if len(one) != len(two):
        return False
    differing = [(a, b) for a, b in zip(one, two, strict=True) if a != b]
    if len(differing) == 1 and _a_letter_less(*differing[0]):
        return True
    return all(len(a) > 2 and difflib.SequenceMatcher(None, a, b).ratio() >= _NEAR_WORD for a, b in differing)


def _a_letter_less(one: str, two: str) -> bool:
    """Whether one word is the other without one of its letters: UD for UID."""
    short, long = sorted((one, two), key=len)
    return len(long) == len(short) + 1 and any(
        long[n].isalpha() and long[:n] + long[n + 1 :] == short for n in range(len(long))
    )


_SLIPS = {"VLM": ("VLLM",), "VLLLM": ("VLLM",), "NCLL": ("NCCL",), "NCC": ("NCCL",), "NVSHM": ("NVSHMEM",),
          "NVSHEM": ("NVSHMEM",), "GLO": ("GLOO",), "GOLO": ("GLOO",)}  # fmt: skip


@server_rule
def launch_vllm_variables_known(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """VLLM_ names that the tables' vLLM does not have and that resemble none: it warns about them."""
    known = _families()["VLLM_"]
    if version_of(launch, server) != newest_version():
        # The list is of one vLLM: what an older one reads is not known.
        return
    for name, variable in environment_of(launch, server).items():
        if not name.startswith("VLLM_") or name in known or name in _KUBERNETES:
            continue
        if any(is_slip(name, word) for word in difflib.get_close_matches(name, known, cutoff=_NEAR)):
            continue
        yield Problem(
            found=f"{name}: vLLM {compat.field('backends', 'newest_vllm', str)} has no such variable",
            expected="a variable of this vLLM; it warns: Unknown vLLM environment variable detected",
            location=variable.location,
        )


_KUBERNETES = ("VLLM_SERVICE_HOST", "VLLM_SERVICE_PORT")


@server_rule
def launch_variables_effective(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Values and names that the shipped libraries do not take."""
    for row in compat.field("launch", "fork_variables", list):
        variable = server.environment.get(str(row["name"]))
        if variable is not None:
            yield Problem(
                found=f"{row['name']}: {row['source']}",
                expected=str(row["instead"]),
                location=variable.location,
            )
    transport = server.environment.get("NVSHMEM_REMOTE_TRANSPORT")
    if transport is not None:
        valid = [str(item) for item in compat.field("nvshmem", "remote_transports", list)]
        text = require_known(transport, "NVSHMEM_REMOTE_TRANSPORT")
        if text.lower() not in valid:
            ibgda = text.lower() == "ibgda"
            yield Problem(
                found=f"NVSHMEM_REMOTE_TRANSPORT={text[:40]}: NVSHMEM has no such transport"
                + (" (IBGDA is switched on by NVSHMEM_IB_ENABLE_IBGDA)" if ibgda else ""),
                expected="not set, or " + ", ".join(valid),
                location=transport.location,
            )
    known = frozenset().union(*_families().values()) | {"CUDA_VISIBLE_DEVICES"}
    for name, value in server.unexported.items():
        if name in known or name.startswith("UCX_"):
            yield Problem(
                found=f"{name}={value.text[:40]} is not exported: vLLM does not get it",
                expected=f"export {name}={value.text[:40]}",
                location=value.location,
            )
    port = server.environment.get("VLLM_PORT")
    if port is not None and port.known and _URL.match(port.text.lower()):
        yield Problem(
            found=f"VLLM_PORT={port.text[:60]}: a URL; Kubernetes injects it for a Service called vllm",
            expected="a port number, or another name for the Service",
            severity=Severity.ERROR,
            location=port.location,
        )


@fleet_rule
def launch_interfaces_set(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """GLOO_SOCKET_IFNAME across nodes: without it Gloo takes what the host name resolves to."""
    if not across_nodes(servers):
        for server in servers:
            # Whether ranks run on several nodes must be known.
            layout_of(server)
        return
    for server in servers:
        if _host_network_less_pod(server):
            # A pod without the host's network has one interface.
            continue
        if "GLOO_SOCKET_IFNAME" not in environment_of(launch, server):
            yield Problem(
                found="GLOO_SOCKET_IFNAME is not set, with ranks on several nodes",
                expected="GLOO_SOCKET_IFNAME with the interface of the network between the nodes (not ib0, not "
                "docker0)",
                severity=None if _has_infiniband(launch, server) else Severity.INFO,
                location=server.location,
            )


_HCA_VARIABLES = ("NCCL_IB_HCA", "NVSHMEM_HCA_LIST", "NVSHMEM_HCA_PE_MAPPING", "NVSHMEM_HCA_PREFIX", "UCX_NET_DEVICES",
                  "NVSHMEM_IB_ENABLE_IBGDA", "NCCL_IB_GID_INDEX", "NCCL_IB_SL", "NVSHMEM_IB_SL")  # fmt: skip


def _has_infiniband(launch: LaunchSet, server: Server) -> bool:
    """Signs of HCAs: variables that name them, or the node's own."""
    if any(name in server.environment for name in _HCA_VARIABLES):
        return True
    node = launch.nodes.get(server.node)
    if node is None:
        return False
    try:
        return bool(node.rdma.devices)
    except Unmeasured:
        return False


def _host_network_less_pod(server: Server) -> bool:
    return server.pod is not None and server.kind == "kubernetes" and not server.pod.host_network


@server_rule
def launch_interfaces_valid(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Interface variables hold names, in the program's own syntax: Gloo takes one exact name."""
    for name in (
        "GLOO_SOCKET_IFNAME",
        "NCCL_SOCKET_IFNAME",
        "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME",
        "TP_SOCKET_IFNAME",
    ):
        variable = server.environment.get(name)
        if variable is None or variable.runtime:
            continue
        text = require_known(variable, name)
        if name == "GLOO_SOCKET_IFNAME" and (text[:1] in ("^", "=") or "," in text):
            yield Problem(
                found=f"{name}={text[:60]}",
                expected="one exact interface name: Gloo knows no ^, = or list",
                location=variable.location,
            )
        elif text.lstrip("^=") in ("lo", "docker0"):
            if text.startswith("^"):
                continue
            yield Problem(
                found=f"{name}={text}",
                expected="the interface of the network between the nodes",
                location=variable.location,
            )
        elif _ADDRESS.fullmatch(text):
            yield Problem(
                found=f"{name}={text}: an address",
                expected="an interface name, such as eth0",
                location=variable.location,
            )


_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}", re.ASCII)


@server_rule
def launch_not_a_benchmark(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Connectors and variables that make up answers or routes, for measurements only."""
    connector = connector_of(server)
    if connector in table("benchmark_connectors"):
        option = server.option("kv-transfer-config")
        yield Problem(
            found=f"{connector}: it fills the cache with random values",
            expected="a connector that moves the cache, or none; keep this one for measurements",
            location=server.location if option is None else option.location,
        )
    for name in table("benchmark_variables"):
        variable = server.environment.get(name)
        if variable is None or (variable.known and variable.text.strip().lower() in ("", "0", "false")):
            continue
        yield Problem(
            found=f"{name}={variable.text[:40]}: simulated routing or inputs",
            expected="not set, but for measurements",
            severity=None if name == "VLLM_MOE_ROUTING_SIMULATION_STRATEGY" else Severity.INFO,
            location=variable.location,
        )
