"""What every HTTP server of raytrain does with a request: paths, the token, the size of a body, how many there are at a
time, and errors as JSON that say what to do."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from raytrain.serving.limits import Limits
from raytrain.serving.requests import HttpError
from raytrain.serving.token import Token

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
READ_OFF, READ_OFF_S = 4, 5.0
"""Of a body that is too large, at most this many times the limit is read, in that time."""

Page = Callable[[Request], Awaitable[Response]]
Route = tuple[str, bool, Page]
"""(method, whether the token is asked for, function)."""
ErrorText = Callable[[Request, int, str, str], str]


def error_text(request: Request, status: int, code: str, message: str) -> str:
    """An error as JSON."""
    return json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False)


class Pages:
    """The paths of a server."""

    def __init__(self, routes: Mapping[str, Route], limits: Limits, token: Token | None, error: ErrorText = error_text):
        """
        Args:
            routes: Path -> what it is.
            token: None: it asks for none.
            error: Makes the text of (request, status, code, message).
        """
        self.paths = tuple(routes)
        self._routes, self._limits, self._token, self._error = routes, limits, token, error
        self._num_requests = self._num_bytes = 0

    async def answered(self, request: Request) -> Response:
        """The response to a request; an error is one too."""
        try:
            return await self._find(request)(request)
        except HttpError as error:
            told = self._error(request, error.status, error.code, str(error))
            headers = {"Connection": "close", **error.headers} if error.status in (408, 413) else error.headers
            return json_response(told, error.status, headers)
        except Exception:
            logger.exception("a request failed")
            told = "the server failed over this request; its log has more"
            return json_response(self._error(request, 500, "internal", told), 500)

    def _find(self, request: Request) -> Page:
        path, method = request.scope["path"], request.method
        if path not in self._routes:
            raise HttpError(404, "unknown_path", f"there is no such path; there are {', '.join(self.paths)}")
        allowed, is_protected, page = self._routes[path]
        if is_protected and self._token is not None and not self._token.is_in(request.headers.get("authorization")):
            raise HttpError(
                401,
                "wrong_token",
                "send the server's token in the header Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )
        if method != allowed and not (method == "HEAD" and allowed == "GET"):
            raise HttpError(405, "wrong_method", f"{path} is read with {allowed}", {"Allow": allowed})
        return page

    async def admitted(self, request: Request) -> contextlib.ExitStack:
        """Count the request and the bytes of its body until what is returned is closed. Raises HttpError when there
        are too many."""
        limits, size = self._limits, _content_length(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HttpError(415, "encoded", "send the body without Content-Encoding")
        if size is not None and size > limits.max_body:
            if "expect" not in request.headers:  # a client that asks first has sent nothing
                await _read_off(request, limits)
            raise _too_large(limits)
        reserved = limits.max_body if size is None else size
        if self._num_requests >= limits.max_requests or self._num_bytes + reserved > limits.queue_bytes:
            raise full(f"{self._num_requests:,} requests are in progress")
        held = contextlib.ExitStack()

        def count(change: int) -> None:
            self._num_requests += change
            self._num_bytes += change * reserved

        count(1)
        held.callback(count, -1)
        return held

    async def body_of(self, request: Request) -> bytes:
        """Raises HttpError 413 as soon as there is too much."""
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > self._limits.max_body:
                    await _read_off(request, self._limits)
                    raise _too_large(self._limits)
                parts.append(part)
        except ClientDisconnect:
            raise HttpError(400, "disconnected", "the connection was closed before the body had arrived") from None
        return b"".join(parts)


def full(what: str) -> HttpError:
    """The error for more than a server takes."""
    told = f"{what}, which is the most that this server takes: try again later"
    return HttpError(503, "full", told, {"Retry-After": str(RETRY_AFTER_S)})


def slow_body(limits: Limits) -> HttpError:
    """The error for a body that has not come in time."""
    told = f"the body did not arrive within {limits.timeout_s:g} s: send it faster"
    return HttpError(408, "slow_body", told)


def json_response(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON as a response."""
    return Response(text, status, headers, media_type="application/json")


def _content_length(request: Request) -> int | None:
    """None: the body is sent in chunks."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


async def _read_off(request: Request, limits: Limits) -> None:
    """Read what a client still sends, up to a limit: most read the answer only after that."""
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(READ_OFF_S):
            while size < READ_OFF * limits.max_body:
                message = await request.receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _too_large(limits: Limits) -> HttpError:
    return HttpError(413, "too_large", f"the body has more than {limits.max_body_mb:g} MB: send several requests")
