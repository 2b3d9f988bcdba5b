"""Listen on ports and send back what comes: PARAMS ports (0: any free one), token. Emits, once,
{"ports": {asked: {"port": bound} | {"error": "EADDRINUSE"}}}, then serves until it is stopped."""

import errno
import socket
import threading

TOKEN = PARAMS["token"].encode("ascii")


def bind(port):
    """A listener for IPv4 and IPv6 where the kernel has both. Raises OSError."""
    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        address = ("::", port)
    except OSError:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        address = ("", port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(512)
    return listener


def serve(connection):
    try:
        connection.settimeout(15)
        if connection.recv(len(TOKEN), socket.MSG_WAITALL) != TOKEN:
            return
        connection.sendall(TOKEN)
        while True:
            data = connection.recv(65536)
            if not data:
                return
            connection.sendall(data)
    except OSError:
        pass
    finally:
        connection.close()


def accept(listener):
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        thread = threading.Thread(target=serve, args=(connection,))
        thread.daemon = True
        thread.start()


bound = {}
listeners = []
for port in PARAMS["ports"]:
    try:
        listener = bind(port)
    except OSError as error:
        bound[str(port)] = {"error": errno.errorcode.get(error.errno, str(error))}
        continue
    bound[str(port)] = {"port": listener.getsockname()[1]}
    listeners.append(listener)
emit({"ports": bound})
threads = [threading.Thread(target=accept, args=(listener,)) for listener in listeners]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
