"""Environment files: KEY=VALUE lines as docker, systemd and a shell take them, with their places."""

from __future__ import annotations

import re
from collections.abc import Iterator

from epdoctor.launch.shell.text import Script, Text

_LINE = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]{0,200})=")
MAX_LINES = 20_000


def lines(text: str) -> Iterator[tuple[int, int]]:
    """Offsets of each line without its end."""
    position = count = 0
    while position < len(text) and count < MAX_LINES:
        newline = text.find("\n", position)
        end = len(text) if newline < 0 else newline
        yield position, end
        position, count = end + 1, count + 1


def is_env(text: str) -> bool:
    """Whether every line that says something assigns a variable."""
    found = False
    for start, end in lines(text):
        line = text[start:end].strip()
        if not line or line.startswith(("#", ";")):
            continue
        match = _LINE.match(line)
        if match is None or re.search(r"\bvllm\s+serve\b", line):
            return False
        found = True
    return found


def parse_env(script: Script, *, plain_values: bool) -> dict[str, Text]:
    """Name -> value. `plain_values`: as docker and systemd take them, where a dollar sign is a letter.

    Where a dollar sign would be expanded by a shell the value is unresolved instead of guessed."""
    found: dict[str, Text] = {}
    text = script.text
    for start, end in lines(text):
        match = _LINE.match(text, start, end)
        if match is None:
            continue
        first, last = match.end(), end
        while last > first and text[last - 1] in " \t\r":
            last -= 1
        if last - first >= 2 and text[first] == text[last - 1] and text[first] in "'\"":
            value_start, value_end = first + 1, last - 1
        else:
            value_start, value_end = first, last
            comment = re.search(r"[ \t]#", text[first:last])
            if comment and not plain_values:
                value_end = first + comment.start()
        value = text[value_start:value_end]
        names = () if plain_values or text[first : first + 1] == "'" else tuple(
            dict.fromkeys(re.findall(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)", value[:4000]))
        )  # fmt: skip
        found[match[1]] = Text(value, ((0, script.locate(value_start)),), names)
    return found
