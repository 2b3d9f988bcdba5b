"""Connect to listeners of tcp_serve and move bytes both ways: PARAMS targets [{"node", "host", "port", "echo"}],
token, bytes, timeout_s, transfer_s, slow_ms. Emits one {"node", "port", "ok", ...} for each target, as it ends.
A connect slower than slow_ms is tried again when all others are done, and the faster one counts: many at once make
a small machine slow, a path that loses packets stays slow.

A connection that stalls after its first bytes is how a path with too small an MTU looks to TCP. One that trickles
is "slow" after transfer_s, so that it holds up nobody."""

import errno
import os
import socket
import threading
import time

TOKEN = PARAMS["token"].encode("ascii")
PAYLOAD = os.urandom(4096) * (PARAMS["bytes"] // 4096)
LOCK = threading.Lock()
IP_MTU, IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h
AT_ONCE = 32


class SlowError(OSError):
    """Bytes come, but not in time."""


def name_of(error):
    if isinstance(error, SlowError):
        return "slow"
    if isinstance(error, socket.timeout):
        return "timeout"
    if isinstance(error, socket.gaierror):
        return "name"
    return errno.errorcode.get(error.errno, "EIO")


def read_exactly(connection, size, into):
    deadline = time.monotonic() + PARAMS["transfer_s"]
    while into[0] < size:
        if time.monotonic() > deadline:
            raise SlowError
        data = connection.recv(min(65536, size - into[0]))
        if not data:
            raise OSError(errno.ECONNRESET, "closed")
        into[0] += len(data)


def probe(target, again=False):
    found = {"node": target["node"], "port": target["asked"], "ok": False}
    began = time.monotonic()
    connection = None
    stage, got = "connect", [0]
    try:
        connection = socket.create_connection((target["host"], target["port"]), PARAMS["timeout_s"])
        found["connect_ms"] = round((time.monotonic() - began) * 1e3, 3)
        found["local"] = connection.getsockname()[0]
        if target["echo"]:
            stage = "greet"
            connection.sendall(TOKEN)
            answer = connection.recv(len(TOKEN), socket.MSG_WAITALL)
            if answer != TOKEN:
                raise OSError(errno.EPROTO, "another program answers")
            stage = "transfer"
            began = time.monotonic()
            sender = threading.Thread(target=send, args=(connection,))
            sender.daemon = True
            sender.start()
            read_exactly(connection, len(PAYLOAD), got)
            found["mb_s"] = round(2 * len(PAYLOAD) / 1e6 / max(time.monotonic() - began, 1e-6), 1)
        ipv6 = connection.family == socket.AF_INET6
        try:
            level, option = (socket.IPPROTO_IPV6, IPV6_MTU) if ipv6 else (socket.IPPROTO_IP, IP_MTU)
            found["path_mtu"] = connection.getsockopt(level, option)
            found["mss"] = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        except OSError:
            pass
        found["ok"] = True
    except OSError as error:
        found["error"], found["stage"], found["bytes"] = name_of(error), stage, got[0]
        found["limit_s"] = PARAMS["transfer_s"]
    finally:
        if connection is not None:
            connection.close()
    with LOCK:
        if not again and found["ok"] and found["connect_ms"] > PARAMS["slow_ms"]:
            slow.append(target)
        else:
            emit(found)


def send(connection):
    try:
        connection.sendall(PAYLOAD)
    except OSError:
        pass


def work(queue):
    while True:
        try:
            target = queue.pop()
        except IndexError:
            return
        probe(target)


slow = []
queue = list(reversed(PARAMS["targets"]))
threads = [threading.Thread(target=work, args=(queue,)) for _ in range(min(AT_ONCE, len(queue)))]
for thread in threads:
    thread.daemon = True
    thread.start()
for thread in threads:
    thread.join()
for target in slow:
    probe(target, again=True)
