"""Connect queue pairs between nodes: runs ops/verbs_exchange.py on all of them and passes each its peers' numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from epdoctor.bench.fleet import Call, OperationFailed, WorkerLost
from epdoctor.bench.ladder import Bench
from epdoctor.bench.rails import Rails

SLOT_BYTES = 16384
"""Four packets of the largest RDMA MTU, so that full-size packets travel."""
REGISTER_BYTES = 1 << 20
"""More than the 64 KiB of locked memory that a user gets where nobody has raised it."""
PACKAGE = "apt install libibverbs1 ibverbs-providers, dnf install libibverbs"
WRITES_S = 8.0
SETUP_S = 20.0


@dataclass(frozen=True, order=True)
class End:
    """One rail of one node."""

    node: str
    rail: int

    def key(self) -> str:
        return f"{self.rail} {self.node}"


@dataclass(frozen=True)
class Failed:
    """Where an exchange broke off; an empty `step`: it did not."""

    step: str
    code: str
    """Name of the errno, or number of the completion's status."""
    text: str

    def __str__(self) -> str:
        if self.step == "write":
            return f"write: {self.text}" + (f" (status {self.code})" if self.code.isdecimal() else "")
        return f"{self.step}: {self.code + ', ' if self.code else ''}{self.text}"


@dataclass
class Exchange:
    """What came of it."""

    setups: dict[End, Failed] = field(default_factory=dict)
    """Rails that answered; `step` is empty where the set-up worked."""
    said: dict[End, Mapping[str, Any]] = field(default_factory=dict)
    mtus: dict[End, int] = field(default_factory=dict)
    writes: dict[tuple[End, End], Failed] = field(default_factory=dict)
    """(from, to)."""
    arrived: dict[tuple[End, End], bool] = field(default_factory=dict)
    """(from, to), as the receiver saw it."""
    lost: dict[str, str] = field(default_factory=dict)
    """Node -> how it was lost."""
    missing: dict[str, str] = field(default_factory=dict)
    """Node -> what it lacks."""

    def ready(self, a: End, b: End) -> bool:
        """Both ends have their queue pair."""
        return a in self.said and b in self.said

    def failed(self, one: End, other: End) -> Failed | None:
        """Why the write from `one` did not reach `other`; None: it did."""
        written = self.writes.get((one, other))
        if written is None:
            back = self.writes.get((other, one))
            if back is not None and back.step not in ("", "write"):
                return Failed(back.step, back.code, f"{back.text} (at {other.node})")
            return Failed("lost", "", self.lost.get(one.node, "no answer"))
        if written.step:
            return written
        if self.arrived.get((one, other)) is False:
            return Failed("compare", "", "the bytes that arrived are not those written")
        if (one, other) not in self.arrived:
            return Failed("lost", "", self.lost.get(other.node, "the receiver did not answer"))
        return None


def exchange(
    bench: Bench, rails: Rails, ends: Sequence[tuple[End, End]], *, smaller_mtu: bool = False
) -> Exchange:
    """Connect all of `ends` at once and write both ways. Every failure is in the answer."""
    result = Exchange()
    peers: dict[End, list[End]] = {
        End(name, rail.number): [] for name, own in rails.of.items() for rail in own[: rails.count]
    }
    for a, b in ends:
        peers[a].append(b)
        peers[b].append(a)
    limit_s = max(1.0, min(WRITES_S, bench.left_s() / 2))
    setup_s = max(1.0, min(SETUP_S, bench.left_s()))
    with ExitStack() as stack:
        calls: dict[str, Call] = {}
        for name, own in rails.of.items():
            plans = [
                {
                    "rail": rail.number, "device": rail.device, "port": rail.port, "gid_index": rail.gid_index,
                    "peers": [peer.key() for peer in peers[End(name, rail.number)]],
                }
                for rail in own[: rails.count]
                if not rail.problem
            ]  # fmt: skip
            if not plans:
                continue
            params = {
                "rails": plans,
                "bytes": SLOT_BYTES,
                "register_bytes": REGISTER_BYTES,
                "limit_s": limit_s,
            }
            try:
                call = bench.fleet[name].start("verbs_exchange", params, timeout_s=setup_s * 3 + limit_s)
            except WorkerLost as lost:
                result.lost[name] = str(lost)
                continue
            calls[name] = stack.enter_context(call)

        def left(limit_s: float) -> float:
            return max(1.0, min(limit_s, bench.left_s()))

        _phase(result, calls, "ready", left(setup_s))
        for name, call in calls.items():
            call.tell({"connect": list(_numbers(result, name, peers, smaller_mtu))})
        _phase(result, calls, "connected", left(setup_s))
        for call in calls.values():
            call.tell("write")
        _phase(result, calls, "written", left(limit_s + 5))
        for call in calls.values():
            call.tell("compare")
        _phase(result, calls, "", left(setup_s))
    return result


def _numbers(
    result: Exchange, name: str, peers: Mapping[End, Sequence[End]], smaller_mtu: bool
) -> Iterable[dict[str, Any]]:
    """What this node must know of each peer that is ready."""
    for own, others in peers.items():
        if own.node != name or own not in result.said:
            continue
        for other in others:
            if other not in result.said:
                continue
            said = result.said[other]
            mtu = min(result.mtus[own], result.mtus[other]) if smaller_mtu else result.mtus[own]
            yield {
                "rail": own.rail, "key": other.key(), "mtu": mtu, **said["qps"][own.key()],
                **{name: said[name] for name in ("lid", "gid", "rkey")},
            }  # fmt: skip


def _phase(result: Exchange, calls: dict[str, Call], until: str, limit_s: float) -> None:
    """Hear every node until it says this phase (or, without one, ends); those that do not are given up."""
    deadline = time.monotonic() + limit_s
    for name, call in list(calls.items()):
        try:
            while True:
                value = call.value(max(0.05, deadline - time.monotonic()))
                if isinstance(value, dict) and until and value.get("phase") == until:
                    break
                _take(result, name, value)
        except OperationFailed as failed:
            if until or failed.end != "ran":
                result.lost.setdefault(name, result.missing.get(name, str(failed)))
            del calls[name]
        except WorkerLost as lost:
            result.lost[name] = str(lost)
            del calls[name]


def _take(result: Exchange, name: str, value: Any) -> None:
    """One value of a node; what makes no sense is passed over, and its measurement stays unknown."""
    try:
        if "missing" in value:
            result.missing[name] = f"missing: {value['missing']}; {PACKAGE}"
            return
        own = End(name, int(value["rail"]))
        if "qps" in value:
            for one in value["qps"].values():
                _ = int(one["qpn"]), int(one["psn"]), int(one["addr"])
            _ = int(value["lid"]), int(value["rkey"]), bytes.fromhex(value["gid"])
            result.mtus[own] = int(value["mtu"])
            result.said[own] = value
            result.setups[own] = Failed("", "", "")
            return
        if "key" not in value:
            result.setups[own] = Failed(str(value["step"]), str(value["errno"]), str(value["text"]))
            return
        rail, _, other_name = str(value["key"]).partition(" ")
        other = End(other_name, int(rail))
        if "right" in value:
            result.arrived[other, own] = bool(value["right"])
        elif "step" in value:
            result.writes[own, other] = Failed(str(value["step"]), str(value["errno"]), str(value["text"]))
        else:
            status = int(value["status"])
            text = str(value["text"])
            result.writes[own, other] = Failed("write" if status else "", str(status) if status else "", text)
    except (KeyError, TypeError, ValueError, AttributeError):
        return
