"""Scaling up: new processes start and get ready beside the group that trains; only then is the group asked to leave."""

import time
from collections.abc import Callable, Sequence

from raytrain.config import RunConfig
from raytrain.elastic.policy import ScaleUpPolicy
from raytrain.elastic.worker_group import WorkerGroup
from raytrain.elastic.worker_processes import WorkerPool, WorkerProcess
from raytrain.steps.batches import BatchPlan


class ScaleUp:
    """Scales one run up; reset for each group."""

    def __init__(self, config: RunConfig, pool: WorkerPool, say: Callable[[str], None]):
        self._policy = ScaleUpPolicy(config.workers.grow_delay_s, config.workers.grow_payback)
        self._config, self._pool, self._say = config, pool, say
        self._is_under_way = False
        self._left_at: int | None = None  # workers of the group that has left for a scale-up
        self._is_replacing = False

    @property
    def seen_at_s(self) -> float:
        """When the capacity was first seen, seconds since the epoch."""
        return self._policy.seen_at_s

    def begin(self, world_size: int, *, is_planned: bool) -> None:
        """A group of this size begins. If the last one has left for a scale-up and this one is not larger, the capacity
        was gone. `is_planned`: the last group left as it was asked to."""
        self._policy.reset()
        if is_planned and self._left_at is not None and world_size <= self._left_at:
            self._policy.was_in_vain(time.time())
        self._is_under_way, self._left_at = self._is_replacing, None

    def replace(self, survivors: Sequence[WorkerProcess], places: Sequence[str]) -> None:
        """Start replacements for the processes that a group has lost. The survivors form the next group meanwhile; this
        must happen before their data pipelines take the resources.

        `places`: a node's id for each.
        """
        self._policy.saw(time.time())
        self._pool.fit_to([*(process.node_id for process in survivors), *places], at_work=self._pool.processes)
        self._is_replacing = any(process not in survivors for process in self._pool.processes)

    def advance(self, group: WorkerGroup, places: Sequence[str], remaining_s: float | None, cost_s: float) -> bool:
        """Whether the group should leave now, so that all of the pool's processes continue together.

        Args:
            group: The group that trains; its processes are not touched.
            places: Where workers fit now: a node's id for each.
            remaining_s: Training time left at the group's speed; None before its first step.
            cost_s: Cost of a resize in seconds.
        """
        now_s = time.time()
        if group.has_failed:  # it is about to end; no decision about what is left of it
            return False
        if not self._is_under_way:
            if remaining_s is None:  # nothing to compare the cost of a resize with
                return False
            saved_s = remaining_s * self._share_saved(group.world_size, len(places))
            if self._policy.should_grow(now_s, group.world_size, len(places), saved_s, cost_s):
                self._say(f"room for {len(places)} workers instead of {group.world_size}: the new ones are starting")
                self._pool.fit_to(places, at_work=group.processes)
                self._is_under_way = True
            return False
        self._pool.end_lost()
        new = [process for process in self._pool.processes if process not in group.processes]
        gone = [process for process in new if process.node_id not in places]
        gone = gone or new[max(0, len(places) - group.world_size) :]  # the allocation was reduced meanwhile
        self._pool.end(gone)
        if len(gone) == len(new):
            if not self._is_replacing:
                self._policy.was_in_vain(now_s)
            self._is_under_way = self._is_replacing = False
            return False
        if remaining_s is None or not self._pool.is_warm:
            return False
        self._left_at, self._is_replacing = group.world_size, False
        return True

    def _share_saved(self, current: int, possible: int) -> float:
        """Share of the time of a step that more workers save: with 8 micro-batches, 4 and 7 workers take two passes
        each."""
        if possible <= current:
            return 0.0
        before, after = (BatchPlan.of(self._config, size).micro_steps for size in (current, possible))
        return 1 - after / before
