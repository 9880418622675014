"""The facts that an examination collects about a cluster, before they are judged. Plain data: no Ray, no torch.

`probe` collects them on the nodes, `examine` combines them, and `judge` turns them into findings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from raytrain.config import RunConfig
from raytrain.ray_core.nodes import NodeView

# The key of this command's own process, where nodes are keyed by their ids.
HERE = "driver"
HERE_NAME = "this command"


@dataclass(frozen=True)
class Disk:
    """A file system that Ray writes to."""

    use: str
    """What Ray stores there."""
    path: str
    total_bytes: int
    free_bytes: int
    """Free space for an unprivileged user."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node reports about itself."""

    versions: dict[str, str | None]
    """Package -> version, including Python. None: not installed."""
    shm_bytes: int
    """Size of /dev/shm."""
    shm_others_bytes: int
    """Space in /dev/shm used by other files. Ray unlinks the object store's own once it has opened them."""
    store_dir: str | None
    """Directory of the object store's memory. None: unknown."""
    disks: list[Disk]
    max_open_files: int
    """Soft limit per process, `ulimit -n`."""
    memory_bytes: int
    """Total memory of the machine."""
    memory_free_bytes: int
    """Memory that a process could still allocate, within the limits of the machine and the container."""
    memory_limit_bytes: int | None
    """Memory limit of the container (cgroup). None: no limit below the machine's memory."""
    has_nvidia: bool
    """Whether NVIDIA's driver is installed."""
    address: str
    """The node's address in Ray."""
    interface: str | None
    """The network interface with this address."""
    interfaces: list[str]
    """All network interfaces."""
    host_address: str | None
    """Address that the node's own host name resolves to. None: it does not resolve."""
    chosen_interfaces: dict[str, str]
    """GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, if set."""
    extras: dict[str, str | None] = field(default_factory=dict)
    """Package of an extra -> version. None: not installed."""
    broken: dict[str, str] = field(default_factory=dict)
    """Package built for a version of torch that is installed, and can't be imported -> error."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as described by nvidia-smi, or by torch if nvidia-smi is missing."""

    name: str
    memory_bytes: int
    free_bytes: int | None
    uuid: str | None


@dataclass(frozen=True)
class GpuFacts:
    """The GPUs of a node and the software that drives them."""

    gpus: list[Gpu]
    driver: str | None
    """Version of NVIDIA's driver."""
    driver_cuda: str | None
    """Newest CUDA version that this driver supports."""
    torch_cuda: str | None
    """CUDA version that torch was built for. None: a CPU build."""
    nccl: str | None
    is_usable: bool | None
    """Whether torch could compute on a GPU. None: not tried, because no GPU had free memory."""
    error: str | None
    """torch's error, if it could not."""


@dataclass(frozen=True)
class Clock:
    """A node's clock compared with this machine's."""

    skew_s: float
    """Seconds that it is ahead of this machine's."""
    error_s: float
    """Maximum error of `skew_s`."""


@dataclass(frozen=True)
class StorageFacts:
    """Results of the storage test. Each participant is a node or HERE, and has a small file in the storage path."""

    path: str
    errors: Mapping[str, Mapping[str, str]]
    """Participant -> operation (write, replace, move, delete) -> error, for operations that failed."""
    unseen: Mapping[str, list[str]]
    """Reader -> owners of files that it did not see, or saw with different contents."""
    write_s: Mapping[str, float]
    seen_after_s: Mapping[str, float]
    """Reader -> seconds until it saw the last of the files that it saw at all."""


@dataclass(frozen=True)
class AllReduce:
    """An all-reduce over one process per node, or two on a single node."""

    backend: str
    """gloo or nccl."""
    nodes: list[str]
    """In rank order."""
    num_bytes: int
    seconds: float | None
    """Duration of one all-reduce. None: it failed."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Node -> error."""

    @property
    def bus_bytes_per_s(self) -> float | None:
        """Bus bandwidth as nccl-tests define it: what each link of a ring carries, 2 (n - 1) / n times the payload."""
        n = len(self.nodes)
        return None if not self.seconds or n < 2 else 2 * (n - 1) / n * self.num_bytes / self.seconds


@dataclass(frozen=True)
class Transfer:
    """A transfer of an object from one node's object store to another's."""

    source: str
    target: str
    num_bytes: int
    seconds: float | None
    error: str | None = None


@dataclass
class Facts:
    """Everything that was found. Nodes are keyed by their Ray ids."""

    nodes: list[NodeView]
    """The live nodes."""
    driver: dict[str, str | None]
    """Versions in this process."""
    driver_extras: dict[str, str | None] = field(default_factory=dict)
    """Versions of the packages of extras in this process."""
    silent: dict[str, str] = field(default_factory=dict)
    """Node -> why it did not answer."""
    about: dict[str, NodeFacts] = field(default_factory=dict)
    gpus: dict[str, GpuFacts] = field(default_factory=dict)
    """Nodes that have NVIDIA's driver, or GPUs according to Ray."""
    gpu_errors: dict[str, str] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    unreached: dict[str, dict[str, str]] | None = None
    """Source -> target -> connection error. Empty inner mappings: every node reaches every other. None: not tried."""
    storage: StorageFacts | None = None
    all_reduce: AllReduce | None = None
    transfers: list[Transfer] = field(default_factory=list)
    config: RunConfig | None = None
    num_parameters: int | None = None
    """Parameters of the config's model. None: unknown."""
    is_private: bool = False
    """Whether this command started Ray itself."""
    can_grow: bool = False
    """Whether an autoscaler may add nodes."""
    skipped: list[str] = field(default_factory=list)
    """Checks that were skipped, and why."""

    def names(self) -> dict[str, str]:
        """Display name of each node: its address, followed by the start of its id if nodes share an address."""
        addresses = [node.name for node in self.nodes]
        names = {
            node.node_id: node.name if addresses.count(node.name) == 1 else f"{node.name}/{node.node_id[:6]}"
            for node in self.nodes
        }
        return {**names, HERE: HERE_NAME}

    @property
    def use_gpu(self) -> bool:
        """Whether the config's workers would use GPUs; without a config, whether there are any."""
        wanted = "auto" if self.config is None else self.config.workers.gpu
        return any(node.total.get("GPU", 0.0) >= 1 for node in self.nodes) if wanted == "auto" else wanted

    def store_bytes(self, node_id: str) -> float:
        """Size of a node's object store."""
        return next((n.total.get("object_store_memory", 0.0) for n in self.nodes if n.node_id == node_id), 0.0)

    def num_gpus(self, node_id: str) -> int:
        """GPUs that Ray counts on a node."""
        return next((int(n.total.get("GPU", 0)) for n in self.nodes if n.node_id == node_id), 0)


def clock_of(readings: list[tuple[float, float, float]]) -> Clock:
    """Estimate a node's clock from readings (sent, there, received) in seconds since the epoch; sent and received are
    on this machine's clock.

    Uses the reading with the shortest round trip and assumes that the node's reading was taken halfway (Cristian 1989).
    The error is at most half the round trip.
    """
    sent_s, there_s, received_s = min(readings, key=lambda reading: reading[2] - reading[0])
    return Clock(there_s - (sent_s + received_s) / 2, (received_s - sent_s) / 2)
