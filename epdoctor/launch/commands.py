"""From a command to the vLLM server that it starts, through whatever is written before `vllm`."""

from __future__ import annotations

import re
from dataclasses import replace

from epdoctor.launch import remote
from epdoctor.launch.arguments import FRONT_ENDS, MODULES, add_server
from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.shell.scope import Scope, environment_scope
from epdoctor.launch.shell.text import Script, Text, base_name, text_script
from epdoctor.launch.sources import beside

Environment = dict[str, tuple[Text, str]]
_STARTS = re.compile(r"\bvllm\s+serve\b|vllm\.entrypoints\.")
_USES_ARGUMENTS = re.compile(r"\$[@*0-9#]|\$\{[@*0-9#]")
SHELLS = ("bash", "sh", "dash", "zsh", "ksh")
_PYTHON = re.compile(r"python[0-9.]*")
_NOT_STARTING = frozenset(
    ("grep", "pgrep", "pkill", "kill", "killall", "egrep", "man", "awk", "sed", "curl", "wget", "git", "pip", "pip3",
     "apt", "apt-get", "test", "find", "jq", "log", "info", "warn", "error", "die", "usage", "logger")
)  # fmt: skip
"""Commands whose words may speak of vLLM without starting it."""
_WITH_VALUE = {
    "nice": ("-n", "--adjustment"), "ionice": ("-c", "-n", "-p"), "timeout": ("-s", "--signal", "-k", "--kill-after"),
    "numactl": ("-C", "-m", "-N", "-p", "-i", "--cpunodebind", "--membind", "--physcpubind", "--interleave",
                "--preferred"),
    "stdbuf": ("-i", "-o", "-e"), "taskset": (), "nohup": (), "setsid": (), "time": ("-f", "-o"), "exec": (),
    "chrt": (), "command": (), "catchsegv": (), "unbuffer": (), "tini": (), "dumb-init": (), "prlimit": (),
}  # fmt: skip
_POSITIONAL = {"timeout": 1, "taskset": 1, "chrt": 1}
"""Words between the options and the command: a duration, a mask."""


def start(
    reading: Reading,
    setting: Setting,
    scope: Scope,
    words: list[Text],
    inline: Environment,
    stdin: Text | None,
) -> bool | None:
    """Follow a command that is no builtin of the shell. None: whether it succeeds is not known."""
    environment = {**scope.environment(), **inline}
    return launch(reading, setting, scope, words, environment, stdin)


def launch(
    reading: Reading,
    setting: Setting,
    scope: Scope,
    words: list[Text],
    environment: Environment,
    stdin: Text | None = None,
) -> bool | None:
    """`environment` is what the command gets; `scope` gives functions and limits."""
    for _ in range(20):
        if not words:
            return None
        scope.limits.step()
        name = base_name(words[0].text)
        if _is_vllm(words):
            _serve(reading, setting, words, environment)
            return None
        if name in SHELLS:
            return _shell(reading, setting, scope, words, environment, stdin)
        if _PYTHON.fullmatch(name):
            _python(reading, setting, words, environment)
            return None
        if name == "env":
            words, environment = _env(words[1:], dict(environment))
            continue
        if name == "sudo":
            words, environment = _sudo(words[1:], dict(environment))
            continue
        if name in _WITH_VALUE:
            words = skip_options(words[1:], _WITH_VALUE[name])[_POSITIONAL.get(name, 0) :]
            continue
        if name == "xargs":
            words = skip_options(words[1:], ("-I", "-n", "-P", "-L", "-d"))
            continue
        handler = remote.HANDLERS.get(name)
        if handler is not None:
            # ssh, srun, docker: another machine, or a network of its own.
            return handler(reading, replace(setting, machine=""), scope, words, environment, stdin)
        return _other(reading, setting, scope, words, environment, stdin)
    return None


def skip_options(words: list[Text], with_value: tuple[str, ...]) -> list[Text]:
    """The words after a wrapper's own options."""
    position = 0
    while position < len(words) and words[position].text.startswith("-") and len(words[position].text) > 1:
        if words[position].text == "--":
            return words[position + 1 :]
        position += 2 if words[position].text in with_value else 1
    return words[position:]


def _is_vllm(words: list[Text]) -> bool:
    if len(words) < 2 or words[1].text != "serve":
        return False
    first = words[0]
    return base_name(first.text) == "vllm" or (bool(first.unresolved) and "vllm" in first.text.lower())


def _serve(reading: Reading, setting: Setting, words: list[Text], environment: Environment) -> None:
    add_server(reading, setting, words[2:], environment, words[0].location)


def _python(reading: Reading, setting: Setting, words: list[Text], environment: Environment) -> None:
    for position in range(1, min(len(words), 12)):
        text = words[position].text
        if text == "-m" and position + 1 < len(words):
            module, rest = words[position + 1].text, words[position + 2 :]
            if module in FRONT_ENDS:
                add_server(reading, setting, rest, environment, words[position + 1].location, module)
                return
            if module not in MODULES and module != "vllm":
                return
            if rest and rest[0].text == "serve":
                rest = rest[1:]
            elif module in ("vllm", "vllm.entrypoints.cli.main"):
                return
            add_server(reading, setting, rest, environment, words[position + 1].location)
            return
        if not text.startswith("-"):
            if _is_vllm(words[position:]):
                _serve(reading, setting, words[position:], environment)
            elif text.endswith("entrypoints/openai/api_server.py"):
                add_server(reading, setting, words[position + 1 :], environment, words[position].location)
            return


def _env(words: list[Text], environment: Environment) -> tuple[list[Text], Environment]:
    position = 0
    while position < len(words):
        text = words[position].text
        name, equals, _ = text.partition("=")
        if text in ("-i", "-", "--ignore-environment"):
            environment = {}
        elif text in ("-u", "--unset", "-C", "--chdir"):
            if position + 1 < len(words) and text in ("-u", "--unset"):
                environment.pop(words[position + 1].text, None)
            position += 1
        elif text in ("-S", "--split-string") and position + 1 < len(words):
            return words[position + 1].split() + words[position + 2 :], environment
        elif equals and not text.startswith("-"):
            environment[name] = (words[position].part(len(name) + 1, len(text)), "inline")
        elif not text.startswith("-"):
            break
        position += 1
    return words[position:], environment


def _sudo(words: list[Text], environment: Environment) -> tuple[list[Text], Environment]:
    kept = any(word.text in ("-E", "--preserve-env", "-EH", "-HE") for word in words[:6])
    rest = skip_options(
        words, ("-u", "-g", "-h", "-p", "-C", "-T", "-D", "-R", "--user", "--group", "--chdir")
    )
    if not kept:
        # sudoers' env_reset is the default: variables of the caller do not pass.
        environment = {}
    return _env(rest, environment)


def _shell(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    position = 1
    while position < len(words) and words[position].text[:1] in ("-", "+"):
        text = words[position].text
        if not text.startswith("--") and "c" in text[1:]:
            if position + 1 < len(words):
                rest = words[position + 2 :]
                lost = next((word for word in rest if word.text.startswith("--")), None)
                if (
                    lost is not None
                    and _STARTS.search(words[position + 1].text)
                    and not _USES_ARGUMENTS.search(words[position + 1].text)
                ):
                    reading.report(
                        f"{lost.text[:60]} stands after the text of {text}: the shell gets it, vLLM does not",
                        f"one text: {text} 'vllm serve MODEL {lost.text[:30]} ...'",
                        lost.location,
                    )
                    # Read as it was meant.
                    whole = remote.joined([words[position + 1], *rest])
                    run(reading, setting, scope, text_script(whole), environment, ())
                    return None
                run(reading, setting, scope, text_script(words[position + 1]), environment,
                    tuple(rest[1:]), rest[0] if rest else None)  # fmt: skip
            return None
        if text == "-s":
            break
        position += 2 if text in ("-o", "+o", "-O", "--rcfile", "--init-file") else 1
    if (
        position < len(words)
        and words[position].text != "-s"
        and not words[position].text.startswith("/dev/")
    ):
        return run_file(reading, setting, scope, words[position:], environment)
    if stdin is not None:
        run(reading, setting, scope, text_script(stdin), environment, tuple(words[position + 1 :]))
    return None


def run(
    reading: Reading,
    setting: Setting,
    scope: Scope,
    script: Script,
    environment: Environment,
    arguments: tuple[Text, ...] | None,
    name: Text | None = None,
) -> None:
    """A text that a shell of its own reads."""
    from epdoctor.launch.shell.interpret import Interpreter

    inner = environment_scope(environment, scope.limits)
    deeper = scope.inner()
    inner.depth, inner.functions, inner.arguments, inner.name = (
        deeper.depth,
        deeper.functions,
        arguments,
        name,
    )
    Interpreter(reading, setting, script, inner, start).run()


def run_file(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment
) -> bool | None:
    """`script.sh args`, where the script lies beside or was written by a here-document."""
    found = beside(reading, setting, words[0])
    if found is None or not ("vllm" in found.text or "/" in found.text):
        return None
    run(reading, setting, scope, found, environment, tuple(words[1:]), words[0])
    return None


def _other(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    """A program that is not known: a wrapper, where vLLM's command or a shell's text stands among its words."""
    name = base_name(words[0].text)
    if name in _NOT_STARTING or name.endswith("grep"):
        return None
    if name.endswith(".sh") or (words[0].text.startswith("./") and words[0].known):
        return run_file(reading, setting, scope, words, environment)
    for position in range(1, min(len(words), 400)):
        here = words[position:]
        first = base_name(here[0].text)
        if _is_vllm(here) or (
            first in SHELLS and len(here) > 1 and here[1].text.startswith("-") and "c" in here[1].text
        ):
            return launch(reading, setting, scope, here, environment)
        if (
            _PYTHON.fullmatch(first)
            and len(here) > 2
            and any(word.text in MODULES or word.text in FRONT_ENDS for word in here[1:8])
        ):
            return launch(reading, setting, scope, here, environment)
        text = here[0].text
        if (
            len(text) > 11
            and re.search(r"\bvllm(\s+serve\s|\.entrypoints\.)", text[:100_000])
            and " " in text
        ):
            run(reading, setting, scope, text_script(here[0]), environment, ())
            return None
    if stdin is not None:
        if any(base_name(word.text) in SHELLS for word in words[1:]):
            run(reading, setting, scope, text_script(stdin), environment, ())
        else:
            document(reading, setting, stdin, scope)
    return None


def document(reading: Reading, setting: Setting, text: Text, scope: Scope) -> None:
    """A here-document that another program reads: a manifest for kubectl, a script for sbatch."""
    from epdoctor.launch.read import read_embedded

    read_embedded(reading, replace(setting, group=""), text, scope.limits)
