"""The run's worker processes, which outlive its worker groups.

A process is started once per place: it imports torch, DeepSpeed and Transformers, and opens its device. At a resize the
remaining processes form a new process group, with new ones that have started while the old group was still training.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raytrain.config import RunConfig
from raytrain.elastic.allocation import Allocation, LeasedWorker, end_worker

POLL_S = 0.1
LOOK_S = 1.0
# For a process that has not started by then the capacity is gone, whatever the cluster reported.
START_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)


class WorkerProcess:
    """One actor, on one node."""

    def __init__(self, leased: LeasedWorker, warm_for: dict[str, Any] | None, *, use_gpu: bool):
        """Returns at once.

        Args:
            leased: Its process may still be starting.
            warm_for: The config of the run that it should prepare for; None: it is needed at once.
            use_gpu: Whether it has a GPU.
        """
        self.node_id, self.leased = leased.node_id, leased
        self.actor = leased.actor
        self._started_s = time.monotonic()
        self._exit: Any = None
        self._up = self._warm = self.actor.join.remote()
        if warm_for is not None:
            self._warm = self.actor.warm.remote(warm_for, use_gpu)

    @property
    def is_up(self) -> bool:
        """Whether the process has ever answered."""
        return _is_done(self._up)

    def ping(self) -> None:
        """Ask the process again whether it is up, if it is idle."""
        if self.is_warm:
            self._started_s = time.monotonic()
            self._up = self._warm = self.actor.hello.remote()

    @property
    def is_warm(self) -> bool:
        """Whether it could start to work at once."""
        return _is_done(self._warm)

    @property
    def is_lost(self) -> bool:
        """Whether it has died, or has not started in time."""
        if not self.is_up:
            return time.monotonic() - self._started_s > START_TIMEOUT_S
        return self._has_died(self._up, self._warm)

    @property
    def is_idle(self) -> bool:
        """Whether it is alive and idle."""
        done = [reference for reference in (self._up, self._warm, self._exit) if reference is not None]
        return all(_is_done(reference) for reference in done) and not self._has_died(*done)

    def wait_for_exit(self, group: int) -> Any:
        """A reference to the WorkerExit, which is resolved when the process has left the group that it was assigned
        to."""
        self._exit = self.actor.wait_for_exit.remote(group)
        return self._exit

    def kill(self) -> None:
        """Kill the process, even if it is busy."""
        end_worker(self.actor)

    def _has_died(self, *references: Any) -> bool:
        import ray

        for reference in references:
            if _is_done(reference):
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    logger.info("a worker's process on node %s is lost: %s", self.node_id, error)
                    return True
        return False


class WorkerPool:
    """All worker processes of a run."""

    def __init__(self, resources: Mapping[str, float], config: RunConfig, allocation: Allocation):
        """Args:
        resources: Resources of each worker.
        allocation: Leases the processes.
        """
        self._resources, self._config = dict(resources), config.model_dump(mode="json", exclude_unset=True)
        self._allocation = allocation
        self._processes: list[WorkerProcess] = []

    @property
    def nodes(self) -> list[str]:
        """Ids of the nodes that they are on, one entry per process."""
        return [process.node_id for process in self._processes]

    @property
    def processes(self) -> list[WorkerProcess]:
        """The processes, grouped by node, so that ranks on one node are adjacent."""
        return sorted(self._processes, key=lambda process: process.node_id)

    @property
    def is_warm(self) -> bool:
        """Whether each of them could start to work at once."""
        return all(process.is_warm for process in self._processes)

    def fit_to(self, places: Iterable[str], *, at_work: Sequence[WorkerProcess] = ()) -> None:
        """Start and end processes until there is one at each place (a node's id). Returns at once.

        `at_work`: these are not ended, and new ones have time to prepare themselves.
        """
        wanted = Counter(places)
        for process in sorted(self._processes, key=lambda process: process not in at_work):
            if wanted[process.node_id]:
                wanted[process.node_id] -= 1
            elif process not in at_work:
                self.give_back([process])
        warm_for, use_gpu = self._config if at_work else None, "GPU" in self._resources
        for node_id in wanted.elements():
            leased = self._allocation.lend(node_id, self._resources)
            self._processes.append(WorkerProcess(leased, warm_for, use_gpu=use_gpu))

    def bring_up(
        self, places: Sequence[str], lost_nodes: Callable[[Iterable[str]], set[str]], on_poll: Callable[[], None]
    ) -> int:
        """Like `fit_to`, and wait until they are up. Returns how many are: fewer if the capacity was gone.

        `lost_nodes`: returns which of these nodes are gone.
        """
        self.fit_to(places)
        for process in self._processes:
            process.ping()
        next_look_s = time.monotonic() + LOOK_S
        # A process that is still warming up answers nothing else.
        while not all((process.is_up and process.is_warm) or process.is_lost for process in self._processes):
            time.sleep(POLL_S)
            on_poll()
            if time.monotonic() > next_look_s:
                next_look_s = time.monotonic() + LOOK_S
                self.end_on(lost_nodes({process.node_id for process in self._processes if not process.is_up}))
        self.end_lost()
        return len(self._processes)

    def end_on(self, node_ids: Iterable[str]) -> None:
        """End the processes on these nodes; the group's other workers notice that they are gone."""
        gone = set(node_ids)
        self.end([process for process in self._processes if process.node_id in gone])

    def end_lost(self) -> None:
        """Discard processes that have died or did not start."""
        self.end([process for process in self._processes if process.is_lost])

    def end(self, processes: Iterable[WorkerProcess]) -> None:
        """End these processes, so that nothing reuses them."""
        for process in processes:
            self._part_with(process, is_fit=False)

    def close(self) -> None:
        """Give all of them back."""
        self.give_back(self._processes)

    def give_back(self, processes: Iterable[WorkerProcess]) -> None:
        """Give back the processes that are idle; others can use them."""
        for process in list(processes):
            self._part_with(process, is_fit=process.is_idle)

    def _part_with(self, process: WorkerProcess, *, is_fit: bool) -> None:
        if process in self._processes:
            self._processes.remove(process)
            self._allocation.take_back(process.leased, is_fit=is_fit)


def _is_done(reference: Any) -> bool:
    import ray

    return bool(ray.wait([reference], timeout=0)[0])
