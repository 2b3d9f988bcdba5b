"""Copies of EP's shared libraries on the loader's path: LD_PRELOAD, LD_LIBRARY_PATH, /etc/ld.so.cache.

PARAMS: sonames, paths (LD_LIBRARY_PATH of the launch, from --env-file), preload, nccl (VLLM_NCCL_SO_PATH).
"""

import os
import struct
import sys

software = sys.modules["software.py"]
read, text = software.read, software.text

SONAMES = PARAMS["sonames"]
RUNTIME = "libstdc++.so.6"


def variable(name):
    """From the launch's file, else /etc/epdoctor/ep.env, else the session."""
    if PARAMS["launch"].get(name):
        return PARAMS["launch"][name]
    for line in text(read("/etc/epdoctor/ep.env", 65536)).splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and key.replace("export ", "").strip() == name:
            return value.strip().strip("'\"")
    return os.environ.get(name, "")


def report(origin, soname, path):
    real = software.real_name(path)
    if real:
        emit(
            "copy",
            [origin, soname, path, real, software.version_defines(path) or software.version_defines(real)],
        )


def cache_entries(raw):
    """(soname, path) in the loader's own order; format: glibc sysdeps/generic/dl-cache.h, cache_file_new."""
    magic = b"glibc-ld.so.cache1.1"
    start = raw.find(magic)
    if start < 0:
        return
    count, _ = struct.unpack_from("=II", raw, start + 20)
    for index in range(min(count, 20000)):
        offset = start + 48 + index * 24
        if offset + 24 > len(raw):
            return
        flags, key, value = struct.unpack_from("=iII", raw, offset)
        if not flags & 0xFF00:  # a 32-bit x86 library: no architecture bits
            continue
        name = raw[start + key : raw.find(b"\0", start + key)]
        yield text(name), text(raw[start + value : raw.find(b"\0", start + value)])


def main():
    wanted = frozenset(SONAMES)
    runtimes = []
    for path in variable("LD_PRELOAD").replace(":", " ").split():
        for soname in SONAMES:
            if os.path.basename(path).startswith(soname.partition(".so")[0] + ".so"):
                report("LD_PRELOAD", soname, path)
    explicit = variable("VLLM_NCCL_SO_PATH")
    if explicit:
        report("VLLM_NCCL_SO_PATH", "libnccl.so.2", explicit)
    for folder in variable("LD_LIBRARY_PATH").split(":")[:40]:
        if folder.startswith("/"):
            runtimes.append(os.path.join(folder, RUNTIME))
            for soname in SONAMES:
                report("LD_LIBRARY_PATH", soname, os.path.join(folder, soname))
    raw = read("/etc/ld.so.cache", 8 << 20)
    if raw is None:
        emit("cache", "no /etc/ld.so.cache")
    else:
        emit("cache", "read")
        # The cache is sorted by name in descending order and the loader takes the first one that fits.
        for soname, path in cache_entries(raw):
            if soname in wanted:
                report("ldconfig", soname, path)
            elif soname == RUNTIME:
                runtimes.append(path)
    try:
        emit("glibc", os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):  # another C library
        pass
    for path in runtimes:
        real = software.real_name(path)
        if real:
            emit("libstdcxx", real)
            break


main()
