"""TCP ports of a node: who listens, the ephemeral range, reserved ranges. Parsers for facts.network."""

from __future__ import annotations

import ipaddress

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import FileSet, Source


def number(value: object) -> int | None:
    """A decimal number of a file or a netlink answer; None for anything else."""
    try:
        return int(str(value)[:20])
    except ValueError:
        return None


def parse_listeners(source: Source) -> dict[int, tuple[str, ...]] | Unmeasured:
    try:
        files = source.files("network.listeners")
        files.require("/proc/net/tcp")
    except Unmeasured as reason:
        return reason
    found: dict[int, list[str]] = {}
    for text in files.values():
        for line in text.splitlines()[1:]:
            fields = line.split()
            if len(fields) < 4 or fields[3] != "0A" or ":" not in fields[1]:  # 0A: TCP_LISTEN
                continue
            raw, _, port = fields[1].rpartition(":")
            try:
                # Each 32-bit word is in the host's byte order, little-endian on x86_64 and aarch64.
                packed = b"".join(bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, len(raw), 8))
                found.setdefault(int(port, 16), []).append(str(ipaddress.ip_address(packed)))
            except ValueError:
                continue
    return {port: tuple(where) for port, where in found.items()}


def parse_range(files: FileSet) -> tuple[int, int] | Unmeasured:
    words = files.get("/proc/sys/net/ipv4/ip_local_port_range", "").split()
    first, last = (number(words[0]), number(words[1])) if len(words) >= 2 else (None, None)
    if first is None or last is None:
        return Unmeasured("/proc/sys/net/ipv4/ip_local_port_range: not read")
    return first, last


def parse_ranges(text: str) -> tuple[tuple[int, int], ...]:
    found = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        low, high = number(first), number(last or first)
        if low is not None and high is not None:
            found.append((low, high))
    return tuple(found)
