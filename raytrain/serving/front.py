"""The HTTP server's application: paths, the token, limits, and errors as JSON that say what to do."""

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from raytrain.serving.batcher import CannotError, FailedError, QueueFullError
from raytrain.serving.limits import GROUP_ROWS, Limits
from raytrain.serving.metrics import ServeMetrics
from raytrain.serving.openai import CHAT, COMPLETIONS, MODELS, error_body, models_body, read_request
from raytrain.serving.openapi import docs_page, openapi
from raytrain.serving.replica import Answer, refusal
from raytrain.serving.requests import Asked, HttpError, parse, wrong
from raytrain.serving.served import Served
from raytrain.serving.speaking import EventStream, pieces_of, unless_left, whole_answer
from raytrain.serving.token import Token
from raytrain.tasks.base import RowError

logger = logging.getLogger(__name__)

LARGE = 256_000
"""Bytes of JSON that are read in a thread, so that other requests do not wait for it."""
RETRY_AFTER_S = 1
NO_REPLICA = "no replica has the model at the moment; they are being started: try again later"
READ_OFF, READ_OFF_S = 4, 5.0
"""Of a body that is too large, at most this many times the limit is read, in that time."""

Page = Callable[[Request], Awaitable[Response]]


class Front:
    """The ASGI application."""

    def __init__(self, served: Served, limits: Limits, metrics: ServeMetrics, token: Token | None):
        """`token`: None: it asks for none."""
        self.served, self.is_draining = served, False
        self._limits, self._metrics, self._token = limits, metrics, token
        self._num_requests = self._num_bytes = 0
        self._pages: dict[str, tuple[str, bool, Page]] = {
            "/predict": ("POST", True, self._predict),
            "/model": ("GET", True, self._about),
            "/metrics": ("GET", True, self._tell_metrics),
            "/openapi.json": ("GET", True, self._openapi),
            "/docs": ("GET", True, self._docs),
            CHAT: ("POST", True, functools.partial(self._speak, is_chat=True)),
            COMPLETIONS: ("POST", True, functools.partial(self._speak, is_chat=False)),
            MODELS: ("GET", True, self._models),
            "/healthz": ("GET", False, self._health),
            "/readyz": ("GET", False, self._ready),
        }
        """Path -> (method, whether the token is asked for, function)."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        request, began_s = Request(scope, receive), time.monotonic()
        path = scope["path"] if scope["path"] in self._pages else "other"
        self._metrics.in_progress.inc()
        try:
            response = await self._answered(request)
        finally:
            self._metrics.in_progress.dec()
        self._metrics.requests.labels(path, str(response.status_code)).inc()
        if path == "/predict":
            self._metrics.seconds.observe(time.monotonic() - began_s)
        await response(scope, receive, send)

    async def _answered(self, request: Request) -> Response:
        try:
            return await self._find_page(request)(request)
        except HttpError as error:
            told = error_text(request, error.status, error.code, str(error))
            headers = {"Connection": "close", **error.headers} if error.status in (408, 413) else error.headers
            return _json(told, error.status, headers)
        except Exception:
            logger.exception("a request failed")
            return _json(
                error_text(request, 500, "internal", "the server failed over this request; its log has more"), 500
            )

    def _find_page(self, request: Request) -> Page:
        path, method = request.scope["path"], request.method
        if path not in self._pages:
            raise HttpError(404, "unknown_path", f"there is no such path; there are {', '.join(self._pages)}")
        allowed, is_protected, page = self._pages[path]
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

    async def _predict(self, request: Request) -> Response:
        served = self.served  # a new model may take its place meanwhile: this request stays with its own
        with await self._admitted(request, served):
            return await self._predict_in_time(request, served)

    async def _admitted(self, request: Request, served: Served) -> contextlib.ExitStack:
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
            raise _full(f"{self._num_requests:,} requests are in progress")
        held = contextlib.ExitStack()

        def count(change: int) -> None:
            self._num_requests += change
            self._num_bytes += change * reserved
            served.num_requests += change

        count(1)
        held.callback(count, -1)
        return held

    async def _speak(self, request: Request, *, is_chat: bool) -> Response:
        """An answer in OpenAI's format."""
        served, headers = self.served, {"X-Model-Hash": self.served.model.hash}
        with await self._admitted(request, served) as held:
            try:
                async with asyncio.timeout(self._limits.timeout_s):
                    body = await _body_of(request, self._limits)
                    asked = read_request(body, served.model, self._limits, is_chat=is_chat)
                    if not asked.is_streamed:
                        text = await unless_left(whole_answer(asked, served), request.receive)
                        return _json(text, headers=headers)
                    pieces = pieces_of(asked, served)
                    first = await anext(pieces)
            except TimeoutError:
                told = (
                    f"not answered within {self._limits.timeout_s:g} s (--timeout-s): ask for fewer tokens, or a stream"
                )
                raise HttpError(504, "too_slow", told) from None
            return EventStream(asked, first, pieces, held.pop_all(), headers, self._limits.timeout_s)

    async def _models(self, request: Request) -> Response:
        return _json(models_body(self.served.model))

    async def _predict_in_time(self, request: Request, served: Served) -> Response:
        is_read = False
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                body = await _body_of(request, self._limits)
                is_read = True
                arguments = (body, served.model.task, served.model.card, self._limits)
                asked = await asyncio.to_thread(parse, *arguments) if len(body) > LARGE else parse(*arguments)
                answering = self._answers(asked, served)
                is_long = asked.how.decoding.max_new_tokens > 0 or len(asked.rows) > GROUP_ROWS
                answers = await (unless_left(answering, request.receive) if is_long else answering)
                return self._response(asked, answers, served)
        except TimeoutError:
            told = f"within {self._limits.timeout_s:g} s (--timeout-s)"
            if not is_read:
                raise HttpError(408, "slow_body", f"the body did not arrive {told}: send it faster") from None
            if not served.num_replicas:
                raise HttpError(503, "no_replica", NO_REPLICA, {"Retry-After": str(RETRY_AFTER_S)}) from None
            raise HttpError(504, "too_slow", f"not answered {told}: send fewer or shorter rows") from None

    async def _answers(self, asked: Asked, served: Served) -> list[Answer]:
        """In the order of the rows."""
        good = [row for row in asked.rows if not isinstance(row, str)]
        try:
            found = iter(await served.batcher.answer(good, asked.how))
        except QueueFullError:
            raise _full(f"{served.batcher.num_waiting:,} rows wait") from None
        except CannotError as error:
            raise wrong(str(error)) from None
        except FailedError as error:
            raise HttpError(
                500, "failed", f"{error}: the server's log has more. Does a shorter or another text work?"
            ) from None
        return [refusal(RowError.BAD_INPUT, row) if isinstance(row, str) else next(found) for row in asked.rows]

    def _response(self, asked: Asked, answers: list[Answer], served: Served) -> Response:
        num_refused = sum(one.is_refused for one in answers)
        self._metrics.rows.labels("refused").inc(num_refused)
        self._metrics.rows.labels("predicted").inc(len(answers) - num_refused)
        headers = {"X-Model-Hash": served.model.hash}
        if not asked.is_one:
            return _json(f'{{"predictions": [{", ".join(one.text for one in answers)}]}}', headers=headers)
        (one,) = answers
        if one.is_refused:
            return _json(one.text, 422, headers)
        return _json(f'{{"prediction": {one.text}}}', headers=headers)

    async def _about(self, request: Request) -> Response:
        about = {**self.served.model.about(), "replicas": self.served.num_replicas}
        return _json(json.dumps(about, ensure_ascii=False))

    async def _tell_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, request: Request) -> Response:
        return _json(json.dumps(openapi(self.served.model, self._limits), ensure_ascii=False))

    async def _docs(self, request: Request) -> Response:
        page = docs_page(self.served.model, self._limits, has_token=self._token is not None)
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": "default-src 'none'"})

    async def _health(self, request: Request) -> Response:
        return _json('{"status": "ok"}')

    async def _ready(self, request: Request) -> Response:
        if self.is_draining:
            raise HttpError(503, "stopping", "the server is stopping: use another one")
        if not self.served.num_replicas:
            raise HttpError(503, "no_replica", NO_REPLICA)
        return _json('{"status": "ready"}')


def error_text(request: Request, status: int, code: str, message: str) -> str:
    """An error as JSON, as the clients of its path read it."""
    if request.scope["path"].startswith("/v1/"):
        return error_body(status, code, message)
    return json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False)


def _content_length(request: Request) -> int | None:
    """None: the body is sent in chunks."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


async def _body_of(request: Request, limits: Limits) -> bytes:
    """Raises HttpError 413 as soon as there is too much."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limits.max_body:
                await _read_off(request, limits)
                raise _too_large(limits)
            parts.append(part)
    except ClientDisconnect:
        raise HttpError(400, "disconnected", "the connection was closed before the body had arrived") from None
    return b"".join(parts)


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
    return HttpError(
        413, "too_large", f"the body has more than {limits.max_body_mb:g} MB (--max-body-mb): send several requests"
    )


def _full(what: str) -> HttpError:
    told = f"{what}, which is the most that this server takes: try again later"
    return HttpError(503, "full", told, {"Retry-After": str(RETRY_AFTER_S)})


def _json(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(text, status, headers, media_type="application/json")
