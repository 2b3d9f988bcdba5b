"""Netdevs, addresses and main-table routes over netlink, and a few sysctls of the netdevs that carry an
address. Runs on the node; see epdoctor/facts/network.py. Netlink and not `ip`: containers often lack
iproute2, and the kernel's answer needs no parsing of text. Reading needs no rights and loads no module.

Emits ("link", {...}), ("address", {...}), ("route", {...}), ("sysctl", {...}), at last ("done", true).
"""

import os
import socket
import struct

LINK, ADDRESS, ROUTE = 18, 22, 26  # RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE (linux/rtnetlink.h)
MAIN_TABLE, UNICAST = 254, 1
MAX_ROUTES = 500


def dump(kind, family):
    """Messages (payloads) of one netlink dump."""
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        link.settimeout(3)
        body = struct.pack("=BxHiII", family, 0, 0, 0, 0) if kind == LINK else struct.pack("=B11x", family)
        link.send(struct.pack("=IHHII", 16 + len(body), kind, 0x301, 1, 0) + body)
        while True:
            data = link.recv(1 << 18)
            at = 0
            while at + 16 <= len(data):
                size, message = struct.unpack_from("=IH", data, at)
                if size < 16 or message == 3:  # NLMSG_DONE
                    return
                if message == 2:  # NLMSG_ERROR
                    code = struct.unpack_from("=i", data, at + 16)[0]
                    raise OSError(-code, os.strerror(-code))
                yield data[at + 16 : at + size]
                at += (size + 3) & ~3
    finally:
        link.close()


def attributes(data, at):
    found = {}
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def string(raw):
    return raw.split(b"\0")[0].decode("utf-8", "replace")


def number(raw):
    return struct.unpack_from("=I", raw)[0] if len(raw) >= 4 else 0


def address(family, raw):
    return socket.inet_ntop(family, raw) if raw else ""


def read(path):
    try:
        with open(path) as file:
            return file.read(64).strip()
    except (OSError, ValueError):
        return ""


STATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
names = {}
for payload in dump(LINK, 0):
    _family, hardware, index, flags = struct.unpack_from("=BxHiI", payload)
    found = attributes(payload, 16)
    name = string(found.get(3, b""))
    names[index] = name
    kind = string(attributes(found[18], 0).get(1, b"")) if 18 in found else ""
    state = ord(found.get(16, b"\0")[:1])
    row = {
        "name": name,
        "index": index,
        "flags": flags,
        "hardware": hardware,
        "mtu": number(found.get(4, b"")),
        "operstate": STATES[state] if state < len(STATES) else "unknown",
        "mac": ":".join("%02x" % byte for byte in bytearray(found.get(1, b""))),
        "master": number(found.get(10, b"")),
        "kind": kind,
    }
    device = "/sys/class/net/%s/device" % name
    if os.path.exists(device):
        try:
            row["driver"] = os.path.basename(os.readlink(device + "/driver"))
        except OSError:
            pass
        try:
            row["pci"] = os.path.basename(os.readlink(device))
        except OSError:
            pass
        row["speed"] = read("/sys/class/net/%s/speed" % name)
        row["numa"] = read(device + "/numa_node")
    emit("link", row)

with_address = set()
for payload in dump(ADDRESS, 0):
    family, prefix, _flags, scope, index = struct.unpack_from("=BBBBi", payload)
    found = attributes(payload, 8)
    if family not in (socket.AF_INET, socket.AF_INET6) or index not in names:
        continue
    with_address.add(names[index])
    emit(
        "address",
        {
            "name": names[index],
            "family": 4 if family == socket.AF_INET else 6,
            "prefix": prefix,
            "scope": scope,
            "address": address(family, found.get(2) or found.get(1, b"")),
        },
    )

for family in (socket.AF_INET, socket.AF_INET6):
    count = 0
    for payload in dump(ROUTE, family):
        _f, length, _s, _tos, table, _protocol, _scope, kind = struct.unpack_from("=8B", payload)
        if table != MAIN_TABLE or kind != UNICAST or payload[0:1] != bytes(bytearray([family])):
            continue
        found = attributes(payload, 12)
        hops = found
        if 9 in found and len(found[9]) >= 8:  # RTA_MULTIPATH: the first next hop stands for all
            hops = attributes(found[9], 8)
            hops[4] = found[9][4:8]
        emit(
            "route",
            {
                "family": 4 if family == socket.AF_INET else 6,
                "length": length,
                "to": address(family, found.get(1, b"")),
                "via": address(family, hops.get(5, b"")),
                "name": names.get(number(hops.get(4, b"")), ""),
                "metric": number(found.get(6, b"")),
            },
        )
        count += 1
        if count >= MAX_ROUTES:
            emit("routes-cut", family)
            break

for name in sorted(with_address):
    base = "/proc/sys/net/ipv4/conf/%s/" % name
    row = {"name": name}
    for key in ("rp_filter", "arp_ignore", "arp_announce", "arp_filter"):
        row[key] = read(base + key)
    emit("sysctl", row)
emit("done", True)
