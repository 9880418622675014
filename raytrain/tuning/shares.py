"""The pool of a sweep's workers: an actor that each trial asks how many it may have. `sharing` decides."""

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain.actors import start_actor
from raytrain.elastic.capacity import look, places_that_fit
from raytrain.elastic.share import Share
from raytrain.tuning.sharing import Claim, share

LOOK_EVERY_S = 2.0
LESS_FOR_S = 5.0  # a cluster that is smaller for a moment (a task of Ray Data's) makes nobody leave
ANSWER_TIMEOUT_S = 30.0
STOP = -1


@dataclass
class _Live:
    """A trial that runs or waits."""

    claim: Claim
    nodes: list[str] = field(default_factory=list)


class _SharesActor:
    """Shares are dealt anew when a trial comes, goes or passes a rung, and when the cluster changes; not whenever two
    trials change places, since each resize costs some seconds."""

    def __init__(self, worker: dict[str, float], data_cpus: float, most: int):
        self._worker, self._data_cpus, self._most = worker, data_cpus, most
        self._live: dict[str, _Live] = {}
        self._shares: dict[str, int] = {}
        self._capacity = 0
        self._is_stopping = False
        self._next_look_s = 0.0
        self._less_since_s = math.inf

    def join(self, claim: Claim) -> None:
        self._live[claim.trial] = _Live(claim)
        self._deal()

    def leave(self, trial: str) -> None:
        if self._live.pop(trial, None) is not None:
            self._next_look_s = 0.0
            self._deal()

    def reached(self, trial: str, rung: int, value: float) -> None:
        """What a trial's newest evaluation says; `value`: larger is better."""
        if (live := self._live.get(trial)) is None:
            return
        has_passed = rung > live.claim.rung or live.claim.value is None
        live.claim = replace(live.claim, rung=rung, value=value)
        if has_passed:
            self._deal()

    def most_workers(self, trial: str, nodes: list[str]) -> int:
        if self._is_stopping:
            return STOP
        if trial in self._live:
            self._live[trial].nodes = nodes
        self._look()
        return self._shares.get(trial, 0)

    def stop(self) -> None:
        self._is_stopping = True

    def shares(self) -> dict[str, int]:
        return dict(self._shares)

    def _look(self) -> None:
        if time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + LOOK_EVERY_S
        ours = [node for live in self._live.values() for node in live.nodes]
        fitting = len(places_that_fit(look(), self._worker, self._data_cpus, self._most, ours, len(ours)))
        now_s = time.monotonic()
        if fitting >= self._capacity:
            self._less_since_s = math.inf
        elif self._less_since_s == math.inf:
            self._less_since_s = now_s
        if fitting > self._capacity or now_s - self._less_since_s > LESS_FOR_S:
            self._capacity, self._less_since_s = fitting, math.inf
            self._deal()

    def _deal(self) -> None:
        self._shares = share([live.claim for live in self._live.values()], self._capacity)


class Shares:
    """The sweep's end."""

    def __init__(self, worker: Mapping[str, float], data_cpus: float, most: int):
        """Starts the actor on this node.

        Args:
            worker: What each worker holds.
            data_cpus: CPUs of each worker's pipeline.
            most: Workers of all trials together.
        """
        self.name = f"raytrain-shares-{uuid.uuid4().hex[:12]}"
        self._actor = start_actor(_SharesActor, dict(worker), data_cpus, most, name=self.name)

    def leave(self, trial: str) -> None:
        """A trial has ended, in whatever way."""
        self._actor.leave.remote(trial)

    def reached(self, trial: str, rung: int, value: float) -> None:
        """A trial has passed so many rungs; `value`: its metric, larger is better."""
        self._actor.reached.remote(trial, rung, value)

    def stop(self) -> None:
        """Every trial saves and ends."""
        self._actor.stop.remote()

    def now(self) -> dict[str, int]:
        """Workers that each live trial may have."""
        import ray

        return ray.get(self._actor.shares.remote(), timeout=ANSWER_TIMEOUT_S)

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)


class TrialShare(Share):
    """A trial's end."""

    least_data_cpus = 0.0

    def __init__(self, shares: str, claim: Claim):
        """`shares`: name of the actor."""
        import ray

        self._actor, self._trial = ray.get_actor(shares), claim.trial
        self._is_stopping, self._last = False, 0
        ray.get(self._actor.join.remote(claim), timeout=ANSWER_TIMEOUT_S)

    def most_workers(self, nodes: Sequence[str]) -> int | None:
        """As the pool says."""
        import ray

        question: Any = self._actor.most_workers.remote(self._trial, list(nodes))
        try:
            answer: Any = ray.get(question, timeout=ANSWER_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:  # a machine that is busy; what was last said holds on
            return self._last
        self._is_stopping = self._is_stopping or answer == STOP
        self._last = max(0, answer)
        return self._last

    @property
    def is_stop_asked(self) -> bool:
        """Whether the sweep ends."""
        return self._is_stopping

    def close(self) -> None:
        """The trial has ended: what it had is the others'."""
        self._actor.leave.remote(self._trial)


def rungs_passed(step: int, grace_steps: int | None, reduction_factor: float) -> int:
    """How many of ASHA's rungs, which lie at grace_steps * reduction_factor ** n, a trial has come to."""
    if grace_steps is None or step < grace_steps:
        return 0
    return 1 + int(math.log(step / grace_steps, reduction_factor) + 1e-9)
