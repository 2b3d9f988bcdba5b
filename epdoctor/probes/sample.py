"""Two readings of the RDMA ports' and their netdevs' counters, PARAMS["seconds"] apart. Runs on the node.

Reads only: sysfs, and the driver's statistics by the SIOCETHTOOL ioctl that `ethtool -S` uses (GDRVINFO, GSTRINGS
and GSTATS need no privilege; a name that exists loads no module). Emits ("seconds", float) and, for each port and
netdev, ("port/mlx5_0/1" or "netdev/eth0", {"read": number of counters, "moved": {name: difference},
"cleared": [names that went down]}).
"""

import ctypes
import fcntl
import os
import socket
import struct
import time

IB = "/sys/class/infiniband"
NET = "/sys/class/net"
SIOCETHTOOL = 0x8946
GDRVINFO, GSTRINGS, GSTATS = 0x03, 0x1B, 0x1D
N_STATS_AT = 180
LIMIT = 20000
STATISTICS = (
    "rx_errors",
    "tx_errors",
    "rx_crc_errors",
    "rx_dropped",
    "tx_dropped",
    "rx_packets",
    "tx_packets",
)


def names(path):
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def number(path):
    try:
        with open(path) as file:
            return int(file.read(64))
    except (OSError, ValueError):
        return None


def counters_in(folder, wanted=None):
    found = {}
    for name in wanted or names(folder):
        value = number(folder + "/" + name)
        if value is not None:
            found[name] = value
    return found


def ask(sock, netdev, buffer):
    """One ethtool call; the answer comes back in the buffer, which the request points at."""
    answer = ctypes.create_string_buffer(buffer, len(buffer))
    request = struct.pack("16sP", netdev.encode("utf-8")[:15], ctypes.addressof(answer))
    fcntl.ioctl(sock, SIOCETHTOOL, request + b"\0" * (40 - len(request)))
    return answer.raw


def ethtool(sock, netdev):
    try:
        info = ask(sock, netdev, struct.pack("=I", GDRVINFO) + b"\0" * 192)
        count = struct.unpack_from("=I", info, N_STATS_AT)[0]
        if not 0 < count < LIMIT:
            return {}
        texts = ask(sock, netdev, struct.pack("=III", GSTRINGS, 1, count) + b"\0" * 32 * count)
        values = ask(sock, netdev, struct.pack("=II", GSTATS, count) + b"\0" * 8 * count)
    except (OSError, ValueError, struct.error):
        return {}
    found = {}
    for index in range(count):
        name = texts[12 + 32 * index : 44 + 32 * index].partition(b"\0")[0].decode("ascii", "replace")
        found[name] = struct.unpack_from("=Q", values, 8 + 8 * index)[0]
    return found


def reading(sock):
    found = {}
    netdevs = set()
    for device in names(IB):
        for port in names(IB + "/" + device + "/ports"):
            folder = IB + "/" + device + "/ports/" + port
            found["port/" + device + "/" + port] = dict(
                counters_in(folder + "/counters"), **counters_in(folder + "/hw_counters")
            )
        netdevs.update(names(IB + "/" + device + "/device/net"))
        try:
            with open(IB + "/" + device + "/parent") as file:
                netdevs.add(file.read(64).strip())
        except OSError:
            pass
    for netdev in sorted(netdevs):
        folder = NET + "/" + netdev
        if not netdev or "/" in netdev or not os.path.isdir(folder):
            continue
        values = ethtool(sock, netdev)
        values.update(counters_in(folder + "/statistics", STATISTICS))
        changes = number(folder + "/carrier_changes")
        if changes is not None:
            values["carrier_changes"] = changes
        found["netdev/" + netdev] = values
    return found


def main():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        began = time.monotonic()
        first = reading(sock)
        time.sleep(max(0.0, PARAMS["seconds"] - (time.monotonic() - began)))
        span = time.monotonic() - began
        second = reading(sock)
    finally:
        sock.close()
    emit("seconds", round(span, 2))
    for key in sorted(second):
        before, after = first.get(key, {}), second[key]
        both = [name for name in sorted(after) if name in before]
        emit(
            key,
            {
                "read": len(both),
                "moved": {name: after[name] - before[name] for name in both if after[name] > before[name]},
                "cleared": [name for name in both if after[name] < before[name]],
            },
        )


main()
