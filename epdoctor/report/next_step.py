"""The last line of a report: the one command to type next. Pure."""

from __future__ import annotations

import shlex

from epdoctor.model import Action, Location, Report
from epdoctor.report.fix_line import fix_line
from epdoctor.report.summary import Group, no_gpu

_EASIEST = (
    Action.LOAD_MODULE, Action.CHANGE_ENV, Action.CHANGE_LAUNCH, Action.RESTART_SERVICE, Action.INSTALL, Action.REBOOT,
    Action.FABRIC_ADMIN, Action.REPLACE_HARDWARE, Action.NONE,
)  # fmt: skip
"""What is mended first: the findings that a command mends at once."""


def _commands(group: Group) -> tuple[str, ...]:
    own = next((problem.now for problem in group.variants[0].problems if problem.now), ())
    return own or group.check.fix.now or group.check.fix.permanent


def next_command(
    report: Report, shown: list[Group], important: list[Group], minor: list[Group], command: str
) -> str:
    """What helps most: reach the nodes, mend the worst finding, look as root, or serve."""
    failed = next((outcome for outcome in report.outcomes if outcome.error and outcome.hint), None)
    bar = [group for group in shown if group.severity.rank >= report.fail_on.rank]
    for group in sorted(bar, key=lambda group: _EASIEST.index(group.check.fix.action)):
        place = next((p.location for p in group.variants[0].problems if p.location and p.location.line), None)
        if place is not None and place.path not in ("--", "/dev/stdin") and group.check.scope == "launch":
            return f"{edit_command(place)}   # {group.check.id}"
        mend = fix_line(command, group.check)
        if mend:
            return mend
        commands = _commands(group)
        if commands:
            nodes = group.variants[0].nodes
            where = f"on {nodes[0]}: " if len(report.outcomes) > 1 and nodes else ""
            return where + first_line(commands[0])
    if failed is not None:
        return failed.hint
    if report.fail_on_expired_waiver and report.expired_waivers:
        place = report.expired_waivers[0].location
        if place is not None:
            return f"${{EDITOR:-vi}} +{place.line} {shlex.quote(place.path)}   # renew it, or take it out"
    if important and all(group.needs_root for group in important):
        return _with(command, "--become")
    if any("is not given whole" in reason for group in important for reason, _ in group.reasons):
        return "kubectl kustomize FOLDER | epdoctor lint -"
    if important and important[0].check.scope == "launch" and " live server" not in report.source:
        return _with(command, "--env-file FILE   # with the values that are missing")
    if important:
        by_hand = first_line(important[0].check.by_hand)
        return by_hand or _with(command, "-v")
    if report.checks and all(check.scope == "launch" for check in report.checks.values()):
        return "epdoctor check --all-nodes -i inventory.ini   # are the nodes ready for it?"
    if report.selected:
        return _with(command, "-v")
    if no_gpu(report):
        return "epdoctor check --all-nodes -i inventory.ini   # the nodes that have GPUs"
    if report.vllm_versions and not any(text[:1].isdigit() for text in report.vllm_versions):
        if "--python" in command.split():
            return _with(command, "--vllm VERSION   # no vLLM in that interpreter: for which one to judge")
        return _with(
            command, "--python /path/to/vllm/bin/python   # no vLLM found: its versions were not judged"
        )
    ready = next((r.backend for r in report.readiness if r.ready and not r.not_ready and not r.unknown), "")
    if ready:
        return f"vllm serve MODEL --enable-expert-parallel --all2all-backend {ready}"
    return _with(command, "-v")


def edit_command(place: Location) -> str:
    """Opens the line that a finding is about."""
    return f"${{EDITOR:-vi}} +{place.line} {shlex.quote(place.path)}"


def first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")


_WRITES = ("-o", "--output", "--format", "--nodes-pass", "--nodes-fail", "--exit-code")
"""Options of check that say where and how a report is written, each with a value: a next look is for eyes."""


def _for_eyes(command: str) -> str:
    """The command as typed, without the reports that it wrote to files."""
    try:
        words = iter(shlex.split(command))
    except ValueError:
        return command
    kept = []
    for word in words:
        if word in _WRITES:
            next(words, "")
        elif not word.startswith(("-o", *(f"{name}=" for name in _WRITES if name != "-o"))):
            kept.append(word)
    return shlex.join(kept)


def _with(command: str, flag: str) -> str:
    plain = _for_eyes(command)
    return plain if flag in plain.split() else f"{plain} {flag}"
