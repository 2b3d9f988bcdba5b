"""Talk to a running QEMU (QMP) and to the agent inside its guest, over their Unix sockets."""

import base64
import json
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab.requirements import LabError


class JsonSocket:
    """One JSON object a line, both ways; an answer holds ``return`` or ``error``."""

    def __init__(self, path: Path, *, greeting: bool) -> None:
        self._path, self._greeting = path, greeting
        self._socket: socket.socket | None = None
        self._rest = b""
        self._lock = threading.Lock()

    def call(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = 30) -> Any:
        """Send one command and return its answer. Raises LabError, also after the time-out."""
        with self._lock:
            try:
                return self._call(command, arguments, timeout_s)
            except OSError as error:
                raise LabError(f"{self._path.name}: {command}: {error}") from error
            finally:
                self._close()  # QEMU's end takes one client at a time: another process may want the machine

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""

    def _call(self, command: str, arguments: Mapping[str, Any] | None, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        if self._socket is None:
            self._connect(deadline)
        self._send({"execute": command, **({"arguments": dict(arguments)} if arguments else {})})
        while True:
            answer = self._receive(deadline)
            if "error" in answer:
                raise LabError(f"{command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def _connect(self, deadline: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(max(0.1, deadline - time.monotonic()))
        self._socket.connect(str(self._path))
        if self._greeting:
            self._receive(deadline)
            self._send({"execute": "qmp_capabilities"})
            while "return" not in self._receive(deadline):
                pass
            return
        # The guest's end may hold half an answer to somebody else: 0xff makes it start afresh.
        mark = time.monotonic_ns() & 0x7FFFFFFF
        self._socket.sendall(b"\xff")
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": mark}})
        while self._receive(deadline).get("return") != mark:
            pass

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._socket is not None
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._socket is not None
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                text = line.split(b"\xff")[-1].strip()
                if not text:
                    continue
                try:
                    answer = json.loads(text)
                except ValueError:
                    continue  # the tail of an answer cut by a restart
                return answer if isinstance(answer, dict) else {}
            self._socket.settimeout(max(0.05, deadline - time.monotonic()))
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("closed")
            self._rest += data


def guest_run(
    agent: JsonSocket, argv: Sequence[str], *, text: str | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a program in the guest as root and wait for its end. Raises LabError on a time-out."""
    deadline = time.monotonic() + timeout_s
    start: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    if text is not None:
        start["input-data"] = base64.b64encode(text.encode()).decode()
    pid = agent.call("guest-exec", start, timeout_s=timeout_s)["pid"]
    pause_s = 0.02
    while True:
        status = agent.call("guest-exec-status", {"pid": pid})
        if status["exited"]:
            break
        if time.monotonic() > deadline:
            raise LabError(f"{argv[0]}: not ended after {timeout_s:.0f} s")
        time.sleep(pause_s)
        pause_s = min(0.3, pause_s * 1.5)
    out, err = (
        base64.b64decode(status.get(name, "")).decode(errors="replace") for name in ("out-data", "err-data")
    )
    code = status.get("exitcode", -int(status.get("signal", 0)))
    return subprocess.CompletedProcess(list(argv), code, out, err)
