"""Who and what a recording names is gone under --redact strict, and it is judged as before."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.catalog import load_checks
from epdoctor.collect.hashing import HostHasher
from epdoctor.collect.record import Recording, clean
from epdoctor.collect.store import parse_record
from epdoctor.engine import Engine
from epdoctor.facts.base import CollectOptions
from epdoctor.judge import judge_record
from epdoctor.model import Goal


def test_hashed_hosts_keep_structure() -> None:
    hasher = HostHasher(["gpu01", "gpu02.example.org"], b"salt")
    text = hasher.text(
        "gpu01 10.1.2.3 peers gpu02.example.org at 10.1.2.4, not gpu013 nor 127.0.0.1 nor 10.1.3.3"
    )
    words = text.replace(",", "").split()
    assert "gpu01 " not in text
    assert "example.org" not in text
    assert "gpu013" in words
    assert "127.0.0.1" in words
    first, second, other = (ipaddress.ip_address(words[i]) for i in (1, 5, -1))
    assert ipaddress.ip_network(f"{first}/24", strict=False) == ipaddress.ip_network(
        f"{second}/24", strict=False
    )
    assert ipaddress.ip_network(f"{first}/24", strict=False) != ipaddress.ip_network(
        f"{other}/24", strict=False
    )
    gid = hasher.text("0000:0000:0000:0000:0000:ffff:0a01:0203")
    mapped = ipaddress.ip_address(gid).ipv4_mapped  # type: ignore[union-attr]  # an IPv6 address by its form
    assert mapped == first


@given(st.text(max_size=200))
def test_hashing_bears_any_text(text: str) -> None:
    HostHasher(["gpu01", text], b"salt").text(text)


RECORDS = sorted((Path(__file__).parent / "records").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=[path.stem for path in RECORDS])
def test_a_hashed_record_is_judged_alike(path: Path) -> None:
    before = parse_record(path.read_bytes(), "gpu01")
    recording = Recording(
        "inventory.ini", CollectOptions(node_names=("gpu01", "gpu02", "10.99.0.3", "10.99.0.4"))
    )
    frame, (after,) = clean(recording, [before], hash_hosts=True)
    checks = load_checks()
    engine = Engine(checks, Goal(multinode=True))
    found = []
    for record, options in ((before, recording.options), (after, frame.options)):
        judgement = judge_record(record, engine, options).judgement
        assert judgement is not None
        found.append({finding.check: finding.status for finding in judgement.findings})
    assert found[0] == found[1]


SLURM_CONF = """\
ClusterName=acmeprod
SlurmctldHost=boss1(10.3.4.9)
ReturnToService=1
NodeName=trainer[1-9] NodeAddr=10.3.4.[1-9] CPUs=8
PartitionName=secretlab Nodes=ALL AllowGroups=quants
"""
IDENTITIES: dict[str, dict[str, Any]] = {
    "hosts": {
        "data": [
            ["/proc/sys/kernel/hostname", "trainer7.hpc.acme.example\n"],
            ["/etc/slurm/slurm.conf", SLURM_CONF],
            ["session", {"SLURM_JOB_NODELIST": "trainer[3,7]", "MASTER_ADDR": "boss2.acme.example", "USER": "mallory"}],
        ],
    },
    "people": {
        "data": [
            ["/etc/security/limits.conf", "mallory  soft memlock 8\n@quants - nofile 9\n* hard memlock 8\n"],
            ["process", {"cmdline": ["sshd: eve@pts/3", "sshd: mallory [priv]", "/home/trudy/venv/bin/python3"]}],
            ["process", {"cmdline": ["vllm", "--data-parallel-address", "boss3", "--model", "/data/mallory/m"]}],
            ["docker", '{"registry-mirrors": ["https://mirror.acme.example:5000"], "bip": "10.200.0.1/24"}'],
        ],
    },
    "network": {
        "data": [
            ["mac", "b8:3f:d2:12:34:56"],
            ["ipoib", "00:00:10:29:fe:80:00:00:00:00:00:00:b8:3f:d2:03:00:12:34:56"],
            ["guid", "b83f:d203:0012:3456\n"],
            ["gid", "fe80:0000:0000:0000:b83f:d203:0012:3456"],
            ["ibstat", "Node GUID: 0xb83fd20300123456"],
            ["mapped", "0000:0000:0000:0000:0000:ffff:0a03:0407"],
            ["v6", "2001:db8:77:1::b00b fd12:3456:789a::7/64 fe80::ba3f:d2ff:fe12:3456%eth0"],
            ["uuid", "GPU-9c3a1f5e-77aa-4bcd-8123-0a1b2c3d4e5f"],
            ["/proc/net/tcp", "  sl  local_address\n   0: 0704030A:0016 0904030A:DF68 01 0:0\n"],
            ["/proc/net/tcp6", "  sl  local_address\n   1: B80D0120010077000000000007000000:0016 00000000000000000000000000000000:0000 0A\n"],
        ],
    },
}  # fmt: skip
LEFT = (
    "trainer", "acme", "boss", "secretlab", "quants", "mallory", "eve", "trudy", "10.3.4", "10.200", "12:34:56", "1234:56",
    "0012:3456", "b83fd203", "0a03:0407", "b00b", "2001:db8:77", "3456:789a", "9c3a1f5e", "0704030A", "0904030A",
    "B80D012001007700",
)  # fmt: skip


def test_nothing_that_identifies_is_left() -> None:
    node = "trainer7"
    probes = {name: {"status": "ran", **entry} for name, entry in IDENTITIES.items()}
    raw = {
        "schema": 1, "node": node, "started_as": {"user": "mallory", "uid": 1000, "hostname": "trainer7.hpc.acme.example"},
        "outcome": {"error": "mallory@10.3.4.7: Permission denied", "hint": "ssh mallory@trainer7 -i /home/mallory/.ssh/k"},
        "probes": probes,
    }  # fmt: skip
    record = parse_record(json.dumps(raw).encode(), node)
    recording = Recording("/home/mallory/inventory", CollectOptions(node_names=(node, "boss2", "10.3.4.7")))
    frame, (after,) = clean(recording, [record], hash_hosts=True)
    text = json.dumps(after.to_json()) + repr(frame)
    assert [word for word in LEFT if re.search(rf"(?<![A-Za-z]){word}", text)] == []
    # What is not a name stays, and equal things stay equal.
    for word in ("ReturnToService=1", "CPUs=8", "* hard memlock 8", "fe80:0000:0000:0000:", "/data/user-"):
        assert word in text
    data = {row[0]: row[1] for row in after.probes["network"]["data"]}
    assert data["gid"].removeprefix("fe80:0000:0000:0000:") == data["guid"].strip()
    assert data["ibstat"].endswith(data["guid"].strip().replace(":", ""))
    assert data["ipoib"].replace(":", "").endswith(data["guid"].strip().replace(":", ""))


def test_a_machine_called_like_a_folder_of_the_kernel() -> None:
    node = "vm"
    rows = [["/proc/sys/vm/overcommit_memory", "0\n"], ["/proc/sys/kernel/hostname", "vm\n"]]
    raw = {"schema": 1, "node": node, "probes": {"system.files": {"status": "ran", "data": rows}}}
    record = parse_record(json.dumps(raw).encode(), node)
    _, (after,) = clean(Recording("x", CollectOptions(node_names=(node,))), [record], hash_hosts=True)
    assert after.probes["system.files"]["data"][0] == rows[0]
    assert after.probes["system.files"]["data"][1][1] == f"{after.node}\n"
