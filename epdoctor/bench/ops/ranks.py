"""Run one process a GPU and pass on what they say. PARAMS:

pythons   interpreters to try, in order; the first that finds every module of `modules` runs `source`
source    Python source for each rank; or `nvcc` + `cuda` (source text) + `flags`: compiled first, in PARAMS["tmp"]
ranks     [{"rank", "local_rank", "gpu"}] to start here
env       variables for all of them; params: what they get as $EPDOCTOR_PARAMS
tmp_env   names of variables that get PARAMS["tmp"], a folder that goes with the operation
uid       text for the stdin of each rank but 0; without it, rank 0's value {"uid": ...} is given to the others here

Emits {"missing": ...} and ends, or {"rank": N, ...} for each value and {"rank": N, "rc": status} at a rank's end.
A rank that fails ends the others after GRACE_S: they would wait for it for ever."""

import json
import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 3.0


def chosen_python():
    """(interpreter, words): the words say what was tried where none fits."""
    tried = []
    probe = "import importlib.util,sys;sys.exit(not all(importlib.util.find_spec(m) for m in sys.argv[1:]))"
    for python in PARAMS["pythons"]:
        try:
            found = subprocess.call(
                [python, "-Bc", probe] + PARAMS["modules"],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            found = 127
        if found == 0:
            return python
        tried.append(python)
    emit({"missing": "%s in %s" % (", ".join(PARAMS["modules"]), " or ".join(tried))})
    return None


def compiled():
    """Path of the program, or None."""
    folder = PARAMS["tmp"]
    source = os.path.join(folder, "ladder.cu")
    with open(source, "w") as file:
        file.write(PARAMS["cuda"])
    program = os.path.join(folder, "ladder")
    words = [PARAMS["nvcc"], "-O3", "-std=c++17", source, "-o", program] + PARAMS["flags"]
    try:
        done = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=2, stderr=2)
        status = done.wait()
    except OSError as error:
        emit({"missing": "%s: %s" % (PARAMS["nvcc"], error.strerror)})
        return None
    if status:
        emit({"missing": "nvcc could not compile the test (status %d)" % status})
        return None
    return program


def start(argv, rank):
    env = dict(os.environ)
    env.update(PARAMS["env"])
    env.update((name, PARAMS["tmp"]) for name in PARAMS.get("tmp_env", []))
    env.update(
        RANK=str(rank["rank"]),
        LOCAL_RANK=str(rank["local_rank"]),
        EPDOCTOR_PARAMS=json.dumps(PARAMS["params"]),
        PYTHONDONTWRITEBYTECODE="1",
        LC_ALL="C",
    )
    reader, writer = os.pipe()

    def in_child():
        os.dup2(writer, 3)
        os.set_inheritable(3, True)  # also where it was descriptor 3 already

    # The pipe's end becomes descriptor 3; close_fds would take it away again.
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=2, stderr=2, env=env, preexec_fn=in_child, close_fds=False
    )
    os.close(writer)
    os.set_blocking(reader, False)
    return {"process": process, "reader": reader, "rest": b"", "rank": rank["rank"], "ended": False}


def tell(one, uid):
    try:
        one["process"].stdin.write(uid.encode("ascii") + b"\n")
        one["process"].stdin.flush()
    except OSError:
        pass


def read(one):
    """Values so far; sets "closed" at the end of the pipe."""
    values = []
    while True:
        try:
            part = os.read(one["reader"], 65536)
        except BlockingIOError:
            break
        if not part:
            one["closed"] = True
            break
        one["rest"] += part
    lines = one["rest"].split(b"\n")
    one["rest"] = lines.pop()
    for line in lines:
        try:
            value = json.loads(line.decode("utf-8", "replace"))
        except ValueError:
            continue
        if isinstance(value, dict):
            values.append(value)
    return values


def main():
    if "cuda" in PARAMS:
        program = compiled()
        argv = [program]
    else:
        program = chosen_python()
        argv = [program, "-Bc", PARAMS["source"]]
    if program is None:
        return
    emit({"program": program})
    running = [start(argv, rank) for rank in PARAMS["ranks"]]
    if PARAMS.get("uid"):
        for one in running:
            tell(one, PARAMS["uid"])
    give_up = None
    while any(not one["ended"] for one in running):
        alive = [one for one in running if not one["ended"]]
        select.select([one["reader"] for one in alive if not one.get("closed")], [], [], 0.1)
        for one in alive:
            for value in read(one):
                emit(dict(value, rank=one["rank"]))
                if "uid" in value:
                    for other in running:
                        if other is not one:
                            tell(other, value["uid"])
            status = one["process"].poll()
            if status is None or not one.get("closed"):
                if give_up is not None and time.time() > give_up:
                    one["process"].send_signal(signal.SIGKILL)
                    one["closed"] = True
                continue
            one["ended"] = True
            emit({"rank": one["rank"], "rc": status})
            if status and give_up is None:
                give_up = time.time() + GRACE_S


main()
sys.stdout.flush()
