"""Slurm: what #SBATCH and srun ask for, and the tasks that come of it.

Sources: sbatch(1), srun(1): in the batch script itself SLURM_PROCID, SLURM_NODEID and SLURM_LOCALID are 0; each
task of srun has its own. So `srun vllm ... $SLURM_NODEID` gives every task the batch script's 0, while
`srun bash -c '... $SLURM_NODEID'` gives each its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from epdoctor.launch.shell.text import Text, plain
from epdoctor.model import Location

if TYPE_CHECKING:
    from epdoctor.launch.reading import Reading, Setting
    from epdoctor.launch.shell.scope import Scope

Environment = dict[str, tuple[Text, str]]
_SHORT = {
    "-N": "nodes", "-n": "ntasks", "-w": "nodelist", "-c": "cpus-per-task", "-p": "partition", "-t": "time",
    "-J": "job-name", "-o": "output", "-e": "error", "-A": "account", "-D": "chdir", "-G": "gpus", "-r": "relative",
    "-m": "distribution", "-x": "exclude", "-C": "constraint", "-q": "qos", "-i": "input", "-d": "dependency",
    "-F": "nodefile", "-a": "array", "-B": "extra-node-info",
}  # fmt: skip
SHORT_VALUES = (
    *_SHORT, "--nodes", "--ntasks", "--nodelist", "--partition", "--time", "--job-name", "--output", "--error",
    "--account", "--chdir", "--export", "--ntasks-per-node", "--cpus-per-task", "--gpus-per-node", "--gres", "--mem",
)  # fmt: skip
_SWITCHES = frozenset(
    ("label", "overlap", "exclusive", "unbuffered", "no-container-mount-home", "container-mount-home", "quiet",
     "verbose", "kill-on-bad-exit", "container-writable", "container-remap-root", "no-container-remap-root", "pty",
     "wait-all-nodes", "exact", "overcommit", "no-kill", "requeue", "no-requeue", "parsable", "spread-job",
     "container-entrypoint", "no-container-entrypoint", "contiguous", "multi-prog", "no-allocate")
)  # fmt: skip
"""srun's long options that take no word after them."""
MAX_TASKS = 1024


def options(words: list[Text]) -> tuple[dict[str, Text], list[Text]]:
    """Slurm's options by long name, and the words of the command."""
    found: dict[str, Text] = {}
    position = 0
    while position < len(words) and words[position].text.startswith("-"):
        word = words[position]
        position += 1
        if word.text == "--":
            break
        if word.text.startswith("--"):
            name, equals, _ = word.text[2:].partition("=")
            if equals:
                found[name] = word.part(len(name) + 3, len(word.text))
            elif name in _SWITCHES or position >= len(words) or words[position].text.startswith("-"):
                found[name] = word.part(len(word.text), len(word.text))
            else:
                found[name] = words[position]
                position += 1
        elif word.text[:2] in _SHORT:
            name = _SHORT[word.text[:2]]
            if len(word.text) > 2:
                found[name] = word.part(3 if word.text[2] == "=" else 2, len(word.text))
            elif position < len(words):
                found[name] = words[position]
                position += 1
    return found, words[position:]


def directives(text: str) -> dict[str, str]:
    """#SBATCH lines before the first command, by long option name."""
    found: dict[str, str] = {}
    for line in text[:200_000].split("\n"):
        stripped = line.strip()
        if stripped.startswith("#SBATCH"):
            # A comment may follow; quotes are rare and kept out of the value.
            words = re.sub(r"\s#.*", "", stripped[7:])[:2000].split()
            parsed, _ = options([plain(word.strip("\"'"), Location("", 0)) for word in words])
            found.update((name, value.text) for name, value in parsed.items())
        elif stripped and not stripped.startswith("#"):
            break
    return found


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    # --nodes=2-4: a range; the least is what is sure.
    head = text.strip().partition("-")[0]
    return int(head) if head.isascii() and head.isdigit() and 0 < len(head) < 6 else None


def gpus_of(tasks: Mapping[str, str]) -> int | None:
    """GPUs of a node: --gpus-per-node=h100:8, --gres=gpu:8."""
    per_node = tasks.get("gpus-per-node", "") or next(
        (part for part in tasks.get("gres", "").split(",") if part.startswith("gpu")), ""
    )
    last = per_node.rpartition(":")[2] or per_node
    return int(last) if last.isascii() and last.isdigit() and len(last) < 4 else None


def nodes_of(tasks: Mapping[str, str]) -> int | None:
    """Nodes of the job, where its options say so."""
    number = _number(tasks.get("nodes"))
    if number is not None:
        return number
    total, per_node = _number(tasks.get("ntasks")), _number(tasks.get("ntasks-per-node"))
    return -(-total // per_node) if total and per_node else None


def batch_variables(tasks: Mapping[str, str], location: Location) -> Environment:
    """What Slurm sets for the batch script."""
    values = {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"}
    nodes, per_node = nodes_of(tasks), _number(tasks.get("ntasks-per-node"))
    if nodes is not None:
        values["SLURM_NNODES"] = values["SLURM_JOB_NUM_NODES"] = str(nodes)
    total = _number(tasks.get("ntasks")) or (nodes * per_node if nodes and per_node else None)
    if total is not None:
        values["SLURM_NTASKS"] = values["SLURM_NPROCS"] = str(total)
    if per_node is not None:
        values["SLURM_NTASKS_PER_NODE"] = str(per_node)
    gpus = gpus_of(tasks)
    if gpus is not None:
        values["SLURM_GPUS_ON_NODE"] = values["SLURM_GPUS_PER_NODE"] = str(gpus)
    cpus = _number(tasks.get("cpus-per-task"))
    if cpus is not None:
        values["SLURM_CPUS_PER_TASK"] = str(cpus)
    if "job-name" in tasks:
        values["SLURM_JOB_NAME"] = tasks["job-name"]
    return {name: (plain(value, location), "slurm") for name, value in values.items()}


def srun(
    reading: Reading, setting: Setting, scope: Scope, words: list[Text], environment: Environment,
    stdin: Text | None,
) -> bool | None:  # fmt: skip
    """One command as several tasks."""
    from epdoctor.launch.commands import launch

    asked, command = options(words[1:])
    if not command:
        return None
    own = {name: text.text for name, text in asked.items() if text.known}
    merged = {**setting.tasks, **own}
    hosts = asked.get("nodelist")
    named = _hosts(hosts)
    nodes = _number(own.get("nodes")) or (len(named) if named else None) or nodes_of(merged) or 1
    per_node = _number(own.get("ntasks-per-node")) or (
        None if "ntasks" in own else _number(setting.tasks.get("ntasks-per-node"))
    )
    total = _number(own.get("ntasks")) or (nodes * per_node if per_node else None)
    if total is None:
        total = nodes if "nodes" in own or named else _number(setting.tasks.get("ntasks")) or nodes
    nodes = min(nodes, total)
    share = -(-total // nodes)
    environment = _exported(asked.get("export"), environment)
    place = words[0].location
    gpus = gpus_of(merged)
    if gpus is None and _number(own.get("gpus")) and nodes == 1:
        gpus = _number(own.get("gpus"))
    before = len(reading.servers)
    for task in range(min(total, MAX_TASKS)):
        node_id = task // share
        values = {
            "SLURM_PROCID": str(task), "SLURM_NODEID": str(node_id), "SLURM_LOCALID": str(task % share),
            "SLURM_NTASKS": str(total), "SLURM_NNODES": str(nodes), "SLURM_STEP_NUM_NODES": str(nodes),
        }  # fmt: skip
        inner = {**environment, **{name: (plain(value, place), "slurm") for name, value in values.items()}}
        name = f"{setting.name} task {task}" if total > 1 else setting.name
        there = replace(
            setting,
            name=name,
            index=task if total > 1 else setting.index,
            node=named[node_id] if node_id < len(named) else setting.node,
            machine=f"{place} node {node_id}" if share > 1 and "distribution" not in merged else "",
            visible_gpus=gpus if gpus is not None else setting.visible_gpus,
            in_image=setting.in_image or "container-image" in asked,
            vllm_version=_image_version(asked.get("container-image")) or setting.vllm_version,
        )
        launch(reading, there, scope, command, inner, stdin)
    if total > 1:
        _group(reading, before, f"{place} srun")
    return None


def _group(reading: Reading, since: int, name: str) -> None:
    """Tasks of one srun serve together, where no address says with whom."""
    for position in range(since, len(reading.servers)):
        server = reading.servers[position]
        if not server.group and not ({"data-parallel-address", "master-addr"} & server.options.keys()):
            reading.servers[position] = replace(server, group=name)


def _exported(export: Text | None, environment: Environment) -> Environment:
    """--export=NONE, --export=ALL,NAME=value, --export=NAME."""
    if export is None or not export.known:
        return environment
    parts = export.text.split(",")
    if "ALL" in parts or not parts[0]:
        passed = dict(environment)
    else:
        passed = {name: environment[name] for name in parts if name in environment}
    for part in parts:
        name, equals, value = part.partition("=")
        if equals:
            passed[name] = (plain(value, export.location), "inline")
    return passed


def _hosts(hosts: Text | None) -> list[str]:
    """Names of --nodelist where they are plain."""
    if hosts is None:
        return []
    if hosts.unresolved or (hosts.runtime and "," in hosts.text):
        return []
    if "[" in hosts.text and not hosts.runtime:
        return []
    return [name for name in hosts.text.split(",") if name][:MAX_TASKS]


def _image_version(image: Text | None) -> str:
    from epdoctor.launch.containers import image_version

    return image_version(image.text) if image is not None and image.known else ""
