"""A run's worker processes and its view of the cluster, including what both provide for the next group."""

from collections.abc import Iterable, Sequence

from raytrain.elastic.admission import Admission
from raytrain.elastic.run_spec import Hooks, RunSpec
from raytrain.elastic.scale_up import ScaleUp
from raytrain.elastic.snapshots import Snapshots
from raytrain.elastic.worker_group import WorkerGroup
from raytrain.elastic.worker_processes import WorkerPool, WorkerProcess
from raytrain.ray_core.nodes import ClusterView, NodeView, look, worker_resources


class Fleet:
    """The processes, the capacity for more, the nodes, and the snapshots that the nodes keep."""

    def __init__(self, spec: RunSpec, hooks: Hooks):
        config, allocation = spec.config, spec.terms.allocation
        worker = worker_resources(config, spec.use_gpu)
        self._least, self._hooks = config.workers.min, hooks
        self.pool = WorkerPool(worker, config, allocation)
        self.admission = Admission(config, worker, hooks, self.pool, allocation)
        self.scale_up = ScaleUp(config, self.pool, hooks.say)
        self.snapshots = Snapshots(config, spec.run)
        self.cluster = ClusterView()

    def bring_up(self, places: Sequence[str]) -> int:
        """Start a process at each place (a node's id). Returns how many exist: fewer if the capacity was gone."""
        return self.pool.bring_up(places, lost_nodes, self._hooks.on_poll)

    def recover(self, group: WorkerGroup | None, nodes: list[NodeView]) -> list[WorkerProcess]:
        """After a failure, discard what is lost. Returns the survivors if they are enough to form a group at once.

        Args:
            group: The failed group; None if it was not even formed.
            nodes: The nodes as they are now.
        """
        node_ids = group.nodes if group is not None else []
        self.cluster.probed(nodes, node_ids)
        self.snapshots.forget(self.cluster.lost)
        if group is not None:
            self.snapshots.look_for_checkpoint(group.fencing_token)
        most = self.admission.most_workers()
        survivors = self._survivors(most) if group is not None else []
        if survivors and group is not None:
            self._replace_lost(group, survivors, most)
            self.admission.expect(0)
        else:
            self.admission.expect(len(self.admission.places(self.cluster.nodes, len(node_ids), most)))
        return survivors

    def _survivors(self, most: int) -> list[WorkerProcess]:
        """Processes that can form a group at once; empty if they are too few."""
        self.pool.end_lost()
        self.pool.end_on(set(self.pool.nodes) - self.cluster.staying)
        ready = [process for process in self.pool.processes if process.is_warm and process.is_idle]
        self.pool.give_back(ready[most:])  # a sweep needs them elsewhere
        return ready[:most] if min(most, len(ready)) >= self._least else []

    def _replace_lost(self, group: WorkerGroup, survivors: list[WorkerProcess], most: int) -> None:
        """Start a replacement for each process that the group has lost, unless its node is gone or draining."""
        lost = [process.node_id for process in group.unfit if process.node_id in self.cluster.staying]
        lost = lost[: max(0, most - len(self.pool.nodes))]
        if lost:
            self._hooks.say(f"{len(survivors)} worker(s) continue; {len(lost)} being replaced")
        self.scale_up.replace(survivors, lost)


def lost_nodes(node_ids: Iterable[str]) -> set[str]:
    """The subset of these nodes that are gone."""
    return set(node_ids) - {node.node_id for node in look(probe=True)}
