"""PFC and the DSCP table of RDMA devices' netdevs. Python 3.6, runs on the node; `emit(key, value)` is given.

One netlink question per netdev, RTM_GETDCB with DCB_CMD_IEEE_GET: it needs no privilege, loads no module, changes
nothing, and a driver without DCB answers EOPNOTSUPP. Rows: [netdev, {"pfc": mask of priorities, "dscp": {"26": 3}}] or
[netdev, {"errno": 95}]. Layout: linux/dcbnl.h, linux/rtnetlink.h, linux/netlink.h.
"""

import glob
import os
import socket
import struct

GETDCB, REQUEST, ERROR = 78, 1, 2
IEEE_GET, IFNAME, IEEE, PFC, APP_TABLE, DSCP = 21, 1, 13, 2, 3, 5


def attributes(data):
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def decode(message):
    """What one answer says."""
    if len(message) < 20:
        return {"errno": 71}
    _, kind = struct.unpack_from("=IH", message)
    if kind == ERROR:
        return {"errno": -struct.unpack_from("=i", message, 16)[0]}
    found = {}
    for kind, value in attributes(message[20:]):
        if kind != IEEE:
            continue
        for inner, content in attributes(value):
            if inner == PFC and len(content) >= 2:
                found["pfc"] = bytearray(content)[1]
            elif inner == APP_TABLE:
                for _, app in attributes(content):
                    if len(app) >= 4:
                        selector, priority, protocol = struct.unpack_from("=BBH", app)
                        if selector == DSCP:
                            found.setdefault("dscp", {})[str(protocol)] = priority
    return found


def ask(link, number, name):
    text = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(text), IFNAME) + text + b"\0" * (-len(text) % 4)
    body = struct.pack("=BBH", 0, IEEE_GET, 0) + attribute
    link.send(struct.pack("=IHHII", 16 + len(body), GETDCB, REQUEST, number, 0) + body)
    return decode(link.recv(65536))


def main():
    names = {os.path.basename(path) for path in glob.glob("/sys/class/infiniband/*/device/net/*")}
    if not names:
        return
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    link.settimeout(3.0)
    for number, name in enumerate(sorted(names)[:64]):
        emit(name, ask(link, number + 1, name))
    link.close()


main()
