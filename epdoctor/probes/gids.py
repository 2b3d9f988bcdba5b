"""GID tables of the RDMA ports. Runs on the node; see epdoctor/facts/rdma.py.

A RoCE table can have 1024 slots and each slot is three files, so a port is read up to PARAMS["slots"] slots,
and for type and netdev only where the GID is not zero. An empty RoCE slot answers EINVAL for type and netdev.
Emits (device/port/gids/slot, {gid, type, netdev}) and (device/port/scanned, number of slots looked at).
"""

import os

ROOT = "/sys/class/infiniband"


def read(path):
    try:
        with open(path) as file:
            return file.read(256).strip()
    except (OSError, ValueError):
        return ""


def names(path):
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


for device in names(ROOT):
    for port in names(os.path.join(ROOT, device, "ports")):
        folder = os.path.join(ROOT, device, "ports", port)
        scanned = 0
        while scanned < PARAMS.get("slots", 64):
            try:
                with open("%s/gids/%d" % (folder, scanned)) as table:
                    gid = table.read(64).strip()
            except (IOError, OSError) as error:
                if error.errno == 2:  # beyond the table's end
                    break
                gid = ""
            if gid.strip("0:"):
                emit(
                    "%s/%s/gids/%d" % (device, port, scanned),
                    {
                        "gid": gid,
                        "type": read("%s/gid_attrs/types/%d" % (folder, scanned)),
                        "netdev": read("%s/gid_attrs/ndevs/%d" % (folder, scanned)),
                    },
                )
            scanned += 1
        emit("%s/%s/scanned" % (device, port), scanned)
