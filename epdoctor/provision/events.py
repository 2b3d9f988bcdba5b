"""From ansible-runner's events to a RunResult. Pure: the same events give the same result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from epdoctor.collect.redact import redact_text
from epdoctor.provision.advice import sudo_words
from epdoctor.provision.result import Change, Failure, Remark, RunResult

_PLAY = re.compile(r"Component ([a-z_]{1,40})\Z")
_REMARKS = ("note", "absent", "left-alone", "reboot", "restart", "by-hand", "refused")
_GENERIC = (
    "One or more items failed",
    "non-zero return code",
    "All items completed",
    # What came instead of a module's answer says why: a login shell's noise, or sudo's refusal.
    "Module result deserialization failed",
    "MODULE FAILURE",
)


@dataclass
class EventReader:
    """Feeds on events in their order; `task` and `component` say what runs now."""

    result: RunResult
    component: str = ""
    task: str = ""
    max_fail_percent: float = 100
    """max_fail_percentage of the plays."""
    _batch: set[str] = field(default_factory=set)
    """Nodes of the play that runs now."""
    _items: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """(node, task uuid) -> errors of single loop items."""

    def feed(self, event: Mapping[str, Any]) -> None:
        """One event of ansible-runner (its `event` and `event_data`). Unknown ones are passed over."""
        kind = event.get("event")
        data = event.get("event_data")
        if not isinstance(data, Mapping):
            return
        if kind in ("playbook_on_play_start", "playbook_on_stats") and self.component:
            self._end_of_batch(last=kind == "playbook_on_stats")
        if kind == "playbook_on_play_start":
            match = _PLAY.match(str(data.get("name", "")))
            self.component = match.group(1) if match else ""
            # The next batch of --serial is a play of the same name.
            self.result.finished.discard(self.component)
            self._batch.clear()
        elif kind == "playbook_on_task_start":
            self.task = str(data.get("task", ""))
        node, res = data.get("host"), data.get("res")
        if isinstance(node, str) and str(kind).startswith("runner_on_"):
            self.result.visited.add((self._component(data), node))
            self._batch.add(node)
        if not isinstance(node, str) or not isinstance(res, Mapping):
            return
        if kind == "runner_on_unreachable":
            # Ansible puts ssh's own words behind its own.
            words = _first_line(str(res.get("msg", "unreachable")))
            for prefix in ("over ssh:", "via ssh:"):
                words = words.rpartition(prefix)[2].strip()
            # A shared connection that breaks has no words.
            self.result.unreachable[node] = words or "the SSH connection broke off"
            self.result.lost[node] = (self._component(data), _task_name(data))
        elif kind == "runner_item_on_failed":
            self._items.setdefault((node, str(data.get("task_uuid"))), []).append(error_text(res))
        elif kind == "runner_on_failed" and not data.get("ignore_errors"):
            own = self._items.get((node, str(data.get("task_uuid"))), [])
            error = own[0] if own else error_text(res)
            where = short_path(str(data.get("task_path", "")))
            self.result.failures.append(Failure(node, self._component(data), _task_name(data), error, where))
        elif kind in ("runner_on_ok", "runner_item_on_ok"):
            self._ok(node, data, res, item=kind == "runner_item_on_ok")

    def _end_of_batch(self, *, last: bool) -> None:
        """Whether the play was seen to its end: Ansible ends a run in which too many nodes of a batch failed,
        and then the others of that batch did not come to the end either."""
        lost = {failure.node for failure in self.result.failures if failure.component == self.component}
        lost |= self.result.unreachable.keys()
        share = 100 * len(lost & self._batch) / max(1, len(self._batch))
        if not last or share <= self.max_fail_percent:
            self.result.finished.add(self.component)

    def _component(self, data: Mapping[str, Any]) -> str:
        match = _PLAY.match(str(data.get("play", "")))
        return match.group(1) if match else self.component

    def _ok(self, node: str, data: Mapping[str, Any], res: Mapping[str, Any], *, item: bool) -> None:
        task, component = _task_name(data), self._component(data)
        said = res.get("msg")
        if isinstance(said, Mapping) and said.get("epdoctor") == "change":
            # Check mode skips commands without a word in the event; the role says what it would run.
            self.result.changes.append(Change(node, component, str(said.get("text", ""))))
            return
        if isinstance(said, Mapping) and said.get("epdoctor") in _REMARKS:
            remark = Remark(node, component, str(said["epdoctor"]), str(said.get("text", "")))
            if remark not in self.result.remarks:
                self.result.remarks.append(remark)
            return
        if isinstance(res.get("stdout"), str):
            self.result.outputs[node, task] = res["stdout"]
        if not res.get("changed") or (not item and isinstance(res.get("results"), list)):
            return  # a loop's sum; its items came one by one
        thing = res.get("item")
        if isinstance(thing, Mapping) and isinstance(thing.get("key"), str):
            self.result.changes.append(Change(node, component, thing["key"], diff_text(res)))
        elif isinstance(thing, str):
            self.result.changes.append(Change(node, component, f"{task}: {thing}"))
        else:
            self.result.changes.append(Change(node, component, task))


def _task_name(data: Mapping[str, Any]) -> str:
    """ "limits : Write the file" -> "Write the file"."""
    return str(data.get("task", "")).rpartition(" : ")[2]


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return (lines[-1] if lines else "")[:400]


def error_text(res: Mapping[str, Any]) -> str:
    """The task's own error in one line: a command's last words rather than "non-zero return code"."""
    message = str(res.get("msg", "")).strip().removeprefix("Task failed: ")
    if res.get("censored"):
        return "the task failed; its output is hidden (no_log)"
    if message and not message.startswith(_GENERIC):
        return " ".join(message.split())[:600]
    command = res.get("cmd")
    name = " ".join(str(word) for word in command[:4]) if isinstance(command, list) else str(command or "")
    if name.startswith("sh -c "):
        name = "its script"  # which says nothing to a person; the task has a name
    refused = sudo_words(f"{res.get('module_stderr') or ''}\n{res.get('module_stdout') or ''}")
    if refused:
        return refused[:400]
    for stream in ("stderr", "stdout", "module_stderr", "module_stdout", "exception"):
        words = _first_line(str(res.get(stream) or ""))
        if words:
            return f"{name} ended with {res.get('rc')}: {words}" if name else words
    return f"{name} ended with {res.get('rc')}" if name else message or "failed without a word"


def short_path(task_path: str) -> str:
    """ "/x/playbooks/roles/limits/tasks/main.yml:12" -> "roles/limits/tasks/main.yml:12"."""
    _, found, rest = task_path.rpartition("/playbooks/")
    return rest if found else task_path


def diff_text(res: Mapping[str, Any]) -> str:
    """Unified diff of what Ansible says about a file, without secrets; empty where it says nothing."""
    import difflib

    raw = res.get("diff")
    parts = raw if isinstance(raw, list) else [raw]
    out: list[str] = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("after"), str):
            continue
        before = part.get("before")
        before = before if isinstance(before, str) else ""
        out += difflib.unified_diff(
            before.splitlines(), part["after"].splitlines(), "before", "after", lineterm="", n=1
        )
    return redact_text("\n".join(out))
