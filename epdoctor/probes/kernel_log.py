"""Lines of the kernel log that speak of GPUs, NICs, PCIe or memory. PARAMS: needles, per_needle.

One syslog(2) read of the ring buffer; where that is not allowed, the current boot's part of the log files.
"""

import os

ACTION_READ_ALL = 3
ACTION_SIZE_BUFFER = 10
FILES = ("/var/log/kern.log", "/var/log/messages", "/var/log/syslog")
TAIL_BYTES = 4 << 20


def ring_buffer():
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(ACTION_SIZE_BUFFER, None, 0)
    if size <= 0:
        return None, os.strerror(ctypes.get_errno())
    area = ctypes.create_string_buffer(min(size, 64 << 20))
    count = libc.klogctl(ACTION_READ_ALL, area, len(area))
    if count < 0:
        return None, os.strerror(ctypes.get_errno())
    return ctypes.string_at(area, count), ""


def log_file():
    for path in FILES:
        try:
            with open(path, "rb") as handle:
                handle.seek(0, 2)
                handle.seek(max(0, handle.tell() - TAIL_BYTES))
                raw = handle.read(TAIL_BYTES)
        except OSError:
            continue
        boot = raw.rfind(b"] Linux version ")
        if boot >= 0:
            return raw[raw.rfind(b"\n", 0, boot) + 1 :], path
        return raw, path
    return None, ""


try:
    raw, why = ring_buffer()
except Exception as error:
    raw, why = None, "%s: %s" % (type(error).__name__, error)
origin = "kernel ring buffer"
if raw is None:
    raw, origin = log_file()
if raw is None:
    emit("error", why)
else:
    emit("source", origin)
    emit("first_line", raw[:200].split(b"\n")[0].decode("utf-8", "replace"))
    found = {}
    for needle in PARAMS["needles"]:
        wanted = needle.encode()
        starts = []
        position = raw.find(wanted)
        while position >= 0:
            start = raw.rfind(b"\n", 0, position) + 1
            end = raw.find(b"\n", position)
            end = len(raw) if end < 0 else end
            starts.append((start, end))
            position = raw.find(wanted, end)
        if len(starts) > PARAMS["per_needle"]:
            emit("omitted", [needle, len(starts) - PARAMS["per_needle"]])
        found.update(starts[-PARAMS["per_needle"] :])
    for start in sorted(found):
        emit("line", raw[start : min(found[start], start + 600)].decode("utf-8", "replace"))
