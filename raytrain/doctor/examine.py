"""The examination: the driver probes the nodes phase by phase and cleans up after itself."""

import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from raytrain.config import RunConfig
from raytrain.doctor import probe
from raytrain.doctor.facts import HERE, AllReduce, Disk, Facts, Gpu, GpuFacts, NodeFacts, StorageFacts, Transfer
from raytrain.doctor.findings import Report
from raytrain.doctor.judge import judge
from raytrain.doctor.node_facts import GPU_NEEDS_BYTES, SMI_TIMEOUT_S, TORCH_TIMEOUT_S, extras, scrub, versions
from raytrain.doctor.probes import Probes, collect, end, send_by_value
from raytrain.errors import ConfigError, RaytrainError, TrainingError
from raytrain.models.files import count_parameters
from raytrain.ray_core.actors import start_actor
from raytrain.ray_core.connect import RaySession, cluster_address, connection
from raytrain.ray_core.nodes import look
from raytrain.runs.plan import logical_cpus
from raytrain.runs.preflight import resolve
from raytrain.sizing.shape import shape_on_meta
from raytrain.tasks import make_task

# A process starts within seconds; on a busy node it may take half a minute.
FACTS_TIMEOUT_S = 45.0
GPU_TIMEOUT_S = SMI_TIMEOUT_S + TORCH_TIMEOUT_S + 10.0
STORAGE_TIMEOUT_S = 30.0
SHORT_TIMEOUT_S = 15.0
CLOCKS_AT_ONCE = 16
TRANSFER_TIMEOUT_S = 60.0
# Includes the import of torch.
REDUCE_TIMEOUT_S = 120.0
REDUCE_REPEATS = 3
REDUCE_BYTES = {"gloo": 16 << 20, "nccl": 256 << 20}
TRANSFER_BYTES = 64 << 20
# Fraction of the smallest object store that a transfer may use: the stores may hold the data of a run.
TRANSFER_SHARE = 0.2

Say = Callable[[str], None]


def examine(
    config: RunConfig | None = None,
    *,
    address: str | None = None,
    storage_path: str | None = None,
    say: Say = lambda text: None,
) -> Report:
    """Examine a cluster, or this machine through a private Ray.

    Args:
        config: A run whose requirements are checked too.
        address: Address of the cluster. Takes precedence over the config and RAY_ADDRESS.
        storage_path: The path to test instead of the config's.
        say: Called with a line of text at each phase.

    Raises:
        ConfigError: The cluster can't be reached, or the config can't run on this machine.
    """
    config = resolve(config) if config is not None else None
    address = address or (cluster_address(config) if config else os.environ.get("RAY_ADDRESS")) or None
    cores = os.cpu_count() or 1
    private_cpus = cores if config is None or address else logical_cpus(config, cores)
    path = storage_path or (config.storage_path if config else None)
    if path is not None and "://" not in path:
        path = os.path.abspath(os.path.expanduser(path))
    say(f"joining the cluster at {address}" if address else "starting Ray on this machine")
    with _joined(address, private_cpus) as session:
        return judge(_find_out(config, path, session, say))


@contextmanager
def _joined(address: str | None, private_cpus: int) -> Iterator[RaySession]:
    """Like `connection`, but every failure to join is a ConfigError: nothing was examined."""
    with ExitStack() as stack:
        try:
            session = stack.enter_context(connection(address, private_cpus))
        except TrainingError as error:
            why = scrub(" ".join(str(error).split()))
            where = f"the cluster at {address} can't be joined" if address else "no Ray can be started here"
            raise ConfigError(
                f"{where}: {why}. Run the command on one of its nodes, with that node's Python and Ray"
            ) from None
        yield session


def _find_out(config: RunConfig | None, path: str | None, session: RaySession, say: Say) -> Facts:
    facts = Facts(look(), versions(), extras(), config=config, is_private=session.is_private)
    facts.can_grow = session.can_grow
    with Probes(node.node_id for node in facts.nodes) as probes:
        say(f"asking {len(facts.nodes)} node{'s' * (len(facts.nodes) > 1)}")
        _about_nodes(facts, probes)
        members = list(facts.about)
        _gpus(facts, probes, say)
        if path is None:
            facts.skipped.append("storage: give a CONFIG or --storage PATH")
        else:
            say(f"trying {scrub(path)}")
            facts.storage = _storage(probes, [*members, HERE], path)
        if len(members) > 1:
            say("connecting the nodes with each other")
            facts.unreached = _ports(probes, members)
        else:
            facts.skipped.append("ports, object transfer: there is one node")
        _all_reduce(facts, members, say)
        if len(members) > 1:
            say("sending an object from each node to the next one")
            facts.transfers = _transfers(facts, probes, members)
    _size_of_model(facts, say)
    return facts


def _about_nodes(facts: Facts, probes: Probes) -> None:
    answers, facts.silent = probes.ask("facts", {node.node_id: () for node in facts.nodes}, FACTS_TIMEOUT_S)
    for node, answer in answers.items():
        disks = [Disk(**disk) for disk in answer.pop("disks")]
        facts.about[node] = NodeFacts(**answer, disks=disks)
    with ThreadPoolExecutor(CLOCKS_AT_ONCE) as threads:  # a node may be lost meanwhile
        clocks = dict(zip(answers, threads.map(probes.clock, answers), strict=True))
    facts.clocks |= {node: clock for node, clock in clocks.items() if clock is not None}


def _gpus(facts: Facts, probes: Probes, say: Say) -> None:
    asked = [node for node, about in facts.about.items() if about.has_nvidia or facts.num_gpus(node)]
    if not asked:
        return
    say(f"looking at the GPUs of {len(asked)} node{'s' * (len(asked) > 1)}")
    answers, facts.gpu_errors = probes.ask("gpus", dict.fromkeys(asked, ()), GPU_TIMEOUT_S)
    for node, answer in answers.items():
        gpus = [Gpu(**gpu) for gpu in answer.pop("gpus")]
        facts.gpus[node] = GpuFacts(**answer, gpus=gpus)


def _storage(probes: Probes, members: Sequence[str], path: str) -> StorageFacts:
    """Each member writes a file, reads the files of all others, and replaces, renames and deletes its own as a
    checkpoint would. The folder is always removed."""
    folder = f".raytrain-doctor-{secrets.token_hex(4)}"
    files = {member: f"{member}.txt" for member in members}
    owner = {name: member for member, name in files.items()}
    try:
        wrote, late = probes.ask("write", {m: (path, folder, files[m]) for m in members}, STORAGE_TIMEOUT_S)
        write_s = {m: answer["write_s"] for m, answer in wrote.items() if "write_s" in answer}
        errors = {m: {"write": answer["error"]} for m, answer in wrote.items() if "error" in answer}
        there = {m: (path, folder, [files[o] for o in write_s if o != m]) for m in wrote if m not in errors}
        read, lost = probes.ask("read", there, STORAGE_TIMEOUT_S)
        done, gone = probes.ask("replace", {m: (path, folder, files[m]) for m in write_s}, STORAGE_TIMEOUT_S)
        errors |= {m: found for m, found in done.items() if found}
        errors |= {m: {"reach": why} for m, why in {**late, **lost, **gone}.items()}
    finally:
        # On a shared folder, the first call removes everything.
        probes.ask("clear", {HERE: (path, folder)}, SHORT_TIMEOUT_S)
        probes.ask("clear", {m: (path, folder) for m in members if m != HERE}, SHORT_TIMEOUT_S)
    unseen = {m: [owner[name] for name in answer["unseen"]] for m, answer in read.items() if answer["unseen"]}
    seen_after_s = {m: answer["seen_after_s"] for m, answer in read.items()}
    return StorageFacts(scrub(path), errors, unseen, write_s, seen_after_s)


def _ports(probes: Probes, members: Sequence[str]) -> dict[str, dict[str, str]]:
    """Source -> target -> error of the connection."""
    listening, deaf = probes.ask("listen", dict.fromkeys(members, ()), SHORT_TIMEOUT_S)
    targets = {m: ({to: place for to, place in listening.items() if to != m},) for m in members}
    timeout_s = probe.CONNECT_TIMEOUT_S * math.ceil(len(members) / probe.CONNECTIONS_AT_ONCE) + SHORT_TIMEOUT_S
    answers, failed = probes.ask("connect", targets, timeout_s)
    found = {m: dict(answers.get(m, {})) for m in members}
    for source in members:
        found[source] |= {to: f"it opens no port: {why}" for to, why in deaf.items() if to != source}
        if source in failed:
            found[source] = {to: failed[source] for to in members if to != source}
    return found


def _all_reduce(facts: Facts, members: Sequence[str], say: Say) -> None:
    """Over the GPU nodes if workers would use GPUs, else over all nodes."""
    if not members:
        return
    if facts.unreached and any(facts.unreached.values()):
        facts.skipped.append("all-reduce: not all nodes reach each other")
        return
    backend, places = "gloo", _without_gpus(members)
    if facts.use_gpu:
        on_gpus = _gpu_places(facts)
        if on_gpus:
            backend, places = "nccl", on_gpus
        else:
            facts.skipped.append("all-reduce over NCCL: not every node can use its GPUs now; gloo was tried")
    if len(places) == 1 and backend == "gloo":
        places = places * 2  # a single node: two processes on it
    say(f"summing over {len(places)} process{'es' * (len(places) > 1)} ({backend})")
    facts.all_reduce = _sum_over(places, backend)


def _without_gpus(members: Sequence[str]) -> list[tuple[str, str | None]]:
    return [(member, None) for member in members]


def _gpu_places(facts: Facts) -> list[tuple[str, str | None]]:
    """(node, UUID of its GPU with the most free memory) for each GPU node; a single node with several GPUs comes twice.
    Empty if any GPU node can't take part. Each GPU is used once, because nodes may be containers on one machine."""
    counted = [node.node_id for node in facts.nodes if facts.num_gpus(node.node_id)]
    wanted = counted * 2 if len(counted) == 1 and facts.num_gpus(counted[0]) > 1 else counted
    places: list[tuple[str, str | None]] = []
    for node in wanted:
        found = facts.gpus.get(node)
        if found is None or not found.is_usable:
            return []
        taken = {uuid for _, uuid in places}
        roomy = [g for g in found.gpus if g.uuid not in taken and (g.free_bytes or 0) >= GPU_NEEDS_BYTES]
        if not roomy and any(gpu.uuid for gpu in found.gpus):
            return [] if node not in [place for place, _ in places] else places
        places.append((node, max(roomy, key=lambda g: g.free_bytes or 0).uuid if roomy else None))
    return places


def _sum_over(places: Sequence[tuple[str, str | None]], backend: str) -> AllReduce:
    """Runs in separate processes that are killed afterwards, which releases torch's memory."""
    send_by_value()
    nodes, num_bytes = [node for node, _ in places], REDUCE_BYTES[backend]
    actors = [start_actor(probe.Reducer, node_id=node, max_concurrency=2) for node in nodes]
    try:
        address = actors[0].address.remote(REDUCE_TIMEOUT_S)
        asked = {}
        for rank, ((_, gpu), actor) in enumerate(zip(places, actors, strict=True)):
            words = (rank, len(places), backend, gpu, num_bytes, REDUCE_REPEATS, address if rank else "")
            asked[actor.reduce.remote(*words)] = f"{rank}"
        answers, errors = collect(asked, REDUCE_TIMEOUT_S, is_joint=True)
    finally:
        end(actors)
    errors |= {rank: answer["error"] for rank, answer in answers.items() if "error" in answer}
    by_node = {nodes[int(rank)]: why for rank, why in errors.items()}
    seconds = max((answer["seconds"] for answer in answers.values() if "seconds" in answer), default=None)
    return AllReduce(backend, nodes, num_bytes, None if errors else seconds, by_node)


def _transfers(facts: Facts, probes: Probes, members: Sequence[str]) -> list[Transfer]:
    """Sends an object from each node to the next, all at once, as snapshots do."""
    smallest = min(facts.store_bytes(member) for member in members)
    num_bytes = int(min(TRANSFER_BYTES, TRANSFER_SHARE * smallest))
    next_of = dict(zip(members, [*members[1:], members[0]], strict=True))
    boxes, failed = probes.ask("put", dict.fromkeys(members, (num_bytes,)), SHORT_TIMEOUT_S)
    asked = {next_of[source]: (box, TRANSFER_TIMEOUT_S) for source, box in boxes.items()}
    answers, late = probes.ask("fetch", asked, TRANSFER_TIMEOUT_S + SHORT_TIMEOUT_S)
    probes.ask("drop", dict.fromkeys(members, ()), SHORT_TIMEOUT_S)
    found = []
    for source, target in next_of.items():
        answer: dict[str, Any] = answers.get(target, {})
        error = failed.get(source) or late.get(target) or answer.get("error")
        found.append(Transfer(source, target, num_bytes, answer.get("seconds"), error))
    return found


def _size_of_model(facts: Facts, say: Say) -> None:
    """Counts the model's parameters if the config takes snapshots."""
    config = facts.config
    if config is None:
        facts.skipped.append("workers, snapshots: give a CONFIG")
        return
    if config.checkpoint.snapshot_every_steps is None:
        return
    adapter = config.model.adapter  # snapshots contain what is trained
    facts.num_parameters = count_parameters(config.model) if adapter is None else None
    if facts.num_parameters is None and (config.model.config is not None or adapter is not None):
        say("counting the model's parameters")
        try:
            task = make_task(config.task, config.data.max_length)
            facts.num_parameters = shape_on_meta(config, task, task.assumed_state()).num_trained
        except RaytrainError as error:
            facts.skipped.append(f"snapshots: {error}")
            return
    if facts.num_parameters is None:
        facts.skipped.append("snapshots: the size of the model is not known before it is fetched")
