"""Files, folders and a literal command -> LaunchSet. Nothing is executed, nothing leaves this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from epdoctor.exceptions import UsageError
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.recognise import SUFFIXES, kind_of
from epdoctor.launch.shell.scope import MAX_STEPS, Limits
from epdoctor.launch.shell.text import Budget, Script, Text, base_name, file_script, plain, text_script
from epdoctor.launch.sources import read_text
from epdoctor.launch.templates import fill_shell, in_command, report_unfilled
from epdoctor.model import Location

MAX_FILES = 4000
"""Files of a folder that are looked at."""
Environment = dict[str, tuple[Text, str]]


def read_launch(
    paths: Sequence[str],
    *,
    argv: Sequence[str] = (),
    env_files: Sequence[str] = (),
    vllm_version: str = "",
) -> LaunchSet:
    """What the files start.

    The path "-" is standard input. `argv` is a command given literally; `env_files` hold variables that every shell
    script and `argv` get. What cannot be read for its content is in `trouble`. Raises UsageError for a file that is missing or cannot be
    read, and where nothing in all of them has to do with vLLM."""
    paths = ["/dev/stdin" if path == "-" else path for path in paths]
    reading = Reading(vllm_version=vllm_version.removeprefix("v"))
    environment: Environment = {}
    for path in env_files:
        from epdoctor.launch.env_files import parse_env

        script = file_script(path, _read(path))
        environment.update((n, (t, "env-file")) for n, t in parse_env(script, plain_values=True).items())
    found = _gather(paths)
    reading.files += [path for path, _, _ in found]
    variants = _variants(found)
    shells = [path for path, _, kind in found if kind in ("shell", "sbatch")]
    by_root: dict[str, tuple[int, int]] = {}
    for path, text, kind in found:
        before, troubles = len(reading.servers), len(reading.trouble)
        index = shells.index(path) if path in shells and len(shells) > 1 else None
        _one(reading, path, text, kind, environment, variants, index)
        by_root[os.path.realpath(path)] = (before, len(reading.servers))
        if path not in paths and len(reading.servers) == before and "vllm" not in text.lower():
            # Whatever is odd in it, it is no launch.
            del reading.trouble[troubles:]
    if argv:
        _argv(reading, argv, environment)
    _drop_used(reading, by_root)
    _names(reading)
    if not reading.servers and not reading.trouble and not reading.resources:
        named = ", ".join(list(paths)[:3]) + (" ..." if len(paths) > 3 else "")
        raise UsageError(
            f"nothing in {named or 'the command'} starts vLLM",
            hint="give files that hold `vllm serve ...`, or the command itself: epdoctor lint -- vllm serve MODEL ...",
        )
    return LaunchSet(
        tuple(reading.servers),
        tuple(reading.resources),
        tuple(reading.trouble),
        tuple(reading.files),
        reading.vllm_version,
    )


def _read(path: str) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", hint=f"ls -l {path}") from error
    except ValueError as error:
        raise UsageError(f"{path!r}: {error}") from error


def _gather(paths: Sequence[str]) -> list[tuple[str, str, str]]:
    """(path, text, kind) of each file; of folders, what looks like a launch."""
    found: list[tuple[str, str, str]] = []
    for path in dict.fromkeys(paths):
        if Path(path).is_dir():
            found += _folder(path)
        else:
            text = _read(path)
            found.append((path, text, kind_of(text, path) or _by_name(path)))
    return found


def _by_name(path: str) -> str:
    return "shell" if path.endswith((".sh", ".bash", ".sbatch", ".slurm")) else ""


def _folder(folder: str) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    seen = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith((".", "__")) and name != "node_modules"
        )
        for name in sorted(names):
            if name.startswith(".") or Path(name).suffix.lower() not in SUFFIXES:
                continue
            seen += 1
            if seen > MAX_FILES:
                return found
            path = str(Path(parent) / name)
            try:
                text = read_text(path)
            except (OSError, ValueError):
                continue
            kind = kind_of(text, path)
            if not kind and ".sh" in text:
                # It may start one that starts vLLM.
                kind = _by_name(path)
            if kind and "\0" not in text[:4000]:
                found.append((path, text, kind))
    return found


def _variants(found: list[tuple[str, str, str]]) -> list[tuple[str, Environment]]:
    """Environment files given beside scripts: one for all, or one a node where they disagree."""
    from epdoctor.launch.env_files import parse_env

    files = [
        (
            path,
            {n: (t, "env-file") for n, t in parse_env(file_script(path, text), plain_values=False).items()},
        )
        for path, text, kind in found
        if kind == "env"
    ]
    values: dict[str, str] = {}
    differing = False
    for _, environment in files:
        for name, (text, _) in environment.items():
            differing = differing or values.setdefault(name, text.text) != text.text
    if differing:
        return files
    merged = {name: pair for _, environment in files for name, pair in environment.items()}
    return [("", merged)] if merged else []


def _one(
    reading: Reading, path: str, text: str, kind: str, environment: Environment,
    variants: list[tuple[str, Environment]], index: int | None,
) -> None:  # fmt: skip
    if kind in ("shell", "sbatch") and "\r\n" in text:
        first = text.count("\n", 0, text.index("\r\n")) + 1
        reading.report(
            "lines end in carriage returns (Windows): the shell takes each as a letter of the last word",
            "sed -i 's/\\r$//' FILE", Location(path, first),
        )  # fmt: skip
        text = text.replace("\r\n", "\n")
    if kind in ("shell", "sbatch") and in_command(text):
        report_unfilled(reading, text, file_script(path, text).locate)
        text = fill_shell(text)
    script = file_script(path, text)
    setting = Setting(kind=kind, name=base_name(path), index=index, folder=str(Path(path).parent))
    # gpu01.env beside gpu01.sh is that one's alone.
    own_file = [
        item for item in variants if item[0] and Path(item[0]).with_suffix("") == Path(path).with_suffix("")
    ]
    if kind in ("shell", "sbatch") and own_file:
        _safely(reading, setting, script, {**own_file[0][1], **environment}, kind)
    elif kind in ("shell", "sbatch") and variants:
        for number, (variant, own) in enumerate(variants):
            name = f"{setting.name} with {base_name(variant)}" if variant else setting.name
            there = replace(setting, name=name, index=number if len(variants) > 1 else index)
            _safely(reading, there, script, {**own, **environment}, kind)
    elif kind != "env":
        _safely(reading, setting, script, environment, kind)


def _safely(reading: Reading, setting: Setting, script: Script, environment: Environment, kind: str) -> None:
    """Limits are a file's own: one file that asks for too much does not take the others' share."""
    before, troubles = len(reading.servers), len(reading.trouble)
    _limited(reading, setting, script, environment, kind, {})
    differing = reading.limits.differing
    open_names = {
        name
        for server in reading.servers[before:]
        for value in (
            *(option.value for option in server.options.values()),
            *server.stray,
            *server.environment.values(),
        )
        for name in value.unresolved
    }
    # One script for all nodes: what it sets by the node's name or rank is read once for each way.
    branch = next((differing[name] for name in differing if name in open_names), None)
    if branch is None or kind not in ("shell", "sbatch"):
        return
    start, ways = branch
    del reading.servers[before:], reading.trouble[troubles:]
    for way in range(min(ways, 256)):
        _limited(reading, replace(setting, index=way), script, environment, kind, {start: way})


def _limited(
    reading: Reading,
    setting: Setting,
    script: Script,
    environment: Environment,
    kind: str,
    forced: dict[int, int],
) -> None:
    reading.limits = Limits(MAX_STEPS + len(script.text) // 50, forced)
    reading.at = (script, 0)
    try:
        read_text_as(reading, setting, script, environment, kind)
    except (Budget, RecursionError):
        stopped, offset = reading.at
        reading.report(
            "more steps than a launch needs: not read from here on", "loops and nesting that come to an end",
            stopped.locate(offset),
        )  # fmt: skip


def read_text_as(
    reading: Reading, setting: Setting, script: Script, environment: Environment, kind: str
) -> None:
    """One text of a known kind."""
    if kind in ("shell", "sbatch"):
        _shell(reading, setting, script, environment)
    elif kind == "manifest":
        from epdoctor.launch.kubernetes import read_manifests

        read_manifests(reading, replace(setting, kind="kubernetes"), script)
    elif kind == "compose":
        from epdoctor.launch.compose import read_compose

        read_compose(reading, setting, script)
    elif kind == "systemd":
        from epdoctor.launch.systemd import read_unit

        read_unit(reading, setting, script)
    elif kind == "config":
        _config(reading, setting, script)


def _shell(reading: Reading, setting: Setting, script: Script, environment: Environment) -> None:
    from epdoctor.launch import slurm
    from epdoctor.launch.commands import start
    from epdoctor.launch.shell.interpret import Interpreter
    from epdoctor.launch.shell.scope import environment_scope

    before = len(reading.servers)
    written = set(reading.written)
    values = dict(environment)
    if setting.kind == "sbatch":
        tasks = slurm.directives(script.text)
        setting = replace(setting, tasks=tasks, visible_gpus=slurm.gpus_of(tasks))
        values.update(slurm.batch_variables(tasks, script.locate(0)))
    scope = environment_scope(values, reading.limits)
    Interpreter(reading, replace(setting, kind=setting.kind or "shell"), script, scope, start).run()
    for name in [name for name in reading.written if name not in written]:
        if "written:" + name not in reading.used:
            # A script that another one writes and nobody here starts: it is for a node.
            text = reading.written[name]
            read_embedded(reading, replace(setting, name=base_name(name), tasks={}), text, reading.limits)
    if len(reading.servers) == before and not setting.kind:
        return


def read_embedded(reading: Reading, setting: Setting, text: Text, limits: Limits) -> None:
    """A text inside another: a here-document."""
    kind = kind_of(text.text)
    if kind and kind != "env":
        inner = setting.kind if kind == "shell" else kind
        read_text_as(reading, replace(setting, kind=inner), text_script(text), {}, kind)


def _config(reading: Reading, setting: Setting, script: Script) -> None:
    """A file for `vllm serve --config`, given by itself."""
    from epdoctor.launch.arguments import add_server

    place = script.locate(0)
    name = Text(base_name(script.path), ((0, Location(script.path, place.line)),))
    add_server(reading, replace(setting, kind="argv"), [plain("--config", place), name], {}, place)


def _argv(reading: Reading, argv: Sequence[str], environment: Environment) -> None:
    """A literal command: its words are what the process gets, a shell has expanded them already."""
    from epdoctor.launch.commands import launch
    from epdoctor.launch.shell.scope import environment_scope

    words: list[Text] = []
    column = 1
    for word in argv:
        words.append(plain(word[: 1 << 18], Location("--", 1, column)))
        column += len(word) + 1
    environment = dict(environment)
    while words and "=" in words[0].text and words[0].text.partition("=")[0].isidentifier():
        name = words[0].text.partition("=")[0]
        environment[name] = (words[0].part(len(name) + 1, len(words[0].text)), "inline")
        words = words[1:]
    reading.limits = Limits()
    scope = environment_scope(environment, reading.limits)
    try:
        launch(reading, Setting(kind="argv", name="the command"), scope, words, environment)
    except (Budget, RecursionError):
        reading.report("asks for more steps than any launch needs", "a command", Location("--", 1))


def _drop_used(reading: Reading, by_root: dict[str, tuple[int, int]]) -> None:
    """A file that another one starts counts there, with its variables, and not once more by itself."""
    dropped: set[int] = set()
    for path, (start, end) in by_root.items():
        if path in reading.used:
            elsewhere = any(
                os.path.realpath(server.location.path) == path
                for number, server in enumerate(reading.servers)
                if not start <= number < end
            )
            if elsewhere:
                dropped.update(range(start, end))
    if dropped:
        reading.servers = [server for number, server in enumerate(reading.servers) if number not in dropped]


def _names(reading: Reading) -> None:
    """Names that people can tell apart."""
    counts: dict[str, int] = {}
    for server in reading.servers:
        counts[server.name] = counts.get(server.name, 0) + 1
    seen: dict[str, int] = {}
    named: list[Server] = []
    for server in reading.servers:
        name = server.name
        if counts[name] > 1:
            name = f"{name} line {server.location.line}"
        seen[name] = seen.get(name, 0) + 1
        named.append(replace(server, name=name if seen[name] == 1 else f"{name} ({seen[name]})"))
    reading.servers = named
