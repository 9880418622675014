"""Watches for reclaim notices from within a run, by one actor per node, if the nodes run no `raytrain reclaim-watch`.

A process per node is preferable. Ray counts an actor as work even if it holds no CPU: a node with a watcher is never
idle, so an autoscaler keeps it until the run ends, and a drained node leaves only when the machine does. The watcher
also dies with Ray, and so can't acknowledge anything.
"""

import logging
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from raytrain.ray_core.actors import start_actor
from raytrain.ray_core.drain import RayDrain
from raytrain.reclaim.watcher import Watcher, find_cloud

LOOK_FOR_NODES_S = 10.0

logger = logging.getLogger(__name__)


class NodeWatch:
    """The actor. It detects the cloud of its node and watches in a thread until the actor ends."""

    def __init__(self, cloud: str, interval_s: float, metadata_url: str | None):
        import ray

        context = ray.get_runtime_context()
        self._cloud = find_cloud(cloud, metadata_url)
        if self._cloud is not None:
            drain = RayDrain(context.gcs_address, context.get_node_id())
            watcher = Watcher(self._cloud, drain, interval_s=interval_s)
            threading.Thread(target=watcher.run, args=(threading.Event(),), name="NodeWatch", daemon=True).start()

    def cloud(self) -> str | None:
        """Name of the cloud. None: this node is on none, and is not watched."""
        return self._cloud.name if self._cloud else None


class NodeWatchers:
    """Runs a watcher on each live node of the connected cluster. Nodes that join later get one within 10 s.

    A context manager: leaving it ends the watchers. Nothing here fails a run; nodes that can't be watched are logged.

    Args:
        cloud: auto, aws, gcp or azure. interval_s: Seconds between two looks at the metadata service. metadata_url:
        Base URL of the metadata service; None: each node's RAYTRAIN_METADATA_URL, or http://169.254.169.254.
    """

    def __init__(self, cloud: str = "auto", interval_s: float = 5.0, metadata_url: str | None = None):
        self._arguments = (cloud, interval_s, metadata_url)
        self._actors: dict[str, Any] = {}  # node id -> actor
        self._starting: dict[Any, str] = {}  # reference to the watcher's cloud -> node id
        self._unwatched: set[str] = set()  # nodes outside the clouds, or where no watcher starts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="NodeWatchers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the watchers."""
        import ray

        self._stop.set()
        self._thread.join()
        for actor in self._actors.values():
            with suppress(Exception):  # Ray may already be gone
                ray.kill(actor)
        self._actors.clear()

    def watched(self) -> list[str]:
        """Ids of the nodes with a watcher, including those that are starting."""
        return sorted(self._actors)

    def _keep_up(self) -> None:
        while not self._stop.is_set():
            try:
                self._cover_new_nodes()
                self._look_at_started()
            except Exception as error:  # Ray is shutting down or busy, which must not fail the run
                logger.warning("watching the nodes for reclaim notices: %s", error)
            self._stop.wait(LOOK_FOR_NODES_S)

    def _cover_new_nodes(self) -> None:
        import ray

        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for node_id in alive - self._actors.keys() - self._unwatched:
            # A watcher that dies on a live node is restarted.
            self._actors[node_id] = start_actor(NodeWatch, *self._arguments, node_id=node_id, max_restarts=-1)
            self._starting[self._actors[node_id].cloud.remote()] = node_id
        for node_id in self._actors.keys() - alive:
            del self._actors[node_id]

    def _look_at_started(self) -> None:
        """Stop watchers that have nothing to watch: they would keep their nodes from being idle."""
        import ray

        if not self._starting:
            return
        ready, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=LOOK_FOR_NODES_S / 2)
        for reference in ready:
            node_id = self._starting.pop(reference)
            try:
                trouble = None if ray.get(reference) else "it is on no cloud that raytrain knows"
            except Exception as error:
                trouble = str(error)
            if trouble:
                logger.warning("node %s is not watched for reclaim notices: %s", node_id[:8], trouble)
                self._unwatched.add(node_id)
                if actor := self._actors.pop(node_id, None):
                    ray.kill(actor)


def watch_nodes_from_run(cloud: str = "auto", interval_s: float = 5.0, metadata_url: str | None = None) -> NodeWatchers:
    """Watchers for all nodes while a `with` block runs; see NodeWatchers. Ray must be connected."""
    return NodeWatchers(cloud, interval_s, metadata_url)
