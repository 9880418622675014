"""Waits until the cluster has room for workers, and asks its autoscaler for nodes."""

import time
from collections.abc import Iterable
from dataclasses import replace

from raytrain.config import RunConfig
from raytrain.elastic.allocation import Allocation
from raytrain.elastic.run_spec import Hooks
from raytrain.elastic.worker_processes import WorkerPool
from raytrain.errors import FailureCode, TrainingError
from raytrain.ray_core.node_request import NodeRequest
from raytrain.ray_core.nodes import NodeView, Resources, look, places_that_fit

POLL_S = 0.25
# After a group has left, its resources are released within this time.
SETTLE_S = 10.0
# Before the first group: the tasks that prepared the data may hold their resources for this long.
FIRST_SETTLE_S = 3.0
SAY_EVERY_S = 15.0


class Admission:
    """Decides when and where each worker group of a run may start."""

    def __init__(self, config: RunConfig, worker: Resources, hooks: Hooks, pool: WorkerPool, allocation: Allocation):
        """Args:
        worker: Resources of each worker.
        pool: The run's remaining processes; they are given back while the run waits, so that others can use their
        resources.
        allocation: Bounds the number of workers.
        """
        self._workers, self._worker = config.workers, dict(worker)
        self._hooks, self._pool, self._allocation = hooks, pool, allocation
        self.wanted = config.workers.max
        """Workers that the run may have, as of the last query."""
        self.waiting_s = 0.0
        """Time since which workers.min do not fit, in seconds; 0: they fit, or the sweep's other trials have all
        workers."""
        self._expected = 0
        data_cpus, least = config.workers.data_cpus, config.workers.min
        self._request = NodeRequest(worker, data_cpus, least) if allocation.asks_for_nodes else None
        self._is_first = True

    def expect(self, world_size: int) -> None:
        """`world_size` workers will fit as soon as the current group has left."""
        self._expected = world_size

    def wait_for(self, num_pipelines: int) -> list[str]:
        """Wait until workers.min or more fit. Returns where: a node's id for each; empty when the user asked to stop.

        After a group's end it waits a little longer, until that group's resources are released.

        Args:
            num_pipelines: Data pipelines of the last group. Their resources are counted as free if they are not yet:
            when a worker's node is gone, Ray learns late that the worker's pipeline has ended.

        Raises:
            TrainingError: workers.wait_timeout_s have passed; the message says what is missing.
        """
        if self._request is not None:
            self._request.is_met()
        began_s = time.monotonic()
        settle_s = FIRST_SETTLE_S if self._is_first else SETTLE_S
        next_word_s = began_s + 2.0
        wanted = self._expected or self._workers.max
        if self._is_first:
            there = [replace(node, available=node.total) for node in look()]
            wanted = max(self._workers.min, len(self.places(there, 0, self._workers.max)))
        while not self._hooks.is_stop_asked():
            self.ask_for_nodes()
            nodes = look(probe=True)
            self._pool.end_on(set(self._pool.nodes) - {node.node_id for node in nodes if not node.is_draining})
            most = self.most_workers()
            places = self.places(nodes, num_pipelines, most)
            fitting = len(places)
            began_s = time.monotonic() if most < self._workers.min else began_s  # that wait is not for nodes
            waited_s = time.monotonic() - began_s
            if fitting < self._workers.min and (most < self._workers.min or waited_s > SETTLE_S):
                self._pool.close()  # another run or trial may use their resources
            if fitting >= self._workers.min and (fitting >= min(wanted, most) or waited_s >= settle_s):
                self._is_first, self._expected, self.waiting_s = False, 0, 0.0
                return places
            self.waiting_s = waited_s if fitting < self._workers.min <= most else 0.0
            timeout_s = self._workers.wait_timeout_s
            if timeout_s is not None and waited_s > timeout_s:
                raise TrainingError(
                    f"{self._missing(nodes, fitting)}. This has lasted for workers.wait_timeout_s {timeout_s:g} s; add "
                    "nodes, lower workers.min, or raise the timeout",
                    FailureCode.NO_CAPACITY,
                )
            if time.monotonic() >= next_word_s and fitting < self._workers.min:
                if most < self._workers.min:
                    self._hooks.say("waiting for the sweep's other trials")
                else:
                    self._hooks.say(f"waiting for nodes ({waited_s:.0f} s so far): {self._missing(nodes, fitting)}")
                next_word_s = time.monotonic() + SAY_EVERY_S
            if fitting < self._workers.min and self._request is not None:
                self._request.is_in_vain()
            time.sleep(POLL_S)
            self._hooks.on_poll()
        return []

    def most_workers(self) -> int:
        """Workers that the run may have now."""
        most = self._allocation.most_workers()
        self.wanted = self._workers.max if most is None else min(most, self._workers.max)
        return self.wanted

    def places(self, nodes: Iterable[NodeView], num_pipelines: int, most: int) -> list[str]:
        """Where up to `most` workers would fit if the run's own were not there. `num_pipelines`: data pipelines that
        run now, or have just ended."""
        data_cpus, least = self._workers.data_cpus, self._allocation.least_data_cpus
        ours, idle = self._pool.nodes, self._allocation.idle_nodes
        return places_that_fit(nodes, self._worker, data_cpus, most, ours, num_pipelines, least, idle)

    def ask_for_nodes(self, world_size: int = 0) -> None:
        """Request the resources of workers.max workers and their data from the autoscaler, if there is one. A sweep
        requests them for all its trials together. `world_size`: workers that run now."""
        if self._request is not None:
            self._request.ask(self._workers.max, world_size)

    def close(self) -> None:
        """Withdraw the request."""
        if self._request is not None:
            self._request.close()

    def _missing(self, nodes: list[NodeView], fitting: int) -> str:
        """What is needed, and what is free."""
        worker = " and ".join(f"{amount:g} {name}" for name, amount in self._worker.items())
        there = ", ".join(f"{node.name} {_free(node, self._worker)}" for node in nodes[:8]) or "no node"
        more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
        return (
            f"there is room for {fitting} of the {self._workers.min} (workers.min) workers of {worker} each, beside "
            f"{max(1.0, self._workers.min * self._workers.data_cpus):g} CPU for their data. Free now: {there}{more}"
        )


def _free(node: NodeView, worker: Resources) -> str:
    if node.is_draining:
        return "(being reclaimed)"
    return " ".join(f"{node.available.get(name, 0.0):g} {name}" for name in worker)
