"""How much of the cluster a run may use, and where its processes come from. By default it may use everything and starts
its own processes; a sweep's trial gets both from the sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.ray_core.actors import start_actor


@dataclass(frozen=True)
class LeasedWorker:
    """A worker process that a run may use until it gives it back."""

    node_id: str
    actor: Any
    number: int = 0
    """The owner's number of the process."""


class Allocation:
    """Queried about once a second. This default sets no bounds."""

    def most_workers(self) -> int | None:
        """Workers that the run may have now, 0: it has to wait; None: up to workers.max."""
        return None

    asks_for_nodes = True
    """Whether the run itself requests nodes from the autoscaler; False: the allocation's owner does, for all runs."""

    least_data_cpus = 1.0
    """Least number of CPUs to keep free for the run's data. A sweep reserves them for all its trials together."""

    @property
    def idle_nodes(self) -> Sequence[str]:
        """Ids of the nodes on which an idle process can be leased, one entry per process."""
        return ()

    @property
    def is_stop_asked(self) -> bool:
        """Whether the run should save and end."""
        return False

    @property
    def is_withdrawn(self) -> bool:
        """Whether the run is of no use any more, such as a trial that the scheduler has stopped: it ends without
        saving."""
        return False

    def lend(self, node_id: str, resources: Mapping[str, float]) -> LeasedWorker:
        """Lease a process on this node with these resources, or an idle one of another node. It may have been started
        just now."""
        return LeasedWorker(node_id, start_worker(node_id, resources))

    def take_back(self, leased: LeasedWorker, *, is_fit: bool) -> None:
        """The run no longer needs the process. `is_fit`: it is alive and idle, so another run could use it."""
        end_worker(leased.actor)

    def close(self) -> None:
        """The run has ended and has given everything back. May be called twice."""


@dataclass(frozen=True)
class Terms:
    """What a sweep prescribes for one of its runs. The defaults are for a run without a sweep."""

    allocation: Allocation = field(default_factory=Allocation)
    """Bounds the workers that the run may have."""
    until_step: int | None = None
    """The step at which the run saves and stops, to be resumed later; None: it trains to its end."""
    may_change: tuple[str, ...] = ()
    """Dotted keys of the config that may have changed since the run was stopped."""
    sweep: str = ""
    """The sweep's name."""


def start_worker(node_id: str, resources: Mapping[str, float]) -> Any:
    """Start a process on this node; returns its handle at once."""
    from raytrain.elastic import training_worker  # imports Ray, which a command sets up first

    worker = training_worker.worker_class
    held = {"num_cpus": resources.get("CPU", 0.0), "num_gpus": resources.get("GPU", 0.0)}
    return start_actor(worker, node_id=node_id, concurrency_groups=worker.concurrency_groups, **held)


def end_worker(actor: Any) -> None:
    """Kill a process, even if it is busy."""
    import ray

    ray.kill(actor)
