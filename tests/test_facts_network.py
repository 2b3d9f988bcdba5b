"""Interfaces, routes, names, ports and the firewall."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import network
from epdoctor.facts.base import CollectOptions, Source, require
from epdoctor.facts.firewall import Firewall

PROBES = Path(network.__file__).parent.parent / "probes"


def run_script(name: str, **params: Any) -> list[list[Any]]:
    """Runs a node script here, as the agent's child would."""
    rows: list[list[Any]] = []
    code = compile((PROBES / name).read_text(), name, "exec")
    exec(code, {"PARAMS": params, "emit": lambda *row: rows.append(list(row)), "__name__": "probe"})
    return json.loads(json.dumps(rows))  # type: ignore[no-any-return]  # what a record would hold


def parse(**probes: Any) -> network.Network:
    return network.parse(
        Source({name.replace("__", "."): entry for name, entry in probes.items()}, root=True)
    )


def test_addresses_of_this_machine() -> None:
    try:
        rows = run_script("addresses.py")
    except OSError as error:
        pytest.skip(f"no netlink here: {error}")
    facts = parse(network__addresses={"status": "ran", "data": rows})
    loopback = facts.netdev("lo")
    assert loopback is not None
    assert loopback.is_loopback
    assert {netdev.name for netdev in require(facts.netdevs)} == {name for _, name in socket.if_nameindex()}
    for netdev in require(facts.netdevs):
        assert netdev.mtu == int(Path(f"/sys/class/net/{netdev.name}/mtu").read_text())
    assert rows[-1] == ["done", True]


def test_names_of_this_machine() -> None:
    rows = run_script("resolve.py", names=["localhost", "10.0.0.1", "no-such-host.invalid"])
    facts = parse(network__names={"status": "ran", "data": rows})
    assert require(facts.hostname) == socket.gethostname()
    resolved = require(facts.resolved)
    assert any(address.is_loopback for address in resolved["localhost"].addresses)
    assert "10.0.0.1" not in resolved
    assert resolved["no-such-host.invalid"].addresses == ()
    assert resolved["no-such-host.invalid"].error


def test_gids_without_rdma_devices_emit_nothing() -> None:
    if Path("/sys/class/infiniband").exists():
        pytest.skip("this machine has RDMA devices")
    assert run_script("gids.py", slots=64) == []


def test_listeners() -> None:
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n"
        "   1: 0100007F:C001 0100007F:1F40 01 00000000:00000000 00:00000000 00000000     0        0 2\n"
    )
    six = text.splitlines()[0] + (
        "\n   0: 00000000000000000000000001000000:0016 "
        "00000000000000000000000000000000:0000 0A 0 0 0 0 0 0 0\n"
    )
    data = [["/proc/net/tcp", text], ["/proc/net/tcp6", six]]
    facts = parse(network__listeners={"status": "ran", "data": data})
    assert require(facts.listeners) == {8000: ("127.0.0.1",), 22: ("::1",)}


def test_port_files() -> None:
    base = "/proc/sys/net/ipv4/"
    data = [
        [base + "ip_local_port_range", "1024\t65535\n"],
        [base + "ip_local_reserved_ports", "5600-5699,8000\n"],
    ]
    facts = parse(network__files={"status": "ran", "data": data})
    assert require(facts.ephemeral_ports) == (1024, 65535)
    assert facts.reserved_ports == ((5600, 5699), (8000, 8000))


def nft(*items: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": "ran",
        "rc": 0,
        "argv": ["nft"],
        "stdout": json.dumps({"nftables": list(items)}),
        "stderr": "",
    }


def chain(name: str, **more: Any) -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "f", "name": name, **more}}


def rule(where: str, *expr: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": "f", "chain": where, "expr": list(expr)}}


def port_is(right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": right}}


INPUT = chain("input", hook="input", prio=0, policy="drop")


@pytest.mark.parametrize(
    ("rules", "admits"),
    [
        ([], False),
        ([rule("input", {"accept": None})], True),
        ([rule("input", port_is(29550), {"accept": None})], True),
        ([rule("input", port_is({"set": [22, {"range": [29000, 30000]}]}), {"accept": None})], True),
        ([rule("input", port_is(22), {"accept": None})], False),
        (
            [rule("input", {"jump": {"target": "allow"}}), rule("allow", port_is(29550), {"accept": None})],
            True,
        ),
        ([rule("input", {"xt": {"type": "match", "name": "addrtype"}}, {"accept": None})], None),
        ([rule("input", port_is("@ports"), {"accept": None})], None),
        ([rule("input", {"drop": None}), rule("input", {"accept": None})], False),
        ([rule("input", {"jump": {"target": "input"}})], None),
    ],
)
def test_firewall(rules: list[dict[str, Any]], admits: bool | None) -> None:
    firewall = require(parse(network__nft=nft(INPUT, *rules)).firewall)
    assert firewall.admits(29550, "eth0") is admits


def test_every_base_chain_has_its_say() -> None:
    later = chain("late", hook="input", prio=10, policy="accept")
    drop = rule(
        "late", {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth*"}}, {"drop": None}
    )
    firewall = require(parse(network__nft=nft(INPUT, rule("input", {"accept": None}), later, drop)).firewall)
    assert firewall.admits(1, "eth0") is False
    assert firewall.admits(1, "ib0") is True


def test_endless_jumps_are_no_verdict() -> None:
    rules = [rule("input", {"jump": {"target": "0"}})]
    rules += [rule(str(n), {"jump": {"target": str(n + 1)}}) for n in range(5000)]
    assert require(parse(network__nft=nft(INPUT, *rules)).firewall).admits(1, "eth0") is None


def test_no_rules_admit_everything() -> None:
    assert Firewall((), {}).admits(29550, "eth0") is True


def test_container_bridges_are_no_candidates_and_the_main_interface_always_is() -> None:
    rows = [
        ["link", {"name": "br-ex", "index": 2, "flags": 1, "operstate": "up", "kind": "bridge"}],
        ["link", {"name": "br-0a1b2c3d4e5f", "index": 3, "flags": 1, "operstate": "up", "kind": "bridge"}],
        ["address", {"name": "br-ex", "prefix": 24, "address": "10.0.0.7"}],
        ["address", {"name": "br-0a1b2c3d4e5f", "prefix": 16, "address": "172.18.0.1"}],
        ["route", {"family": 4, "length": 0, "to": "", "via": "10.0.0.1", "name": "br-ex", "metric": 48}],
    ]
    facts = parse(network__addresses={"status": "ran", "data": rows})
    assert [netdev.name for netdev in facts.candidates] == ["br-ex"]


value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "prefix", "address", "length", "to", "family", "addresses", "code", "flags", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
row = st.tuples(st.sampled_from(["link", "address", "route", "sysctl", "", "/proc/net/tcp"]), value).map(list)
nft_item = st.dictionaries(
    st.sampled_from(["chain", "rule"]),
    st.fixed_dictionaries(
        {"hook": st.just("input"), "family": st.sampled_from(["inet", "ip"]), "table": value, "chain": value},
        optional={"expr": value, "prio": value, "policy": value},
    ),
)
entry = st.fixed_dictionaries(
    {"status": st.sampled_from(["ran", "timeout", "skipped"]), "data": st.lists(row) | value},
    optional={
        "rc": st.integers(0, 1),
        "stdout": st.text() | st.lists(nft_item).map(lambda items: json.dumps({"nftables": items})),
    },
)


@given(st.dictionaries(st.sampled_from([p.name for p in network.probes(CollectOptions())]), entry))
def test_garbage_is_a_value_or_unmeasured(record: dict[str, Any]) -> None:
    facts = network.parse(Source(record))
    try:
        _ = facts.candidates
        _ = facts.default_route
        require(facts.firewall).admits(29550, "eth0")
    except Unmeasured:
        pass
