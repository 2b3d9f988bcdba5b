"""The kept recording that was green last, to hold the newest one against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epdoctor.collect.history import kept_recordings
from epdoctor.collect.record import Recording
from epdoctor.collect.store import StoredRecord, load
from epdoctor.exceptions import RecordError, UsageError
from epdoctor.paths import state_dir

ASKED = ("backend", "vllm_version", "multinode", "select", "ignore", "profile", "fail_on")
"""Options of check that decide the verdict; their words stand in each kept recording."""


@dataclass(frozen=True)
class Kept:
    """A recording, and what its run was asked for and came to."""

    path: Path
    nodes: frozenset[str]
    asked: dict[str, Any]
    """ASKED -> value; empty where the recording does not say."""
    exit_code: int | None
    collected_at: str

    @property
    def when(self) -> str:
        return self.collected_at.replace("T", " ").replace("Z", " UTC") or self.path.name


def asked_of(values: dict[str, Any]) -> dict[str, Any]:
    """The part of a command line that decides the verdict, for JSON."""
    return {name: list(v) if isinstance(v := values.get(name), tuple) else v for name in ASKED}


def kept(path: Path) -> Kept:
    """Raises RecordError."""
    recording, items = load(path)
    goal = recording.goal
    names = goal.get("nodes")
    if not isinstance(names, list):
        names = [item.read().node for item in items]
    code = goal.get("exit_code")
    return Kept(
        path,
        frozenset(map(str, names)),
        _asked(goal.get("asked")),
        code if isinstance(code, int) and not isinstance(code, bool) else None,
        recording.collected_at or _collected_at(recording, items),
    )


def _collected_at(recording: Recording, items: list[StoredRecord]) -> str:
    return recording.collected_at or items[0].read().collected_at


def _asked(value: Any) -> dict[str, Any]:
    """As options again; a recording's text is only believed where it has the form that check writes."""
    if not isinstance(value, dict):
        return {}
    found: dict[str, Any] = {}
    for name in ASKED:
        given = value.get(name)
        if name in ("select", "ignore"):
            found[name] = (
                tuple(given) if isinstance(given, list) and all(isinstance(w, str) for w in given) else ()
            )
        elif name == "multinode":
            found[name] = given if isinstance(given, bool) else None
        elif name == "fail_on":
            found[name] = given if given in ("error", "warning") else "error"
        else:
            found[name] = given if isinstance(given, str) else ("" if name == "profile" else None)
    return found  # fmt: skip


def newest() -> Kept:
    """Raises UsageError where none is kept or the newest cannot be read."""
    paths = kept_recordings()
    if not paths:
        raise UsageError(
            f"no recordings are kept in {state_dir() / 'recordings'}: each epdoctor check keeps one",
            hint="epdoctor check --all-nodes -i inventory.ini",
        )
    return kept(paths[0])


def last_good(of: Kept, asked: dict[str, Any], is_green: Callable[[Path], bool]) -> tuple[Kept, list[str]]:
    """The latest older recording that was green, and what its reader has to know.

    One whose run was asked the same keeps its own verdict; `is_green` judges the others now. Recordings of all
    of the nodes come before those of a part. Raises UsageError where none was green."""
    partly: list[Kept] = []
    looked: list[str] = []
    for path in kept_recordings():
        if path.name >= of.path.name and path.parent == of.path.parent:
            continue
        try:
            one = kept(path)
        except RecordError:
            continue
        if not one.nodes & of.nodes:
            continue
        if not one.nodes >= of.nodes:
            partly.append(one)
            continue
        looked.append(one.when)
        if _green(one, asked, is_green):
            return one, []
    for one in partly:
        looked.append(one.when)
        if _green(one, asked, is_green):
            missing = len(of.nodes - one.nodes)
            return one, [f"the last good recording has not all nodes: {missing} of {len(of.nodes)} are new"]
    raise UsageError(
        f"none of the {len(looked)} older kept recordings of these nodes was good"
        if looked
        else "no older recording of these nodes is kept: there is nothing to compare with",
        hint="epdoctor diff OLD.tar.gz NEW.tar.gz   # recordings of epdoctor collect",
    )


def _green(one: Kept, asked: dict[str, Any], is_green: Callable[[Path], bool]) -> bool:
    if one.exit_code is not None and one.asked == asked:
        return one.exit_code == 0
    return is_green(one.path)
