"""Recordings: round trip, and strangers' archives."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epdoctor.collect.record import SCHEMA, Record, Recording, clean, parse_output
from epdoctor.collect.store import load, node_file_name, parse_record, save
from epdoctor.exceptions import RecordError
from epdoctor.facts.base import CollectOptions
from epdoctor.model import NodeOutcome


def record(node: str, **probes: Any) -> Record:
    return Record(node, "2026-11-22T00:00:00Z", {"uid": 0}, NodeOutcome(node), probes)


def some(stdout: str) -> dict[str, Any]:
    return {"status": "ran", "rc": 0, "stdout": stdout, "seconds": 0.1}


@pytest.mark.parametrize("name", ["recording.tar.gz", "folder"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    options = CollectOptions(python="/opt/venv/bin/python", node_names=("n1", "../evil"))
    records = [record("n1", **{"a.b": some("x")}), record("../evil", **{"a.b": some("y")})]
    save(tmp_path / name, Recording("inventory.ini", options, "2026-11-22T00:00:00Z"), records)
    frame, stored = load(tmp_path / name)
    assert frame.options == options
    assert sorted((item.read().node, item.read().probes["a.b"]["stdout"]) for item in stored) == [
        ("../evil", "y"),
        ("n1", "x"),
    ]
    assert not list(tmp_path.parent.glob("evil*"))


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, raw in members:
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def member(name: str, content: Any = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, b"" if content is None else json.dumps(content).encode()


GOOD = {"schema": SCHEMA, "node": "n1", "probes": {}, "started_as": {}}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("../n1.json", GOOD)], "does not belong"),
        ([member("/etc/n1.json", GOOD)], "does not belong"),
        ([member("a/b/n1.json", GOOD)], "does not belong"),
        ([member("rec/n1.json", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "does not belong"),
        ([member("rec/n1.json", type=tarfile.CHRTYPE)], "does not belong"),
        ([member("rec/n1.sh", GOOD)], "not .json"),
        ([member("rec/cluster.json", {"schema": SCHEMA})], "no node"),
        (
            [
                member("rec/cluster.json", {"schema": SCHEMA, "options": {"node_names": [3]}}),
                member("rec/n1.json", GOOD),
            ],
            "malformed",
        ),
        ([member("rec/cluster.json", {"schema": SCHEMA + 1}), member("rec/n1.json", GOOD)], "newer"),
    ],
)
def test_hostile_archives_are_refused_with_a_reason(tmp_path: Path, members: list[Any], reason: str) -> None:
    path = archive(tmp_path / "x.tar.gz", *members)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RecordError, match=reason):
        load(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_not_an_archive(tmp_path: Path) -> None:
    for raw in (b"", b"hello", b"\x1f\x8b broken"):
        (tmp_path / "x.tar.gz").write_bytes(raw)
        with pytest.raises(RecordError, match=r"tar\.gz|no node"):
            load(tmp_path / "x.tar.gz")
    with pytest.raises(RecordError, match="no such"):
        load(tmp_path / "absent.tar.gz")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no schema"),
        (json.dumps({**GOOD, "schema": SCHEMA + 1}).encode(), "newer"),
        (json.dumps({**GOOD, "node": 3}).encode(), "not a node"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_malformed_records_are_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        parse_record(raw, "n1.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=10), children, max_size=3)
    ),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(["schema", "node", "probes", "outcome", "started_as", "cpu_s"]), json_values
    )
)
def test_any_json_gives_a_record_or_a_reason(value: dict[str, Any]) -> None:
    try:
        parse_record(json.dumps({"schema": SCHEMA, **value}).encode(), "n1.json")
    except RecordError as error:
        assert str(error)


@given(st.binary(max_size=400))
def test_any_bytes_before_and_between_are_ignored(noise: bytes) -> None:
    noise = noise.replace(b"@@epdoctor", b"")
    line = b'\n{"name":"a.b","status":"ran","rc":0}\n'
    out = (
        noise
        + b'\n@@epdoctor-begin N {"protocol":1}\n'
        + noise
        + line
        + noise
        + b"\n@@epdoctor-end N {}\n"
        + noise
    )
    begin, probes, end = parse_output(out, "N")
    assert begin == {"protocol": 1}
    assert probes["a.b"] == {"status": "ran", "rc": 0}
    assert end == {}


def test_another_runs_marker_is_not_ours() -> None:
    assert parse_output(b"@@epdoctor-begin other {}\n", "N") == ({}, {}, None)


def test_names_never_become_paths() -> None:
    taken: set[str] = set()
    names = [
        node_file_name(name, taken)
        for name in ("../../etc/passwd", "a/b", "a:b", "cluster", "...", "n" * 500)
    ]
    assert len(set(names)) == len(names)
    assert all("/" not in name and not name.startswith(".") and name != "cluster.json" for name in names)


def test_a_folder_with_other_files_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(RecordError, match="other files"):
        save(tmp_path, Recording("x", CollectOptions()), [record("n1")])
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_hash_hosts_leaves_no_name() -> None:
    recording = Recording("inv", CollectOptions(node_names=("gpu01", "gpu02", "10.0.0.1")))
    records = [record("gpu01", x=some("gpu01 talks to gpu02 at 10.0.0.1")), record("gpu02")]
    frame, hashed = clean(recording, records, hash_hosts=True)
    text = json.dumps([item.to_json() for item in hashed]) + repr(frame.options)
    assert "gpu0" not in text
    assert not re.search(r"10\.0\.0\.1\b", text)
    assert hashed[1].node in text
