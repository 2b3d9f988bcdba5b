"""Segments in /dev/shm: name, bytes in use, age, owner. PARAMS: limit (entries looked at)."""

import os
import time

now = time.time()
seen = 0
try:
    with os.scandir("/dev/shm") as entries:
        for entry in entries:
            seen += 1
            if seen > PARAMS["limit"]:
                continue
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            age = max(0, int(now - info.st_mtime))
            emit("segment", [entry.name[:200], info.st_blocks * 512, age, info.st_uid])
    emit("entries", seen)
except OSError as error:
    emit("error", os.strerror(error.errno))
