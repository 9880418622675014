"""The socket by which `raytrain serve --update` hands another model to a running server.

It is in a folder that only its user can enter, and so asks for no token.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from raytrain.errors import ConfigError, FailureCode, RaytrainError, TrainingError
from raytrain.serving.token import own_folder

MOST_BYTES = 1 << 20
Change = Callable[[str, tuple[str, ...]], Awaitable[dict[str, Any]]]


def socket_path(port: int) -> Path:
    """Of the server on a port. Raises ConfigError."""
    return own_folder() / f"serve-{port}.sock"


async def listen(port: int, change: Change) -> asyncio.AbstractServer:
    """Take updates. `change`: is given the path of a model and overrides, returns what is told of it, and raises
    RaytrainError when the server stays with its model."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await reader.readline())
            answer = await change(asked["model"], tuple(asked["overrides"]))
        except RaytrainError as error:
            answer = {"error": str(error), "code": error.code}
        except (ValueError, KeyError, TypeError):
            answer = {"error": "this is not an update", "code": FailureCode.CONFIG}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    path = socket_path(port)
    path.unlink(missing_ok=True)  # of a server that was killed: the port is ours now
    return await asyncio.start_unix_server(take, path, limit=MOST_BYTES)


def ask_for_update(port: int, model: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Hand a model to the server on a port of this machine, and wait until it answers with it.

    Args:
        model: An absolute path, or a URI.

    Raises:
        ConfigError: No server of this user has that port, or the model can't be served.
        TrainingError: The new replicas did not start. The server keeps the model that it has.
    """
    path = socket_path(port)
    with socket.socket(socket.AF_UNIX) as connected:
        try:
            connected.connect(str(path))
        except OSError:
            raise ConfigError(
                f"--update: no `raytrain serve` of this user answers on port {port} of this machine; give its --port"
            ) from None
        connected.sendall(json.dumps({"model": model, "overrides": overrides}).encode() + b"\n")
        with connected.makefile("rb") as file:
            line = file.readline()
    if not line:
        raise TrainingError("--update: the server has ended before it answered", FailureCode.RAY)
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        kind = ConfigError if FailureCode(answer["code"]).exit_code == 2 else TrainingError
        raise kind(f"{answer['error']} (the server keeps its model)", FailureCode(answer["code"]))
    return answer
