"""One end of a perftest program (ib_write_bw, ib_write_lat): PARAMS

argv      program and its words, without port and peer
host      of the server; "" to be the server: then a free port is chosen, and said once it listens
port      of the server, for the client
device, ib_port    whose counters tell retransmissions
limit_s   after which it is ended

Emits {"missing": program}, or as server {"listening": port}, and at the end {"rc", "stdout", "stderr", "seconds",
"resent"}; rc is "timeout" where the limit ended it. resent: packets that this side had to send again, or null."""

import os
import signal
import socket
import subprocess
import tempfile
import time

RESENT = ("packet_seq_err", "local_ack_timeout_err", "implied_nak_seq_err", "completer_retry_err")
# Linux Documentation/ABI/stable/sysfs-class-infiniband: what the requester counts; the last one is rdma_rxe's.


def resent():
    folder = "/sys/class/infiniband/%s/ports/%d/hw_counters/" % (PARAMS["device"], PARAMS["ib_port"])
    total, seen = 0, False
    for name in RESENT:
        try:
            with open(folder + name) as file:
                total += int(file.read())
                seen = True
        except (OSError, ValueError):
            pass
    return total if seen else None


def free_port():
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("", 0))
    number = listener.getsockname()[1]
    listener.close()
    return number


def listens(port):
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path) as file:
                for line in file:
                    words = line.split()
                    if len(words) > 3 and words[3] == "0A" and words[1].endswith(":%04X" % port):
                        return True
        except OSError:
            pass
    return False


def main():
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        run(out, err)


def run(out, err):
    port = PARAMS.get("port") or free_port()
    argv = PARAMS["argv"] + ["-p", str(port)] + ([PARAMS["host"]] if PARAMS["host"] else [])
    before = resent()
    began = time.time()
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(os.environ, LC_ALL="C")
        )
    except OSError as error:
        emit({"missing": argv[0], "text": os.strerror(error.errno)})
        return
    said = bool(PARAMS["host"])
    status = None
    while time.time() - began < PARAMS["limit_s"]:
        status = process.poll()
        if status is not None:
            break
        if not said and listens(port):
            emit({"listening": port})
            said = True
        time.sleep(0.02)
    if status is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
        status = "timeout"
    texts = []
    for file in (out, err):
        file.seek(0)
        texts.append(file.read(65536).decode("utf-8", "replace"))
    after = resent()
    emit(
        {
            "rc": status, "stdout": texts[0], "stderr": texts[1], "seconds": round(time.time() - began, 3),
            "resent": after - before if after is not None and before is not None else None,
        }
    )  # fmt: skip


main()
