"""Whether the input firewall of a node lets a new TCP connection from a peer in: nftables, evaluated.

Only what is certain is said: True, False, or None where a rule holds something that this reading does not
know (iptables-nft compatibility matches, sets hidden by --terse, source addresses).
Reference: libnftables-json(5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts.base import Source

_DECIDED = {"accept": True, "drop": False, "reject": False}
_NO_MATCH = frozenset(
    ("accept", "drop", "reject", "jump", "goto", "return", "counter", "log", "comment", "mangle")
)
_ANY: frozenset[bool | None] = frozenset((True, False, None))
_GOES_ON = "goes on"
_Known = dict[tuple[str, str], frozenset[bool | None]]


@dataclass(frozen=True)
class Firewall:
    input_chains: tuple[tuple[str, str, str], ...]
    """(family table, chain name, policy) of every base chain on hook input, by priority."""
    rules: Mapping[tuple[str, str], tuple[tuple[Any, ...], ...]]
    """(family table, chain) -> expressions of each rule."""

    def admits(self, port: int, interface: str) -> bool | None:
        """Whether a new TCP connection to `port` on `interface` comes in. None: cannot be told."""
        verdicts: list[bool | None] = []
        known: _Known = {}
        for table, chain, policy in self.input_chains:
            try:
                ends = self._outcomes((table, chain), port, interface, known)
            except RecursionError:  # the kernel takes 16 levels of jumps; a text may claim more
                ends = _ANY
            possible = {(policy != "drop") if end is None else end for end in ends}
            verdicts.append(possible.pop() if len(possible) == 1 else None)
        # Each base chain must let it through; one that certainly drops is enough.
        if False in verdicts:
            return False
        return None if None in verdicts else True

    def _outcomes(
        self,
        place: tuple[str, str],
        port: int,
        interface: str,
        known: _Known,
    ) -> frozenset[bool | None]:
        """How a chain may end: True accepted, False dropped, None at its end.

        `known` keeps each chain's answer, so that a chain is walked once; one that leads back to itself may
        end in any way."""
        if place in known:
            return known[place]
        known[place] = _ANY
        found: set[bool | None] = set()
        for rule in self.rules.get(place, ()):
            matched = _rule_matches(rule, port, interface)
            if matched is False:
                continue
            ends = self._verdict(rule, place[0], port, interface, known)
            found |= ends if not matched else ends - {_GOES_ON}
            if matched and _GOES_ON not in ends:
                break
        else:
            found.add(None)
        found.discard(_GOES_ON)
        known[place] = frozenset(found)
        return known[place]

    def _verdict(
        self,
        rule: tuple[Any, ...],
        table: str,
        port: int,
        interface: str,
        known: _Known,
    ) -> set[Any]:
        """What a rule that matches may do; _GOES_ON: the next rule is looked at."""
        for expression in rule:
            if not isinstance(expression, dict) or not expression:
                continue
            key, value = next(iter(expression.items()))
            if key in _DECIDED:
                return {_DECIDED[key]}
            if key == "return":
                return {None}
            if key in ("jump", "goto"):
                target = str(value.get("target")) if isinstance(value, dict) else ""
                ends = set(self._outcomes((table, target), port, interface, known))
                return ends if key == "goto" else {_GOES_ON if end is None else end for end in ends}
        return {_GOES_ON}


def _rule_matches(rule: tuple[Any, ...], port: int, interface: str) -> bool | None:
    """All matches of a rule together; None where one is not understood."""
    matched: bool | None = True
    for expression in rule:
        if not isinstance(expression, dict) or not expression:
            return None
        key, value = next(iter(expression.items()))
        if key == "match":
            found = _matches(value, port, interface) if isinstance(value, dict) else None
            if found is False:
                return False
            matched = None if found is None else matched
        elif key not in _NO_MATCH:
            matched = None
    return matched


def _matches(match: Mapping[str, Any], port: int, interface: str) -> bool | None:
    left, right, operator = match.get("left"), match.get("right"), match.get("op", "==")
    found: bool | None = None
    if isinstance(left, dict):
        payload, meta, ct = left.get("payload"), left.get("meta"), left.get("ct")
        if isinstance(payload, dict):
            protocol, field = str(payload.get("protocol")), payload.get("field")
            if protocol in ("tcp", "th") and field == "dport":
                found = _holds(right, port)
            elif protocol in ("udp", "icmp", "icmpv6", "sctp", "dccp", "esp", "ah", "igmp"):
                return False
        elif isinstance(meta, dict):
            if meta.get("key") in ("iifname", "iif"):
                found = _named(right, interface)
            elif meta.get("key") == "l4proto":
                found = _named(right, "tcp")
        elif isinstance(ct, dict) and ct.get("key") == "state":
            found = _named(right, "new")
    if found is None:
        return None
    return found if operator in ("==", "in") else (not found if operator == "!=" else None)


def _holds(right: Any, port: int) -> bool | None:
    if isinstance(right, bool):
        return None
    if isinstance(right, int):
        return right == port
    if isinstance(right, list):
        return any(_holds(item, port) for item in right)
    if isinstance(right, dict):
        if isinstance(right.get("set"), list):
            return any(_holds(item, port) for item in right["set"])
        bounds = right.get("range")
        if isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(bound, int) for bound in bounds):
            return bool(bounds[0] <= port <= bounds[1])
    return None


def _named(right: Any, name: str) -> bool | None:
    if isinstance(right, str):
        if right.startswith("@"):
            return None
        return name.startswith(right[:-1]) if right.endswith("*") else right == name
    if isinstance(right, list):
        return any(_named(item, name) for item in right)
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return any(_named(item, name) for item in right["set"])
    return None


def _not_loaded(source: Source) -> Firewall | Unmeasured:
    """/sys/module/nf_tables is not there: not loaded, so no rules, or built into the kernel."""
    try:
        paths = source.stats("network.netfilter")
    except Unmeasured as reason:
        return reason
    if "/proc/net/netfilter" not in paths or any("nf_tables.ko" in path for path in paths):
        return Firewall((), {})
    return Unmeasured("nf_tables: not known whether it is built into this kernel: sudo nft list ruleset")


def parse(source: Source) -> Firewall | Unmeasured:
    """An Unmeasured where the rules could not be read; no rules where nf_tables is not loaded."""
    if source.status("network.nft") == "skipped":
        return _not_loaded(source)
    try:
        output = source.command("network.nft")
    except Unmeasured as reason:
        return reason
    if not output.ok:
        said = (output.stderr.strip() or "no message").splitlines()[0][:120]
        return Unmeasured(f"nft list ruleset: {said}")
    if output.truncated:
        return Unmeasured("nft list ruleset: more rules than are read")
    try:
        listed = json.loads(output.stdout)["nftables"]
        items = [item for item in listed if isinstance(item, dict)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Unmeasured("nft list ruleset: not JSON (built without it?)")
    chains: list[tuple[int, tuple[str, str, str]]] = []
    rules: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for item in items:
        chain, rule = item.get("chain"), item.get("rule")
        if isinstance(chain, dict) and chain.get("hook") == "input" and chain.get("family") in ("ip", "inet"):
            priority = chain.get("prio")
            place = (
                f"{chain.get('family')} {chain.get('table')}",
                str(chain.get("name")),
                str(chain.get("policy", "")),
            )
            chains.append((priority if isinstance(priority, int) else 0, place))
        elif isinstance(rule, dict) and isinstance(rule.get("expr"), list):
            key = (f"{rule.get('family')} {rule.get('table')}", str(rule.get("chain")))
            rules.setdefault(key, []).append(tuple(rule["expr"]))
    chains.sort()
    return Firewall(tuple(place for _, place in chains), {key: tuple(value) for key, value in rules.items()})
