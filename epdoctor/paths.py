"""Where the shipped data (checks, playbooks) and the user's state live."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from epdoctor.exceptions import EpdoctorError


@cache
def data_dir(name: str) -> Path:
    """Folder `checks` or `playbooks`: inside the installed wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_data" / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise EpdoctorError(
        f"the folder {name} is neither in {package / '_data'} nor in {package.parent}",
        hint="pip install --force-reinstall epdoctor",
    )


def state_dir() -> Path:
    """Recordings of earlier runs: $XDG_STATE_HOME/epdoctor."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def cache_dir() -> Path:
    """The compiled catalogue: $XDG_CACHE_HOME/epdoctor."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def _xdg(variable: str, default: str) -> Path:
    base = os.environ.get(variable, "")
    # The XDG specification: a relative path in these variables is to be ignored.
    if base and os.path.isabs(base):  # noqa: PTH117 - of a string that may be empty
        return Path(base) / "epdoctor"
    return Path(os.path.expanduser("~")) / default / "epdoctor"  # noqa: PTH111 - never raises, unlike Path.home
