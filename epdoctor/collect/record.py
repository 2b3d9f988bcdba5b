"""Records: what one node sent, from the agent's output to a dict without secrets.

A record is `{schema, tool_version, node, collected_at, started_as, outcome, probes}`; a recording is all nodes'
records of one run. How they lie on disk: epdoctor/collect/store.py.
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from epdoctor import __version__
from epdoctor.collect.redact import may_hold_secrets, redact
from epdoctor.facts.base import CollectOptions, Source
from epdoctor.model import NodeOutcome

SCHEMA = 1
_PROBE_STATES = frozenset(("ran", "not-found", "denied", "timeout", "stuck", "skipped"))


@dataclass
class Record:
    """One node's raw results."""

    node: str
    collected_at: str
    started_as: dict[str, Any]
    outcome: NodeOutcome
    probes: dict[str, Any]
    cpu_s: float | None = None
    """CPU seconds of the agent and its children, as the agent reports them."""
    tool_version: str = __version__

    @property
    def reached(self) -> bool:
        return not self.outcome.error

    def source(self) -> Source:
        return Source(self.probes, root=self.started_as.get("uid") == 0)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "tool_version": self.tool_version,
            "node": self.node,
            "collected_at": self.collected_at,
            "started_as": self.started_as,
            "outcome": asdict(self.outcome),
            "probes": self.probes,
        }
        if self.cpu_s is not None:
            data["cpu_s"] = self.cpu_s
        return data


@dataclass
class Recording:
    """All nodes of one run, in inventory order, with what the run was asked for."""

    source: str
    options: CollectOptions
    collected_at: str = ""
    goal: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    """What the report's reader has to know of where it comes from."""


def now_text() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---------------------------------------------------------------- from the agent's output


def parse_output(stdout: bytes, nonce: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """(begin facts, probes by name, end facts or None where the end marker is missing).

    Whatever stands before the begin marker (banner, .bashrc noise) is ignored; lines that are no JSON object
    of ours become nothing. begin facts are empty where the marker never came.
    """
    begin_mark = f"@@epdoctor-begin {nonce} ".encode("ascii")
    end_mark = f"@@epdoctor-end {nonce} ".encode("ascii")
    start = stdout.find(begin_mark)
    if start < 0:
        return {}, {}, None
    begin: dict[str, Any] = {}
    end: dict[str, Any] | None = None
    probes: dict[str, Any] = {}
    for line in stdout[start:].split(b"\n"):
        if line.startswith(begin_mark):
            begin = _object(line[len(begin_mark) :]) or {"protocol": 0}
        elif line.startswith(end_mark):
            end = _object(line[len(end_mark) :]) or {}
            break
        elif line.startswith(b"{"):
            entry = _object(line)
            if (
                entry is not None
                and isinstance(entry.get("name"), str)
                and entry.get("status") in _PROBE_STATES
            ):
                probes[entry.pop("name")] = entry
    return begin, probes, end


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def clock_probe(begin: dict[str, Any], sent_at: float, first_byte_at: float) -> dict[str, Any] | None:
    """The node's clock against the controller's: `controller.clock`, rows offset_s and uncertainty_s.

    The agent read its clock after the payload was sent and before its first line arrived, so the offset lies
    within half of that span around its middle.
    """
    epoch = begin.get("epoch")
    if not isinstance(epoch, (int, float)) or sent_at <= 0 or first_byte_at < sent_at:
        return None
    middle = (sent_at + first_byte_at) / 2
    return {
        "status": "ran",
        "rc": 0,
        "seconds": 0.0,
        "data": [
            ["offset_s", round(float(epoch) - middle, 3)],
            ["uncertainty_s", round((first_byte_at - sent_at) / 2, 3)],
        ],
    }


def clean(recording: Recording, records: list[Record], *, hash_hosts: bool) -> tuple[Recording, list[Record]]:
    """The same without secrets; with `hash_hosts` also without the names and addresses of machines and people."""
    options = CollectOptions(
        **{**asdict(recording.options), "env_file_text": redact(recording.options.env_file_text)}
    )
    recording = Recording(recording.source, options, recording.collected_at, recording.goal)
    records = [redact_record(record) for record in records]
    if not hash_hosts:
        return recording, records
    from epdoctor.collect.hashing import HostHasher, path_words, people_and_hosts

    names = {record.node for record in records} | set(options.node_names)
    users: set[str] = set()
    words: set[str] = set()
    for record in records:
        people, hosts = people_and_hosts([record.started_as, *record.probes.values()])
        users |= people
        names |= hosts
        for entry in record.probes.values():
            words |= path_words(entry)
    names |= {name.partition(".")[0] for name in names if not name.replace(".", "").isdigit()}
    hasher = HostHasher(names, os.urandom(16), users=users, words=words)
    options = CollectOptions(**hasher.value(_lists(asdict(options))))
    recording = Recording("hashed recording", options, recording.collected_at, hasher.value(recording.goal))
    hashed = []
    for record in records:
        outcome = NodeOutcome(**hasher.value(_lists(asdict(record.outcome))))
        hashed.append(
            Record(
                hasher.name(record.node),
                record.collected_at,
                hasher.value(record.started_as),
                outcome,
                hasher.value(record.probes),
                record.cpu_s,
                record.tool_version,
            )
        )
    return recording, hashed


def _lists(value: dict[str, Any]) -> dict[str, Any]:
    return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}


def redact_record(record: Record) -> Record:
    """Without secrets; applied to every record as it arrives, before it is judged or kept."""
    return Record(
        record.node, record.collected_at, record.started_as, record.outcome,
        {name: redact(entry) if may_hold_secrets(entry) else entry for name, entry in record.probes.items()}, record.cpu_s, record.tool_version,
    )  # fmt: skip
