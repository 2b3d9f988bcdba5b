"""Options of `vllm serve` that hold JSON, with their dotted form merged in. Pure; garbage gives a place, never raises.

vLLM merges --eplb-config.window_size 1 and --eplb-config '{"window_size": 1}' (utils/argparse_utils.py); a value
of the dotted form is JSON where it parses as such, else text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.launch.layout import require_known
from epdoctor.launch.model import Option, Server
from epdoctor.model import Location

_TEMPLATE = re.compile(r"\$\{[A-Za-z_]\w{0,60}(?:\.\w{1,60}){1,10}\}")


@dataclass(frozen=True)
class JsonConfig:
    """One JSON option of one server."""

    values: Mapping[str, Any] | None
    """None: it is no JSON object; `error` says why."""
    location: Location
    places: Mapping[str, Location]
    """Key -> where it stands."""
    error: str = ""

    def place(self, key: str) -> Location:
        return self.places.get(key, self.location)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _place(option: Option, text: str, offset: int) -> Location:
    """Line and column of a character of the value, counted from where the value starts."""
    before = text[:offset]
    lines = before.count("\n")
    start = option.location
    if lines:
        return Location(start.path, start.line + lines, offset - before.rfind("\n"))
    return Location(start.path, start.line, start.column + offset if start.column else 0)


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    inner = values
    for key in path[:-1]:
        below = inner.get(key)
        if not isinstance(below, dict):
            below = {}
            inner[key] = below
        inner = below
    inner[path[-1]] = value


def json_options(server: Server, name: str) -> Iterator[tuple[str, Option]]:
    """(dotted key or "", option) of every spelling of a JSON option: "eplb-config", "eplb-config.window_size"."""
    for full, option in server.options.items():
        head, _, rest = full.partition(".")
        if head == name:
            yield rest, option


def merged(server: Server, name: str) -> JsonConfig | None:
    """What the option comes to; None where it is not given. Raises Unmeasured where a part is not resolved."""
    values: dict[str, Any] = {}
    places: dict[str, Location] = {}
    location: Location | None = None
    for key, option in json_options(server, name):
        location = location or option.location
        if not key:
            text = require_known(option.value, option.written)
            if not text.strip():
                return JsonConfig(None, option.location, {}, "has no value")
            try:
                loaded = json.loads(text)
            except json.JSONDecodeError as error:
                if template := _TEMPLATE.search(text):
                    # No name that a shell could fill in: another program's template.
                    raise Unmeasured(
                        f"{option.location}: {option.written} holds {template[0][:60]} (not resolved)"
                    ) from error
                return JsonConfig(
                    None, _place(option, text, error.pos), {}, _explained(text, error.pos, error.msg)
                )
            except RecursionError:
                return JsonConfig(None, option.location, {}, "is nested too deeply")
            if not isinstance(loaded, dict):
                return JsonConfig(None, option.location, {}, f"is {type(loaded).__name__}, not an object")
            for inner, value in loaded.items():
                values[str(inner)] = value
                offset = max(0, text.find(json.dumps(str(inner))))
                places[str(inner)] = (
                    _place(option, text, offset) if "\n" in text[:offset] else option.location
                )
        else:
            path = [part.replace("-", "_") for part in key.split(".") if part][:8]
            if not path:
                continue
            text = require_known(option.value, option.written)
            _set(values, path, (not option.negated) if not text else _parsed(text))
            places[path[0]] = option.location
    return None if location is None else JsonConfig(values, location, places)


def _explained(text: str, position: int, message: str) -> str:
    rest = text[position : position + 20].lstrip()
    before = text[:position].rstrip()
    if rest.startswith(("//", "#", "/*")) or "//" in text[max(0, position - 2) : position + 2]:
        return "has a comment in it; JSON has none"
    if rest.startswith("'") or text.lstrip().startswith("'"):
        return "has single quotes inside; JSON wants double quotes"
    if rest[:4] in ("True", "None") or rest[:5] == "False":
        return f"has {rest.split(',')[0].rstrip('}')}; JSON writes true, false, null"
    if before.endswith(",") and rest[:1] in ("}", "]"):
        return "has a comma before the closing bracket"
    if text.strip()[:1] == "{" and '"' not in text:
        return "has no double quotes: the shell took them away; put the whole value in single quotes"
    return f"is no JSON: {message} at character {position + 1}"
