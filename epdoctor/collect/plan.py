"""From the facts modules' declarations to the bytes that go to a node's python3."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import pkgutil
import secrets
import zlib
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import epdoctor.facts
from epdoctor.collect.prune import names_used, prune
from epdoctor.facts.base import CollectOptions, Command, Files, Links, Probe, Script, Stat

PARALLEL_PROBES = 4
"""Probes at a time on one node; nvidia-smi calls queue in the driver anyway."""

_KINDS: dict[type[Probe], str] = {
    Command: "command",
    Files: "files",
    Links: "links",
    Stat: "stat",
    Script: "script",
}


@cache
def _package() -> Path:
    return Path(__file__).resolve().parent.parent


def all_probes(options: CollectOptions) -> tuple[Probe, ...]:
    """What every facts module asks for, slowest first so that the node's total time is short."""
    found: dict[str, Probe] = {}
    for module in pkgutil.iter_modules(epdoctor.facts.__path__):
        offered = getattr(importlib.import_module(f"epdoctor.facts.{module.name}"), "probes", None)
        for probe in offered(options) if offered is not None else ():
            if probe.name in found:
                raise RuntimeError(f"two facts modules declare the probe {probe.name}")
            found[probe.name] = probe
    return tuple(sorted(found.values(), key=lambda probe: (-probe.timeout_s, probe.name)))


def _packed(source: bytes) -> str:
    return base64.b64encode(zlib.compress(source, 9)).decode("ascii")


@cache
def _script_source(name: str) -> bytes:
    return (_package() / "probes" / name).read_bytes()


@cache
def _module_source(name: str, script: str) -> str:
    """A file of epdoctor/probes/, or what `script` uses of an installed pure-Python module (pynvml)."""
    if name.endswith(".py"):
        return _packed(_script_source(name))
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{name} is neither in epdoctor/probes nor installed")
    source = Path(spec.origin).read_text(encoding="utf-8")
    return _packed(prune(source, names_used(_script_source(script).decode("utf-8"), name)).encode("utf-8"))


def build_plan(options: CollectOptions, *, node_timeout_s: float, nonce: str = "") -> dict[str, Any]:
    """The plan as the agent reads it (docs/design.md section 2)."""
    probes: list[dict[str, Any]] = []
    modules: dict[str, str] = {}
    for probe in all_probes(options):
        entry = {key: value for key, value in asdict(probe).items() if value not in ("", (), None)}
        entry["kind"] = _KINDS[type(probe)]
        probes.append(entry)
        if isinstance(probe, Script):
            for name in (probe.script, *probe.modules):
                modules[name] = _module_source(name, probe.script)
    return {
        "nonce": nonce or secrets.token_hex(8),
        "deadline_s": max(1.0, node_timeout_s - _connecting_s(node_timeout_s)),
        "parallel": PARALLEL_PROBES,
        "probes": probes,
        "modules": modules,
    }


def _connecting_s(node_timeout_s: float) -> float:
    """Part of a node's time that is kept for connecting, logging in and the way back: many nodes at once are
    slow at it, and an agent that ends too late loses the node instead of one probe."""
    return min(5.0, max(2.0, 0.35 * node_timeout_s))


def payload(plan: dict[str, Any]) -> bytes:
    """Agent and plan as one Python program for `python3 -IB -`."""
    source = (_package() / "agent.py").read_bytes()
    packed = _packed(json.dumps(plan, separators=(",", ":")).encode("ascii"))
    return source + b'\n\nmain("' + packed.encode("ascii") + b'")\n'


def _main() -> None:
    """`python -m epdoctor.collect.plan --print-payload`: exactly what a node's python3 would get."""
    import sys

    sys.stdout.buffer.write(payload(build_plan(CollectOptions(), node_timeout_s=60.0)))


if __name__ == "__main__":
    _main()
