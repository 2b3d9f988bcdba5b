"""What vLLM's bug report form asks for, the text of `vllm collect-env` (collect_env.py), as a partial record.

It tells versions of some packages and the GPU topology. What it does not tell is absent from the record, so that
every check that needs it is unknown: a package that is not in its list may be installed (it lists those whose names
hold one of a few words: DEFAULT_PIP_PATTERNS in vllm/collect_env.py). Its environment variables are not taken: it
leaves out NVSHMEM's and UCX's, and it does not run where the workers run.
"""

from __future__ import annotations

import re
from typing import Any

from epdoctor.collect.record import Record
from epdoctor.exceptions import RecordError
from epdoctor.model import NodeOutcome

NODE = "collect_env"
"""The text does not name its node."""
NOTE = "a collect_env text tells some versions and the GPU topology; everything else is unknown"
MAX_BYTES = 4 << 20

_PACKAGE = re.compile(
    r"\[(?:pip3?|conda)\] ([A-Za-z0-9][A-Za-z0-9._-]{0,80})(?:==| {1,60})([0-9][A-Za-z0-9.+!_-]{0,60})"
)
_VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}[A-Za-z0-9.+-]{0,60}")


def is_collect_env(raw: bytes) -> bool:
    """Whether a file is such a text, by what every version of it prints."""
    return b"PyTorch version" in raw and b"Is debug build" in raw


def record_from(text: str, name: str) -> Record:
    """Raises RecordError where the text holds several, or none."""
    lines = [line[:2000].rstrip("\r") for line in text.splitlines()[:20000]]
    torch = {_value(line) for line in lines if line.strip().startswith("PyTorch version")}
    if len(torch) != 1:
        raise RecordError(f"{name}: {len(torch) or 'no'} collect_env texts in one file; give one")
    packages = _packages(lines)
    probes: dict[str, Any] = {
        "python_env.scan": {
            "status": "ran",
            "rc": 0,
            "data": [
                [
                    "candidate",
                    {
                        "prefix": "",
                        "version": _version(lines, "Python version"),
                        "why": "collect_env",
                        "packages": packages,
                        "partial": "collect_env does not tell",
                    },
                ]
            ],
        }
    }
    topology = _topology(lines)
    if topology:
        argv = ["nvidia-smi", "topo", "-m"]
        probes["topology.matrix"] = {"status": "ran", "argv": argv, "rc": 0, "stdout": topology, "stderr": ""}
    return Record(NODE, "", {}, NodeOutcome(NODE), probes)


def _value(line: str) -> str:
    """Of "name: value" and "name      : value"."""
    return line.partition(":")[2].strip()


def _version(lines: list[str], label: str) -> str:
    """The first number behind a label; "" where it was not collected."""
    for line in lines:
        if line.strip().startswith(label):
            match = _VERSION.match(_value(line))
            return match.group().rstrip(".") if match else ""
    return ""


def _packages(lines: list[str]) -> dict[str, str]:
    """Versions by canonical name; one that is told twice and differently is left out."""
    found: dict[str, set[str]] = {}
    for line in lines:
        match = _PACKAGE.match(line.strip())
        if match:
            name = re.sub(r"[-_.]+", "-", match.group(1)).lower()
            found.setdefault(name, set()).add(match.group(2))
    for name, label in (("vllm", "vLLM Version"), ("torch", "PyTorch version")):
        version = _version(lines, label)
        if version:
            # torch's own word has the CUDA it was built with (2.9.0+cu130), pip's list may lack it.
            found[name] = {version}
    return {name: next(iter(versions)) for name, versions in found.items() if len(versions) == 1}


def _topology(lines: list[str]) -> str:
    """The table below "GPU Topology:", as nvidia-smi topo -m printed it."""
    start = next((i for i, line in enumerate(lines) if line.strip().lower().startswith("gpu topology")), -1)
    if start < 0:
        return ""
    head = lines[start].partition(":")[2]
    table = [head] if "GPU0" in head else []
    for line in lines[start + 1 : start + 200]:
        if line.startswith("=====") or "=" in line.split(" ")[0]:
            break
        table.append(line)
    return "\n".join(table) + "\n" if any("GPU0" in line for line in table) else ""
