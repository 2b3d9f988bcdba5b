"""The nodes' journals as the controller sees them: run names, what a run changed, what a rollback did. Pure."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from epdoctor.exceptions import UsageError
from epdoctor.provision.result import RunResult

LIST_TASK = "Read the journal"
RESTORE_TASK = "Restore the files"


@dataclass(frozen=True)
class NodeRun:
    """What one run left in one node's journal."""

    run: str
    at: int
    """Seconds since the epoch, by the node's clock."""
    undone: bool
    files: tuple[str, ...]
    notes: tuple[str, ...]
    """What a rollback cannot undo."""


@dataclass(frozen=True)
class Restored:
    path: str
    did: str
    """restored | removed | already | changed-since | damaged"""


def new_run_name() -> str:
    """ "20261122-024500-4711": sorts by time, tells two controllers apart."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{now:%Y%m%d-%H%M%S}-{os.getpid()}"


def _answer(text: str) -> Mapping[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(one) for one in value) if isinstance(value, list) else ()


def runs_by_node(result: RunResult) -> dict[str, tuple[NodeRun, ...]]:
    """Node -> its runs, oldest first. A node whose answer cannot be read has none."""
    found: dict[str, tuple[NodeRun, ...]] = {}
    for (node, task), text in result.outputs.items():
        if not task.endswith(LIST_TASK):
            continue
        rows = _answer(text).get("runs")
        runs = []
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and isinstance(row.get("run"), str):
                at = row.get("at")
                runs.append(
                    NodeRun(
                        row["run"],
                        at if isinstance(at, int) else 0,
                        row.get("undone") is True,
                        _texts(row.get("files")),
                        _texts(row.get("notes")),
                    )
                )
        found[node] = tuple(sorted(runs, key=lambda run: (run.at, run.run)))
    return found


def choose_run(by_node: Mapping[str, tuple[NodeRun, ...]], wanted: str) -> str:
    """`wanted`, else the latest run on any node that is not undone; "" where there is none.

    Raises UsageError for a run that no node knows."""
    every = [run for runs in by_node.values() for run in runs]
    if wanted:
        if not any(run.run == wanted for run in every):
            names = sorted({run.run for run in every})[-5:]
            raise UsageError(
                f"no node's journal has run {wanted!r}", hint=f"known: {', '.join(names) or 'none'}"
            )
        return wanted
    left = [run for run in every if not run.undone and (run.files or run.notes)]
    return max(left, key=lambda run: (run.at, run.run)).run if left else ""


def restored_by_node(result: RunResult) -> dict[str, tuple[Restored, ...]]:
    """Node -> what the rollback did to each file, last change first."""
    found: dict[str, tuple[Restored, ...]] = {}
    for (node, task), text in result.outputs.items():
        if not task.endswith(RESTORE_TASK):
            continue
        rows = _answer(text).get("files")
        found[node] = tuple(
            Restored(row["path"], row["did"])
            for row in (rows if isinstance(rows, list) else ())
            if isinstance(row, dict) and isinstance(row.get("path"), str) and isinstance(row.get("did"), str)
        )
    return found
