"""Answers in OpenAI's format, whole or as a stream of server-sent events."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response

from raytrain.errors import ConfigError
from raytrain.inference.completing import Piece
from raytrain.serving.batcher import ATTEMPTS, ReplicaLostError
from raytrain.serving.openai import Request, answer_body, as_event, error_body, event, last_events, refused
from raytrain.serving.requests import HttpError
from raytrain.serving.served import Served

logger = logging.getLogger(__name__)
T = TypeVar("T")


async def pieces_of(request: Request, served: Served) -> AsyncIterator[tuple[int, Piece]]:
    """(choice, piece) in the order in which they are to be sent: one choice after the other.

    A replica that dies before the first piece of a choice is replaced by another one. Raises HttpError.
    """
    for index, asked in enumerate(request.choices):
        for attempt in range(ATTEMPTS):
            has_begun = False
            pieces = served.speak(asked)
            try:
                async for piece in pieces:
                    has_begun = True
                    yield index, piece
                break
            except ReplicaLostError:
                if has_begun or attempt == ATTEMPTS - 1:
                    raise HttpError(500, "failed", "the replica that answered has died: ask again") from None
            except ConfigError as error:
                raise refused(str(error)) from None
            finally:
                await pieces.aclose()


async def whole_answer(request: Request, served: Served) -> str:
    """The answer as JSON. Raises HttpError."""
    texts = [""] * len(request.choices)
    lasts: dict[int, Piece] = {}
    async for index, piece in pieces_of(request, served):
        texts[index] += piece.text
        lasts[index] = piece
    return answer_body(request, [(text, lasts[index]) for index, text in enumerate(texts)])


async def unless_left(work: Coroutine[Any, Any, T], receive: Any) -> T:
    """What `work` returns. If the client leaves before, its body having come, the work ends. Raises HttpError then."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HttpError(400, "disconnected", "the connection was closed before the answer was ready")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class EventStream(Response):
    """A stream of pieces. It holds what the request has reserved until its end, also if the client leaves."""

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        first: tuple[int, Piece],
        pieces: AsyncIterator[tuple[int, Piece]],
        held: contextlib.ExitStack,
        headers: dict[str, str],
        timeout_s: float,
    ):
        """
        Args:
            first: The first piece, which has come: errors before it have a status of their own.
            held: Is closed at the end.
            timeout_s: For each further piece.
        """
        super().__init__(headers={"Cache-Control": "no-cache", **headers})
        del self.headers["content-length"]
        self._request, self._first, self._pieces, self._held = request, first, pieces, held
        self._timeout_s = timeout_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the pieces as they come, until the end or until the client leaves."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._pieces.aclose()  # type: ignore[attr-defined]
            self._held.close()

    async def _send(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def write(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        lasts: dict[int, Piece] = {}
        try:
            index, piece = self._first
            while True:
                await write(event(self._request, index, piece, is_first=index not in lasts))
                lasts[index] = piece
                async with asyncio.timeout(self._timeout_s):
                    index, piece = await anext(self._pieces)
        except StopAsyncIteration:
            await write(last_events(self._request, [lasts[index] for index in sorted(lasts)]), more=False)
        except Exception as error:
            if not isinstance(error, HttpError | TimeoutError):
                logger.exception("a stream failed")
            told = str(error) or "the next token did not come in time (--timeout-s)"
            await write(as_event(error_body(500, "failed", told)), more=False)


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
