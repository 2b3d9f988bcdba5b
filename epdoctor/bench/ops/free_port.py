"""Emits a TCP port that is free now on all addresses: {"port": N}."""

import socket

listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
listener.bind(("", 0))
emit({"port": listener.getsockname()[1]})
