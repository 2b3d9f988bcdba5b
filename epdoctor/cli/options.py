"""Options that several commands share, and what they mean together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from epdoctor.config import Config, load_config
from epdoctor.exceptions import UsageError
from epdoctor.facts.base import CollectOptions
from epdoctor.model import Check, Goal

F = TypeVar("F", bound=Callable[..., Any])


def _complete_backend(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from epdoctor.backends import canonical_backends

    return [name for name in canonical_backends() if name.startswith(incomplete)]


def _complete_check(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from epdoctor.catalog import load_checks

    return [check_id for check_id in load_checks() if check_id.startswith(incomplete)]


def _complete_profile(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from epdoctor.profiles import shipped_profiles

    return [name for name in shipped_profiles() if name.startswith(incomplete)]


def seconds(
    minimum: float, maximum: float
) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """A click callback: "10", "10s", "2m", "1h" as seconds within bounds; None stays None."""

    def read(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
        if value is None:
            return None
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s?(s|m|min|h)?", value.strip())
        number = float(found[1]) * {"m": 60, "min": 60, "h": 3600}.get(found[2], 1) if found else 0.0
        if not minimum <= number <= maximum:
            raise click.BadParameter(
                f"{value!r} is not a time from {minimum:g}s to {maximum:g}s, such as 30s or 5m"
            )
        return number

    return read


_NODE_OPTIONS = [
    click.option("--all-nodes", is_flag=True, help="Every node of the inventory, over SSH, at once."),
    click.option("-i", "--inventory", multiple=True, metavar="FILE", help="Ansible inventory (INI, YAML), host list, or 'gpu[01-08]'. Implies --all-nodes."),
    click.option("-l", "--limit", metavar="PATTERN", help="Only these nodes (Ansible's patterns, or gpu[01-04])."),
    click.option("-f", "--forks", type=click.IntRange(1, 1024), help="Nodes at a time (default 32)."),
    click.option("-t", "--timeout", "timeout_s", type=click.FloatRange(2, 3600), help="Seconds a node may take in all (default 60)."),
    click.option("-b", "--become", is_flag=True, help="Look as root, by sudo -n (nothing is changed)."),
    click.option("--via", metavar="'ARGV TEMPLATE'", help="Run the same agent elsewhere: 'kubectl exec -i -n serving {node} --', 'podman exec -i {node}', 'srun -N1 -w {node}'."),
    click.option("--transport", type=click.Choice(["fabric", "openssh"]), default="fabric", show_default=True, help="openssh: the system's ssh, for FIDO keys and certificates."),
    click.option("--dynamic-inventory", is_flag=True, help="Allow an executable inventory to be run."),
    click.option("--python", "python", metavar="PATH", help="vLLM's interpreter on the nodes, where there are several."),
    click.option("--env-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Environment the workers will get (KEY=VALUE lines)."),
    click.option("--sample", "sample_s", callback=seconds(1, 600), metavar="10s", help="Read error counters twice, this far apart: what goes wrong now."),
    click.option("--max-num-batched-tokens", type=click.IntRange(1), metavar="N", help="vLLM's token limit; default: from the launch, else vLLM's own."),
    click.option("--no-state", is_flag=True, help="Write neither a recording nor a cache on this machine."),
]  # fmt: skip

_JUDGE_OPTIONS = [
    click.option("--backend", metavar="NAME", shell_complete=_complete_backend, help="vLLM's --all2all-backend; default: judge for all and say which are ready."),
    click.option("--vllm", "vllm_version", metavar="VERSION", help="vLLM version to judge for, where none is installed yet."),
    click.option("--multinode/--single-node", "multinode", default=None, help="Judge for serving across nodes, or on one; default: by what is there."),
    click.option("--select", multiple=True, metavar="ID", shell_complete=_complete_check, help="Only these checks: id, prefix or tag. Repeatable, commas too."),
    click.option("--ignore", multiple=True, metavar="ID", shell_complete=_complete_check, help="All but these checks."),
    click.option("--profile", metavar="NAME|FILE", default="", shell_complete=_complete_profile, help="A named selection of checks: bring-up, prolog, nightly, or your own file."),
    click.option("--checks", "site_checks", type=click.Path(path_type=Path), metavar="DIR", help="Your site's own checks, too (docs/add-a-check.md). Runs its rules and plugins."),
    click.option("--waivers", "waiver_file", metavar="FILE", default="", help="Findings that are accepted; default: [waivers] file in epdoctor.toml, ./waivers.yaml."),
    click.option("--fail-on-expired-waiver", is_flag=True, help="A waiver past its date is a finding of its own: exit code 1."),
    click.option("--fail-on", type=click.Choice(["error", "warning"]), default="error", show_default=True, help="Severity that makes exit code 1."),
]  # fmt: skip


def node_options(function: F) -> F:
    for option in reversed(_NODE_OPTIONS):
        function = option(function)
    return function


def judge_options(function: F) -> F:
    for option in reversed(_JUDGE_OPTIONS):
        function = option(function)
    return function


@dataclass
class NodeChoice:
    """Which nodes, reached how."""

    all_nodes: bool
    inventory: tuple[str, ...]
    limit: str
    forks: int
    timeout_s: float
    become: bool
    via: str
    transport: str
    dynamic_inventory: bool
    config: Config


def node_choice(values: dict[str, Any]) -> NodeChoice:
    """From the command line and epdoctor.toml. Raises UsageError."""
    config = load_config()
    via = values["via"] or ""
    if via:
        try:
            words = shlex.split(via)
        except ValueError as error:
            raise UsageError(f"--via: {error}") from error
        if not words:
            raise UsageError("--via is empty")
        if not any("{node}" in word for word in words) and (values["all_nodes"] or values["inventory"]):
            raise UsageError("--via has no {node} in it", hint="--via 'podman exec -i {node}'")
    many = bool(values["all_nodes"] or values["inventory"] or values["limit"] or via)
    return NodeChoice(
        all_nodes=many,
        inventory=tuple(values["inventory"]),
        limit=values["limit"] or "",
        forks=values["forks"] or config.forks or 32,
        timeout_s=(values["timeout_s"] or config.timeout_s or 60.0) + (values.get("sample_s") or 0.0),
        become=values["become"] or config.become,
        via=via,
        transport=values["transport"],
        dynamic_inventory=values["dynamic_inventory"],
        config=config,
    )


def collect_options(values: dict[str, Any], config: Config, node_names: tuple[str, ...]) -> CollectOptions:
    env_text = ""
    if values["env_file"] is not None:
        try:
            env_text = values["env_file"].read_text(encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(f"--env-file {values['env_file']}: {error.strerror}") from error
        check_env_file(env_text, str(values["env_file"]))
    limit = values["max_num_batched_tokens"]
    return CollectOptions(
        python=values["python"] or config.python,
        node_names=node_names,
        env_file_text=env_text,
        max_num_batched_tokens=limit,
        token_limit_source="--max-num-batched-tokens" if limit else "",
        sample_s=values.get("sample_s") or 0.0,
    )


_ENV_LINE = re.compile(r"(?:export\s+)?[A-Za-z_][A-Za-z0-9_]*=")


def check_env_file(text: str, name: str) -> None:
    """KEY=VALUE lines, comments and blanks. Raises UsageError with file and line."""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#") and not _ENV_LINE.match(line):
            raise UsageError(f"{name}:{number}: not KEY=VALUE")


def goal_from(values: dict[str, Any], config: Config, profile_backend: str = "") -> tuple[Goal, list[str]]:
    """The goal, and warnings about the back end's name. Raises UsageError for an unknown one."""
    of_profile = (
        (profile_backend, config.backend) if values.get("profile") else (config.backend, profile_backend)
    )
    requested = values["backend"] or of_profile[0] or of_profile[1]
    name, warnings = "", []
    if requested:
        from epdoctor.backends import resolve_backend

        resolved = resolve_backend(requested, values["vllm_version"] or "")
        name = resolved.name
        if resolved.note:
            warnings.append(resolved.note)
    limit = values.get("max_num_batched_tokens")
    goal = Goal(
        backend=name,
        requested_backend=requested or "",
        vllm_version=values["vllm_version"] or "",
        max_num_batched_tokens=limit,
        token_limit_source="--max-num-batched-tokens" if limit else "",
        compute_hcas=config.compute_hcas,
    )
    return goal, warnings


def split_words(words: tuple[str, ...]) -> list[str]:
    return [word.strip() for item in words for word in item.split(",") if word.strip()]


@dataclass(frozen=True)
class ChosenChecks:
    """The checks that a run judges, and what their choice says about the rest of the run."""

    checks: dict[str, Check]
    selected: bool
    """A part of the catalogue."""
    profile: str
    """Its name; "" where there is none."""
    backend: str
    timeout_s: float | None
    known: Mapping[str, Check] = field(default_factory=dict)
    """All that there are, chosen or not."""


def choose_checks(values: dict[str, Any], config: Config) -> ChosenChecks:
    """Catalogue, the site's checks, profile, --select and --ignore, in this order.

    What is nearer to the user wins: --select replaces what the profile or epdoctor.toml select, and --profile
    what epdoctor.toml selects; what is to be ignored adds up. Raises UsageError."""
    from epdoctor.catalog import load_checks, select_checks
    from epdoctor.site_checks import installed_checks, load_site_checks

    installed, folders = installed_checks()
    checks = {**load_checks(), **installed}
    if values["site_checks"] is not None:
        checks |= load_site_checks(values["site_checks"])
        folders = (values["site_checks"] / "profiles", *folders)
    select, ignore = split_words(values["select"]), [*split_words(values["ignore"]), *config.ignore]
    if not values["profile"]:
        select = select or list(config.select)
    name = values["profile"] or config.profile
    if not name:
        chosen = select_checks(checks, select, ignore)
        return ChosenChecks(chosen, bool(select or ignore), "", "", None, checks)
    from epdoctor.profiles import load_profile, regrade

    profile = load_profile(name, folders)
    select, ignore = select or list(profile.select), [*ignore, *profile.ignore]
    chosen = select_checks(regrade(profile, checks), select, ignore)
    return ChosenChecks(
        chosen, bool(select or ignore), profile.name, profile.backend, profile.timeout_s, checks
    )
