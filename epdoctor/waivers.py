"""Waivers: findings that somebody knows of and accepts for a time. They stay in every report and fail no run.

The file is YAML, a list of entries (or a mapping with the list under `waivers`):

    - check: gpudirect.memory-registrable   # an id, or a prefix of ids: rdma
      nodes: gpu03,gpu[05-07]               # names, ranges, gpu*, ~regex, !not-this; left out: every node
      reason: kernel modules are swapped on the 12th, TICKET-311
      expires: 2026-12-12                   # the last day on which it counts; left out: for ever
      owner: anna

`load_waivers` and `add_waiver` touch the file; `apply_waivers` is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from epdoctor.exceptions import UsageError
from epdoctor.model import Check, Finding, Location, Status, Waiver
from epdoctor.node_patterns import node_matcher
from epdoctor.nodenames import NodeNamesError

if TYPE_CHECKING:
    import yaml

DEFAULT_FILE = "waivers.yaml"
FIELDS = ("check", "nodes", "reason", "expires", "owner")
MAX_BYTES = 1 << 20
_HEADER = "# Findings that are known and accepted. They are shown in every report and fail no run.\n"


class WaiverError(UsageError):
    """The waiver file is wrong; the message starts with file:line."""


# ---------------------------------------------------------------- the file


def load_waivers(path: Path, checks: Iterable[str], today: date) -> list[Waiver]:
    """Every waiver of a file, in its order. `checks` are the ids that exist; `today` decides what has expired.

    Raises WaiverError with file:line: not YAML, an unknown field or check, a bad date, a missing reason."""
    try:
        raw = path.read_bytes()[: MAX_BYTES + 1]
    except OSError as error:
        raise WaiverError(f"{path}: {error.strerror or error}") from error
    return parse_waivers(raw, str(path), checks, today)


def parse_waivers(raw: bytes, name: str, checks: Iterable[str], today: date) -> list[Waiver]:
    """The same from the file's content."""
    if len(raw) > MAX_BYTES:
        raise WaiverError(f"{name}: larger than {MAX_BYTES >> 20} MiB, no waiver file is")
    known = list(checks)
    entries = _entries(_compose(raw, name), name)
    return [_waiver(entry, name, known, today) for entry in (entries.value if entries is not None else ())]


def waiver_file(given: str, configured: str) -> Path | None:
    """The file that counts: --waivers, else epdoctor.toml's, else ./waivers.yaml where there is one.

    Raises WaiverError where one that is named is not there."""
    for name, option in ((given, "--waivers"), (configured, "[waivers] file")):
        if name:
            if not Path(name).exists() or Path(name).is_dir():
                what = "a folder; give a file" if Path(name).is_dir() else "no such file"
                raise WaiverError(f"{option} {name}: {what}")
            return Path(name)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def _compose(raw: bytes, name: str) -> yaml.Node | None:
    """The YAML's nodes, each with its line; nothing is constructed, so that no tag does anything."""
    import yaml

    try:
        return yaml.compose(raw, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise WaiverError(f"{name}{line}: not YAML ({error.problem or error.context})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise WaiverError(f"{name}: not YAML ({str(error)[:120]})") from error


def _refuse(node: yaml.Node, name: str, text: str) -> NoReturn:
    raise WaiverError(f"{name}:{node.start_mark.line + 1}: {text}")


def _entries(root: yaml.Node | None, name: str) -> yaml.SequenceNode | None:
    """The list of entries; None: there is none yet."""
    import yaml

    node = root
    if isinstance(node, yaml.MappingNode):
        found = [value for key, value in node.value if getattr(key, "value", None) == "waivers"]
        if len(found) != 1 or len(node.value) != 1:
            _refuse(node, name, "give a list of waivers, or a mapping with nothing but `waivers`")
        node = found[0]
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
        return None
    if not isinstance(node, yaml.SequenceNode):
        _refuse(node, name, "give a list of waivers: - check: ...")
    return node


def _waiver(entry: yaml.Node, name: str, checks: list[str], today: date) -> Waiver:
    import yaml

    from epdoctor.catalog import did_you_mean

    if not isinstance(entry, yaml.MappingNode):
        _refuse(entry, name, f"a waiver has the fields {', '.join(FIELDS)}")
    values: dict[str, tuple[str, yaml.Node]] = {}
    for key, value in entry.value:
        field = key.value if isinstance(key, yaml.ScalarNode) else ""
        if field not in FIELDS:
            _refuse(key, name, f"unknown field {str(field)[:60]!r}{did_you_mean(str(field), FIELDS)}")
        if field in values:
            _refuse(key, name, f"{field} is there twice")
        values[field] = (_text(value, name, field), value)

    def get(field: str) -> str:
        return values[field][0] if field in values else ""

    for field in ("check", "reason"):
        if not get(field):
            _refuse(values[field][1] if field in values else entry, name, f"{field} is missing")
    check = get("check").rstrip(".")
    if not any(check_id == check or check_id.startswith(check + ".") for check_id in checks):
        parts = {part for i in checks for part in (i, i.partition(".")[0])}
        _refuse(
            values["check"][1], name, f"no check or prefix {check[:80]!r}{did_you_mean(check, sorted(parts))}"
        )
    if get("nodes"):
        try:
            node_matcher(get("nodes"))
        except NodeNamesError as error:
            _refuse(values["nodes"][1], name, f"nodes: {error}")
    expires = get("expires")
    last = None
    if expires:
        try:
            last = date.fromisoformat(expires)
        except ValueError:
            last = None
        if last is None or expires != last.isoformat():
            _refuse(
                values["expires"][1], name, f"expires {expires[:40]!r} is not a date such as {today.year + 1}-01-31"
            )  # fmt: skip
    return Waiver(
        check,
        get("reason"),
        get("nodes"),
        expires,
        get("owner"),
        Location(name, entry.start_mark.line + 1),
        expired=last is not None and last < today,
    )


def _text(node: yaml.Node, name: str, field: str) -> str:
    """A scalar's text in one line; of `nodes` also a list's."""
    import yaml

    if isinstance(node, yaml.SequenceNode) and field == "nodes":
        return ",".join(_text(item, name, "") for item in node.value)
    if not isinstance(node, yaml.ScalarNode):
        _refuse(node, name, f"{field or 'a node'} must be a text")
    if node.tag == "tag:yaml.org,2002:null":
        return ""
    return " ".join(node.value.split())


# ---------------------------------------------------------------- on findings (pure)


def apply_waivers(findings: Sequence[Finding], waivers: Sequence[Waiver]) -> list[Finding]:
    """The findings, with a waiver where one fits what failed or is unknown.

    One that has expired is noted and waives nothing. A finding of the whole cluster is waived problem by problem:
    by a waiver for every node, or for all nodes that the problem names. Our own bugs are never waived."""
    if not waivers:
        return list(findings)
    by_check: dict[str, list[Waiver]] = {}
    result: list[Finding] = []
    for finding in findings:
        if finding.status not in (Status.FAIL, Status.UNKNOWN):
            result.append(finding)
            continue
        if finding.check not in by_check:
            # One in force before one that has expired.
            fit = (w for w in waivers if finding.check == w.check or finding.check.startswith(w.check + "."))
            by_check[finding.check] = sorted(fit, key=lambda waiver: waiver.expired)
        mine = by_check[finding.check]
        if not mine:
            result.append(finding)
        elif finding.node or not finding.problems:
            result.append(_with(finding, _first(mine, (finding.node,) if finding.node else ())))
        else:
            result += _by_problem(finding, mine)
    return result


def _first(waivers: list[Waiver], nodes: tuple[str, ...]) -> Waiver | None:
    """The first that covers all these nodes; without nodes only one for every node does."""
    for waiver in waivers:
        if not waiver.nodes or (nodes and all(node_matcher(waiver.nodes)(node) for node in nodes)):
            return waiver
    return None


def _with(finding: Finding, waiver: Waiver | None) -> Finding:
    if waiver is None:
        return finding
    return replace(finding, waiver=waiver, waived="" if waiver.expired else waiver.reason)


def _by_problem(finding: Finding, waivers: list[Waiver]) -> list[Finding]:
    """A cluster finding, split where only a part of its problems is waived."""
    parts: dict[Waiver | None, list[int]] = {}
    for index, problem in enumerate(finding.problems):
        parts.setdefault(_first(waivers, problem.odd_nodes), []).append(index)
    if len(parts) == 1:
        return [_with(finding, next(iter(parts)))]
    return [
        _with(replace(finding, problems=tuple(finding.problems[i] for i in indexes)), waiver)
        for waiver, indexes in parts.items()
    ]


def waiver_text(waiver: Waiver) -> str:
    """In one line, for people: "reason (until 2026-12-12, anna)"; of an expired one: "expired 2026-11-01: ..."."""
    if waiver.expired:
        return f"expired {waiver.expires}{f', {waiver.owner}' if waiver.owner else ''}: {waiver.reason}"
    more = ", ".join(filter(None, (f"until {waiver.expires}" if waiver.expires else "", waiver.owner)))
    return f"{waiver.reason} ({more})" if more else waiver.reason


def expiry_warnings(waivers: Iterable[Waiver]) -> list[str]:
    """A line for each that has expired."""
    return [
        f"{waiver.location}: the waiver of {waiver.check} expired on {waiver.expires}; what it waived counts again"
        for waiver in waivers
        if waiver.expired
    ]


def stray_warnings(waivers: Iterable[Waiver], findings: Iterable[Finding], nodes: Sequence[str]) -> list[str]:
    """A line for each whose node pattern fits no node of the run, where its check did fail: a typing error, or the
    name of a group, which nothing but the inventory knows."""
    failed = {finding.check for finding in findings if finding.status is Status.FAIL and not finding.waived}
    return [
        f"{waiver.location}: nodes {waiver.nodes} fits no node of this run (names and patterns, no groups)"
        for waiver in waivers
        if waiver.nodes
        and not waiver.expired
        and any(check == waiver.check or check.startswith(waiver.check + ".") for check in failed)
        and not any(map(node_matcher(waiver.nodes), nodes))
    ]


# ---------------------------------------------------------------- a new entry


def entry_text(waiver: Waiver, indent: str = "") -> str:
    """A waiver as an entry of the file; every value is quoted where YAML could read it as something else."""
    lines = [
        f"{key}: {_scalar(getattr(waiver, key))}" for key in FIELDS if getattr(waiver, key)
    ]  # expires is a plain date
    return "".join(f"{indent}{'- ' if index == 0 else '  '}{line}\n" for index, line in enumerate(lines))


def _scalar(text: str) -> str:
    import yaml

    shown: str = yaml.safe_dump(text, width=10**6, allow_unicode=True, default_flow_style=True)
    shown = shown.removesuffix("\n").removesuffix("\n...")
    try:
        date.fromisoformat(text)
    except ValueError:
        return shown
    return text


def with_entry(text: str, waiver: Waiver, name: str, checks: Mapping[str, Check], today: date) -> str:
    """The file's new text: the entry behind the last one, and everything else as it was, comments too.

    Raises WaiverError where the file is wrong already, or written in a way that cannot be added to."""
    before = parse_waivers(text.encode(), name, checks, today)
    root = _compose(text.encode(), name)
    entries = _entries(root, name)
    if entries is None or not entries.value:
        bare = "".join(line for line in text.splitlines(keepends=True) if line.lstrip()[:1] in ("#", ""))
        new = (bare or _HEADER) + ("" if not bare or bare.endswith("\n") else "\n") + entry_text(waiver)
    elif entries.flow_style:
        _refuse(entries, name, "this list is written in [brackets]; write it as lines that start with -")
    else:
        lines = text.splitlines(keepends=True)
        at = _end_line(entries.value[-1], lines)
        if at and not lines[at - 1].endswith("\n"):
            lines[at - 1] += "\n"
        new = "".join(lines[:at]) + entry_text(waiver, " " * entries.start_mark.column) + "".join(lines[at:])
    after = parse_waivers(new.encode(), name, checks, today)
    if [replace(w, location=None) for w in after] != [replace(w, location=None) for w in (*before, waiver)]:
        raise WaiverError(
            f"{name}: cannot be added to; write the entry by hand", hint=entry_text(waiver).replace("\n", " ")
        )
    return new


def _end_line(last: yaml.Node, lines: list[str]) -> int:
    """Index of the line behind the last entry's last line; comments and blanks below it stay below."""
    mark = last.end_mark
    at: int = min(mark.line + (1 if mark.column else 0), len(lines))
    while at > last.start_mark.line + 1 and lines[at - 1].strip()[:1] in ("", "#"):
        at -= 1
    return at


def add_waiver(path: Path, waiver: Waiver, checks: Mapping[str, Check], today: date) -> None:
    """Write the entry into the file, replaced at once or not at all. Raises WaiverError."""
    from epdoctor.atomic_file import replace_file

    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise WaiverError(f"{path}: {error}") from error
    new = with_entry(text, waiver, str(path), checks, today)
    try:
        replace_file(path.resolve(), new.encode())
    except OSError as error:
        raise WaiverError(f"{path}: {error.strerror or error}") from error
