"""A Ray cluster of several nodes on this machine, whose nodes come and go as spot instances do."""

import os
from typing import Any

from raytrain.ray_core.quiet import quieten

NODE_CPUS = 2


class SpotCluster:
    """A head, which holds the data pipelines, and nodes with room for one worker of two (logical) CPUs each.

    Call it in the main thread: Ray's processes end with the thread that started them.
    """

    def __init__(self, num_nodes: int):
        os.environ["RAY_AUTH_MODE"] = "disabled"  # on this machine only
        quieten()  # before Ray is imported: its own words on nodes that die
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add()

    @property
    def address(self) -> str:
        """For ray.address."""
        return str(self._cluster.address)

    def add(self) -> None:
        """Another node joins."""
        self._nodes.append(self._cluster.add_node(num_cpus=NODE_CPUS, wait=False))

    def kill(self) -> None:
        """The newest node dies without notice, and with it all that runs there: SIGKILL."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def close(self) -> None:
        """End it."""
        self._cluster.shutdown()


ELASTIC = {
    # One worker on each node, as soon as it is there.
    "workers": {"max": 3, "cpus": NODE_CPUS, "data_cpus": 0.33, "grow_delay_s": 0.5, "grow_payback": 0},
    # A copy of the state in the memory of other nodes every five steps: what a crash goes back to.
    "checkpoint": {"save_every_steps": 100_000, "snapshot_every_steps": 5},
    # What a step does must not depend on how many steps follow, so that the run can be ended when enough has happened.
    "training.schedule": {"kind": "constant", "warmup_ratio": 0.0},
    "training.epochs": None,
    "training.optimizer.learning_rate": 1e-3,
}
"""Overrides for a run on it."""
