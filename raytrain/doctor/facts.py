"""What is found out about a cluster, before anyone judges it. Plain data: no Ray, no torch.

`probe` finds it on the nodes, `examine` brings it together, `judge` says what it means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from raytrain.config import RunConfig
from raytrain.ray_core.nodes import NodeView

# Stands for this command's own process where nodes are named by their ids.
HERE = "driver"
HERE_NAME = "this command"


@dataclass(frozen=True)
class Disk:
    """The file system that a folder lies on."""

    use: str
    """What Ray keeps there."""
    path: str
    total_bytes: int
    free_bytes: int
    """To a user who is not root."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself."""

    versions: dict[str, str | None]
    """By package, and of Python; None: it is not installed."""
    shm_bytes: int
    """Size of /dev/shm."""
    shm_others_bytes: int
    """What files in /dev/shm take that are not the object store's: Ray unlinks its own when it has opened them."""
    store_dir: str | None
    """Folder of the object store's memory; None: not known."""
    disks: list[Disk]
    max_open_files: int
    """Soft limit of a process, `ulimit -n`."""
    memory_bytes: int
    """Of the machine."""
    memory_free_bytes: int
    """What the machine, or its container, could still give to a process."""
    memory_limit_bytes: int | None
    """Of the container (cgroup); None: it has none below the machine's memory."""
    has_nvidia: bool
    """Whether the machine has NVIDIA's driver."""
    address: str
    """Under which Ray's nodes know it."""
    interface: str | None
    """The network interface that has this address."""
    interfaces: list[str]
    """All that there are."""
    host_address: str | None
    """What the node's own host name resolves to; None: to nothing."""
    chosen_interfaces: dict[str, str]
    """GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, where they are set."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as nvidia-smi or, without it, torch describes it."""

    name: str
    memory_bytes: int
    free_bytes: int | None
    uuid: str | None


@dataclass(frozen=True)
class GpuFacts:
    """What a node's GPUs can be used with."""

    gpus: list[Gpu]
    driver: str | None
    """Version of NVIDIA's driver."""
    driver_cuda: str | None
    """The newest CUDA that this driver runs."""
    torch_cuda: str | None
    """The CUDA that torch was built for; None: for none."""
    nccl: str | None
    is_usable: bool | None
    """Whether torch computed something on a GPU; None: it was not tried, as no GPU had memory left."""
    error: str | None
    """What torch said when it did not."""


@dataclass(frozen=True)
class Clock:
    """A node's clock against this machine's."""

    skew_s: float
    """Seconds that it is ahead."""
    error_s: float
    """How far off `skew_s` may be."""


@dataclass(frozen=True)
class StorageFacts:
    """What became of a small file of each participant (a node, or HERE) in the storage path."""

    path: str
    errors: Mapping[str, Mapping[str, str]]
    """Participant -> what it tried (write, replace, move, delete) -> what came of it, where it failed."""
    unseen: Mapping[str, list[str]]
    """Reader -> whose files it did not see, or saw with other contents."""
    write_s: Mapping[str, float]
    seen_after_s: Mapping[str, float]
    """Reader -> seconds until it saw the last of the files that it saw."""


@dataclass(frozen=True)
class AllReduce:
    """A sum over one process a node, or two on a lone one."""

    backend: str
    """gloo or nccl."""
    nodes: list[str]
    """In rank order."""
    num_bytes: int
    seconds: float | None
    """Of one of them; None: it failed."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Node -> what went wrong there."""

    @property
    def bus_bytes_per_s(self) -> float | None:
        """As nccl-tests count it: what each link carries in a ring, 2 (n - 1) / n times the payload."""
        n = len(self.nodes)
        return None if not self.seconds or n < 2 else 2 * (n - 1) / n * self.num_bytes / self.seconds


@dataclass(frozen=True)
class Transfer:
    """An object on its way from one node's object store to another's."""

    source: str
    target: str
    num_bytes: int
    seconds: float | None
    error: str | None = None


@dataclass
class Facts:
    """All that was found out. Nodes stand under their Ray ids."""

    nodes: list[NodeView]
    """The live ones."""
    driver: dict[str, str | None]
    """Versions of this process."""
    silent: dict[str, str] = field(default_factory=dict)
    """Node -> why nothing is known of it."""
    about: dict[str, NodeFacts] = field(default_factory=dict)
    gpus: dict[str, GpuFacts] = field(default_factory=dict)
    """Of nodes that have NVIDIA's driver, or GPUs in Ray's eyes."""
    gpu_errors: dict[str, str] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    unreached: dict[str, dict[str, str]] | None = None
    """From -> to -> what came of connecting; empty: all reach all; None: it was not tried."""
    storage: StorageFacts | None = None
    all_reduce: AllReduce | None = None
    transfers: list[Transfer] = field(default_factory=list)
    config: RunConfig | None = None
    num_parameters: int | None = None
    """Of the config's model; None: not known."""
    is_private: bool = False
    """Whether the Ray is this command's own."""
    can_grow: bool = False
    """Whether an autoscaler may start nodes."""
    skipped: list[str] = field(default_factory=list)
    """Checks that were not made, and why."""

    def names(self) -> dict[str, str]:
        """What a person knows each node by: its address, with the beginning of its id where nodes share one."""
        addresses = [node.name for node in self.nodes]
        names = {
            node.node_id: node.name if addresses.count(node.name) == 1 else f"{node.name}/{node.node_id[:6]}"
            for node in self.nodes
        }
        return {**names, HERE: HERE_NAME}

    @property
    def use_gpu(self) -> bool:
        """Whether the config's workers would hold GPUs; without a config, whether there are any."""
        wanted = "auto" if self.config is None else self.config.workers.gpu
        return any(node.total.get("GPU", 0.0) >= 1 for node in self.nodes) if wanted == "auto" else wanted

    def store_bytes(self, node_id: str) -> float:
        """Size of a node's object store."""
        return next((n.total.get("object_store_memory", 0.0) for n in self.nodes if n.node_id == node_id), 0.0)

    def num_gpus(self, node_id: str) -> int:
        """GPUs that Ray counts on a node."""
        return next((int(n.total.get("GPU", 0)) for n in self.nodes if n.node_id == node_id), 0)


def clock_of(readings: list[tuple[float, float, float]]) -> Clock:
    """A node's clock by (sent, there, received) moments, seconds since the epoch; sent and received on our clock.

    The reading with the shortest round trip is taken, and the moment there to lie in its middle (Cristian 1989): it
    can be off by half the round trip.
    """
    sent_s, there_s, received_s = min(readings, key=lambda reading: reading[2] - reading[0])
    return Clock(there_s - (sent_s + received_s) / 2, (received_s - sent_s) / 2)
