"""The pool of a sweep's workers: an actor that decides how many workers each trial may have, and leases it their
processes. `allocate` computes the numbers."""

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain.elastic.allocation import Allocation, LeasedWorker, end_worker, start_worker
from raytrain.ray_core.actors import start_actor
from raytrain.ray_core.node_request import NodeRequest
from raytrain.ray_core.nodes import look, places_that_fit
from raytrain.tuning.pool.allocate import Claim, allocate
from raytrain.tuning.pool.idle_workers import IdleWorkers

LOOK_EVERY_S = 2.0
LESS_FOR_S = 5.0  # a cluster that is smaller for a moment (a Ray Data task) must not shrink any trial
ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """The actor's answer to a trial."""

    most: int = 0
    """Workers that the trial may have; 0: it has to wait."""
    idle: list[str] = field(default_factory=list)
    """Ids of the nodes on which an idle process waits for a trial, one entry per process."""
    is_stopping: bool = False
    """Whether the sweep is ending."""


class _BrokerActor:
    """Workers are allocated again when a trial joins, leaves or passes a rung, and when the cluster changes; not
    whenever two trials swap ranks, since each resize costs some seconds."""

    def __init__(self, worker: dict[str, float], data_cpus: float, most: int, least: int, expected: int):
        self._worker, self._data_cpus, self._most = worker, data_cpus, most
        self._least, self._expected = least, expected
        self._live: dict[str, Claim] = {}
        self._idle_workers = IdleWorkers(start_worker, end_worker)
        self._broker: dict[str, int] = {}
        self._capacity = 0
        self._is_stopping = False
        self._arrived: dict[str, tuple[int, float]] = {}
        self._num_released = 0
        self._next_look_s = 0.0
        self._less_since_s = math.inf

    def join(self, claim: Claim) -> None:
        self._live[claim.trial] = claim
        self._deal()

    def leave(self, trial: str) -> None:
        self._idle_workers.left(trial)
        if self._live.pop(trial, None) is not None:
            self._next_look_s = 0.0
            self._deal()

    def reached(self, trial: str, rung: int, value: float) -> None:
        """Record a trial's newest evaluation; `value`: larger is better."""
        if (claim := self._live.get(trial)) is None:
            return
        self._live[trial] = replace(claim, rung=rung, value=value)
        if rung > claim.rung or claim.value is None:
            self._deal()

    def ask(self, trial: str) -> Answer:
        self._look()
        most = 0 if self._is_stopping else self._broker.get(trial, 0)
        return Answer(most, self._idle_workers.idle, self._is_stopping)

    def lend(self, trial: str, node_id: str, resources: dict[str, float]) -> LeasedWorker:
        number, node_id, actor = self._idle_workers.lend(trial, node_id, resources)
        return LeasedWorker(node_id, actor, number)

    def take_back(self, number: int, is_fit: bool) -> None:
        self._idle_workers.take_back(number, is_fit=is_fit)

    def expect(self, expected: int) -> None:
        """`expected` trials want workers, including those that are still starting."""
        if expected != self._expected:
            self._expected = expected
            self._deal()

    def stop(self) -> None:
        self._is_stopping = True

    def arrive(self, trial: str, generation: int, value: float) -> tuple[int, bool]:
        """A trial of a population has arrived at the end of a generation. Returns the number of generations after which
        trials may continue, and whether the sweep is ending."""
        self._arrived[trial] = (generation, value)
        return self._num_released, self._is_stopping

    def arrived(self) -> dict[str, tuple[int, float]]:
        return self._arrived

    def release(self, num_generations: int) -> None:
        self._num_released = num_generations

    def close(self) -> None:
        self._idle_workers.close()

    def standing(self) -> tuple[dict[str, int], int, int]:
        """Workers of each live trial, of all trials if they had what they want, and the number for which there is room
        or which exist."""
        self._look()  # also while no trial asks, so that processes that are idle for too long are ended
        coming = max(0, self._expected - len(self._live))
        wanted = sum(claim.max_workers for claim in self._live.values()) + self._least * coming
        return dict(self._broker), min(wanted, self._most), max(self._capacity, len(self._idle_workers.nodes))

    def _look(self) -> None:
        if time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + LOOK_EVERY_S
        nodes = look()
        self._idle_workers.tend()
        self._idle_workers.forget_lost({node.node_id for node in nodes if not node.is_draining})
        ours = self._idle_workers.nodes
        fitting = len(places_that_fit(nodes, self._worker, self._data_cpus, self._most, ours, len(ours)))
        now_s = time.monotonic()
        if fitting >= self._capacity:
            self._less_since_s = math.inf
        elif self._less_since_s == math.inf:
            self._less_since_s = now_s
        if fitting > self._capacity or now_s - self._less_since_s > LESS_FOR_S:
            self._capacity, self._less_since_s = fitting, math.inf
            self._deal()

    def _deal(self) -> None:
        # What others would get before an expected trial has joined would be taken back as soon as it joins.
        coming = range(self._expected - len(self._live))
        kept = [Claim(f"coming {number}", self._least, self._least) for number in coming]
        dealt = allocate([*self._live.values(), *kept], self._capacity)
        self._broker = {trial: dealt[trial] for trial in self._live}


class Broker:
    """The sweep's side of the pool."""

    def __init__(self, worker: Mapping[str, float], data_cpus: float, most: int, least: int, expected: int):
        """Starts the actor on this node.

        Args:
            worker: Resources of each worker.
            data_cpus: CPUs of each worker's data pipeline.
            most: Most workers of all trials together.
            least: Fewest workers of a trial.
            expected: Trials that are about to join.
        """
        self.name = f"raytrain-broker-{uuid.uuid4().hex[:12]}"
        self._actor = start_actor(_BrokerActor, dict(worker), data_cpus, most, least, expected, name=self.name)
        self._request, self._least = NodeRequest(worker, data_cpus, least), least
        self._no_room_since_s = math.inf

    def leave(self, trial: str) -> None:
        """A trial has ended, for whatever reason."""
        self._actor.leave.remote(trial)

    def reached(self, trial: str, rung: int, value: float) -> None:
        """A trial has passed `rung` rungs; `value`: its metric, larger is better."""
        self._actor.reached.remote(trial, rung, value)

    def expect(self, expected: int) -> None:
        """`expected` trials want workers, including those that are still starting."""
        self._actor.expect.remote(expected)

    def stop(self) -> None:
        """Ask every trial to save and end."""
        self._actor.stop.remote()

    def arrived(self) -> dict[str, tuple[int, float]]:
        """The trials of a population that have arrived at the end of a generation: its index, and their value then."""
        import ray

        return ray.get(self._actor.arrived.remote(), timeout=ANSWER_TIMEOUT_S)

    def release(self, num_generations: int) -> None:
        """Let the trials continue that wait at the end of one of the first `num_generations` generations."""
        self._actor.release.remote(num_generations)

    def now(self) -> dict[str, int]:
        """Workers that each live trial may have now. Also tells the autoscaler what all of them want."""
        import ray

        broker, wanted, there = ray.get(self._actor.standing.remote(), timeout=ANSWER_TIMEOUT_S)
        if wanted:
            self._request.ask(wanted, there)
        if broker and there < self._least:
            self._request.is_in_vain()
            self._no_room_since_s = min(self._no_room_since_s, time.monotonic())
        else:
            self._request.is_met()
            self._no_room_since_s = math.inf
        return broker

    @property
    def waiting_s(self) -> float:
        """Seconds for which there has been no room for any trial; 0: there is room."""
        return max(0.0, time.monotonic() - self._no_room_since_s)

    def close(self) -> None:
        """End the actor and all processes."""
        import ray

        with contextlib.suppress(Exception):  # Ray Data's own actor may raise; the request expires by itself
            self._request.close()
        with contextlib.suppress(ray.exceptions.RayError):  # it is gone, and so is everything that it owned
            ray.get(self._actor.close.remote(), timeout=ANSWER_TIMEOUT_S)
        ray.kill(self._actor)


class TrialAllocation(Allocation):
    """A trial's side of the pool."""

    asks_for_nodes = False
    least_data_cpus = 0.0

    def __init__(self, broker: str, claim: Claim, is_withdrawn: Callable[[], bool] = lambda: False):
        """Args:
        broker: Name of the actor.
        is_withdrawn: Whether the scheduler has stopped the trial.
        """
        import ray

        self._actor, self._trial = ray.get_actor(broker), claim.trial
        self._claim: Claim | None = claim
        self._last = Answer()
        self._is_withdrawn = is_withdrawn

    def most_workers(self) -> int | None:
        """The pool's answer. The trial joins the pool here: before, it prepares its data and holds no worker."""
        import ray

        if self._claim is not None:
            ray.get(self._actor.join.remote(self._claim), timeout=ANSWER_TIMEOUT_S)
            self._claim = None
        # The pool may not answer on a busy machine: its last answer remains valid.
        with contextlib.suppress(ray.exceptions.GetTimeoutError):
            answer: Any = ray.get(self._actor.ask.remote(self._trial), timeout=ANSWER_TIMEOUT_S)
            self._last = answer
        return self._last.most

    @property
    def idle_nodes(self) -> Sequence[str]:
        """The pool's last answer."""
        return self._last.idle

    @property
    def is_stop_asked(self) -> bool:
        """Whether the sweep is ending."""
        return self._last.is_stopping

    @property
    def is_withdrawn(self) -> bool:
        """Whether the scheduler has stopped the trial."""
        return self._is_withdrawn()

    def lend(self, node_id: str, resources: Mapping[str, float]) -> LeasedWorker:
        """A process that another trial has given back, on any node, or a new one. It belongs to the pool."""
        import ray

        leased: Any = self._actor.lend.remote(self._trial, node_id, dict(resources))
        answer: LeasedWorker = ray.get(leased, timeout=ANSWER_TIMEOUT_S)
        return answer

    def take_back(self, leased: LeasedWorker, *, is_fit: bool) -> None:
        """Give the process back for the next trial."""
        self._actor.take_back.remote(leased.number, is_fit)

    def close(self) -> None:
        """The trial has ended: its workers are available to the others."""
        self._actor.leave.remote(self._trial)


def rungs_passed(done: float, grace: float, reduction_factor: float) -> int:
    """How many of ASHA's rungs, at grace * reduction_factor ** n, a trial has reached. `done`: in the same unit as
    `grace`."""
    if done < grace:
        return 0
    return 1 + int(math.log(done / grace, reduction_factor) + 1e-9)
