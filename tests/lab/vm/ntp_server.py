"""A time server for the lab's machines: answers NTP requests (RFC 5905, mode 4) with this machine's clock.

Usage: ntp_server.py ADDRESS. It sets no clock; the machines' own chronyd do that.
"""

import socket
import struct
import sys
import time

EPOCH_1970 = 2208988800  # seconds from 1900, where NTP begins, to 1970


def _stamp(now: float) -> bytes:
    return struct.pack("!II", int(now) + EPOCH_1970, int(now % 1 * (1 << 32)))


def main() -> None:
    """Serve until killed."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((sys.argv[1], 123))
    while True:
        request, peer = server.recvfrom(512)
        received = time.time()
        if len(request) < 48 or request[0] & 7 != 3:  # mode 3: a client
            continue
        version = request[0] >> 3 & 7
        head = struct.pack("!BBbbII4s", version << 3 | 4, 2, request[2], -20, 0, 1 << 6, b"LOCL")
        answer = head + _stamp(received) + request[40:48] + _stamp(received) + _stamp(time.time())
        server.sendto(answer, peer)


if __name__ == "__main__":
    main()
