"""Blocks of a KV cache's size from rank 0 to rank 1 by NIXL over UCX, bytes compared. Host memory, or GPU memory
with PARAMS["memory"] "VRAM" (then torch makes it). API: NIXL 1.x nixl/_api.py (nixl_agent, register_memory,
initialize_xfer); UCX picks the way, and its variables count as they do for a worker."""

import contextlib
import ctypes
import importlib
import json
import os
import socket
import struct
import sys
import time

PARAMS = json.loads(os.environ["EPDOCTOR_PARAMS"])
OUT = os.fdopen(3, "w")
RANK = int(os.environ["RANK"])
BLOCKS, SIZE = PARAMS["blocks"], PARAMS["block_bytes"]
TOTAL = BLOCKS * SIZE


def say(**value):
    OUT.write(json.dumps(value) + "\n")
    OUT.flush()


def imported():
    """The package that is installed: nixl picks one by itself, its wheels can be there alone."""
    errors = []
    for name in ("nixl", "nixl_cu13", "nixl_cu12"):
        try:
            module = importlib.import_module(name if name != "nixl" else "nixl._api")
            return name, module
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            errors.append("%s: %s" % (name, error))
    if errors:
        sys.exit(errors[0])
    say(missing="nixl in %s" % sys.executable)
    sys.exit(0)


def version(name):
    from importlib import metadata

    for package in (name.replace("_", "-"), "nixl-cu13", "nixl-cu12"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return ""


def connected():
    """A TCP connection between the two ranks, for what NIXL's user must exchange."""
    deadline = time.time() + PARAMS["timeout_s"]
    if RANK == 0:
        listener = socket.create_server((PARAMS["host"], PARAMS["port"]))
        listener.settimeout(PARAMS["timeout_s"])
        return listener.accept()[0]
    while True:
        try:
            return socket.create_connection((PARAMS["host"], PARAMS["port"]), timeout=5)
        except OSError:
            if time.time() > deadline:
                raise
            time.sleep(0.1)


def put(link, data):
    link.sendall(struct.pack("!I", len(data)) + data)


def take(link):
    def exactly(size):
        data = b""
        while len(data) < size:
            part = link.recv(size - len(data))
            if not part:
                sys.exit("the other rank is gone")
            data += part
        return data

    return exactly(struct.unpack("!I", exactly(4))[0])


class Memory:
    """TOTAL bytes on host or GPU."""

    def __init__(self):
        self.kind = PARAMS["memory"]
        if self.kind == "VRAM":
            import torch

            self.tensor = torch.zeros(TOTAL, dtype=torch.uint8, device="cuda:%s" % os.environ["LOCAL_RANK"])
            torch.cuda.synchronize()
            self.address, self.device = self.tensor.data_ptr(), int(os.environ["LOCAL_RANK"])
        else:
            self.buffer = (ctypes.c_uint8 * TOTAL)()
            self.address, self.device = ctypes.addressof(self.buffer), 0

    def fill(self, data):
        if self.kind == "VRAM":
            import torch

            self.tensor.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            torch.cuda.synchronize()
        else:
            ctypes.memmove(self.address, data, TOTAL)

    def bytes(self):
        return bytes(self.tensor.cpu().numpy()) if self.kind == "VRAM" else bytes(self.buffer)

    def blocks(self):
        return [(self.address + at * SIZE, SIZE, self.device) for at in range(BLOCKS)]


def pattern():
    block = bytes(bytearray((at * 31 + at // 251) & 255 for at in range(SIZE)))
    return b"".join(bytes([at & 255]) + block[1:] for at in range(BLOCKS))


name, module = imported()
agent = module.nixl_agent("epdoctor-%d" % RANK, module.nixl_agent_config(backends=["UCX"]))
memory = Memory()
agent.register_memory([(memory.address, TOTAL, memory.device, "")], memory.kind)
link = connected()
link.settimeout(PARAMS["timeout_s"])
put(link, agent.get_agent_metadata())
put(link, json.dumps(memory.blocks()).encode())
peer = agent.add_remote_agent(take(link))
peer = peer.decode() if isinstance(peer, bytes) else peer
theirs = [tuple(block) for block in json.loads(take(link).decode())]
say(started=True, nixl=version(name))
if RANK == 0:
    memory.fill(pattern())
    local = agent.get_xfer_descs(memory.blocks(), memory.kind)
    remote = agent.get_xfer_descs(theirs, memory.kind)
    times = []
    for _ in range(PARAMS["rounds"]):
        handle = agent.initialize_xfer("WRITE", local, remote, peer)
        began = time.perf_counter()
        state = agent.transfer(handle)
        while state not in ("DONE", "ERR"):
            state = agent.check_xfer_state(handle)
        times.append(time.perf_counter() - began)
        agent.release_xfer_handle(handle)
        if state == "ERR":
            sys.exit("the transfer ended with an error")
    put(link, b"look")
    right = take(link) == b"right"
    say(what="nixl", gb_s=round(TOTAL / min(times) / 1e9, 4), ms=round(min(times) * 1e3, 3), right=right)
else:
    take(link)
    put(link, b"right" if memory.bytes() == pattern() else b"wrong")
    # The other rank's answer is out before this end is torn down.
    link.settimeout(10)
    with contextlib.suppress(OSError):
        link.recv(1)
link.close()
