"""The whole exception tree.

    EpdoctorError               one sentence for the user, with what to do; no traceback
    ├── UsageError              options, configuration, inventory or waiver file wrong: exit 2
    │   ├── InventoryError
    │   └── CatalogError        a file under checks/ is wrong
    └── RecordError             a recording is malformed, hostile or of a newer schema: exit 2

    Unmeasured                  a fact that could not be measured; becomes status "unknown"

Anything else that escapes is our own bug: the CLI prints it with how to report it.
"""

from __future__ import annotations


class EpdoctorError(Exception):
    """An expected failure. `str()` is one sentence for the user; `hint` is the command or step that helps."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(EpdoctorError):
    """The user's options, configuration or files are wrong. Exit code 2, before any node is touched."""


class InventoryError(UsageError):
    """The inventory is missing, malformed or matches nothing."""


class CatalogError(UsageError):
    """A check, cause, profile or compat file is wrong. The message starts with the file's name."""


class RecordError(UsageError):
    """A recording cannot be read: malformed, too large, hostile, or of a newer schema."""


class Unmeasured(Exception):  # noqa: N818 - a state, not an error: the engine turns it into "unknown"
    """A fact could not be measured on a node; `str()` says why, e.g. "nvidia-smi: timeout after 10 s"."""
