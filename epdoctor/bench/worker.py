"""The part of the ladder that runs on a node: starts operations on request and ends them all when we are gone.

One file, standard library only, Python 3.6 syntax, sent over the connection's own stdin; nothing is installed.
The controller writes JSON lines, one message each:

    {"ops": {name: source}}                                     sources of operations, before their first use
    {"id": 7, "op": name, "params": {...}, "timeout_s": 30, "tmp": false}
                                                                start one, in a child and session of its own;
                                                                with "tmp" it gets a folder, removed at its end
    {"tell": 7, "value": ...}                                   one line for the operation's hear()
    {"stop": 7}                                                 end it
    {"ping": 1}                                                 at least every DEADMAN_S / 2

and reads lines "@@epdoctor <nonce> JSON": {"hello": {...}}, {"id": 7, "value": ...} for each emit(value) of the
operation, and {"id": 7, "end": "ran" | "failed" | "timeout" | "stopped", "rc": 0, "stderr": "..."}.
When stdin ends, or nothing was heard for DEADMAN_S, everything that was started is killed.
"""

import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time

DEADMAN_S = 20.0
STDERR_BYTES = 16384
LINE_BYTES = 1 << 20


def send(nonce, message):
    line = ("@@epdoctor %s %s\n" % (nonce, json.dumps(message, separators=(",", ":"), default=str))).encode(
        "ascii", "backslashreplace"
    )
    while line:
        line = line[os.write(1, line) :]


def die_with_parent():
    """The kernel kills the operation when this worker dies of SIGKILL; without it only the session ends."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


class Operation(object):
    """One operation in flight: a child with its own session, pipes for its values, its stderr and what it is told."""

    def __init__(self, number, source, name, params, timeout_s, tmp):
        self.number = number
        self.tmp = tempfile.mkdtemp(prefix="epdoctor-") if tmp else ""
        if tmp:
            params = dict(params, tmp=self.tmp)
        self.rest = b""
        self.deadline = time.monotonic() + timeout_s
        self.end = ""
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        error_reader, error_writer = os.pipe()
        self.error_reader = error_reader
        os.set_blocking(self.error_reader, False)
        self.stderr = b""
        input_reader, self.input_writer = os.pipe()
        os.set_blocking(self.input_writer, False)
        self.untold = b""
        self.pid = os.fork()
        if self.pid == 0:
            run_operation(source, name, params, writer, error_writer, input_reader)
        os.close(writer)
        os.close(error_writer)
        os.close(input_reader)

    def tell(self, value):
        self.untold += json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
        self.pass_on()

    def pass_on(self):
        """As much of what it is to be told as the pipe takes now."""
        try:
            while self.untold:
                self.untold = self.untold[os.write(self.input_writer, self.untold) :]
        except BlockingIOError:
            pass
        except OSError:
            self.untold = b""  # it does not listen any more

    def kill(self, end):
        self.end = self.end or end
        for target in (-self.pid, self.pid):
            try:
                os.kill(target, signal.SIGKILL)
            except OSError:
                pass

    def drain(self):
        """(values so far, whether the pipe has ended)."""
        values = []
        while True:
            try:
                part = os.read(self.reader, 65536)
            except BlockingIOError:
                return values, False
            if not part:
                return values, True
            self.rest += part
            lines = self.rest.split(b"\n")
            self.rest = lines.pop()[-LINE_BYTES:]
            for line in lines:
                try:
                    values.append(json.loads(line.decode("utf-8", "replace")))
                except ValueError:
                    self.stderr += line + b"\n"  # a library that prints on stdout

    def drain_errors(self):
        while True:
            try:
                part = os.read(self.error_reader, 65536)
            except BlockingIOError:
                return
            if not part:
                return
            self.stderr = (self.stderr + part)[-STDERR_BYTES:]

    def close(self):
        os.close(self.reader)
        os.close(self.error_reader)
        os.close(self.input_writer)
        self.clean()

    def clean(self):
        if self.tmp:
            shutil.rmtree(self.tmp, ignore_errors=True)


def run_operation(source, name, params, writer, error_writer, input_reader):
    """In the forked child. Never returns."""
    code = 70
    try:
        os.setsid()
        die_with_parent()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        os.dup2(input_reader, 0)
        told = [b""]
        values = os.dup(writer)
        os.dup2(error_writer, 1)  # what an operation prints is a message, not a value
        os.dup2(error_writer, 2)
        os.set_inheritable(values, False)

        def emit(value):
            line = (
                json.dumps(value, separators=(",", ":"), default=str).encode("ascii", "backslashreplace")
                + b"\n"
            )
            while line:
                line = line[os.write(values, line) :]

        def hear():
            """The next value that the controller tells; waits for it. Raises EOFError when none can come."""
            while b"\n" not in told[0]:
                part = os.read(0, 65536)
                if not part:
                    raise EOFError("the controller is gone")
                told[0] += part
            line, told[0] = told[0].split(b"\n", 1)
            return json.loads(line.decode("utf-8"))

        names = {"PARAMS": params, "emit": emit, "hear": hear, "__name__": "operation"}
        exec(compile(source, name, "exec"), names)
        code = 0
    except BaseException as error:  # the child must end here, whatever happens
        try:
            words = ("%s: %s" % (type(error).__name__, error)).encode("utf-8", "backslashreplace")
            os.write(2, words[:4000])
        except OSError:
            pass
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            pass
        os._exit(code)


class Worker(object):
    def __init__(self, nonce):
        self.nonce = nonce
        self.running = {}
        self.sources = {}
        self.input = b""
        self.heard = time.monotonic()

    def end_all(self, *_):
        for operation in self.running.values():
            operation.kill("stopped")
            operation.clean()
        os._exit(0)

    def message(self, message):
        if "ops" in message:
            self.sources.update(message["ops"])
        elif "tell" in message:
            if message["tell"] in self.running:
                self.running[message["tell"]].tell(message.get("value"))
        elif "stop" in message:
            if message["stop"] in self.running:
                self.running[message["stop"]].kill("stopped")
        elif "op" in message:
            number = message["id"]
            source = self.sources.get(message["op"])
            if source is None:
                send(self.nonce, {"id": number, "end": "failed", "rc": 70, "stderr": "unknown operation"})
                return
            self.running[number] = Operation(
                number,
                source,
                message["op"],
                message.get("params", {}),
                message.get("timeout_s", 30.0),
                message.get("tmp", False),
            )

    def read_input(self):
        part = os.read(0, 65536)
        if not part:
            self.end_all()
        self.heard = time.monotonic()
        self.input += part
        lines = self.input.split(b"\n")
        self.input = lines.pop()
        for line in lines:
            if line.strip():
                self.message(json.loads(line.decode("utf-8")))

    def step(self):
        watched = (
            [0]
            + [op.reader for op in self.running.values()]
            + [op.error_reader for op in self.running.values()]
        )
        now = time.monotonic()
        ends = [op.deadline for op in self.running.values()] + [self.heard + DEADMAN_S]
        limit = 0.05 if any(op.end for op in self.running.values()) else max(0.0, min(min(ends) - now, 1.0))
        waiting = {op.input_writer: op for op in self.running.values() if op.untold}
        ready, writable, _ = select.select(watched, list(waiting), [], limit)
        for writer in writable:
            waiting[writer].pass_on()
        if 0 in ready:
            self.read_input()
        now = time.monotonic()
        if now - self.heard > DEADMAN_S:
            self.end_all()
        for operation in list(self.running.values()):
            operation.drain_errors()
            values, ended = operation.drain()
            for value in values:
                send(self.nonce, {"id": operation.number, "value": value})
            if now > operation.deadline and not operation.end:
                operation.kill("timeout")
            if ended or operation.end:
                self.reap(operation)

    def reap(self, operation):
        try:
            pid, status = os.waitpid(operation.pid, os.WNOHANG)
        except OSError:
            pid, status = operation.pid, 0
        if not pid:
            return
        # What it started belongs to its session.
        try:
            os.kill(-operation.pid, signal.SIGKILL)
        except OSError:
            pass
        values, _ = operation.drain()
        for value in values:
            send(self.nonce, {"id": operation.number, "value": value})
        operation.drain_errors()
        operation.close()  # before its end is told: what it had is gone by then
        rc = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        send(
            self.nonce,
            {
                "id": operation.number,
                "end": operation.end or ("ran" if rc == 0 else "failed"),
                "rc": rc,
                "stderr": operation.stderr.decode("utf-8", "backslashreplace"),
            },
        )
        del self.running[operation.number]

    def work(self):
        send(
            self.nonce,
            {
                "hello": {
                    "hostname": os.uname().nodename,
                    "uid": os.getuid(),
                    "python": "%d.%d" % sys.version_info[:2],
                }
            },
        )
        while True:
            self.step()


def main(nonce):
    worker = Worker(nonce)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, worker.end_all)
    try:
        worker.work()
    except BaseException as error:
        # Our reader went away while we wrote, or a bug of ours: nothing that we started may stay.
        try:
            os.write(
                2, ("%s: %s\n" % (type(error).__name__, error)).encode("utf-8", "backslashreplace")[:2000]
            )
        except OSError:
            pass
        worker.end_all()
