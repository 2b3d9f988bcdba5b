"""Rules on the options themselves: unknown ones, unresolved ones, JSON, what readers could not read, ports."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from epdoctor import compat
from epdoctor.exceptions import Unmeasured
from epdoctor.launch import flags
from epdoctor.launch.json_options import json_options, merged
from epdoctor.launch.judge import fleet_rule, server_rule, table, version_of
from epdoctor.launch.layout import layout_of, require_known, switch_of
from epdoctor.launch.model import LaunchSet, Option, Server
from epdoctor.launch.templates import as_written
from epdoctor.model import Location, Problem, Severity
from epdoctor.rules import launch_rule, need


@launch_rule
def launch_was_read(launch: LaunchSet) -> Iterator[Problem]:
    """What the readers could not read: unbalanced quotes, broken YAML, templates."""
    yield from launch.trouble
    if not launch.servers and not launch.trouble:
        raise Unmeasured("no `vllm serve` was found")


@server_rule
def launch_options_known(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Options that this vLLM has: it stops at one that it does not know."""
    if server.pod is not None and "omni" in server.pod.image.lower():
        # vllm-omni adds options to vLLM's command.
        return
    for option in (*server.options.values(), *server.repeated):
        flag = option.written.partition("=")[0]
        if full := _abbreviates(option):
            yield Problem(
                found=f"{flag[:80]} is cut short: vLLM takes it for --{full} while no other option begins so",
                expected=f"--{full}",
                severity=Severity.WARNING,
                location=option.location,
            )
        if option.known_to_vllm or option.name in ("help", "h", "version"):
            continue
        found, expected = _unknown(option.name, version_of(launch, server))
        yield Problem(found=f"{flag[:80]}: {found}", expected=expected, location=option.location)


_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_QUOTES = "\u201c\u201d\u2018\u2019\u201e"


@server_rule
def launch_words_belong(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Words that belong to no option: vLLM stops at them; letters of a formatted page in place of - and quotes."""
    values = [option.value for option in server.options.values()]
    values += [server.model] if server.model is not None else []
    for value in values:
        if value.text and (value.text[0] in _QUOTES or value.text[-1] in _QUOTES):
            yield Problem(
                found=f"{value.text[:60]}: typographic quotes, as a formatted page has them",
                expected="plain quotes: ' or \"",
                location=value.location,
            )
    for value in (*values, *server.stray):
        # Of an option that takes several words, any of them.
        for word in value.text[:2000].split():
            if word[0] in _DASHES and word.lstrip(_DASHES + "-")[:1].isalpha():
                yield Problem(
                    found=f"{word[:60]} starts with a dash that is no hyphen, as a formatted page has it",
                    expected=f"--{word.lstrip(_DASHES + '-')[:60]}",
                    location=value.location,
                )
    if server.front_end or not all(option.known_to_vllm for option in server.options.values()):
        # What follows an option that is not known may be its value.
        return
    broken = {p.location.path for p in launch.trouble if p.location is not None}
    dashed = False
    for stray in server.stray:
        text = stray.text.strip()
        dashed = dashed or text[:1] in tuple(_DASHES)
        if not text or not stray.known or stray.location.path in broken or dashed:
            # What follows a word that was meant as an option is its value.
            continue
        switch = text.lower() in ("true", "false", "1", "0")
        yield Problem(
            found=f"{text[:60]!r} belongs to no option: vLLM stops ('unrecognized arguments')",
            expected="a switch takes no value: --NAME or --no-NAME" if switch else "only a model and options",
            location=stray.location,
        )


def _abbreviates(option: Option) -> str:
    """The option that a beginning stands for; empty: it is written out."""
    base = option.written.removeprefix("--").partition("=")[0].partition(".")[0].replace("_", "-")
    full = ("no-" if option.negated else "") + option.name.partition(".")[0]
    written_out = not option.written.startswith("--") or base == full
    return "" if written_out or not option.known_to_vllm or not full.startswith(base) else full


def _unknown(name: str, version: str) -> tuple[str, str]:
    """What is wrong with an option that this vLLM does not know, and what to write."""
    known = flags.load()
    flag = known.get(name)
    if flag is not None and flag.last:
        instead = compat.field("launch", "options_instead", dict).get(flag.name)
        return (
            f"gone from vLLM (last seen in {flag.last})",
            str(instead or known.similar(name, version) or "no such option"),
        )
    if flag is not None and flag.first:
        return f"vLLM {version} does not have it yet (first seen in {flag.first})", "a newer vLLM"
    near = known.similar(name, version)
    return (
        "vLLM has no such option",
        f"did you mean {near}?" if near else "an option of `vllm serve --help=all`",
    )


@server_rule
def launch_options_once(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """An option that is given twice: the last one counts."""
    # In a template, both branches of a condition are there.
    templates = {p.location.path for p in launch.trouble if p.location is not None and "template" in p.found}
    for option in server.repeated:
        if option.location.path in templates:
            continue
        last = server.option(option.name)
        if last is None or (last.value.text == option.value.text and last.negated == option.negated):
            continue
        yield Problem(
            found=f"{option.written} {option.value.text[:40]} and again {last.written} {last.value.text[:40]}".strip(),
            expected="once: vLLM takes the last one",
            location=option.location,
        )


@server_rule
def launch_values_resolved(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Values that depend on what the files do not say. A note: checks that need one say so."""
    names: dict[str, Location] = {}
    values = [option.value for option in server.options.values()]
    values += [server.model] if server.model is not None else []
    for value in values:
        for name in value.unresolved:
            names.setdefault(name, value.location)
    if names:
        shown = ", ".join(as_written(name) for name in list(names)[:6]) + (
            f" and {len(names) - 6} more" if len(names) > 6 else ""
        )
        yield Problem(
            found=f"not resolved: {shown}",
            expected="values for them (--env-file FILE), or the rendered files",
            evidence=tuple(f"{where}: {name}" for name, where in names.items()),
            location=next(iter(names.values())),
        )


@need("launch-json")
def launch_has_json(launch: LaunchSet) -> bool:
    """No launch has --compilation-config or another option with JSON"""
    names = [name for name in table("json_options") if name not in ("eplb-config", "kv-transfer-config")]
    return any(any(True for _ in json_options(server, name)) for server in launch.servers for name in names)


@server_rule
def launch_json_valid(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """Options that hold JSON hold an object; --compilation-config has vLLM's keys and a known cudagraph mode."""
    for name in table("json_options"):
        if name in ("eplb-config", "kv-transfer-config"):
            continue
        if any(option.value.runtime for _key, option in json_options(server, name)):
            continue
        if name == "compilation-config" and _level(server):
            continue
        config = merged(server, name)
        if config is None:
            continue
        if config.values is None:
            # hf-overrides and rope-scaling may also be a path or a name in some versions
            yield Problem(
                found=f"--{name} {config.error}",
                expected="a JSON object in single quotes",
                location=config.location,
            )
        elif name == "compilation-config":
            keys, modes = table("compilation_keys"), table("cudagraph_modes")
            for key in config.values:
                if key not in keys:
                    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
                    yield Problem(
                        found=f"--compilation-config: no key {key[:60]!r}",
                        expected=f"did you mean {near[0]}?" if near else "a key of vLLM's CompilationConfig",
                        location=config.place(key),
                    )
            mode = config.values.get("cudagraph_mode")
            if mode is not None and (not isinstance(mode, str) or mode.upper() not in modes):
                near = difflib.get_close_matches(str(mode).upper(), modes, n=1, cutoff=0.4)
                yield Problem(
                    found=f"--compilation-config: cudagraph_mode {str(mode)[:40]!r}",
                    expected=(f"did you mean {near[0]}? " if near else "") + "one of " + ", ".join(modes),
                    location=config.place("cudagraph_mode"),
                )
            level = config.values.get("mode")
            names = table("compilation_modes")
            if level is not None and level not in (0, 1, 2, 3) and str(level).upper() not in names:
                yield Problem(
                    found=f"--compilation-config: mode {str(level)[:40]!r}",
                    expected="0 to 3, or one of " + ", ".join(names),
                    location=config.place("mode"),
                )


def _level(server: Server) -> bool:
    """-O3: a number in place of an object."""
    option = server.option("compilation-config")
    if option is None:
        return False
    return require_known(option.value, option.written).strip() in ("0", "1", "2", "3")


@fleet_rule
def launch_async_scheduling_fits(launch: LaunchSet, servers: tuple[Server, ...]) -> Iterator[Problem]:
    """--async-scheduling with what vLLM refuses beside it (config/vllm.py:1640-1690, 3050-3090).

    Only the V1 model runner refuses: where it is asked for, and where a drafter exists for it alone."""
    for server in servers:
        if not switch_of(server, "async-scheduling"):
            continue
        option = server.option("async-scheduling")
        where = server.location if option is None else option.location
        config = merged(server, "speculative-config")
        method = str((config.values or {}).get("method", "")) if config is not None else ""
        runner = server.environment.get("VLLM_USE_V2_MODEL_RUNNER")
        first = runner is not None and require_known(runner, "VLLM_USE_V2_MODEL_RUNNER").lower() in (
            "0",
            "false",
        )
        pipeline = layout_of(server).pipeline
        if first and pipeline > 1:
            yield Problem(
                found=f"--async-scheduling with --pipeline-parallel-size {pipeline} and VLLM_USE_V2_MODEL_RUNNER=0",
                expected="no --async-scheduling, or the V2 model runner",
                location=where,
            )
        elif method in ("suffix", "custom_class") or (first and method == "ngram"):
            yield Problem(
                found=f"--async-scheduling with speculative decoding by {method}",
                expected="no --async-scheduling, or an EAGLE or MTP drafter",
                location=where,
            )
