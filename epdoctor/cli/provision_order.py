"""What one call of `epdoctor provision` is to do: everything that can be wrong with the command line is found
here, before any node is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from epdoctor.cli.options import goal_from, split_words
from epdoctor.cli.provision_nodes import Place, place_of
from epdoctor.cli.provision_secrets import become_password, use_vault
from epdoctor.config import Config
from epdoctor.exceptions import UsageError
from epdoctor.model import Check, Goal
from epdoctor.profiles import Profile
from epdoctor.provision.arguments import parse_extra
from epdoctor.provision.components import Choice, Component, choose
from epdoctor.provision.journal import new_run_name
from epdoctor.provision.judging import checks_of
from epdoctor.provision.pins import newer_than_known, pins
from epdoctor.provision.result import Remark
from epdoctor.provision.sources import Sources, parse_sources
from epdoctor.report.sanitize import sanitize

MAX_FAIL_PERCENT = 50
"""With --serial: where more than half of a batch fails, the next batch is not begun."""


@dataclass(frozen=True)
class Wish:
    """Components and their variables, without nodes: what a run and a bundle have in common."""

    goal: Goal
    choice: Choice
    extra: dict[str, Any]
    """-e; wins over the inventory."""
    pins: dict[str, Any]
    """Of --vllm and the profile; loses against the inventory."""
    profile: Profile | None
    warnings: tuple[str, ...]


@dataclass
class Order:
    place: Place
    wish: Wish
    checks: dict[str, Check]
    values: dict[str, Any]
    sources: Sources
    name: str
    """Of the run, in the journals and the log."""
    password: str = field(default="", repr=False)
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Component -> nodes that it is for; one that is not named is for all."""
    also: dict[str, Any] = field(default_factory=dict)
    """More for the JSON report."""
    remarks: list[Remark] = field(default_factory=list)
    """Known before the run, and true after it."""

    @property
    def goal(self) -> Goal:
        return self.wish.goal

    @property
    def components(self) -> tuple[Component, ...]:
        return self.wish.choice.components

    @property
    def quiet(self) -> bool:
        """Standard output carries JSON only."""
        return bool(self.values["format_"] == "json")

    @property
    def extra(self) -> dict[str, Any]:
        """Variables that win over the inventory."""
        found = {**self.sources.variables, **self.wish.extra}
        found |= {"journal_run": self.name, "epdoctor_backend": self.goal.backend}
        if self.values["serial"]:
            found |= {"epdoctor_serial": self.values["serial"], "epdoctor_max_fail": MAX_FAIL_PERCENT}
        return found


def make_wish(
    values: dict[str, Any], config: Config, *, vllm: str = "", bundle: Mapping[str, Any] | None = None
) -> Wish:
    """From the options; `bundle`: the manifest of one that is the source. Raises UsageError."""
    vllm = str(bundle["vllm"]) if bundle else vllm
    profile = None
    if values["profile"]:
        from epdoctor.profiles import load_profile

        profile = load_profile(values["profile"])
    extra = parse_extra(values["extra"])
    if values["restart_services"]:
        extra["limits_restart_services"] = True
    if values["force"]:
        extra["limits_force"] = True
    wanted = values["vllm_version"] or vllm
    if wanted and vllm and wanted != vllm:
        raise UsageError(f"--vllm {wanted}: the bundle is for vLLM {vllm}", hint=f"--vllm {vllm}")
    found = {"versions_vllm": pins(wanted)["versions_vllm"]} if wanted else {}
    goal, warnings = goal_from({**values, "vllm_version": wanted}, config, profile.backend if profile else "")
    if wanted:
        warnings += [text for text in (newer_than_known(wanted),) if text]
    named: tuple[str, ...] = ()
    if bundle:
        found |= bundle.get("variables", {})
        named = tuple(str(name) for name in bundle.get("components", ()))
    if profile is not None:
        named = profile.provision.components
        found |= profile.provision.variables
    choice = choose(
        goal.backend,
        split_words(values["tags"]),
        split_words(values["skip_tags"]),
        named=named,
        stack=bool(wanted),
    )
    return Wish(goal, choice, extra, found, profile, tuple(warnings))


def make_order(values: dict[str, Any]) -> Order:
    """Raises UsageError. Asks for the become password last, when all else is right."""
    from epdoctor.catalog import load_checks

    if values["no_state"]:
        from epdoctor.compiled import forbid_state

        forbid_state()
    serial = values["serial"]
    if serial and not re.fullmatch(r"[1-9][0-9]{0,3}|(100|[1-9][0-9]?)%", serial):
        raise UsageError(f"--serial {serial}: a number of nodes, or a share such as 25%")
    if values["inventory"] is None:
        raise UsageError("name an inventory", hint="epdoctor provision inventory.ini --plan")
    use_vault(values["vault_password_file"])
    sources = parse_sources(values["source"])
    place = place_of(values["inventory"], values["limit"], values["forks"])
    wish = make_wish(values, place.choice.config, bundle=sources.manifest)
    for warning in (*place.warnings, *wish.warnings):
        click.echo(f"! {sanitize(warning)}", err=True)
    every = load_checks()
    if wish.profile is not None:
        from epdoctor.profiles import regrade

        every = regrade(wish.profile, every)
    checks = checks_of(wish.choice.components, every)
    return Order(place, wish, checks, values, sources, new_run_name(), become_password(values))
