"""Where the workers of a group find each other: a socket of rank 0's. Light: a new process answers before it has
imported torch."""

import socket

BACKLOG = 1024  # workers that may connect before rank 0 has time for them


def listen(host: str) -> socket.socket:
    """A socket that listens at a free port of this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=BACKLOG)


def address_of(listener: socket.socket) -> str:
    """host:port at which others reach it."""
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"
