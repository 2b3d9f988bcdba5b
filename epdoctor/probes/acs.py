"""The ACS control word of PCI bridges. Python 3.6, runs on the node; `emit(key, value)` is given.

Rows: ["<bus id>", {"capability": int, "control": int}] for each PCI-to-PCI bridge that has ACS,
["bridges", count], ["denied", count] for those whose extended configuration space only root can read; for each NIC,
["nic <bus id>", {"device_control": int}] of its PCI Express capability (id 0x10, the word at +8), and
["nics_denied", count].
Reading the `config` file changes nothing on the device. Layout: PCI Express Base Specification, Extended
Capabilities start at 0x100; id 0x000d is ACS, capability at +4, control at +6.
"""

import glob
import os

ACS = 0x000D


def word(data, at):
    return data[at] | data[at + 1] << 8


def acs_of(data):
    at, seen = 0x100, set()
    while at >= 0x100 and at not in seen and at + 8 <= len(data):
        seen.add(at)
        if word(data, at) == ACS:
            return {"capability": word(data, at + 4), "control": word(data, at + 6)}
        at = (word(data, at + 2) >> 4) & 0xFFC
    return None


def device_control(data):
    at, seen = data[0x34] & 0xFC, set()
    while at >= 0x40 and at not in seen and at + 10 <= len(data):
        seen.add(at)
        if data[at] == 0x10:
            return word(data, at + 8)
        at = data[at + 1] & 0xFC
    return None


def content(path, most):
    file = os.open(path + "/config", os.O_RDONLY)
    try:
        return bytearray(os.read(file, most))
    finally:
        os.close(file)


def main():
    bridges = denied = nics_denied = 0
    for path in sorted(glob.glob("/sys/bus/pci/devices/*")):
        try:
            with open(path + "/class") as handle:
                kind = handle.read()
            if kind.startswith("0x02"):
                data = content(path, 256)
                nics_denied += len(data) < 256
                control = device_control(data) if len(data) == 256 else None
                if control is not None:
                    emit("nic " + os.path.basename(path), {"device_control": control})
                continue
            if not kind.startswith("0x0604"):
                continue
            bridges += 1
            data = content(path, 4096)
        except OSError:
            denied += 1
            continue
        if len(data) <= 256:
            # Other users see the first 64 bytes only. A device without extended space has 256.
            denied += len(data) < 256
            continue
        found = acs_of(data)
        if found:
            emit(os.path.basename(path), found)
    emit("bridges", bridges)
    emit("denied", denied)
    emit("nics_denied", nics_denied)


main()
