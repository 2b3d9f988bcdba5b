"""Recordings on disk: a folder or .tar.gz with one JSON file a node and `cluster.json` (source, options, goal).

Archives are read in memory, member by member: nothing is ever unpacked, so a stranger's archive cannot write
anywhere.
"""

from __future__ import annotations

import datetime
import gzip
import io
import json
import re
import tarfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epdoctor import __version__
from epdoctor.atomic_file import replace_file
from epdoctor.collect.record import SCHEMA, Record, Recording
from epdoctor.exceptions import RecordError
from epdoctor.facts.base import CollectOptions
from epdoctor.model import NodeOutcome

MAX_NODE_BYTES = 64 << 20
MAX_NODES = 20000
MAX_TOTAL_BYTES = 8 << 30


@dataclass(frozen=True)
class StoredRecord:
    """One node's record where it lies: a file's path, or an archive member compressed in memory. Small enough
    to hand thousands of them to worker processes."""

    name: str
    path: str = ""
    packed: bytes = b""

    def read(self) -> Record:
        """Raises RecordError."""
        raw = zlib.decompress(self.packed) if self.packed else _read_limited(Path(self.path))
        return parse_record(raw, self.name)


def node_file_name(node: str, taken: set[str]) -> str:
    """A file name for a node whose name is a stranger's text: never a path."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", node)[:100].lstrip(".") or "node"
    name, number = f"{stem}.json", 1
    while name in taken or name == "cluster.json":
        number += 1
        name = f"{stem}-{number}.json"
    taken.add(name)
    return name


def _cluster_json(recording: Recording) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "tool_version": __version__,
        "source": recording.source,
        "collected_at": recording.collected_at,
        "options": asdict(recording.options),
        "goal": recording.goal,
    }


def save(path: Path, recording: Recording, records: list[Record]) -> None:
    """Write a folder, or a .tar.gz where the name ends so. An existing file is replaced at once or not at all.

    Raises EpdoctorError (RecordError) where the path cannot be written."""
    taken: set[str] = set()
    members = [("cluster.json", _cluster_json(recording))]
    members += [(node_file_name(record.node, taken), record.to_json()) for record in records]
    try:
        if is_archive_name(path):
            _save_archive(path, members)
        else:
            path.mkdir(parents=True, exist_ok=True)
            stale = [old for old in path.glob("*.json") if old.name not in {name for name, _ in members}]
            if stale and not (path / "cluster.json").is_file():
                raise RecordError(f"{path} holds other files; choose an empty or new folder")
            for old in stale:
                old.unlink()
            for name, value in members:
                replace_file(path / name, json.dumps(value, separators=(",", ":")).encode("ascii"))
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror or error}") from error


def is_archive_name(path: Path) -> bool:
    return path.name.endswith((".tar.gz", ".tgz"))


def _save_archive(path: Path, members: list[tuple[str, dict[str, Any]]]) -> None:
    buffer = io.BytesIO()
    folder = path.name.removesuffix(".tgz").removesuffix(".tar.gz")
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
        for name, value in members:
            raw = json.dumps(value, separators=(",", ":")).encode("ascii")
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(raw)
            info.mtime = int(datetime.datetime.now(datetime.timezone.utc).timestamp())
            archive.addfile(info, io.BytesIO(raw))
    replace_file(path, buffer.getvalue())


def load(path: Path) -> tuple[Recording, list[StoredRecord]]:
    """A recording's frame and where its records lie; each is read when asked for.

    Raises RecordError, with the file's name, where it is missing, malformed, too large or of a newer schema."""
    if path.is_dir():
        names = sorted(entry.name for entry in path.glob("*.json") if entry.is_file())
        nodes = [StoredRecord(str(path / name), str(path / name)) for name in names if name != "cluster.json"]
        if not nodes:
            raise RecordError(f"{path}: no recording in this folder (no *.json of a node)")
        return _frame(path, _read_limited(path / "cluster.json") if "cluster.json" in names else b""), nodes
    if not path.exists():
        raise RecordError(f"{path}: no such recording", hint="epdoctor collect -o recording.tar.gz")
    if path.name.endswith(".json"):
        return _frame(path, b""), [StoredRecord(str(path), str(path))]
    if not is_archive_name(path):
        imported = _imported(path)
        if imported is not None:
            return imported
    return _load_archive(path)


def _imported(path: Path) -> tuple[Recording, list[StoredRecord]] | None:
    """vLLM's collect_env text as a recording of one node; None: it is no such text."""
    from epdoctor.collect import collect_env

    try:
        with path.open("rb") as file:
            raw = file.read(collect_env.MAX_BYTES)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error
    if not collect_env.is_collect_env(raw):
        return None
    record = collect_env.record_from(raw.decode("utf-8", "backslashreplace"), str(path))
    packed = zlib.compress(json.dumps(record.to_json()).encode("ascii"), 1)
    recording = Recording(path.name, CollectOptions(), note=collect_env.NOTE)
    return recording, [StoredRecord(path.name, packed=packed)]


def _read_limited(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_NODE_BYTES:
            raise RecordError(f"{path}: larger than {MAX_NODE_BYTES >> 20} MiB, no node's record is")
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error


def _frame(path: Path, raw: bytes) -> Recording:
    if not raw:
        return Recording(path.name, CollectOptions())
    value = _parse_json(raw, f"{path}/cluster.json")
    options = value.get("options", {})
    if not isinstance(options, dict):
        raise RecordError(f"{path}/cluster.json: options is not an object")
    known = {name: options[name] for name in CollectOptions.__dataclass_fields__ if name in options}
    names = known.get("node_names", [])
    limit = known.get("max_num_batched_tokens")
    texts = [known.get(key, "") for key in ("python", "env_file_text", "token_limit_source")]
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in [*names, *texts])
        or not (limit is None or isinstance(limit, int))
        or not isinstance(known.get("sample_s", 0.0), (int, float))
    ):
        raise RecordError(f"{path}/cluster.json: options are malformed")
    known["node_names"] = tuple(names)
    goal = value.get("goal", {})
    return Recording(
        path.name,
        CollectOptions(**known),
        str(value.get("collected_at", "")),
        goal if isinstance(goal, dict) else {},
    )


def _parse_json(raw: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{name}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise RecordError(f"{name}: not a JSON object")
    schema = value.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise RecordError(f"{name}: not an epdoctor recording (no schema number)")
    if schema > SCHEMA:
        raise RecordError(
            f"{name}: schema {schema} is newer than this epdoctor reads ({SCHEMA})",
            hint="pip install --upgrade epdoctor",
        )
    return value


def parse_record(raw: bytes, name: str) -> Record:
    """One node's record. Raises RecordError where it is not one."""
    value = _parse_json(raw, name)
    node, probes, started = value.get("node"), value.get("probes"), value.get("started_as", {})
    if not isinstance(node, str) or not node or not isinstance(probes, dict) or not isinstance(started, dict):
        raise RecordError(f"{name}: not a node's record (node, probes or started_as missing)")
    cpu = value.get("cpu_s")
    return Record(
        node,
        str(value.get("collected_at", "")),
        started,
        _outcome(node, value.get("outcome")),
        probes,
        float(cpu) if isinstance(cpu, (int, float)) else None,
        str(value.get("tool_version", "")),
    )


def _outcome(node: str, value: Any) -> NodeOutcome:
    given = value if isinstance(value, dict) else {}

    def number(key: str) -> float:
        return float(given[key]) if isinstance(given.get(key), (int, float)) else 0.0

    warnings = given.get("warnings", ())
    return NodeOutcome(
        node,
        error=str(given.get("error", "")),
        kind=str(given.get("kind", "")),
        hint=str(given.get("hint", "")),
        warnings=tuple(map(str, warnings)) if isinstance(warnings, (list, tuple)) else (),
        seconds=number("seconds"),
        slowest_probe=str(given.get("slowest_probe", "")),
        slowest_probe_s=number("slowest_probe_s"),
    )


def _load_archive(path: Path) -> tuple[Recording, list[StoredRecord]]:
    """Members are read one by one; names decide nothing but which is cluster.json."""
    frame = b""
    members: list[StoredRecord] = []
    total = 0
    try:
        with tarfile.open(path, mode="r|gz") as archive:
            for count, member in enumerate(archive):
                parts = member.name.split("/")
                where = f"{path.name}: member {member.name[:80]!r}"
                if member.isdir():
                    continue
                if not member.isreg() or member.name.startswith("/") or ".." in parts or len(parts) > 2:
                    raise RecordError(f"{where} does not belong in a recording (link, device or path)")
                if not parts[-1].endswith(".json"):
                    raise RecordError(f"{where} does not belong in a recording (not .json)")
                total += member.size
                if member.size > MAX_NODE_BYTES or total > MAX_TOTAL_BYTES or count > MAX_NODES:
                    raise RecordError(f"{where}: too large for a recording")
                file = archive.extractfile(member)
                raw = file.read() if file is not None else b""
                if parts[-1] == "cluster.json":
                    frame = raw
                else:
                    members.append(StoredRecord(f"{path.name}:{member.name}", packed=zlib.compress(raw, 1)))
    except (tarfile.TarError, EOFError, OSError, zlib.error, gzip.BadGzipFile) as error:
        raise RecordError(f"{path}: not a readable .tar.gz ({error})") from error
    if not members:
        raise RecordError(f"{path}: no node's record in this archive")
    return _frame(path, frame), members
