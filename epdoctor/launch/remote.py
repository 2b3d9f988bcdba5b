"""Commands that start something elsewhere: srun, ssh, docker, sbatch, kubectl, tee."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from epdoctor.launch import slurm
from epdoctor.launch.containers import docker
from epdoctor.launch.reading import Reading, Setting
from epdoctor.launch.shell.scope import Scope
from epdoctor.launch.shell.text import Builder, Script, Text, text_script
from epdoctor.launch.sources import beside

Environment = dict[str, tuple[Text, str]]
Handler = Callable[[Reading, Setting, Scope, "list[Text]", Environment, "Text | None"], "bool | None"]
_SSH_VALUES = (
    "-p",
    "-i",
    "-l",
    "-o",
    "-F",
    "-J",
    "-L",
    "-R",
    "-D",
    "-b",
    "-c",
    "-E",
    "-e",
    "-m",
    "-S",
    "-W",
    "-w",
)


def joined(words: list[Text]) -> Text:
    """Words as ssh sends them: with blanks between, to be read by a shell once more."""
    builder = Builder()
    for number, word in enumerate(words):
        if number:
            builder.add(" ", word.location)
        builder.add_text(word)
    return builder.build(words[0].location)


def _ssh(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    from epdoctor.launch.commands import run, skip_options

    rest = skip_options(words[1:], _SSH_VALUES)
    if not rest:
        return None
    host = rest[0].text.rpartition("@")[2]
    there = replace(setting, node=host if rest[0].known else setting.node)
    command = rest[1:]
    # ssh takes options behind the host as well; "-" alone is none, and would be met for ever.
    while command and command[0].text.startswith("-") and command[0].text != "-":
        command = skip_options(command, _SSH_VALUES)
    if stdin is not None and (not command or command[-1].text in ("bash", "sh", "-s")):
        run(reading, there, scope, text_script(stdin), {}, ())
    elif command:
        # The other side has its own environment.
        run(reading, there, scope, text_script(joined(command)), {}, ())
    return None


def _pdsh(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    from epdoctor.launch.commands import run, skip_options

    hosts = next((b for a, b in pairwise(words) if a.text in ("-w", "-h", "-H")), None)
    rest = skip_options(words[1:], ("-w", "-h", "-H", "-l", "-f", "-R", "-t", "-p", "-g", "-x"))
    names = hosts.text.split(",") if hosts is not None and hosts.known and "[" not in hosts.text else [""]
    for name in names[:1024]:
        if rest:
            run(
                reading, replace(setting, node=name or setting.node), scope, text_script(joined(rest)), {}, ()
            )
    return None


def _mpirun(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    from epdoctor.launch.commands import launch, skip_options

    passed = dict(environment)
    for flag, value in pairwise(words):
        name, equals, _ = value.text.partition("=")
        if flag.text in ("-x", "-genv") and equals:
            passed[name] = (value.part(len(name) + 1, len(value.text)), "inline")
    rest = words[1:]
    while rest and rest[0].text.startswith("-"):
        option = rest[0].text
        rest = rest[1:]
        if option in ("--mca", "-mca", "-genv"):
            rest = rest[2:]
        elif option not in (
            "--oversubscribe",
            "--allow-run-as-root",
            "--tag-output",
            "--bind-to-none",
            "-v",
            "--",
        ):
            rest = rest[1:]
    return launch(reading, setting, scope, skip_options(rest, ()), passed, stdin)


def _sbatch(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    from epdoctor.launch.commands import run, skip_options

    asked, _ = slurm.options(words[1:])
    rest = skip_options(words[1:], slurm.SHORT_VALUES)
    wrapped = asked.get("wrap")
    found: Script | None = None
    if wrapped is not None:
        found = text_script(wrapped)
    elif rest:
        found = beside(reading, setting, rest[0])
    elif stdin is not None:
        found = text_script(stdin)
    if found is None:
        return None
    tasks = {**slurm.directives(found.text), **{name: text.text for name, text in asked.items()}}
    there = replace(setting, kind="sbatch", tasks=tasks)
    run(reading, there, scope, found, {**environment, **slurm.batch_variables(tasks, found.locate(0))},
        tuple(rest[1:]))  # fmt: skip
    return None


def _kubectl(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    from epdoctor.launch.commands import document, launch

    given = [word.text for word in words]
    if stdin is not None and any(word in ("apply", "create", "replace") for word in given):
        document(reading, setting, stdin, scope)
    elif "exec" in given and "--" in given:
        return launch(
            reading, replace(setting, in_image=True), scope, words[given.index("--") + 1 :], {}, stdin
        )
    return None


def _tee(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    for word in words[1:]:
        if stdin is not None and not word.text.startswith("-"):
            reading.written[word.text] = stdin
    return True


def _cat(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    """Shows a here-document, starts nothing."""
    return True


HANDLERS: dict[str, Handler] = {
    "ssh": _ssh, "pdsh": _pdsh, "clush": _pdsh, "pssh": _pdsh, "parallel-ssh": _pdsh,
    "mpirun": _mpirun, "mpiexec": _mpirun, "srun": slurm.srun, "sbatch": _sbatch, "kubectl": _kubectl, "oc": _kubectl,
    "docker": docker, "podman": docker, "nerdctl": docker, "tee": _tee, "cat": _cat,
}  # fmt: skip
