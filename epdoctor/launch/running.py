"""The vLLM servers that run now, from the nodes' records: command lines, environment, mapped libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.libraries import version_in_macros
from epdoctor.launch.model import LaunchSet
from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.shell.text import Text, base_name, plain
from epdoctor.model import Location, Severity

if TYPE_CHECKING:
    from epdoctor.facts import Node
    from epdoctor.facts.processes import Process

LIBRARIES = ("libnccl", "libnvshmem_host", "libnvshmem")
"""File names that start so are compared between ranks."""


def read_running(nodes: Mapping[str, Node]) -> LaunchSet:
    """One server a `vllm serve` process of each node.

    A node whose processes could not be looked at, or whose vLLM processes are of another user, is in `trouble`.
    A node on which vLLM does not run has no server and is no trouble: nodes of `nodes` that have none are for the
    rules to count."""
    from epdoctor.launch.arguments import add_server
    from epdoctor.launch.commands import launch
    from epdoctor.launch.shell.scope import Scope

    reading = Reading()
    for name, node in nodes.items():
        place = Location(name, 0)
        try:
            processes = node.processes
        except Unmeasured as reason:
            reading.report(
                f"{name}: processes not read: {reason}",
                "the node's processes",
                place,
                severity=Severity.WARNING,
            )
            continue
        version = _version(node)
        gpus = _gpus(node)
        serving = [process for process in processes.workers if process.role == "serve"]
        for process in serving:
            where = Location(f"{name} pid {process.pid}", 0)
            setting = Setting(
                kind="running",
                name=f"{name} pid {process.pid}",
                node=name,
                vllm_version=version,
                visible_gpus=gpus,
            )
            words = [plain(word, where) for word in process.cmdline[:4000]]
            environment: dict[str, tuple[Text, str]] = {}
            if isinstance(process.environ, Unmeasured):
                reading.report(
                    f"{name} pid {process.pid}: {process.environ}", "its environment (--become)", where,
                    severity=Severity.WARNING,
                )  # fmt: skip
            else:
                environment = {
                    key: (plain(value, where), "process") for key, value in process.environ.items()
                }
            before = len(reading.servers)
            launch(reading, setting, Scope(), words, environment)
            if len(reading.servers) == before and len(words) > 1:
                # Started through a name of its own: what follows the program (and `serve`) are its options.
                first = next((n for n, word in enumerate(words) if word.text == "serve"), 0)
                add_server(reading, setting, words[first + 1 :], environment, where)
            libraries = _libraries(process, [p for p in processes.workers if p.ppid == process.pid])
            reading.servers[before:] = [replace(s, libraries=libraries) for s in reading.servers[before:]]
    return LaunchSet(
        tuple(reading.servers), (), tuple(reading.trouble), tuple(nodes), nodes=dict(nodes), live=True
    )


def _version(node: Node) -> str:
    """vLLM's version in the node's interpreter; empty where it is not known."""
    try:
        return node.python_env.version("vllm") or ""
    except Unmeasured:
        return ""


def _gpus(node: Node) -> int | None:
    try:
        return len(node.gpu.gpus) or None
    except Unmeasured:
        return None


def _libraries(process: Process, children: list[Process]) -> dict[str, str]:
    """NCCL and NVSHMEM as mapped: "libnccl.so.2" -> version of the header beside it, else the path."""
    found: dict[str, str] = {}
    for one in (process, *children):
        for library in () if isinstance(one.libraries, Unmeasured) else one.libraries:
            name = base_name(library.path)
            if name.startswith(LIBRARIES):
                short = re.sub(r"(\.so\.\d+)[.\d]*$", r"\1", name)
                found.setdefault(short, version_in_macros(library.macros) or library.path)
    return found
