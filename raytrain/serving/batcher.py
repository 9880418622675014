"""The queue before the replicas of one model: rows of several requests are answered together.

A replica is given a group of at most GROUP_ROWS rows, and fewer where text is generated. While it works, further rows
wait and form the next group, so that groups are as large as the load makes them, and a request that comes alone waits
for nobody. Clients whose answers came in one group ask again within a moment of each other: under load a replica that
is free waits for them, or the first would be a group of its own. Inside a group the predictor makes batches by length,
as for a file. `serve.batch` was not taken: it joins calls inside a replica, where each has cost a message already, and
it does not know of rows.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from raytrain.errors import ConfigError, first_line
from raytrain.serving.limits import GROUP_CHARS, GROUP_ROWS, GROUP_TOKENS, IMAGE_CHARS
from raytrain.serving.metrics import ServeMetrics
from raytrain.serving.replica import Answer, How, Row

logger = logging.getLogger(__name__)

JOIN_S, MOST_JOIN_S = 0.002, 0.03
"""A group waits this long for rows of other requests; under load JOIN_PART of what a group has taken, at most
MOST_JOIN_S."""
JOIN_PART = 0.1
AHEAD = 2
"""Groups that a replica has at once, if they are full, so that it does not wait for the next. What is not full can grow
while the replica works."""
ATTEMPTS = 4
"""How often a group is given to a replica, when each dies over it."""

Backend = Callable[[list[Row], How], Awaitable[list[Answer]]]


class QueueFullError(Exception):
    """Too many rows wait."""


class ReplicaLostError(Exception):
    """A replica has died with a group, which another one can answer."""


class FailedError(Exception):
    """The rows can't be answered: the model raises an error over them, or replicas die."""


class CannotError(FailedError):
    """The model has no such answer, such as embeddings where it has no encoder. The message is for people."""


@dataclass(eq=False)
class _Request:
    rows: list[Row]
    how: How
    done: asyncio.Future[list[Answer]]
    answers: list[Answer | None]
    next: int = 0
    """The first row that is in no group yet."""
    num_left: int = 0


@dataclass
class _Group:
    how: How
    places: list[tuple[_Request, int]] = field(default_factory=list)
    """(request, index of its row)."""
    num_deaths: int = 0

    def rows(self) -> list[Row]:
        return [request.rows[index] for request, index in self.places]


class Batcher:
    """Used in one event loop."""

    def __init__(self, backend: Backend, metrics: ServeMetrics, *, max_queue: int, joins: bool = True):
        """
        Args:
            backend: Has a replica answer a group. Raises ReplicaLostError, or any other error of the model.
            max_queue: Rows that may wait.
            joins: Whether rows of different requests, or parts of one, may be answered apart. False for a model that
                reads the rows around one.
        """
        self._backend, self._metrics, self._max_queue, self._joins = backend, metrics, max_queue, joins
        self._waiting: deque[_Request] = deque()
        self._num_waiting = 0
        self._in_flight: set[asyncio.Task[int]] = set()
        self._num_replicas = 1
        self._timer: asyncio.TimerHandle | None = None
        self._group_s = 0.0
        """What a group takes, smoothed."""

    @property
    def num_waiting(self) -> int:
        """Rows that are in no group yet."""
        return self._num_waiting

    def set_replicas(self, number: int) -> None:
        """How many replicas there are now."""
        self._num_replicas = max(1, number)
        self._dispatch()

    async def answer(self, rows: list[Row], how: How) -> list[Answer]:
        """The answers in the order of the rows. When the caller is cancelled, what is in no group is dropped.

        Raises QueueFullError, FailedError.
        """
        if not rows:
            return []
        if self._num_waiting + len(rows) > self._max_queue:
            self._dispatch()  # some may only be waiting for others to join them
            if self._num_waiting:
                raise QueueFullError
        future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        request = _Request(rows, how, future, [None] * len(rows), num_left=len(rows))
        self._waiting.append(request)
        self._count(len(rows))
        if not self._joins or self._is_full():
            self._dispatch()
        else:
            self._wait_to_join()
        try:
            return await future
        finally:
            if request in self._waiting:
                self._waiting.remove(request)
                self._count(request.next - len(rows))

    def _count(self, change: int) -> None:
        self._num_waiting += change
        self._metrics.queue.set(self._num_waiting)

    def _dispatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            most = self._num_replicas * (AHEAD if self._is_full() or not self._joins else 1)
            if len(self._in_flight) >= most:
                return
            self._start(self._take())

    def _is_full(self) -> bool:
        """Whether the rows that wait make up a group."""
        return self._num_waiting >= _most_rows(self._waiting[0].how)

    def _wait_to_join(self) -> None:
        """Have a replica that is free wait for further rows."""
        if self._timer is None and self._waiting and len(self._in_flight) < self._num_replicas:
            under_load_s = min(max(JOIN_S, JOIN_PART * self._group_s), MOST_JOIN_S)
            wait_s = under_load_s if self._in_flight else JOIN_S
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._dispatch)

    def _take(self) -> _Group:
        """The next group: of the requests that have waited longest, whose rows can be answered together. What is left
        of a long request goes behind the others."""
        group, num_chars, kept = _Group(self._waiting[0].how), 0, deque[_Request]()
        most, unfinished = _most_rows(group.how), list[_Request]()
        while self._waiting:
            request = self._waiting.popleft()
            if request.how != group.how:
                kept.append(request)
                continue
            begin = request.next
            while request.next < len(request.rows):
                size = _num_chars(request.rows[request.next])
                is_full = len(group.places) >= most or num_chars + size > GROUP_CHARS
                if is_full and group.places and self._joins:
                    break
                group.places.append((request, request.next))
                num_chars += size
                request.next += 1
            self._count(begin - request.next)
            if request.next < len(request.rows):
                unfinished.append(request)
            if unfinished or not self._joins:
                break
        self._waiting = kept + self._waiting
        self._waiting.extend(unfinished)
        return group

    def _start(self, group: _Group) -> None:
        task = asyncio.get_running_loop().create_task(self._timed(group))
        self._in_flight.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[int]) -> None:
        self._in_flight.discard(task)
        if self._joins and not task.cancelled() and task.result() > 2 * self._num_waiting:
            self._wait_to_join()  # for those who have just been answered
        else:
            self._dispatch()

    async def _timed(self, group: _Group) -> int:
        """Its rows."""
        began_s = time.monotonic()
        await self._run(group)
        self._group_s += 0.2 * (time.monotonic() - began_s - self._group_s)
        return len(group.places)

    async def _run(self, group: _Group) -> None:
        """Have a group answered. If that fails, each request of it is tried alone, so that one can't spoil others."""
        try:
            answers = await self._backend(group.rows(), group.how)
        except ReplicaLostError:
            self._metrics.retries.inc()
            group.num_deaths += 1
            if group.num_deaths >= ATTEMPTS:
                _fail(group, "replicas of the model have died over these rows, one after the other")
            elif group.num_deaths == 1:  # most likely it was not the rows
                await self._run(group)
            else:
                await self._run_each(group)
        except Exception as error:
            if len({id(request) for request, _ in group.places}) > 1:
                await self._run_each(group)
            elif isinstance(error, ConfigError):
                _fail(group, str(error), CannotError)
            else:
                logger.error("a request failed: %s: %s", type(error).__name__, first_line(str(error)))
                _fail(group, f"the model raises {type(error).__name__}")
        else:
            self._metrics.groups.observe(len(answers))
            for (request, index), answer in zip(group.places, answers, strict=True):
                _put(request, index, answer)

    async def _run_each(self, group: _Group) -> None:
        parts: dict[int, _Group] = {}
        for request, index in group.places:
            if not request.done.done():
                part = parts.setdefault(id(request), _Group(group.how, num_deaths=group.num_deaths))
                part.places.append((request, index))
        for part in parts.values():
            await self._run(part)


def _put(request: _Request, index: int, answer: Answer) -> None:
    request.answers[index] = answer
    request.num_left -= 1
    if not request.num_left and not request.done.done():
        request.done.set_result([one for one in request.answers if one is not None])


def _fail(group: _Group, why: str, kind: type[FailedError] = FailedError) -> None:
    for request, _ in group.places:
        if not request.done.done():
            request.done.set_exception(kind(why))


def _most_rows(how: How) -> int:
    """Rows of a group."""
    tokens = how.decoding.max_new_tokens
    return max(1, min(GROUP_ROWS, GROUP_TOKENS // tokens)) if tokens else GROUP_ROWS


def _num_chars(row: Row) -> int:
    return sum(map(_chars_of, row.values()))


def _chars_of(value: object) -> int:
    if isinstance(value, bytes):  # an image
        return IMAGE_CHARS
    return len(value) if isinstance(value, str) else len(str(value))
