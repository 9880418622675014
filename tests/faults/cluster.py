"""Several raylets on this machine as the nodes of a cluster, with real kills and real drains."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WORKER_CPUS = 2


class NodePool:
    """A head that holds the data pipelines, and nodes with room for one worker (of two CPUs) each."""

    def __init__(self, num_nodes: int, head_cpus: int = 1):
        os.environ["RAY_AUTH_MODE"] = "disabled"
        os.makedirs("/tmp/ray", exist_ok=True)
        from ray.cluster_utils import Cluster

        # The head's single CPU is too little for a worker; the pipelines of three need it all.
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False})
        self.nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add()

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, num_gpus: int = 0, role: str | None = None) -> Any:
        """A node with room for one worker, and with the label of a role. In the main thread only."""
        assert threading.current_thread() is threading.main_thread()
        labels = {} if role is None else {"raytrain/role": role}
        node = self.cluster.add_node(num_cpus=WORKER_CPUS, num_gpus=num_gpus, labels=labels, wait=False)
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> None:
        """SIGKILL the node, and with it all that runs there."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, deadline_s: float) -> None:
        """Give notice: the node goes in `deadline_s` seconds. Nothing kills it; `kill` does."""
        from ray._raylet import GcsClient

        client = GcsClient(address=self.address)
        accepted, reason = client.drain_node(
            node.node_id, PREEMPTION, "spot notice", int((time.time() + deadline_s) * 1000)
        )
        assert accepted, reason

    def node_of(self, node_id: str) -> Any:
        """The node with this id."""
        return next(node for node in self.nodes if node.node_id == node_id)

    def assert_nothing_is_held(self) -> None:
        """No actor of a run is left, and no resource is taken: not by a placement group, an actor or a task."""
        import ray

        ray.init(address=self.address, log_to_driver=False)
        try:
            deadline_s = time.monotonic() + 30
            while ray.available_resources().get("CPU") != ray.cluster_resources().get("CPU"):
                assert time.monotonic() < deadline_s, (ray.available_resources(), ray.cluster_resources())
                time.sleep(0.5)
            from ray._private.state import actors

            alive = {actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD"}
            assert not alive - RAYS_OWN, alive
        finally:
            ray.shutdown()

    def close(self) -> None:
        self.cluster.shutdown()


@contextmanager
def node_pool(num_nodes: int, head_cpus: int = 1) -> Iterator[NodePool]:
    """A cluster for a while; the environment is afterwards as it was before."""
    import ray

    ray.shutdown()  # one that tests of another folder have started in this process
    before = dict(os.environ)
    pool = NodePool(num_nodes, head_cpus)
    try:
        yield pool
    finally:
        pool.close()
        for name in set(os.environ) - set(before):
            del os.environ[name]


# Detached actors of Ray's own, one of each a cluster.
RAYS_OWN = {"_AutoscalingCoordinatorActor", "ActorLocationTracker", "_StatsActor", "_UsageCollectionActor"}
RAYS_OWN |= {"TrainStateActor"}
PREEMPTION = 2  # DRAIN_NODE_REASON_PREEMPTION in autoscaler.proto
