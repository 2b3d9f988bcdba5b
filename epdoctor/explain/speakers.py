"""Which rank or process wrote a line of a log that several write to, as the line's head says. Pure.

Heads: vLLM's process names ("(EngineCore_DP3 pid=123)", "(Worker_DP0_TP1_EP1 pid=123)"), Ray's, torch's "[rank3]:",
UCX's and NVSHMEM's "[host:pid:tid]", NCCL's "host:pid:tid [device] NCCL", `srun -l` ("3: "), `kubectl logs --prefix`."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Bounded, and each tried only where a plain text that it needs is in the line's head.
_PROCESS = re.compile(
    r"\((?P<name>[A-Z]\w{2,60})(?: rank=(?P<of>\d{1,5})| (?P<part>TP\d{1,4}))? pid=(?P<pid>\d{1,10})"
    r"(?:, ip=(?P<ip>[\w.:]{3,40}))?\)"
)
_RANK = re.compile(r"\[(?:rank ?|default)(\d{1,5})\]:?")
_POD = re.compile(r"\[(pod/[\w.\-]{1,120}(?:/[\w.\-]{1,60})?)\]")
_THREAD = re.compile(r":(\d{1,10}):\d{1,10}(?::\d{1,10})?(?:\]| \[(\d{1,3})\] )")
_HOST = re.compile(r"(?:^|[\s\[])([A-Za-z][\w.\-]{0,80})$")
_TASK = re.compile(r" {0,3}(\d{1,5}): (?=\S)")
_HEAD_CHARACTERS = 160


@dataclass(frozen=True)
class Speaker:
    """Who wrote a line."""

    name: str
    pid: int = 0
    """0 where the head has none."""
    vague: bool = False
    """The head names host and process, not the rank: another line of the process may say more."""


def speaker(line: str) -> Speaker | None:
    """None where the line has no such head."""
    head = line[:_HEAD_CHARACTERS]
    if "pid=" in head and (match := _PROCESS.search(head)):
        return _process(match)
    if ("[rank" in head or "[default" in head) and (match := _RANK.search(head)):
        return Speaker(f"rank {int(match[1])}")
    if "[pod/" in head and (match := _POD.search(head)):
        return Speaker(match[1])
    if match := _THREAD.search(head):
        host = _HOST.search(head[: match.start()])
        if host is not None:
            where = f"{host[1]} GPU {match[2]}" if match[2] else f"{host[1]} pid {match[1]}"
            return Speaker(where, int(match[1]), vague=True)
    if match := _TASK.match(head):
        return Speaker(f"rank {int(match[1])}")
    return None


def _process(match: re.Match[str]) -> Speaker:
    name = match["name"]
    if match["of"] is not None:
        name = f"{name} rank {match['of']}"
    elif match["part"]:
        name = f"{name} {match['part']}"
    # Ray's workers share one name: the process tells them apart.
    if not any(c.isdigit() for c in name) and name.endswith(("Worker", "WorkerWrapper", "WorkerProc")):
        name = f"{name} pid {match['pid']}"
    if match["ip"]:
        name = f"{name} on {match['ip']}"
    return Speaker(name, int(match["pid"]))
