"""The port that a server listens on, and uvicorn behind it."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from raytrain.errors import ConfigError
from raytrain.serving.limits import Limits

BACKLOG = 2048


def bound(host: str, port: int, hint: str) -> list[socket.socket]:
    """Sockets that are bound and do not listen yet. Raises ConfigError with a hint when the port is taken."""
    found: list[socket.socket] = []
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        infos.sort(key=lambda info: info[0] != socket.AF_INET)  # localhost may have one of each
        for family, kind, _, _, place in infos[:1]:
            one = socket.socket(family, kind)
            found.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(place)
    except (OSError, OverflowError) as error:
        for one in found:
            one.close()
        raise taken(host, port, error, hint) from None
    return found


def taken(host: str, port: int, error: Exception, hint: str) -> ConfigError:
    """The error for a port that can't be listened on. `hint`: what to do."""
    return ConfigError(f"{host}, port {port}: can't listen there ({error}). Is another server on that port? {hint}")


def url_of(host: str, one: socket.socket) -> str:
    """The URL of a bound socket."""
    return f"http://{f'[{host}]' if ':' in host else host}:{one.getsockname()[1]}"


def http_server(front: Any, limits: Limits) -> Any:
    """Uvicorn's server, which leaves the signals to us: it would raise them again at its end."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        front,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(limits.timeout_s) + 1,
    )
    return Server(config)
