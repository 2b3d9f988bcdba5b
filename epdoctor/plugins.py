"""Checks whose judging is an executable in DIR/plugins, in any language: the rule `plugin`.

It runs where epdoctor runs, never on a node, with the rights of whoever named DIR. It gets a node's record as one
JSON object on its standard input and prints its verdict as JSON. What it prints is a stranger's text: anything
that is no verdict makes the check unknown.

epdoctor/site_checks.py registers it when it loads a folder: no check of epdoctor's own uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from epdoctor.exceptions import Unmeasured
from epdoctor.facts import Node
from epdoctor.model import Problem, Severity
from epdoctor.rules import NotApplicable

TIME_LIMIT_S = 10.0
MAX_OUTPUT_BYTES = 1 << 20
MAX_PROBLEMS = 100
MAX_TEXT = 2000
_TEXTS = {"found", "expected", "subject"}
_LISTS = {"evidence", "now", "permanent"}


def plugin(node: Node, *, run: str, time_limit_s: float = TIME_LIMIT_S) -> Iterator[Problem]:
    """The verdict of an executable on this node's record."""
    status, out, err = _run(run, _record(node), time_limit_s)
    name = Path(run).name
    if status != 0:
        said = err.decode("utf-8", "replace").strip().splitlines()
        how = f"exit {status}" if status > 0 else f"killed by signal {-status}"
        raise Unmeasured(f"plugins/{name}: {how}" + (f": {said[-1][:200]}" if said else ""))
    yield from verdict(out, f"plugins/{name}")


def _record(node: Node) -> bytes:
    goal = asdict(node.goal)
    return json.dumps(
        {
            "schema": 1,
            "node": node.name,
            "root": node.root,
            "goal": {key: goal[key] for key in ("backend", "multinode", "vllm_version")},
            "options": asdict(node.options),
            "probes": node.source.probes,
        }
    ).encode("utf-8", "backslashreplace")


def _run(path: str, record: bytes, time_limit_s: float) -> tuple[int, bytes, bytes]:
    """Status, output and errors. Raises Unmeasured where it cannot start, takes too long or prints too much."""
    name = f"plugins/{Path(path).name}"
    deadline = time.monotonic() + time_limit_s
    # A file and not a pipe for its input: a plugin that does not read cannot block us.
    with tempfile.TemporaryFile() as stdin:
        stdin.write(record)
        stdin.seek(0)
        try:
            child = subprocess.Popen(
                [path],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=os.path.dirname(path),  # noqa: PTH120 - a string for Popen
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise Unmeasured(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    try:
        out, err = _read(child, name, deadline, time_limit_s)
        return child.wait(timeout=1), out, err
    except subprocess.TimeoutExpired as error:
        raise Unmeasured(f"{name}: closed its output and did not end") from error
    finally:
        # Also when the plugin itself has ended: what it started must not outlive it.
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1)
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


def _read(
    child: subprocess.Popen[bytes], name: str, deadline: float, time_limit_s: float
) -> tuple[bytes, bytes]:
    assert child.stdout is not None
    assert child.stderr is not None
    parts: dict[int, bytearray] = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for fd in parts:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise Unmeasured(f"{name}: no answer within {time_limit_s:g} s")
            ended = child.poll() is not None
            ready = selector.select(0.0 if ended else min(left, 0.05))
            if ended and not ready:
                break  # something that it started holds the pipe open
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fd)
                parts[key.fd] += data
                if len(parts[key.fd]) > MAX_OUTPUT_BYTES:
                    raise Unmeasured(f"{name}: printed more than {MAX_OUTPUT_BYTES >> 20} MiB")
    return bytes(parts[child.stdout.fileno()]), bytes(parts[child.stderr.fileno()])


def verdict(out: bytes, name: str) -> Iterator[Problem]:
    """A plugin's JSON as problems: a list of them, or {"problems": [...]}, {"skip": why}, {"unknown": why}.

    Raises NotApplicable for skip, Unmeasured for unknown and for whatever is no verdict."""
    try:
        value = json.loads(out)
    except (ValueError, RecursionError) as error:
        shown = out[:60].decode("utf-8", "replace").strip()
        raise Unmeasured(f"{name}: printed no JSON" + (f" but {shown!r}" if shown else "")) from error
    if isinstance(value, dict):
        for key, state in (("skip", NotApplicable), ("unknown", Unmeasured)):
            if value.keys() == {key} and isinstance(value[key], str):
                raise state(value[key][:MAX_TEXT] or name)
        if value.keys() != {"problems"}:
            raise Unmeasured(f'{name}: wants a list, or an object with one of "problems", "skip", "unknown"')
        value = value["problems"]
    if not isinstance(value, list):
        raise Unmeasured(f"{name}: problems must be a list")
    if len(value) > MAX_PROBLEMS:
        raise Unmeasured(f"{name}: {len(value)} problems, more than {MAX_PROBLEMS}")
    # All of them first: half an answer would look like a whole one.
    yield from [_problem(item, f"{name}, problem {number}") for number, item in enumerate(value, 1)]


def _problem(item: Any, name: str) -> Problem:
    if not isinstance(item, Mapping):
        raise Unmeasured(f"{name}: not an object")
    unknown = item.keys() - _TEXTS - _LISTS - {"severity"}
    if unknown:
        raise Unmeasured(f"{name}: unknown key {min(unknown)[:40]!r}")
    texts = {key: item.get(key, "") for key in _TEXTS}
    lists = {key: item.get(key, []) for key in _LISTS}
    if not all(isinstance(text, str) for text in texts.values()) or not texts["found"].strip():
        raise Unmeasured(f"{name}: found, expected and subject are texts, and found is needed")
    if not all(
        isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in lists.values()
    ):
        raise Unmeasured(f"{name}: evidence, now and permanent are lists of texts")
    try:
        severity = Severity(item["severity"]) if "severity" in item else None
    except (ValueError, TypeError) as error:
        raise Unmeasured(f"{name}: severity is error, warning or info") from error
    return Problem(
        found=texts["found"][:MAX_TEXT],
        expected=texts["expected"][:MAX_TEXT] or "see the check's page",
        subject=texts["subject"][:MAX_TEXT],
        evidence=tuple(line[:MAX_TEXT] for line in lists["evidence"][:50]),
        now=tuple(line[:MAX_TEXT] for line in lists["now"][:20]),
        permanent=tuple(line[:MAX_TEXT] for line in lists["permanent"][:20]),
        severity=severity,
    )
