"""How much of the cluster a run may have, and where its processes come from: all that it can use and its own, unless
the run is one of a sweep's trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.ray_core.actors import start_actor


@dataclass(frozen=True)
class LeasedWorker:
    """A worker's process that a run may use until it gives it back."""

    node_id: str
    actor: Any
    number: int = 0
    """The owner's name of it."""


class Allocation:
    """Asked about once a second. This one sets no bounds."""

    def most_workers(self) -> int | None:
        """Workers that the run may have now, 0: it has to wait; None: up to workers.max."""
        return None

    asks_for_nodes = True
    """Whether the run tells the autoscaler what it wants; else whoever shares out does, for all together."""

    least_data_cpus = 1.0
    """CPUs that stay free for the run's data, at least. The sweep has seen to that for all its trials together."""

    @property
    def idle_nodes(self) -> Sequence[str]:
        """Ids of the nodes on which a process waits to be lent, one entry a process."""
        return ()

    @property
    def is_stop_asked(self) -> bool:
        """Whether the run should save and end."""
        return False

    @property
    def is_withdrawn(self) -> bool:
        """Whether the run is of no use any more, as a trial that the scheduler has stopped: it ends without a save."""
        return False

    def lend(self, node_id: str, resources: Mapping[str, float]) -> LeasedWorker:
        """A process on this node, which holds these resources, or one of another node that was waiting. It may have
        been started just now."""
        return LeasedWorker(node_id, start_worker(node_id, resources))

    def take_back(self, leased: LeasedWorker, *, is_fit: bool) -> None:
        """The run needs it no more. `is_fit`: it lives and has nothing to do, so another run could use it."""
        end_worker(leased.actor)

    def close(self) -> None:
        """The run has ended, and has given everything back. May be said twice."""


@dataclass(frozen=True)
class Terms:
    """What a sweep lays down for a run of its own. These are a run's that is alone."""

    allocation: Allocation = field(default_factory=Allocation)
    """How much of the cluster it may have."""
    until_step: int | None = None
    """It saves and stops after so many of its steps, to be gone on with; None: it goes on to its end."""
    may_change: tuple[str, ...] = ()
    """Dotted keys of the config that may have other values than when the run was stopped."""
    sweep: str = ""
    """The sweep's name."""


def start_worker(node_id: str, resources: Mapping[str, float]) -> Any:
    """A handle to a new process on this node; returns at once."""
    from raytrain.elastic import training_worker  # brings Ray, which a command sets up before it is imported

    worker = training_worker.worker_class
    held = {"num_cpus": resources.get("CPU", 0.0), "num_gpus": resources.get("GPU", 0.0)}
    return start_actor(worker, node_id=node_id, concurrency_groups=worker.concurrency_groups, **held)


def end_worker(actor: Any) -> None:
    """Kill a process, whatever it does."""
    import ray

    ray.kill(actor)
