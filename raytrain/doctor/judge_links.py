"""Checks across nodes: shared storage, connections, and whether the config fits. Pure."""

import ipaddress
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from raytrain.checkpoint.sizes import SNAPSHOT_COPIES, SNAPSHOTS_KEPT, checkpoint_bytes
from raytrain.checkpoint.snapshot import STORE_SHARE, fits_in_store
from raytrain.doctor.facts import AllReduce, Facts, StorageFacts
from raytrain.doctor.findings import Verdict, in_bytes, in_rate, in_seconds, note, ok, problem
from raytrain.ray_core.nodes import places_that_fit, worker_resources
from raytrain.runs.plan import cpus_needed

# 80 % of a 1 Gbit/s link.
SLOW_BYTES_PER_S = 100e6
# The driver reads what workers have just written; a longer delay means that a file cache is too slow for this.
SEEN_LATE_S = 1.0
# Maximum number of nodes named in a row.
MAX_NAMED = 3

Verdicts = Iterator[tuple[str, Verdict]]


def storage(facts: Facts) -> Verdicts:
    """Whether `storage_path` is the same folder on all nodes and supports the commit of a checkpoint."""
    found = facts.storage
    if found is None:
        return
    names = facts.names()
    for member, errors in found.errors.items():
        for what, error in errors.items():
            yield (
                member,
                problem(f"{found.path}: can't {what} a file there: {error}", _storage_remedy(what, found.path)),
            )
    for reader, owners in found.unseen.items():
        # Give nodes that see only their own files the same text, so that they share a finding.
        is_alone = len(owners) == len(found.write_s) - (reader in found.write_s) and reader in found.write_s
        whose = "any other node" if is_alone else _some([names[owner] for owner in owners])
        yield (
            reader,
            problem(
                f"{found.path}: the files of {whose} are not visible here",
                "Mount one shared folder (NFS, EFS, Filestore, Lustre) under this path on every node, or give "
                "storage_path a URI: s3://, gs://, abfs://.",
            ),
        )
    for member in found.write_s:
        if member not in found.errors and member not in found.unseen:
            yield member, _good_storage(found, member)


def _good_storage(found: StorageFacts, member: str) -> Verdict:
    late_s = found.seen_after_s.get(member, 0.0)
    if late_s > SEEN_LATE_S:
        remedy = "Mount it with shorter caching of attributes and names (NFS: actimeo=1, lookupcache=positive)."
        return note(f"{found.path}: files of other nodes are seen {{}} late", remedy, late_s, in_seconds)
    text = f"{found.path}: written, read by the others, replaced, renamed, deleted; a write takes {{}}"
    return ok(text, found.write_s[member], in_seconds)


def _storage_remedy(what: str, path: str) -> str:
    if what == "reach":
        return "Check whether the mount hangs there (ls, df), and whether its server answers."
    if "://" in path:
        return "Give the nodes their own credentials (an instance role) that may list, read, write and delete there."
    return "Let Ray's user write there on every node: check owner and mode of the folder, and `rw` of its mount."


def ports(facts: Facts) -> Verdicts:
    """Whether every node can open connections to an ephemeral port of every other node."""
    if facts.unreached is None:
        return
    names = facts.names()
    members = list(facts.unreached)
    for target in members:
        broken = {source: errors[target] for source, errors in facts.unreached.items() if target in errors}
        if not broken:
            yield target, ok("reached from all other nodes, on an ephemeral port")
            continue
        from_all = len(broken) == len(members) - 1
        whence = "any other node" if from_all else _some([names[source] for source in broken])
        yield (
            target,
            problem(
                f"not reached from {whence}: {next(iter(broken.values()))}",
                "Allow all TCP ports between the nodes (security group, NetworkPolicy, firewall): torch and Ray's "
                "workers use ephemeral ports.",
            ),
        )


def interfaces(facts: Facts) -> Verdicts:
    """Whether the interfaces configured for gloo and NCCL exist."""
    for node, about in facts.about.items():
        for variable, value in about.chosen_interfaces.items():
            # NCCL accepts prefixes, lists of them, and ^ for everything but them.
            wanted = [word.lstrip("=") for word in value.split(",")]
            is_there = any(have.startswith(word) for word in wanted for have in about.interfaces)
            if not value.startswith("^") and not is_there:
                yield (
                    node,
                    problem(
                        f"{variable} is {value}, and there are only {', '.join(about.interfaces)}",
                        f"Set {variable} to the interface of Ray's address, or unset it, and restart Ray there.",
                    ),
                )


def all_reduce(facts: Facts) -> Verdicts:
    """Whether a process group forms and computes a correct sum, and how fast."""
    found = facts.all_reduce
    if found is None:
        return
    what = f"{found.backend}, {in_bytes(found.num_bytes)}, {len(found.nodes)} processes"
    if found.seconds is None:
        errors = found.errors or dict.fromkeys(found.nodes, "no answer")
        for node, error in errors.items():
            yield node, problem(f"{found.backend}: {error}", _all_reduce_remedy(facts, found))
        return
    rate = found.bus_bytes_per_s
    for node in dict.fromkeys(found.nodes):
        if rate is None:
            yield node, ok(f"{found.backend} works in a single process; there is no other GPU to send to")
        elif rate < SLOW_BYTES_PER_S and len(set(found.nodes)) > 1:
            remedy = (
                "Check which interface is used (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME), and what else uses it now."
            )
            yield node, note(f"{what}: {{}} on each link, less than 1 Gbit/s", remedy, rate, in_rate)
        else:
            yield node, ok(f"{what}: {{}} on each link", rate, in_rate)


def _all_reduce_remedy(facts: Facts, found: AllReduce) -> str:
    """The usual causes: a host name that resolves to the node itself, several interfaces, a firewall."""
    variable = "GLOO_SOCKET_IFNAME" if found.backend == "gloo" else "NCCL_SOCKET_IFNAME"
    members = {node: facts.about[node] for node in found.nodes if node in facts.about}
    interfaces = {about.interface for about in members.values()}
    name = interfaces.pop() if len(interfaces) == 1 else None
    choose = f"{variable}={name or '<the interface of its address>'} in the environment of `ray start` on each node"
    loops = [about for about in members.values() if about.host_address is None or _is_loopback(about.host_address)]
    if found.backend == "gloo" and loops and len({about.address for about in members.values()}) > 1:
        return f"Set {choose}: gloo uses the node's host name, which resolves to the node itself or not at all."
    return f"Set {choose}, and allow all TCP ports between the nodes; NCCL_DEBUG=INFO shows what NCCL tries."


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def transfers(facts: Facts) -> Verdicts:
    """Object transfers from each node to the next, all at once, as snapshots travel."""
    names = facts.names()
    for transfer in facts.transfers:
        if transfer.seconds is None:
            yield (
                transfer.target,
                problem(
                    f"can't get an object of {names[transfer.source]}: {transfer.error}",
                    "Allow Ray's object manager port between the nodes, and check whether an object store is full "
                    "(`ray memory`).",
                ),
            )
            continue
        rate, size = transfer.num_bytes / max(transfer.seconds, 1e-9), in_bytes(transfer.num_bytes)
        if rate < SLOW_BYTES_PER_S:
            remedy = "Check the network between the nodes and what else uses it now: snapshots and data travel over it."
            yield transfer.target, note(f"{size} from another node: {{}}, less than 1 Gbit/s", remedy, rate, in_rate)
        else:
            yield transfer.target, ok(f"{size} from another node: {{}}", rate, in_rate)


def workers(facts: Facts) -> Verdicts:
    """Whether the cluster has capacity for the config's workers."""
    config = facts.config
    if config is None or not facts.nodes:
        return
    now, empty = len(_places(facts, is_empty=False)), len(_places(facts, is_empty=True))
    low, high = config.workers.min, config.workers.max
    each = " and ".join(f"{n:g} {name}" for name, n in worker_resources(config, facts.use_gpu).items())
    text = f"of {each} each, {low} to {high} wanted: room for {now} now" + (f", {empty} at most" * (now != empty))
    if empty < low and not facts.can_grow:
        remedy = (
            f"Add nodes, or lower workers.min or workers.cpus: {low} workers and their Ray Data pipelines hold "
            f"{cpus_needed(config, low):g} CPUs."
        )
        verdict = problem(text, remedy)
    elif now < low:
        verdict = note(
            text, "Nothing, if others finish or an autoscaler adds nodes: the run waits until its workers fit."
        )
    else:
        verdict = ok(text)
    yield from ((node.node_id, verdict) for node in facts.nodes)


def _places(facts: Facts, *, is_empty: bool) -> list[str]:
    """Node ids, one entry per worker that fits. `is_empty`: as if nothing else ran on the cluster."""
    assert facts.config is not None
    nodes = [replace(node, available=node.total) if is_empty else node for node in facts.nodes]
    workers = facts.config.workers
    return places_that_fit(nodes, worker_resources(facts.config, facts.use_gpu), workers.data_cpus, workers.max)


def snapshots(facts: Facts) -> Verdicts:
    """Whether the object stores can hold the snapshots of the config's model, with as many workers as fit."""
    config, parameters = facts.config, facts.num_parameters
    if config is None or parameters is None or config.checkpoint.snapshot_every_steps is None:
        return
    places = _places(facts, is_empty=True)
    for node, count in Counter(places).items():
        part_bytes = checkpoint_bytes(parameters, config) // len(places)
        needed = part_bytes * count * SNAPSHOT_COPIES * (SNAPSHOTS_KEPT + 1) / STORE_SHARE
        text = f"needs an object store of {{}} with {len(places)} worker{'s' * (len(places) > 1)}"
        if fits_in_store(part_bytes, count, facts.store_bytes(node)):
            yield node, ok(text, needed, in_bytes)
        else:
            yield (
                node,
                note(
                    f"{text}, and has {in_bytes(facts.store_bytes(node))}",
                    "Start Ray there with a larger --object-store-memory, or spread the workers over more nodes: "
                    "without snapshots, a crash falls back to the newest checkpoint.",
                    needed,
                    in_bytes,
                ),
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(sorted(names)[:MAX_NAMED]) + more
