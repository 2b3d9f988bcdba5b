"""What lint and plan ask alike: the model's config.json, and the memory of a GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from epdoctor.exceptions import UsageError

_CONFIG_BYTES = 4 << 20
_UNITS = {"": 1 << 30, "g": 1 << 30, "gib": 1 << 30, "gb": 10**9, "mib": 1 << 20, "m": 1 << 20, "mb": 10**6}


class Memory(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic only in newer click
    """ "80GiB", "141GB", "81559MiB", or a GPU by name ("H200") as bytes, from 1 GiB to 4 TiB."""

    name = "memory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from epdoctor.launch.footprint import memory_by_product

        text = str(value).strip()
        match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)\s?([a-zA-Z]{0,3})", text)
        found: int | None = None
        if match is not None and match[2].lower() in _UNITS:
            found = int(float(match[1]) * _UNITS[match[2].lower()])
        elif text:
            found = memory_by_product(text)
        if found is None or not 1 << 30 <= found <= 1 << 42:
            self.fail(f"{value!r} is no memory of a GPU, such as 80GiB, and no GPU of the table", param, ctx)
        return found


def read_model_config(path: Path, what: str) -> dict[str, Any]:
    """A config.json. Raises UsageError; `what`: how the user named it."""
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise UsageError(f"{what} {path}: larger than {_CONFIG_BYTES >> 20} MiB, no config.json is")
        loaded = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} {path}: no JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise UsageError(f"{what} {path}: not an object", hint="the config.json beside the model's weights")
    return loaded
