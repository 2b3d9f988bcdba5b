"""The last ten recordings, kept on the controller for a later diff. Redacted like every recording."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from epdoctor.collect.record import Record, Recording, save
from epdoctor.exceptions import EpdoctorError
from epdoctor.paths import state_dir

KEEP = 10


def keep_recording(recording: Recording, records: list[Record]) -> Path | None:
    """Write one more and drop the oldest beyond ten. A state folder that cannot be written is no failure."""
    folder = state_dir() / "recordings"
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S")
    path = folder / f"{stamp}-{os.getpid()}.tar.gz"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        save(path, recording, records)
        for old in sorted(folder.glob("*.tar.gz"))[:-KEEP]:
            old.unlink(missing_ok=True)
    except (OSError, EpdoctorError):
        return None
    return path
