"""Checks of each node by itself. Pure."""

from collections.abc import Iterator

from raytrain.doctor.facts import Clock, Disk, Facts, GpuFacts, NodeFacts
from raytrain.doctor.findings import Verdict, in_bytes, in_seconds, note, ok, problem

# Clocks set by NTP agree within milliseconds; a difference of more than a second means that one of them is not
# synchronized. Events and plots are then out of order. At 30 s the shortest notice of a cloud (GCP's preemption) is
# useless: its deadline is a time on the clock of the node that read it.
CLOCK_NOTE_S = 1.0
CLOCK_PROBLEM_S = 30.0
# Ray stops spilling to a disk this full and fails tasks that need it (local_fs_capacity_threshold).
DISK_FULL = 0.95
DISK_NOTE = 0.90
# Ray's memory monitor kills workers above this fraction (RAY_memory_usage_threshold).
MEMORY_FULL = 0.95
MEMORY_NOTE = 0.90
# Ray's default is 0.3; the workers need the rest.
STORE_SHARE = 0.6
# Ray itself warns below the first; each process has connections to many others.
FILES_NOTE = 4096
FILES_PROBLEM = 1024

WORDS = {"python": "Python", "ray": "Ray", "raytrain": "raytrain", "torch": "torch"}
WORDS |= {"deepspeed": "DeepSpeed", "transformers": "Transformers"}
Verdicts = Iterator[tuple[str, Verdict]]


def nodes(facts: Facts) -> Verdicts:
    """Whether each node answers."""
    for node in facts.nodes:
        if node.node_id in facts.silent:
            yield (
                node.node_id,
                problem(
                    f"does not answer: {facts.silent[node.node_id]}",
                    "Look at that machine and its raylet.log; restart its Ray, or take it out of the cluster.",
                ),
            )
        elif node.is_draining:
            yield node.node_id, note("is being drained", "It accepts no new workers; restart its Ray to keep it.")
        else:
            cpus, num_gpus = node.total.get("CPU", 0.0), node.total.get("GPU", 0.0)
            yield node.node_id, ok(f"{cpus:g} CPU, {num_gpus:g} GPU" if num_gpus else f"{cpus:g} CPU")


def versions(facts: Facts) -> Verdicts:
    """Compare each node's versions with this command's. The part after a + names the kind of build (cpu, cu128), in
    which nodes with and without GPUs legitimately differ."""
    for node, about in facts.about.items():
        other = {
            package: about.versions.get(package)
            for package, version in facts.driver.items()
            if _public(about.versions.get(package)) != _public(version)
        }
        for package, version in other.items():
            word, here = WORDS[package], facts.driver[package] or "none"
            yield (
                node,
                problem(
                    f"{word} {version}; this command has {here}" if version else f"no {word}; this command has {here}",
                    "Give all nodes one image or environment (pip install -c constraints.txt), and restart their Ray.",
                ),
            )
        if not other:
            yield node, ok(", ".join(f"{WORDS[package]} {version}" for package, version in facts.driver.items()))


def packages(facts: Facts) -> Verdicts:
    """Packages that fail when they are imported, and packages of extras that differ from this command's."""
    for node, about in facts.about.items():
        for package, error in about.broken.items():
            yield node, _broken(package, error)
        for package, here in facts.driver_extras.items():
            version = about.extras.get(package)
            if here is not None and version != here:
                yield (
                    node,
                    note(
                        f"{package} {version}; this command has {here}" if version else f"no {package}, which is here",
                        "Install raytrain with the same extras on all nodes (pip install -c constraints.txt).",
                    ),
                )
        if not about.broken:
            installed = [f"{package} {version}" for package, version in about.extras.items() if version]
            yield node, ok(", ".join(installed) or "no extras")


def _broken(package: str, error: str) -> Verdict:
    if package == "flash_attn":
        effect, spare = "attention with it fails", "pip uninstall flash-attn; training needs none"
    else:
        effect, spare = "models of Transformers fail (Could not import module)", f"pip uninstall {package}"
    return problem(
        f"{package} does not fit the installed torch, so that {effect}: {error}",
        f"Install the build of {package} for this torch, or remove it ({spare}), and restart Ray there.",
    )


def _public(version: str | None) -> str | None:
    return version.partition("+")[0] if version else None


def gpus(facts: Facts) -> Verdicts:
    """Whether workers can use the GPUs that Ray counts."""
    is_wanted = facts.config is not None and facts.config.workers.gpu is True
    if is_wanted and not any(node.total.get("GPU") for node in facts.nodes) and not facts.can_grow:
        remedy = "Set workers.gpu to auto or false, or start Ray on nodes with GPUs (`ray start --num-gpus`)."
        for node in facts.nodes:
            yield node.node_id, problem("no GPU, and workers.gpu is true", remedy)
    for node_id, error in facts.gpu_errors.items():
        yield node_id, problem(f"unknown: {error}", "Run nvidia-smi and a torch script on that node by hand.")
    for node_id, found in facts.gpus.items():
        yield from ((node_id, verdict) for verdict in _gpus_of(found, facts.num_gpus(node_id)))
    yield from _unlike(facts)


def _gpus_of(found: GpuFacts, num_counted: int) -> Iterator[Verdict]:
    if not found.gpus and not num_counted:
        return
    if num_counted > len(found.gpus):
        yield problem(
            f"Ray counts {num_counted}, and {len(found.gpus)} can be seen",
            "Restart Ray there without --num-gpus, or fix the driver or container (docker run --gpus all).",
        )
    elif num_counted < len(found.gpus):
        yield note(
            f"{len(found.gpus)} can be seen, and Ray counts {num_counted}",
            "Start Ray there with --num-gpus, unless the others are meant for something else.",
        )
    if found.is_usable:
        names = ", ".join(sorted({gpu.name for gpu in found.gpus}))
        size = in_bytes(min(gpu.memory_bytes for gpu in found.gpus))
        yield ok(
            f"{len(found.gpus)} {names} of {size}, driver {found.driver or '?'} (CUDA {found.driver_cuda or '?'}), "
            f"torch for CUDA {found.torch_cuda}, NCCL {found.nccl or '?'}"
        )
    elif found.is_usable is None:
        remedy = "Nothing, if another run uses them; whether torch can use them was not tried."
        yield note(f"{len(found.gpus)}, all of whose memory is taken", remedy)
    else:
        yield _unusable(found)


def _unusable(found: GpuFacts) -> Verdict:
    if found.torch_cuda is None and found.error is None:
        return problem(
            "torch is built for CPUs only",
            "Install a CUDA build of torch there: pip install torch, without the CPU index or constraints.txt.",
        )
    if found.driver_cuda and found.torch_cuda and _number(found.torch_cuda) > _number(found.driver_cuda):
        return problem(
            f"torch is built for CUDA {found.torch_cuda}, and the driver runs up to {found.driver_cuda}: {found.error}",
            f"Update NVIDIA's driver, or install torch for CUDA {found.driver_cuda} or older.",
        )
    return problem(
        f"torch can't use them: {found.error}",
        "Fix NVIDIA's driver there: nvidia-smi must work, and in a container docker run --gpus all.",
    )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _unlike(facts: Facts) -> Verdicts:
    """GPUs that slow each other down, and NCCL versions that may not work together."""
    usable = {node: found for node, found in facts.gpus.items() if found.is_usable}
    nccls = {found.nccl for found in usable.values() if found.nccl}
    kinds = {gpu.name for found in usable.values() for gpu in found.gpus}
    for node, found in usable.items():
        if len(nccls) > 1:
            remedy = "Install the same torch on all nodes: workers with different NCCLs may hang in their first step."
            yield node, problem(f"NCCL {found.nccl}; not all nodes have the same", remedy)
        if len(kinds) > 1:
            remedy = "Nothing, if intended: all workers wait for the slowest GPU, and the smallest memory must suffice."
            yield node, note(f"{', '.join(sorted({g.name for g in found.gpus}))}; not all nodes have the same", remedy)


def clocks(facts: Facts) -> Verdicts:
    """Compare each node's clock with this machine's, allowing for the error of the measurement."""
    for node, clock in facts.clocks.items():
        yield node, _clock(clock)


def _clock(clock: Clock) -> Verdict:
    way = "ahead of" if clock.skew_s > 0 else "behind"
    sure_s = abs(clock.skew_s) - clock.error_s
    remedy = "Run chrony or another NTP client there, and on this machine."
    if sure_s > CLOCK_PROBLEM_S:
        return problem(f"{{}} {way} this machine's", remedy, abs(clock.skew_s), in_seconds)
    if sure_s > CLOCK_NOTE_S:
        return note(f"{{}} {way} this machine's", remedy, abs(clock.skew_s), in_seconds)
    return ok("within {} of this machine's", abs(clock.skew_s) + clock.error_s, in_seconds)


def memory(facts: Facts) -> Verdicts:
    """Free memory of the machine or its container."""
    for node, about in facts.about.items():
        yield from ((node, verdict) for verdict in _memory(about, facts.store_bytes(node)))


def _memory(about: NodeFacts, store_bytes: float) -> Iterator[Verdict]:
    limit = about.memory_limit_bytes or about.memory_bytes
    whose = "that the container may use" if about.memory_limit_bytes else "that the machine has"
    of = f"of {in_bytes(limit)} {whose}"
    if store_bytes > STORE_SHARE * limit:
        yield note(
            f"the object store may take {in_bytes(store_bytes)} {of}",
            "Start Ray there with a smaller --object-store-memory: its memory is not available to processes.",
        )
    used = 1 - about.memory_free_bytes / limit
    remedy = "Stop what else runs there, or use a larger machine: Ray kills workers at 95 %."
    if used >= MEMORY_FULL:
        yield problem(f"{{}} free {of}", remedy, about.memory_free_bytes, in_bytes)
    elif used >= MEMORY_NOTE:
        yield note(f"{{}} free {of}", remedy, about.memory_free_bytes, in_bytes)
    else:
        yield ok(f"{{}} free {of}", about.memory_free_bytes, in_bytes)


def object_store(facts: Facts) -> Verdicts:
    """Whether the object store is in memory, and whether that memory exists."""
    for node, about in facts.about.items():
        yield node, _object_store(about, facts.store_bytes(node))


def _object_store(about: NodeFacts, store_bytes: float) -> Verdict:
    remedy = "Enlarge /dev/shm (docker run --shm-size, an emptyDir with medium Memory), and restart Ray there."
    if about.store_dir is not None and not about.store_dir.startswith("/dev/shm"):
        where = _place(about.store_dir)
        return note(f"{{}} in {where}, on disk: /dev/shm was too small", remedy, store_bytes, in_bytes)
    room = about.shm_bytes - about.shm_others_bytes
    if room < store_bytes:
        others = f", of which other files take {in_bytes(about.shm_others_bytes)}" if about.shm_others_bytes else ""
        text = f"{{}}, and /dev/shm has {in_bytes(about.shm_bytes)}{others}: its processes die when it is full"
        return problem(text, remedy, store_bytes, in_bytes)
    return ok(f"{{}}, and /dev/shm has {in_bytes(about.shm_bytes)}", store_bytes, in_bytes)


def disks(facts: Facts) -> Verdicts:
    """Free space where Ray writes its session files and spills objects."""
    for node, about in facts.about.items():
        for disk in about.disks:
            yield node, _disk(disk, facts.store_bytes(node))


def _disk(disk: Disk, store_bytes: float) -> Verdict:
    of = f"of {in_bytes(disk.total_bytes)} in {_place(disk.path)} ({disk.use})"
    used = 1 - disk.free_bytes / disk.total_bytes if disk.total_bytes else 1.0
    remedy = "Delete old session files there (/tmp/ray/session_*), or start Ray with --object-spilling-directory."
    if used >= DISK_FULL:
        return problem(f"{{}} free {of}: Ray stops spilling at {DISK_FULL:.0%}", remedy, disk.free_bytes, in_bytes)
    if used >= DISK_NOTE or ("spilling" in disk.use and disk.free_bytes < store_bytes):
        return note(f"{{}} free {of}", remedy, disk.free_bytes, in_bytes)
    return ok(f"{{}} free {of}", disk.free_bytes, in_bytes)


def _place(path: str) -> str:
    """The path without the name of the session, which differs between nodes."""
    return path.partition("/session_")[0] or path


def open_files(facts: Facts) -> Verdicts:
    """`ulimit -n` of Ray's processes."""
    remedy = (
        "Raise it before `ray start`: ulimit -n 65536 (LimitNOFILE= of a service, --ulimit nofile= of a container)."
    )
    for node, about in facts.about.items():
        if about.max_open_files < 0:  # unlimited
            yield node, ok("no limit")
        elif about.max_open_files < FILES_PROBLEM:
            yield node, problem(f"{about.max_open_files} per process", remedy)
        elif about.max_open_files < FILES_NOTE:
            yield node, note(f"{about.max_open_files} per process", remedy)
        else:
            yield node, ok(f"{about.max_open_files:,} per process")
