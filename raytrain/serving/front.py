"""The HTTP server's application: paths, the token, limits, and errors as JSON that say what to do."""

import asyncio
import contextlib
import functools
import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from raytrain.serving import pages
from raytrain.serving.batcher import CannotError, FailedError, QueueFullError
from raytrain.serving.limits import GROUP_ROWS, Limits
from raytrain.serving.metrics import ServeMetrics
from raytrain.serving.openai import CHAT, COMPLETIONS, MODELS, error_body, models_body, read_request
from raytrain.serving.openapi import docs_page, openapi
from raytrain.serving.pages import RETRY_AFTER_S, full, json_response, slow_body
from raytrain.serving.replica import Answer, refusal
from raytrain.serving.requests import Asked, HttpError, parse, wrong
from raytrain.serving.served import Served
from raytrain.serving.speaking import EventStream, pieces_of, unless_left, whole_answer
from raytrain.serving.token import Token
from raytrain.tasks.base import RowError

LARGE = 256_000
"""Bytes of JSON that are read in a thread, so that other requests do not wait for it."""
NO_REPLICA = "no replica has the model at the moment; they are being started: try again later"


class Front:
    """The ASGI application."""

    def __init__(self, served: Served, limits: Limits, metrics: ServeMetrics, token: Token | None):
        """`token`: None: it asks for none."""
        self.served, self.is_draining = served, False
        self._limits, self._metrics, self._has_token = limits, metrics, token is not None
        routes: dict[str, pages.Route] = {
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
        self._pages = pages.Pages(routes, limits, token, _error_text)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        request, began_s = Request(scope, receive), time.monotonic()
        path = scope["path"] if scope["path"] in self._pages.paths else "other"
        self._metrics.in_progress.inc()
        try:
            response = await self._pages.answered(request)
        finally:
            self._metrics.in_progress.dec()
        self._metrics.requests.labels(path, str(response.status_code)).inc()
        if path == "/predict":
            self._metrics.seconds.observe(time.monotonic() - began_s)
        await response(scope, receive, send)

    async def _predict(self, request: Request) -> Response:
        served = self.served  # a new model may take its place meanwhile: this request stays with its own
        with await self._admitted(request, served):
            return await self._predict_in_time(request, served)

    async def _admitted(self, request: Request, served: Served) -> contextlib.ExitStack:
        """Count the request, of the model too, until what is returned is closed. Raises HttpError."""
        held = await self._pages.admitted(request)

        def count(change: int) -> None:
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
                    body = await self._pages.body_of(request)
                    asked = read_request(body, served.model, self._limits, is_chat=is_chat)
                    if not asked.is_streamed:
                        text = await unless_left(whole_answer(asked, served), request.receive)
                        return json_response(text, headers=headers)
                    pieces = pieces_of(asked, served)
                    first = await anext(pieces)
            except TimeoutError:
                told = (
                    f"not answered within {self._limits.timeout_s:g} s (--timeout-s): ask for fewer tokens, or a stream"
                )
                raise HttpError(504, "too_slow", told) from None
            return EventStream(asked, first, pieces, held.pop_all(), headers, self._limits.timeout_s)

    async def _models(self, request: Request) -> Response:
        return json_response(models_body(self.served.model))

    async def _predict_in_time(self, request: Request, served: Served) -> Response:
        is_read = False
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                body = await self._pages.body_of(request)
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
                raise slow_body(self._limits) from None
            if not served.num_replicas:
                raise HttpError(503, "no_replica", NO_REPLICA, {"Retry-After": str(RETRY_AFTER_S)}) from None
            raise HttpError(504, "too_slow", f"not answered {told}: send fewer or shorter rows") from None

    async def _answers(self, asked: Asked, served: Served) -> list[Answer]:
        """In the order of the rows."""
        good = [row for row in asked.rows if not isinstance(row, str)]
        try:
            found = iter(await served.batcher.answer(good, asked.how))
        except QueueFullError:
            raise full(f"{served.batcher.num_waiting:,} rows wait") from None
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
            return json_response(f'{{"predictions": [{", ".join(one.text for one in answers)}]}}', headers=headers)
        (one,) = answers
        if one.is_refused:
            return json_response(one.text, 422, headers)
        return json_response(f'{{"prediction": {one.text}}}', headers=headers)

    async def _about(self, request: Request) -> Response:
        about = {**self.served.model.about(), "replicas": self.served.num_replicas}
        return json_response(json.dumps(about, ensure_ascii=False))

    async def _tell_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, request: Request) -> Response:
        return json_response(json.dumps(openapi(self.served.model, self._limits), ensure_ascii=False))

    async def _docs(self, request: Request) -> Response:
        page = docs_page(self.served.model, self._limits, has_token=self._has_token)
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": "default-src 'none'"})

    async def _health(self, request: Request) -> Response:
        return json_response('{"status": "ok"}')

    async def _ready(self, request: Request) -> Response:
        if self.is_draining:
            raise HttpError(503, "stopping", "the server is stopping: use another one")
        if not self.served.num_replicas:
            raise HttpError(503, "no_replica", NO_REPLICA)
        return json_response('{"status": "ready"}')


def _error_text(request: Request, status: int, code: str, message: str) -> str:
    """An error as JSON, as the clients of its path read it."""
    if request.scope["path"].startswith("/v1/"):
        return error_body(status, code, message)
    return pages.error_text(request, status, code, message)
