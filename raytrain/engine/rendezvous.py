"""Where the workers of a group meet: a listening socket of rank 0. A light module, so that a new process can answer
before it has imported torch."""

import socket

BACKLOG = 1024  # connections of workers that wait until rank 0 accepts them


def listen(host: str) -> socket.socket:
    """A socket that listens on a free port of this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=BACKLOG)


def address_of(listener: socket.socket) -> str:
    """host:port at which other workers reach it."""
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"
