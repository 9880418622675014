"""Texts that arrive by HTTP: `POST /rows` is answered once the rows are on the disk, and the watch reads them there."""

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from raytrain.data.stages.packages import needed
from raytrain.errors import ConfigError, FailureCode, TrainingError
from raytrain.inference.texts import needed_columns
from raytrain.serving.limits import Limits
from raytrain.serving.requests import HttpError, wrong
from raytrain.serving.sockets import BACKLOG, bound, http_server, url_of
from raytrain.serving.token import Token, find_token
from raytrain.tasks.base import Task
from raytrain.watching.files import Files, Line
from raytrain.watching.spool import Kept, Spool, SpoolFullError, text_of_id

logger = logging.getLogger(__name__)

NAME = "http"
"""What a watch keeps as its source: the port may change."""
ROWS, HEALTH = "/rows", "/healthz"
JSON, LINES = "application/json", ("application/x-ndjson", "application/jsonl")
LIMITS = Limits(max_rows=10_000)
JOIN_S = 30.0
HINT = "Give another port in SOURCE"


@dataclass
class Address:
    """Where to listen, checked: the port is taken already."""

    host: str
    sockets: list[socket.socket]
    token: Token | None = field(repr=False)

    @property
    def url(self) -> str:
        """To which rows are sent."""
        return url_of(self.host, self.sockets[0]) + ROWS


@contextlib.contextmanager
def listening_at(source: str, token_file: str | None) -> Iterator[Address | None]:
    """The address that a source names; None: it is a folder or a file. The port is free again at the end.

    Raises ConfigError when it can't be listened on, or there is no token for it.
    """
    if not source.startswith(("http://", "https://")):
        if token_file is not None:
            raise ConfigError("--token-file is for texts that arrive by HTTP: give SOURCE as http://HOST:PORT")
        yield None
        return
    host, port = _parsed(source)
    for module in ("starlette", "uvicorn", "httptools"):
        needed(module, "raytrain watch MODEL http://...", "serve")
    sockets = bound(host, port, HINT)
    try:
        yield Address(host, sockets, find_token(host, sockets[0].getsockname()[1], token_file))
    finally:
        for one in sockets:
            one.close()


def _parsed(source: str) -> tuple[str, int]:
    """(host, port). Raises ConfigError."""
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or parts.path not in ("", "/", ROWS) or parts.query or "@" in parts.netloc:
        raise ConfigError(f"{source}: give the address to listen on as http://HOST:PORT, such as http://127.0.0.1:8001")
    if parts.scheme == "https":
        raise ConfigError(f"{source}: raytrain speaks http; let a proxy in front of it speak https")
    return host, port


class Received:
    """A source of a watch: a server in a thread, and the files that it writes. A context."""

    name = NAME

    def __init__(self, address: Address, folder: str, task: Task, places: list[dict[str, Any]] | None):
        """
        Args:
            folder: Of the files.
            places: What `to_json` gave.
        """
        self._address, self._spool = address, Spool(folder)
        self._files = Files(folder, places)
        self.notes = self._files.notes
        self._count()
        front = _Front(self._spool, task, address.token)
        self._server = http_server(front, LIMITS)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def __enter__(self) -> "Received":
        try:
            for one in self._address.sockets:
                one.listen(BACKLOG)
        except OSError as error:  # another one was bound to it at the same time, and is faster
            raise ConfigError(f"{self._address.url}: can't listen there ({error}). {HINT}") from None
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(self._address.sockets))
        except Exception:
            logger.exception("the HTTP server has failed")

    def lines(self, most: int, *, is_last: bool = False) -> list[Line]:
        """As of `Files`. Raises TrainingError when the server has ended by itself."""
        if not self._thread.is_alive():
            raise TrainingError("the HTTP server has failed; the same command continues", FailureCode.WORKER_ERROR)
        with self._spool.lock:  # so that only what is on the disk is counted
            return self._files.lines(most, is_last=is_last)

    def to_json(self) -> list[dict[str, Any]]:
        """How far each file was read."""
        return self._files.to_json()

    def committed(self) -> None:
        """What was read counts from now on, whatever happens."""
        self._count()

    def _count(self) -> None:
        self._spool.counted({place["path"]: place["offset"] for place in self.to_json()})


class _Front:
    """The ASGI application."""

    def __init__(self, spool: Spool, task: Task, token: Token | None):
        from raytrain.serving.pages import Pages

        self._spool, self._task = spool, task
        self._pages = Pages({ROWS: ("POST", True, self._take), HEALTH: ("GET", False, self._health)}, LIMITS, token)
        self._waiting: list[tuple[Sequence[Kept], asyncio.Future[int]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        from starlette.requests import Request

        if scope["type"] == "http":
            response = await self._pages.answered(Request(scope, receive))
            await response(scope, receive, send)

    async def _health(self, request: Any) -> Any:
        from raytrain.serving.pages import json_response

        return json_response('{"status": "ok"}')

    async def _take(self, request: Any) -> Any:
        from raytrain.serving.pages import full, json_response, slow_body

        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (JSON, *LINES):  # a page in a browser can send other kinds to this machine unasked
            raise HttpError(415, "wrong_type", f"send Content-Type: {JSON}, or {LINES[0]} with an object per line")
        with await self._pages.admitted(request):
            try:
                async with asyncio.timeout(LIMITS.timeout_s):
                    body = await self._pages.body_of(request)
            except TimeoutError:
                raise slow_body(LIMITS) from None
            rows = await asyncio.to_thread(read_rows, body, self._task, is_lines=kind in LINES)
            try:
                num_new = await self._keep(rows)
            except SpoolFullError:
                raise full(f"{self._spool.num_waiting_bytes:,} bytes of rows wait") from None
            except OSError as error:
                logger.error("rows can't be kept: %s", error)
                told = "the rows could not be written to the disk and none is kept: send them again later"
                raise HttpError(507, "storage", told) from None
        return json_response(json.dumps({"received": num_new, "repeated": len(rows) - num_new}))

    async def _keep(self, rows: Sequence[Kept]) -> int:
        """Write rows with those of all requests that wait for the disk. Returns how many are new."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return await future

    async def _write(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            try:
                counts = await asyncio.to_thread(self._spool.add, [rows for rows, _ in taken])
            except Exception as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), count in zip(taken, counts, strict=True):
                if not future.done():
                    future.set_result(count)


def read_rows(body: bytes, task: Task, *, is_lines: bool) -> list[Kept]:
    """The rows of a request, as they are kept. Raises HttpError 400 when it is not JSON, 413 for too many rows, 422 for
    one that the model can't read; then none of them is kept.

    Args:
        is_lines: Whether each line is an object; else the body is an object or a list of them.
    """
    try:
        found = [json.loads(line) for line in body.splitlines() if line.strip()] if is_lines else json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "not_json", f"the body is not JSON: {error}") from None
    rows = [found] if isinstance(found, dict) else found
    if not isinstance(rows, list):
        raise wrong("the body is neither a JSON object nor a list of objects")
    if len(rows) > LIMITS.max_rows:
        raise HttpError(413, "too_many_rows", f"{len(rows):,} rows, and a request has {LIMITS.max_rows:,} at most")
    return [_kept(row, number, task) for number, row in enumerate(rows)]


def _kept(row: Any, number: int, task: Task) -> Kept:
    if not isinstance(row, dict):
        raise wrong(f"row {number} is not a JSON object; no row of this request was kept")
    for name in needed_columns(task, list(row)):
        if name not in row:
            raise wrong(f"row {number} has no {name}, which the model reads; no row of this request was kept")
    found = ""
    if row.get("id") is not None:
        found = text_of_id(row["id"]) or ""
        if not found:
            raise wrong(f"row {number}: an id is an integer, or a string of 1 to 200 characters; no row was kept")
    try:
        return Kept(json.dumps(row).encode() + b"\n", found)
    except (ValueError, RecursionError) as error:
        raise wrong(f"row {number} can't be kept: {error}; no row of this request was kept") from None
