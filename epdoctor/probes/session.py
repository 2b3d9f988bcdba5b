"""What only a process of this session can tell: machine, C library, a few variables, the clock, its cgroup.

PARAMS: env (names), env_prefixes. Values of other variables never leave the node.
"""

import os
import struct
import time

STA_UNSYNC = 0x0040  # linux/timex.h


def first_line(path):
    try:
        with open(path) as handle:
            return handle.readline(4096).strip()
    except (OSError, UnicodeDecodeError):
        return None


def clock():
    """adjtimex(2) with modes 0 only reads. Layout of struct timex on 64-bit Linux (linux/timex.h):
    offset at 8, maxerror at 24 (microseconds), status at 40."""
    import ctypes

    if ctypes.sizeof(ctypes.c_long) != 8:
        emit("clock_error", "32-bit Python")
        return
    libc = ctypes.CDLL(None, use_errno=True)
    area = ctypes.create_string_buffer(512)
    before = time.time()
    state = libc.adjtimex(area)
    if state < 0:
        emit("clock_error", os.strerror(ctypes.get_errno()))
        return
    emit("epoch_s", before)
    emit("clock_synchronised", not struct.unpack_from("i", area, 40)[0] & STA_UNSYNC)
    emit("clock_max_error_us", struct.unpack_from("q", area, 24)[0])


def cgroup_memory():
    """Smallest memory limit from this process's cgroup up to the root that it sees (cgroups(7))."""
    with open("/proc/self/cgroup") as handle:
        lines = handle.read(65536).splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, name = "/sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."][:32]
        for depth in range(len(parts), -1, -1):
            value = first_line("/".join([base, *parts[:depth], name]))
            if value and value.isdigit() and int(value) < 1 << 60:
                emit("cgroup_memory_bytes", int(value))


emit("machine", os.uname().machine)
try:
    emit("libc", os.confstr("CS_GNU_LIBC_VERSION"))
except (ValueError, OSError):
    pass
emit(
    "env",
    {
        name: value[:1000]
        for name, value in os.environ.items()
        if name in PARAMS["env"] or name.startswith(tuple(PARAMS["env_prefixes"]))
    },
)
try:
    clock()
except Exception as error:
    emit("clock_error", "%s: %s" % (type(error).__name__, error))
try:
    cgroup_memory()
except (OSError, UnicodeDecodeError):
    pass
