"""How many workers fit on the cluster now. The arithmetic is pure; `look` queries Ray."""

import contextlib
import errno
import math
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.config import RunConfig

Resources = Mapping[str, float]

# A live raylet accepts a connection within this time.
PROBE_TIMEOUT_S = 1.0
# Connections at once; a process may have 1024 open files.
MOST_PROBES = 512
# Resources are sums of floats: 0.1 + 0.2 CPUs must still fit in 0.3.
EPSILON = 1e-6
UNBOUNDED = 1e9


@dataclass(frozen=True)
class NodeView:
    """One live node of the cluster."""

    node_id: str
    """Hex id."""
    name: str
    """Display name: the node's address."""
    available: Resources
    """Free resources."""
    total: Resources
    """All resources of the node."""
    drain_deadline_s: float | None = None
    """When the node will be removed, in seconds since the epoch (infinity: at an unknown time). None: it stays."""

    @property
    def is_draining(self) -> bool:
        """Whether the node is being drained."""
        return self.drain_deadline_s is not None


def look(*, probe: bool = False) -> list[NodeView]:
    """The nodes of the cluster that this process is connected to.

    Args:
        probe: Leave out nodes whose raylet does not accept connections. The control store notices a killed node only
            after several missed heartbeats, which can take half a minute.
    """
    import ray
    from ray._private.state import state

    available = state.available_resources_per_node()
    draining = state.get_draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in available]
    if probe:
        answers = answering([(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes])
        nodes = [node for node, does_answer in zip(nodes, answers, strict=True) if does_answer]
    return [
        NodeView(
            node["NodeID"],
            node["NodeManagerAddress"],
            available[node["NodeID"]],
            node["Resources"],
            _deadline_s(draining[node["NodeID"]]) if node["NodeID"] in draining else None,
        )
        for node in nodes
    ]


def worker_resources(config: RunConfig, use_gpu: bool) -> dict[str, float]:
    """Resources that each worker holds."""
    return {"CPU": float(config.workers.cpus), **({"GPU": 1.0} if use_gpu else {})}


def own_node() -> str:
    """Hex id of this process's node."""
    import ray

    return ray.get_runtime_context().get_node_id()


def places_that_fit(
    nodes: Iterable[NodeView],
    worker: Resources,
    data_cpus: float,
    most: int,
    ours: Iterable[str] = (),
    num_pipelines: int = 0,
    least_data_cpus: float = 1.0,
    idle: Iterable[str] = (),
) -> list[str]:
    """Place workers, leaving CPUs for their data pipelines. Returns a node id per worker, those of `ours` first, then
    of `idle`, then the nodes with the most free resources.

    Args:
        nodes: Nodes that are being drained are ignored.
        worker: Resources of a worker.
        data_cpus: CPUs of each worker's pipeline, which may run on any node.
        most: Maximum number of workers.
        ours: Node ids of our workers, one entry per worker. What they hold, or held a moment ago, counts as free.
        num_pipelines: Number of our running data pipelines, whose resources also count as free.
        least_data_cpus: Minimum left for all pipelines together; without a CPU, Ray Data waits indefinitely.
        idle: Node ids of processes that we could take over, one entry per process. What they hold counts as free.
    """
    ours = list(ours)
    own, held = Counter(ours), Counter([*ours, *idle])
    places: dict[str, int] = {}
    cpus, most_cpus = data_cpus * num_pipelines, 0.0
    for node in nodes:
        if node.is_draining:
            continue
        free = {name: _free(node, name, held[node.node_id] * amount) for name, amount in worker.items()}
        places[node.node_id] = min(
            int((free[name] + EPSILON) // amount) for name, amount in worker.items() if amount > 0
        )
        cpus += _free(node, "CPU", held[node.node_id] * worker.get("CPU", 0.0))
        most_cpus += node.total.get("CPU", 0.0)
    cpus = min(cpus, most_cpus)
    fitting = min(sum(places.values()), most)
    while fitting > 0 and fitting * worker.get("CPU", 0.0) + max(least_data_cpus, fitting * data_cpus) > cpus + EPSILON:
        fitting -= 1
    stay = Counter({node_id: min(count, own[node_id]) for node_id, count in places.items()})
    ready = Counter({node_id: min(count, held[node_id]) for node_id, count in places.items()})
    roomiest = sorted(places, key=lambda node_id: (-places[node_id], node_id))
    more = (node_id for node_id in roomiest for _ in range(places[node_id] - ready[node_id]))
    return [*stay.elements(), *(ready - stay).elements(), *more][:fitting]


def demands(worker: Resources, data_cpus: float, count: int, least_data_cpus: float = 1.0) -> list[Resources]:
    """Resources of `count` workers and their data pipelines as autoscaler demands: one entry per worker, and one per
    pipeline CPU or fraction of one, which may be on any node."""
    cpus = max(least_data_cpus, count * data_cpus)
    whole, rest = divmod(cpus + EPSILON, 1.0)
    return [*[worker] * count, *[{"CPU": 1.0}] * int(whole), *([{"CPU": round(rest, 4)}] if rest > 2 * EPSILON else [])]


def most_in(total: Resources, worker: Resources, data_cpus: float, least_data_cpus: float = 1.0) -> int:
    """Maximum number of workers for the total resources, including CPUs for their data. A resource that `total` does
    not name is unlimited."""
    limits = [(total[name] + EPSILON) / amount for name, amount in worker.items() if amount and name in total]
    if "CPU" in total:
        cpus, each = total["CPU"] + EPSILON, worker.get("CPU", 0.0)
        limits.append(cpus / (each + data_cpus))
        if each:
            limits.append((cpus - least_data_cpus) / each)
        elif cpus < least_data_cpus:
            limits.append(0.0)
    return max(0, int(min([*limits, UNBOUNDED])))


def _free(node: NodeView, name: str, ours: float) -> float:
    """Resources not held by others. We may have released some of `ours` already."""
    return min(node.total.get(name, 0.0), node.available.get(name, 0.0) + ours)


def _deadline_s(deadline_ms: int) -> float:
    """Ray reports a drain without a deadline as 0: the node may go at any moment."""
    return deadline_ms / 1000 if deadline_ms else math.inf


def knock(address: str, timeout_s: float) -> None:
    """Check that something listens at `host:port`; Ray itself may take minutes to find out.

    Raises OSError if nothing does, and ValueError or OverflowError for an invalid port.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()


def answering(addresses: Sequence[tuple[str, int]], timeout_s: float = PROBE_TIMEOUT_S) -> list[bool]:
    """Whether something listens at each (IP address, port).

    All are asked at once, with one deadline: a lost zone may have hundreds of nodes, and the driver, which asks, has to
    look for signals meanwhile. Of more than MOST_PROBES, that many are asked at a time.
    """
    found: list[bool] = []
    for begin in range(0, len(addresses), MOST_PROBES):
        found += _answering(addresses[begin : begin + MOST_PROBES], time.monotonic() + timeout_s)
    return found


def _answering(addresses: Sequence[tuple[str, int]], deadline_s: float) -> list[bool]:
    found = [False] * len(addresses)
    with selectors.DefaultSelector() as pending, contextlib.ExitStack() as closing:
        for i, (host, port) in enumerate(addresses):
            with contextlib.suppress(OSError):  # no route to it, or no file descriptor left: it does not answer
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                connection = closing.enter_context(socket.socket(family, socket.SOCK_STREAM))
                connection.setblocking(False)
                if connection.connect_ex((host, port)) in (0, errno.EINPROGRESS):
                    pending.register(connection, selectors.EVENT_WRITE, i)
        while pending.get_map() and (left_s := deadline_s - time.monotonic()) > 0:
            for key, _ in pending.select(left_s):
                pending.unregister(key.fileobj)
                connected: Any = key.fileobj
                found[key.data] = connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    return found


def seconds_left(nodes: Iterable[NodeView], node_ids: Iterable[str]) -> float | None:
    """Seconds until the first of these nodes is removed. None: none of them is being drained."""
    wanted = set(node_ids)
    deadlines = [n.drain_deadline_s for n in nodes if n.node_id in wanted and n.drain_deadline_s is not None]
    return min(deadlines) - time.time() if deadlines else None


class ClusterView:
    """The nodes as last seen by a run's driver. Ray's control store notices late that one is gone."""

    def __init__(self) -> None:
        self.nodes: list[NodeView] = []
        self.lost: set[str] = set()
        """Ids of nodes that are known to be gone although Ray still lists them."""

    @property
    def staying(self) -> set[str]:
        """Ids of the nodes that are not being drained."""
        return {node.node_id for node in self.nodes if not node.is_draining}

    def look(self) -> list[NodeView]:
        """The nodes now."""
        nodes = look()
        self.lost.intersection_update(node.node_id for node in nodes)
        self.nodes = [node for node in nodes if node.node_id not in self.lost]
        return self.nodes

    def probed(self, nodes: list[NodeView], ours: Iterable[str]) -> None:
        """Record that these nodes have answered, see `look`; nodes of ours that are not among them are gone."""
        self.nodes = nodes
        self.lost |= set(ours) - {node.node_id for node in nodes}
