"""`epdoctor plan`: from a model and nodes to the layout, its memory, and every node's command."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from epdoctor.cli.model_options import Memory, read_model_config
from epdoctor.cli.options import node_choice, node_options
from epdoctor.exceptions import Unmeasured, UsageError
from epdoctor.report.sanitize import sanitize

if TYPE_CHECKING:
    from epdoctor.launch.model_shape import ModelShape
    from epdoctor.plan.choose import Group, Request
    from epdoctor.plan.commands import Server
    from epdoctor.plan.nodes import PlanNode

_OLDEST = "0.13.0"
"""The first release of vllm_flags.yaml that has --all2all-backend."""
_NOT_HERE = ("env_file", "sample_s", "all_nodes")


class Ratio(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic only in newer click
    """ "1:3": nodes for prefill and for decode."""

    name = "ratio"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"([1-9]\d{0,2}):([1-9]\d{0,2})", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not P:D, such as 1:3", param, ctx)
        return int(match[1]), int(match[2])


def _without(command: click.Command) -> click.Command:
    command.params = [item for item in command.params if item.name not in _NOT_HERE]
    return command


@_without
@click.command("plan")
@click.option("--model", required=True, metavar="NAME|config.json",
              help="A model of the built-in table, or its config.json.")  # fmt: skip
@click.option(
    "--served-model", default="", metavar="NAME", help="What vllm serve gets, where --model is a file."
)
@click.option("--from", "from_", type=click.Path(path_type=Path), metavar="DIR|FILE.tar.gz", help="Recorded nodes (epdoctor collect).")  # fmt: skip
@click.option(
    "--nodes", type=click.IntRange(1, 1024), metavar="N", help="Nodes that nobody looks at, in place of -i."
)
@click.option("--gpus-per-node", type=click.IntRange(1, 72), metavar="N", help="With --nodes (default 8).")
@click.option("--gpu", default="", metavar="H200|141GB", help="With --nodes: the GPU, or its memory.")
@click.option(
    "--workload", type=click.Choice(["prefill", "decode", "mixed"]), help="What it serves (default mixed)."
)
@click.option("--disaggregate", type=Ratio(), metavar="P:D", help="Prefill and decode on nodes of their own.")
@click.option(
    "--tp",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Tensor parallel size; default: the smallest that fits.",
)
@click.option("--eplb", type=click.IntRange(1, 4096), metavar="N", help="Redundant experts, over all ranks.")
@click.option(
    "--backend", default="", metavar="NAME", help="vLLM's --all2all-backend; default: by workload and fabric."
)
@click.option("--kind", type=click.Choice(["shell", "sbatch", "lws", "compose"]), default="shell", show_default=True, help="What to write.")  # fmt: skip
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the files there; default: print them.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option(
    "--vllm", "vllm_version", metavar="VERSION", help="vLLM version to plan for (default: the newest known)."
)
@node_options
def plan_command(**values: Any) -> int:
    """From model and nodes to every node's command.

    \b
    epdoctor plan --model deepseek-ai/DeepSeek-V3-0324 -i inventory.ini
    epdoctor plan --model deepseek-ai/DeepSeek-V3-0324 --nodes 2 --gpu H200
    epdoctor plan --model config.json -i inventory.ini --disaggregate 1:3 --kind sbatch -o launch/

    Exit code 1: it does not fit, with the numbers.
    """
    for name in _NOT_HERE:
        values.setdefault(name, None if name != "all_nodes" else False)
    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    _refuse_contradictions(values)
    request, shape = _request(values)
    nodes, warnings = _nodes(values)
    from epdoctor.plan.choose import DoesNotFit
    from epdoctor.plan.commands import servers
    from epdoctor.plan.kinds import WRITERS

    try:
        groups = _groups(values, request, shape, nodes)
    except DoesNotFit as answer:
        return _refuse(request, answer)
    found = servers(request, groups)
    files = WRITERS[values["kind"]](request, groups, found)
    lines = _screen(request, groups, found, warnings, values["kind"])
    if values["output"] is not None:
        _write(values["output"], files, force=values["force"])
    else:
        for name, text in files.items():
            lines += ["", f"----- {name}", *text.rstrip("\n").split("\n")]
    _say([*lines, "", *_next(values, groups, files)])
    return 0


def _refuse_contradictions(values: dict[str, Any]) -> None:
    asks = bool(values["inventory"] or values["limit"] or values["via"])
    if sum((asks, values["from_"] is not None, values["nodes"] is not None)) != 1:
        raise UsageError(
            "which nodes? one of -i FILE, --from RECORD and --nodes N",
            hint=f"epdoctor plan --model {shlex.quote(values['model'])} --nodes 2 --gpu H200",
        )
    if values["nodes"] is None and (values["gpu"] or values["gpus_per_node"]):
        raise UsageError("--gpu and --gpus-per-node go with --nodes: otherwise the nodes themselves tell")
    if values["nodes"] is not None and not values["gpu"]:
        raise UsageError("--nodes needs --gpu", hint="--gpu H200, or its memory: --gpu 141GiB")
    if values["disaggregate"] and values["workload"]:
        raise UsageError("--disaggregate has a group for prefill and one for decode; leave --workload away")


def _request(values: dict[str, Any]) -> tuple[Request, ModelShape]:
    from epdoctor import compat
    from epdoctor.backends import resolve_backend
    from epdoctor.launch.judge import newest_version
    from epdoctor.launch.model_shape import parse_config
    from epdoctor.launch.model_table import config_by_name, names, numbers_row
    from epdoctor.plan.choose import Request

    model = values["model"]
    try:
        version = str(compat.release(values["vllm_version"])) if values["vllm_version"] else newest_version()
    except Unmeasured as error:
        raise UsageError(f"--vllm: {error}", hint="--vllm 0.33.0") from error
    if compat.release(version) < compat.release(_OLDEST):
        raise UsageError(
            f"plan writes options of vLLM {_OLDEST} and later, not of {version}", hint=f"--vllm {_OLDEST}"
        )
    path = Path(model)
    try:
        # os.path: a name that is too long for a path is no folder, and no OSError.
        if model.endswith(".json") or os.path.isfile(os.path.join(model, "config.json")):  # noqa: PTH113, PTH118  # see above
            file = path if model.endswith(".json") else path / "config.json"
            config: Mapping[str, Any] = read_model_config(file, "--model")
            served = values["served_model"] or str(file.resolve().parent)
        else:
            config, _source = config_by_name(model)
            served = values["served_model"] or model
        shape = parse_config(config, served)
    except Unmeasured as error:
        import difflib

        short = model.rpartition("/")[2]
        near = [] if numbers_row(model) else difflib.get_close_matches(short, names(), n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]}? or --model config.json" if near else "--model config.json of the model"
        )
        raise UsageError(f"--model {model[:100]}: {error}", hint=hint) from error
    if not re.fullmatch(r"[A-Za-z0-9_./@:+=-]{1,400}", served) or served.startswith("-"):
        raise UsageError(f"{served[:80]!r} is no name of a model", hint="--served-model NAME")
    backend = resolve_backend(values["backend"], version).name if values["backend"] else ""
    request = Request(
        model=served,
        version=version,
        workload=values["workload"] or "mixed",
        tensor=values["tp"],
        redundant=values["eplb"] or 0,
        tokens=values["max_num_batched_tokens"],
        backend=backend,
    )
    return request, shape


def _nodes(values: dict[str, Any]) -> tuple[tuple[PlanNode, ...], list[str]]:
    from epdoctor.plan.nodes import node_of, nodes_by_number

    if values["nodes"] is not None:
        size = Memory().convert(values["gpu"], None, None)
        gpus = values["gpus_per_node"] or 8
        name = values["gpu"] if not values["gpu"][0].isdigit() else f"GPUs of {values['gpu']}"
        return nodes_by_number(values["nodes"], gpus, name, float(size)), []
    from epdoctor.facts import Node
    from epdoctor.model import Goal

    warnings: list[str] = []
    hosts: dict[str, str] = {}
    if values["from_"] is not None:
        from epdoctor.collect.store import load

        recording, items = load(values["from_"])
        records = [item.read() for item in items]
        options = recording.options
    else:
        from epdoctor.cli.gather import gather

        gathered = gather(node_choice(values), values)
        records, options = gathered.records, gathered.recording.options
        hosts = {target.name: target.host for target in gathered.targets}
        warnings = gathered.warnings
    lost = [record.node for record in records if not (record.reached or record.probes)]
    if lost:
        raise UsageError(
            f"not reached: {', '.join(lost[:6])}; a plan needs all of its nodes", hint=f"-l '!{lost[0]}'"
        )
    nodes = tuple(
        node_of(Node(record.node, record.source(), Goal(), options), hosts.get(record.node, ""))
        for record in records
    )
    if not nodes:
        raise UsageError("there are no nodes")
    return nodes, warnings


def _groups(
    values: dict[str, Any], request: Request, shape: ModelShape, nodes: tuple[PlanNode, ...]
) -> tuple[Group, ...]:
    from dataclasses import replace

    from epdoctor.plan.choose import choose, split

    if not values["disaggregate"]:
        return (choose(request, shape, nodes),)
    prefill, decode = split(nodes, values["disaggregate"])
    # A token limit sizes decode's buffers; prefill wants many tokens a step.
    return (
        choose(replace(request, workload="prefill", tokens=None), shape, prefill, "prefill"),
        choose(replace(request, workload="decode"), shape, decode, "decode"),
    )


def _say(lines: list[str]) -> None:
    click.echo("\n".join(sanitize(line) for line in lines))


def _refuse(request: Request, answer: Any) -> int:
    from epdoctor.plan.screen import group_lines

    lines = ["DOES NOT FIT", "", *group_lines(request, answer.group)]
    _say([*lines, "", f"would fit  {answer.advice}"])
    return 1


def _screen(
    request: Request, groups: tuple[Group, ...], found: tuple[Server, ...], warnings: list[str], kind: str
) -> list[str]:
    from epdoctor.plan.screen import group_lines

    lines: list[str] = []
    for group in groups:
        lines += [*([""] if lines else []), *group_lines(request, group)]
    notes = list(dict.fromkeys(note for server in found for note in server.notes))
    unknown = [server.name for server in found if server.notes and "not known (-i" in server.notes[0]]
    if unknown:
        notes = [note for note in notes if "not known (-i" not in note]
        more = f"..{unknown[-1]}" if len(unknown) > 1 else ""
        notes.insert(
            0, f"{unknown[0]}{more} stand for your nodes: addresses, interfaces and HCAs are not known"
        )
    notes = [*warnings, *notes[:8]]
    if len(groups) == 1 and groups[0].backend in ("deepep_low_latency", "deepep_high_throughput"):
        other = "prefill" if request.workload == "decode" else "decode"
        notes.append(
            f"this engine does {other} too, slower by these kernels, and lint warns: --disaggregate P:D"
        )
    if len(groups) > 1:
        notes.append("a proxy in front sends each request to prefill, then to decode: start one beside it")
    if "/" not in request.model:
        notes.append(
            f"{request.model} has no organisation before it: vllm serve takes it for a folder of that name"
        )
    if kind == "lws":
        notes.append("rdma/ib and eth0 are what many clusters call them: kubectl describe node | grep rdma/")
    lines += [""] if notes else []
    for note in notes:
        lines += textwrap.wrap(f"! {sanitize(note)}", 80, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _write(folder: Path, files: dict[str, str], *, force: bool) -> None:
    """Into a folder of its own; nothing is overwritten without --force. Raises UsageError."""
    there = [name for name in files if os.path.lexists(folder / name)]
    if there and not force:
        raise UsageError(
            f"{folder} has {', '.join(there[:4])} already; nothing was written",
            hint="--force, or another -o DIR",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = folder / name
            # A link that was put there would lead elsewhere.
            path.unlink(missing_ok=True)
            descriptor = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755 if name.endswith(".sh") else 0o644
            )
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UsageError(f"-o {folder}: {error.strerror or error}") from error


def _next(values: dict[str, Any], groups: tuple[Group, ...], files: dict[str, str]) -> list[str]:
    source = "".join(f" -i {shlex.quote(item)}" for item in values["inventory"])
    source += f" --from {shlex.quote(str(values['from_']))}" if values["from_"] is not None else ""
    folder = values["output"]
    if folder is None:
        return ["next       the same with -o DIR, then epdoctor lint DIR"]
    listed = ", ".join(list(files)[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
    lines = [
        f"wrote      {listed} in {folder}",
        f"next       epdoctor lint{source} {shlex.quote(str(folder))}",
    ]
    backend = next((group.backend for group in groups if group.backend != "allgather_reducescatter"), "")
    if source and backend:
        lines.append(f"           epdoctor check{source} --backend {backend}")
    return lines
