"""The last ten recordings, kept on the controller for a later diff. Redacted like every recording.

What the run was judged by and what it came to stands in each (`goal` in cluster.json), so that
`epdoctor diff --last-good` finds the one that was green. Green ones outlive ten that are not: a night of failed
attempts must not push out the state that worked.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

from epdoctor.collect.record import Record, Recording
from epdoctor.collect.store import save
from epdoctor.exceptions import EpdoctorError
from epdoctor.paths import state_dir

KEEP = 10
KEEP_GOOD = 3
"""Green ones that are kept beyond the ten."""
_GOOD = "-good"


def keep_recording(
    recording: Recording, records: list[Record], verdict: dict[str, Any] | None = None
) -> Path | None:
    """Write one more and drop the oldest beyond ten. A state folder that cannot be written is no failure.

    `verdict`: the exit code, and what it was judged by (checks, backend, multinode, fail_on)."""
    folder = state_dir() / "recordings"
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S")
    good = _GOOD if verdict is not None and verdict.get("exit_code") == 0 else ""
    path = folder / f"{stamp}-{os.getpid()}{good}.tar.gz"
    if verdict is not None:
        recording = Recording(
            recording.source, recording.options, recording.collected_at, {**recording.goal, **verdict}
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        save(path, recording, records)
        _prune(folder)
    except (OSError, EpdoctorError):
        return None
    return path


def _prune(folder: Path) -> None:
    kept = sorted(folder.glob("*.tar.gz"))
    good = [path for path in kept if path.name.endswith(f"{_GOOD}.tar.gz")][-KEEP_GOOD:]
    for path in kept[:-KEEP]:
        if path not in good:
            path.unlink(missing_ok=True)


def kept_recordings() -> list[Path]:
    """Newest first."""
    return sorted((state_dir() / "recordings").glob("*.tar.gz"), reverse=True)
