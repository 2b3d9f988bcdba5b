"""systemd units: ExecStart with its quotes, specifiers, variables and environment files.

systemd.service(5) "Command lines", systemd.exec(5), systemd.unit(5) "Specifiers".
"""

from __future__ import annotations

import re
from dataclasses import replace

from epdoctor.launch.commands import launch
from epdoctor.launch.env_files import lines, parse_env
from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.shell.scope import Scope
from epdoctor.launch.shell.text import Builder, Script, Text, plain
from epdoctor.launch.sources import beside

Environment = dict[str, tuple[Text, str]]
_SPECIFIERS = {
    "H": "host name", "l": "host name", "i": "the unit's instance", "I": "the unit's instance", "n": "the unit's name",
    "N": "the unit's name", "p": "the unit's name", "u": "the user's name", "U": "the user's number",
    "h": "the user's home", "m": "machine id", "b": "boot id", "v": "kernel release", "t": "the runtime folder",
    "T": "a folder for temporary files", "q": "host name", "a": "architecture", "S": "the state folder",
    "j": "the unit's name", "C": "the cache folder", "L": "the log folder", "E": "the configuration folder",
}  # fmt: skip
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)|\$\$")


def _entries(reading: Reading, script: Script) -> list[tuple[str, str, Text]]:
    """(section, key, value) in order; a value over several lines is joined as systemd does it."""
    found: list[tuple[str, str, Text]] = []
    section = key = ""
    builder: Builder | None = None
    place = script.locate(0)
    for start, end in lines(script.text):
        line = script.text[start:end].rstrip("\r")
        stripped = line.strip()
        if builder is not None:
            if stripped.startswith(("#", ";")):
                continue
            lead = len(line) - len(line.lstrip())
            continued = stripped.endswith("\\")
            body = stripped[:-1] if continued else stripped
            builder.add(body + (" " if continued else ""), script.locate(start + lead))
            if not continued:
                found.append((section, key, builder.build(place)))
                builder = None
            continue
        if not stripped or stripped.startswith(("#", ";")):
            continue
        if stripped.startswith("["):
            section = stripped.strip("[]")
            continue
        name, equals, value = line.partition("=")
        if not equals or stripped.startswith("-"):
            if section == "Service":
                reading.report(
                    f"{stripped[:60]} is no KEY=VALUE: systemd leaves the line out",
                    "a backslash at the end of the line before it",
                    script.locate(start + len(line) - len(line.lstrip())),
                    line=line,
                )
            continue
        key = name.strip()
        at = start + len(name) + 1 + len(value) - len(value.lstrip())
        place = script.locate(at)
        value = value.strip()
        if value.endswith("\\"):
            builder = Builder()
            builder.add(value[:-1] + " ", place)
        else:
            found.append((section, key, plain(value, place)))
    if builder is not None:
        found.append((section, key, builder.build(place)))
    return found


def _split(text: Text) -> list[Text]:
    """Words in systemd's quoting: "..." and '...' around or inside, backslash escapes."""
    found: list[Text] = []
    builder, quote, position = Builder(), "", 0
    source = text.text
    while position < len(source):
        char = source[position]
        if char == "\\" and position + 1 < len(source):
            escaped = {"n": "\n", "t": "\t", "s": " "}.get(source[position + 1], source[position + 1])
            builder.add(escaped, text.locate(position))
            position += 2
            continue
        if quote:
            if char == quote:
                quote = ""
            else:
                builder.add_text(text.part(position, position + 1))
        elif char in "'\"":
            quote = char
            builder.add("", text.locate(position + 1))
        elif char in " \t\n":
            if builder.started:
                found.append(builder.build(text.location))
            builder = Builder()
        else:
            stop = position + 1
            while stop < len(source) and source[stop] not in "\\'\" \t\n":
                stop += 1
            builder.add_text(text.part(position, stop))
            position = stop
            continue
        position += 1
    if builder.started:
        found.append(builder.build(text.location))
    return found


def _specifiers(text: Text) -> Text:
    """%H and its kin are known when it runs; %% is a percent sign."""
    if "%" not in text.text:
        return text
    runtime = ""
    for match in re.finditer(r"%(.)", text.text[:20_000]):
        runtime = runtime or _SPECIFIERS.get(match[1], "")
    cleaned = text.text.replace("%%", "%") if not runtime else text.text
    return replace(text, text=cleaned, runtime=text.runtime or runtime)


def _expand(word: Text, environment: Environment) -> list[Text]:
    """${NAME} is one word, $NAME alone is split; a name without a value is empty for systemd, unresolved for us."""
    alone = re.fullmatch(r"\$([A-Za-z_][A-Za-z0-9_]*)", word.text)
    if alone and alone[1] in environment:
        return environment[alone[1]][0].split()
    builder, position, missing = Builder(), 0, False
    for match in _VARIABLE.finditer(word.text):
        builder.add_text(word.part(position, match.start()))
        place = word.locate(match.start())
        name = match[1] or match[2]
        position = match.end()
        if name is None:
            builder.add("$", place)
        elif match[2] and not alone:
            # Inside a word only ${NAME} is replaced.
            builder.add(match[0], place)
        elif name in environment:
            builder.add_text(environment[name][0].at(place))
        else:
            missing = True
            builder.add_text(Text(match[0], ((0, place),), (name,)))
    if not position and not missing:
        return [word]
    builder.add_text(word.part(position, len(word.text)))
    return [builder.build(word.location)]


def read_unit(reading: Reading, setting: Setting, script: Script) -> None:
    """One unit file; the last ExecStart that starts vLLM after a reset counts."""
    environment: Environment = {}
    commands: list[Text] = []
    locked: Text | None = None
    for section, key, value in _entries(reading, script):
        if section != "Service":
            continue
        if key == "Environment":
            if not value.text:
                environment.clear()
            for word in _split(value):
                name, equals, _ = word.text.partition("=")
                if equals:
                    text = _specifiers(word.part(len(name) + 1, len(word.text)))
                    environment[name] = (text, "unit")
        elif key == "EnvironmentFile":
            path = value.part(1, len(value.text)) if value.text.startswith("-") else value
            found = beside(reading, setting, path)
            if found is not None:
                environment.update(
                    (name, (text, "env-file")) for name, text in parse_env(found, plain_values=True).items()
                )
        elif key == "ExecStart":
            commands = [*commands, value] if value.text else []
        elif key == "LimitMEMLOCK":
            locked = value
    before = len(reading.servers)
    for command in commands:
        words: list[Text] = []
        for word in _split(command):
            words += _expand(_specifiers(word), environment)
        if words:
            head = words[0]
            bare = head.text.lstrip("@-:+!")
            words[0] = head.part(len(head.text) - len(bare), len(head.text))
            launch(reading, setting, Scope(limits=reading.limits), words, environment)
    if locked is not None:
        reading.servers[before:] = [
            replace(server, locked_memory=locked.value("unit")) for server in reading.servers[before:]
        ]
