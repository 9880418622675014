"""Snapshots in peer memory: checkpoints that are kept by actors on the workers' nodes instead of in storage.

    holder     one actor per node, owned by the driver; outlives worker groups and keeps the parts of the newest two
               snapshots
    keeper     in each worker; sends its part to the holder of its own node and to that of the next node
    driver     after a crash, looks for a snapshot of which every part is left, for the next group to load;
               `snapshot_files` reads it

Parts are stored in, and transferred by, Ray's object store. A part is what a worker would write to a checkpoint, so a
snapshot too can be loaded at any world size. It needs no commit: it is complete if all parts of one step and one
attempt are there, and each part is checked by its SHA-256 before use. Only Ray pickles anything here, between our own
processes.
"""

import contextlib
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain.checkpoint.index import FileRange
from raytrain.checkpoint.ranges import EncodedPart
from raytrain.checkpoint.sizes import SNAPSHOT_COPIES, SNAPSHOTS_KEPT
from raytrain.ray_core.actors import start_actor
from raytrain.steps.batches import World

# Fraction of a node's object store; the rest is for data in transit.
STORE_SHARE = 0.5
ANSWER_TIMEOUT_S = 60.0
FETCH_TIMEOUT_S = 30.0
INVENTORY_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartInfo:
    """What a holder knows about a part."""

    step: int
    token: str
    """Token of the attempt that made it."""
    world_rank: int
    world_size: int
    sha256: str
    state: dict[str, Any]
    """The run's scalars at that step. Only rank 0's are complete, as in a checkpoint: it alone knows the order of all
    samples."""


@dataclass(frozen=True)
class _Kept:
    """A part in a holder."""

    info: PartInfo
    data: Any
    """Reference to its bytes."""
    ranges: list[FileRange]


@dataclass(frozen=True)
class PartReport:
    """What a holder says about a part that it has checked."""

    num_bytes: int
    is_intact: bool
    ranges: list[FileRange]
    """What is in it, where."""


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot and the locations of its parts. JSON-serializable by `asdict`."""

    step: int
    state: dict[str, Any]
    parts: list[tuple[str, str, str]]
    """(name of the holder actor, key, SHA-256) in rank order."""


def newest_complete(inventories: Iterable[tuple[str, list[PartInfo]]], after_step: int) -> Snapshot | None:
    """The newest snapshot of a step later than `after_step` of which every part is there.

    `inventories`: (name of the holder, what it keeps), in any order.
    """
    found: dict[tuple[int, str], dict[int, tuple[str, PartInfo]]] = {}
    for name, inventory in inventories:
        for info in inventory:
            found.setdefault((info.step, info.token), {})[info.world_rank] = (name, info)
    for (step, token), parts in sorted(found.items(), reverse=True):
        if step > after_step and 0 in parts and len(parts) == parts[0][1].world_size:
            places = [(parts[rank][0], _key(step, token, rank), parts[rank][1].sha256) for rank in sorted(parts)]
            return Snapshot(step, parts[0][1].state, places)
    return None


class _HolderActor:
    """Keeps the parts of the newest snapshots that were sent to this node."""

    def __init__(self) -> None:
        self._parts: OrderedDict[str, _Kept] = OrderedDict()

    def keep(self, info: PartInfo, ranges: list[FileRange], box: list[Any]) -> None:
        """`box` is a list with a reference to the part, so that Ray does not fetch it before it is asked to."""
        import ray

        data = ray.get(box[0], timeout=FETCH_TIMEOUT_S)  # its node may be gone
        mine = ray.put(data)  # owned by this actor, so it outlives the worker that made it
        self._parts[_key(info.step, info.token, info.world_rank)] = _Kept(info, mine, ranges)
        newest = list(dict.fromkeys((kept.info.step, kept.info.token) for kept in reversed(self._parts.values())))
        for key, kept in list(self._parts.items()):
            if (kept.info.step, kept.info.token) not in newest[:SNAPSHOTS_KEPT]:
                del self._parts[key]

    def inventory(self) -> list[PartInfo]:
        return [kept.info for kept in self._parts.values()]

    def check(self, key: str) -> PartReport:
        import ray

        kept = self._parts[key]
        data = ray.get(kept.data)
        return PartReport(data.nbytes, hashlib.sha256(data).hexdigest() == kept.info.sha256, kept.ranges)

    def read(self, key: str, num_bytes: int, offset: int) -> Any:
        """Some bytes of a part, as an array: Ray transfers these alone."""
        import ray

        return ray.get(self._parts[key].data)[offset : offset + num_bytes]


class Holders:
    """The driver's handle on the holders, one per node."""

    def __init__(self, prefix: str):
        """`prefix`: prefix of the actors' names; different in every run."""
        self._prefix, self._num_placed = prefix, 0
        self._actors: dict[str, tuple[str, Any]] = {}  # node id -> (name, actor)

    def place(self, node_ids: Iterable[str]) -> dict[str, str]:
        """Start holders on those of these nodes that have none. Returns node id -> name of the holder."""
        wanted = set(node_ids)
        for node_id in wanted - set(self._actors):
            name = f"{self._prefix}-{self._num_placed}"
            # Concurrent methods: a part that can't be fetched must not block others.
            self._actors[node_id] = name, start_actor(_HolderActor, name=name, node_id=node_id, max_concurrency=8)
            self._num_placed += 1
        return {node_id: self._actors[node_id][0] for node_id in wanted}

    def are_on(self, node_ids: Iterable[str]) -> bool:
        """Whether there is a holder on each of these nodes."""
        return set(node_ids) <= set(self._actors)

    def newest(self, after_step: int, timeout_s: float = INVENTORY_TIMEOUT_S) -> Snapshot | None:
        """The newest complete snapshot of a step later than `after_step`. Holders that are gone are forgotten, those
        that do not answer within `timeout_s` are left out."""
        return newest_complete(self._inventories(timeout_s), after_step)

    def _inventories(self, timeout_s: float) -> list[tuple[str, list[PartInfo]]]:
        """The contents of each holder. A dead one is forgotten; one that does not answer in time is skipped."""
        import ray

        asked = {actor.inventory.remote(): (node_id, name) for node_id, (name, actor) in self._actors.items()}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
        answers = []
        for reference in ready:
            node_id, name = asked[reference]
            try:
                answers.append((name, ray.get(reference)))
            except ray.exceptions.RayActorError:
                del self._actors[node_id]
        return answers

    def keep_only(self, node_ids: Iterable[str]) -> None:
        """Stop the holders on all other nodes. Ray counts an actor as work: a node with one is never idle, and does not
        leave when it is drained."""
        import ray

        for node_id in set(self._actors) - set(node_ids):
            ray.kill(self._actors.pop(node_id)[1])

    def forget(self, node_ids: Iterable[str]) -> None:
        """Forget nodes that are gone: calls to their holders would block until Ray notices."""
        for node_id in node_ids:
            self._actors.pop(node_id, None)

    def close(self) -> None:
        """Stop all holders and release what they hold."""
        self.keep_only([])


class SnapshotKeeper:
    """A worker's side. Only copying the state into one buffer takes the caller's time; the rest runs in a thread."""

    def __init__(self, world: World, token: str, holder_names: Any):
        """`holder_names`: called once, in the thread. Returns the names of the holders of this worker's node and of the
        next node, which are the same on a single node."""
        self._world, self._token, self._holder_names = world, token, holder_names
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._busy: Future[None] | None = None
        self._holders: list[Any] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the last snapshot is still in transit, so that another would only take memory."""
        return self._busy is not None and not self._busy.done()

    def begin(
        self,
        step: int,
        state: dict[str, Any],
        part: EncodedPart,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Send this worker's part: its file, as copies that must not be read before `wait` returns. `state`: the run's
        scalars."""
        self._busy = self._thread.submit(self._give, step, state, part, wait)

    def close(self) -> None:
        """Discard what has not been sent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _give(self, step: int, state: dict[str, Any], part: EncodedPart, wait: Callable[[], None]) -> None:
        import ray

        try:
            wait()
            if self._holders is None:
                self._holders = _alive(dict.fromkeys(self._holder_names()))
            digest = hashlib.sha256()
            for piece in part.chunks:
                digest.update(piece)
            reference = ray.put(_joined(part.chunks))
            world = self._world
            info = PartInfo(step, self._token, world.world_rank, world.world_size, digest.hexdigest(), state)
            kept = [holder.keep.remote(info, part.ranges, [reference]) for holder in self._holders]
            for answer in kept:
                ray.get(answer, timeout=ANSWER_TIMEOUT_S)
        except Exception as error:  # a lost node or a full store: the next snapshot may succeed
            self._holders = None
            logger.warning("the snapshot of step %d could not be kept: %s", step, error)


def bytes_in_store(part_bytes: int, parts_on_node: int) -> int:
    """Object store memory that snapshots need on a node: the parts of its own workers and as many of a neighbour's, of
    two snapshots, each with a copy in transit."""
    return part_bytes * parts_on_node * SNAPSHOT_COPIES * (SNAPSHOTS_KEPT + 1)


def fits_in_store(part_bytes: int, parts_on_node: int, store_bytes: float) -> bool:
    """Whether a node's object store can hold the snapshots."""
    return bytes_in_store(part_bytes, parts_on_node) <= STORE_SHARE * store_bytes


def _alive(names: Iterable[str]) -> list[Any]:
    """Those of the named actors that exist."""
    import ray

    found = []
    for name in names:
        with contextlib.suppress(ValueError):
            found.append(ray.get_actor(name))
    return found


def _key(step: int, token: str, world_rank: int) -> str:
    return f"{step}-{token}-{world_rank}"


def _joined(pieces: Sequence[bytes | memoryview]) -> np.ndarray:
    """All pieces in one array of bytes. numpy copies without holding the GIL."""
    arrays = [np.frombuffer(piece, dtype=np.uint8) for piece in pieces if memoryview(piece).nbytes]
    return np.concatenate(arrays)
