"""The actors of a prediction: as many as there is work and room for, each with one model in its memory."""

import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.config import WorkersConfig
from raytrain.errors import DataError, FailureCode, TrainingError, first_line
from raytrain.inference.pieces import Done, PieceWorker, WorkSpec
from raytrain.ray_core.nodes import look, places_that_fit
from raytrain.tasks.user_code import is_out_of_memory

IN_FLIGHT = 2  # pieces that an actor is given at once, so that it does not wait for the driver
POLL_S = 1.0
GROW_EVERY_S = 5.0
"""Between two looks for room for more actors."""


@dataclass
class _Actor:
    handle: Any
    task: int = -1
    """The read task that it works on."""
    is_ready: bool = False
    node: str = ""
    """Hex id of its node, once it is ready."""
    pieces: dict[Any, tuple[int, int]] = field(default_factory=dict)
    """Reference to an answer -> (read task, piece)."""


class Backlog:
    """Which pieces are still to be handed out. How many a read task has is known once a worker has met its end."""

    def __init__(self, num_tasks: int, done: dict[int, set[int]], ends: dict[int, int], unshared: Collection[int] = ()):
        """
        Args:
            done: Pieces that have parts, by read task.
            ends: The number of pieces, where it is known.
            unshared: Read tasks whose rows are compared at their end with what was checked, as those of a query. One
                worker at a time reads one, in ascending order and past its last piece, so that nothing is compared
                with rows that another reading gave.
        """
        self._next, self._done = dict.fromkeys(range(num_tasks), 0), done
        self._unshared, self._ends = frozenset(unshared), dict(ends)
        for task in self._unshared & self._ends.keys():
            if any(piece not in done.get(task, ()) for piece in range(ends[task])):
                del self._ends[task]  # the end is to be read again
        self._unread, self._again = deque(range(num_tasks)), deque[tuple[int, int]]()
        self._users: Counter[int] = Counter()

    def take(self, task: int) -> tuple[int, int] | None:
        """(read task, piece) for a worker whose newest read task is `task`: of the same one if there is more of it,
        else of one that nobody reads, else of one with the fewest readers. None: all are handed out."""
        if task in self._unshared and (piece := self._piece_of(task)) is not None:
            return task, piece
        if self._again:
            return self._again.popleft()
        if (piece := self._piece_of(task)) is not None:
            return task, piece
        while self._unread:
            other = self._unread.popleft()
            if (piece := self._piece_of(other)) is not None:
                self._users[other] += 1
                return other, piece
        for _, other in sorted((self._users[other], other) for other in self._next if other not in self._unshared):
            if (piece := self._piece_of(other)) is not None:
                self._users[other] += 1
                return other, piece
        return None

    @property
    def has_more(self) -> bool:
        """Whether there may be pieces for one more worker."""
        unread = {task for task in self._unread if task in self._next}
        return bool(self._again or unread or self._next.keys() - self._unshared)

    def put_back(self, task: int, piece: int) -> None:
        """A piece is to be handed out again, its worker has died. Another one continues an unshared read task there."""
        if task not in self._unshared:
            self._again.append((task, piece))
        elif piece < self._ends.get(task, piece + 1):
            self._next[task] = min(piece, self._next.get(task, piece))
            if task not in self._unread:
                self._unread.appendleft(task)

    def ended(self, task: int, num_pieces: int) -> None:
        """A read task has at most this many pieces."""
        self._ends[task] = min(num_pieces, self._ends.get(task, num_pieces))

    def _piece_of(self, task: int) -> int | None:
        if task not in self._next:
            return None
        piece = self._next[task]
        while piece in self._done.get(task, ()):
            piece += 1
        if piece >= self._ends.get(task, piece + 1):
            del self._next[task]
            return None
        self._next[task] = piece + 1
        return piece


class Pool:
    """Runs a backlog on actors, which follow the nodes: those that join get actors too, and the pieces of one that goes
    are done by others."""

    def __init__(self, spec: WorkSpec, read_tasks: Sequence[str], workers: WorkersConfig, num_actors: int, most: int):
        """
        Args:
            read_tasks: As JSON.
            num_actors: To ask for at once. Those for which there is no room yet start when there is.
            most: Actors at a time, when nodes join.
        """
        self._spec, self._tasks, self._workers = spec, read_tasks, workers
        self._num_actors, self._most, self._num_failures = num_actors, most, 0
        self._actors: list[_Actor] = []
        self._refs: dict[Any, _Actor] = {}
        self._next_look_s = self._last_ready_s = 0.0

    def run(self, backlog: Backlog) -> Iterator[Done | None]:
        """Yields what becomes of each piece, in any order; None when a worker has its model.

        Raises:
            DataError, ConfigError and the like: What a worker could not do.
            TrainingError: Workers died, or there was no room for one.
        """
        import ray

        try:
            for _ in range(self._num_actors):
                self._start()
            self._last_ready_s = time.monotonic()
            while self._refs:
                ready, _ = ray.wait(list(self._refs), timeout=POLL_S)
                for ref in ready:
                    num_ready = self._num_ready()
                    done = self._answer(ref, backlog)
                    if self._num_ready() > num_ready:
                        yield None
                    if done is not None:
                        yield done
                self._check_room()
                self._grow(backlog)
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)

    def _start(self) -> None:
        import ray

        options: dict[str, Any] = {"num_cpus": self._workers.cpus, "num_gpus": int(self._spec.use_gpu)}
        remote: Any = ray.remote(**options)(PieceWorker)
        actor = _Actor(remote.remote(self._spec))
        self._actors.append(actor)
        self._refs[actor.handle.load.remote()] = actor

    def _answer(self, ref: Any, backlog: Backlog) -> Done | None:
        """Take an answer, and give its actor more work. None: it was not about a piece that is there."""
        import ray

        actor = self._refs.pop(ref, None)
        if actor is None:  # it has died meanwhile
            return None
        asked = actor.pieces.pop(ref, None)
        try:
            done: Done = ray.get(ref)
        except ray.exceptions.RayActorError as error:
            self._lost(actor, asked, backlog, str(error))
            return None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise TrainingError(
                f"a worker failed: {type(cause).__name__}: {first_line(str(cause))}. Give the command again to "
                "continue",
                FailureCode.OUT_OF_MEMORY if is_out_of_memory(cause) else FailureCode.WORKER_ERROR,
            ) from error
        if done.error:
            kind = DataError if FailureCode(done.code).exit_code == 2 else TrainingError
            raise kind(done.error, FailureCode(done.code))
        actor.is_ready, actor.node = True, done.node or actor.node
        if done.is_end:
            backlog.ended(done.task, done.piece)
        while len(actor.pieces) < IN_FLIGHT and (following := backlog.take(actor.task)) is not None:
            self._give(actor, *following)
        if not actor.pieces:
            self._end(actor)
        return None if asked is None or done.is_end else done

    def _give(self, actor: _Actor, task: int, piece: int) -> None:
        actor.task = task
        ref = actor.handle.predict.remote(task, self._tasks[task], piece)
        actor.pieces[ref] = (task, piece)
        self._refs[ref] = actor

    def _lost(self, actor: _Actor, asked: tuple[int, int] | None, backlog: Backlog, why: str) -> None:
        """An actor has died: another one takes its place and its pieces."""
        for task, piece in [*([asked] if asked else []), *actor.pieces.values()]:
            backlog.put_back(task, piece)
        for ref in actor.pieces:
            self._refs.pop(ref, None)
        self._actors.remove(actor)
        self._num_failures += not self._is_gone(actor.node)
        if self._num_failures > self._workers.max_failures:
            first = why.strip().splitlines()[0] if why.strip() else "no reason is known"
            raise TrainingError(
                f"{self._num_failures} workers died: {first}. Is there enough memory for the model in each of them? "
                "Fewer at a time: workers.max=1. Give the command again to continue",
                FailureCode.WORKER_DIED,
            )
        self._start()

    def _is_gone(self, node: str) -> bool:
        """Whether a node was reclaimed or lost, so that the death of its actor does not count as a failure."""
        return bool(node) and node not in {one.node_id for one in look(probe=True) if not one.is_draining}

    def _grow(self, backlog: Backlog) -> None:
        """Start actors on nodes that have joined, or have become free."""
        now_s = time.monotonic()
        if now_s < self._next_look_s or not backlog.has_more or len(self._actors) >= self._most:
            return
        self._next_look_s = now_s + GROW_EVERY_S
        if all(actor.is_ready for actor in self._actors):  # the others wait for room themselves
            worker = {"CPU": float(self._workers.cpus), **({"GPU": 1.0} if self._spec.use_gpu else {})}
            for _ in places_that_fit(look(), worker, 0.0, self._most - len(self._actors), least_data_cpus=0.0):
                self._start()

    def _end(self, actor: _Actor) -> None:
        """There is nothing left for an actor: its room is for others."""
        import ray

        self._actors.remove(actor)
        ray.kill(actor.handle)
        if not any(other.pieces for other in self._actors):  # the others have not even started, or have nothing to do
            self._refs.clear()

    def _num_ready(self) -> int:
        return sum(actor.is_ready for actor in self._actors)

    def _check_room(self) -> None:
        """Raises TrainingError when there was no actor for workers.wait_timeout_s."""
        limit_s, now_s = self._workers.wait_timeout_s, time.monotonic()
        if self._num_ready():
            self._last_ready_s = now_s
        if limit_s is not None and self._actors and now_s - self._last_ready_s >= limit_s:
            raise TrainingError(
                f"no worker could start for {limit_s:g} s: the cluster has no room for {self._workers.cpus} CPUs"
                f"{' and a GPU' if self._spec.use_gpu else ''}. Lower workers.cpus, or set workers.gpu=false",
                FailureCode.NO_CAPACITY,
            )
