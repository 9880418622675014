"""The same faults for raytrain and for a plain elastic TorchTrainer (baseline_ray_elastic.py): what training is left.

    python benchmarks/elastic_trace.py

A trace of faults is drawn from a seed: a node comes, a node gets SIGKILL, a node gets notice and goes at its deadline.
Both systems live through it, one after the other, each on a fresh cluster of several raylets on this machine (as in
tests/faults): a head with one CPU, and nodes with room for one worker. The clock starts with the first step on all of
the first nodes, so starting up is not counted.

All nodes share this machine's cores. So the model is tiny, and each worker sleeps in a step for its samples: that time
stands in for a GPU's work, and it is what counts. Goodput is the sleep in steps that count over the time of the nodes
that were there and had no notice. A step counts once, as it was done last.

Both systems are seen from outside alike: by when lines appear in metrics.jsonl, and by the sample ids in samples/.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from common import (
    PROJECT,
    Lines,
    arguments_with,
    middle,
    publish,
    read_from,
    rounds_of,
    spread,
    table,
    temporary_storage,
)

sys.path += [str(PROJECT / "tests"), str(PROJECT / "tests" / "faults")]

from cluster import WORKER_CPUS, NodePool
from tiny import TINY_BERT, tiny_tokenizer, write_reviews

KINDS = ("add", "kill", "add", "reclaim")  # over and over
FIRST_NODES, MOST_WORKERS = 2, 3
BATCH = 24  # samples a step, on all workers together: 1, 2 and 3 of them get equally many
NUM_SAMPLES = 200 * BATCH
# So a step is 2.4 s on one worker and 0.8 s on three: the sleep must be most of it to stand in for a GPU's work. With
# a quarter of it, three workers on two cores spent 0.5 s of a step of 0.7 s on all else, in both systems.
SECONDS_PER_SAMPLE = 0.1
SAVE_EVERY = 10  # steps: raytrain's snapshots, the baseline's checkpoints
GROW_AFTER_S = 2.0  # room for more is looked at so often by the baseline, and must be there so long for raytrain
POLL_S = 0.02
# A step that was under way when a fault came may still be written down.
LAST_STEP_S = 2.0
START_TIMEOUT_S = 300.0
PHASES = ("detect_s", "save_s", "wait_s", "regroup_s", "load_s", "first_step_s")

GOODPUT_TARGET = 1.5
RECOVERY_TARGET = 0.5


@dataclass(frozen=True)
class Fault:
    """Something that happens to the cluster."""

    at_s: float
    """Since the clock started."""
    kind: str
    """add, kill, reclaim."""
    choice: float
    """In [0, 1): which node."""


@dataclass(frozen=True)
class Step:
    """A line of metrics.jsonl."""

    at_s: float
    """When it appeared, since the clock started."""
    step: int
    attempt: int
    world_size: int


@dataclass
class Outcome:
    """What one system made of a trace."""

    goodput: float = 0.0
    num_steps: int = 0
    """Steps that count."""
    redone: dict[str, list[int]] = field(default_factory=dict)
    """Steps redone after each fault, by its kind."""
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    """By kind of fault. kill: to the first step of another group. add: to the first step on more workers. reclaim: how
    long no step was done."""
    too_late: Counter[str] = field(default_factory=Counter)
    """How often the next fault came first; the time is then that to the next fault."""
    ended_at_s: float | None = None
    """When the command ended by itself, long before the end of its training."""
    num_repeated: int = 0
    num_lost: int = 0
    phases_s: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """raytrain only: kind of fault -> phase -> seconds."""


def make_trace(seed: int, num_events: int, every_s: float) -> list[Fault]:
    """The faults of a seed."""
    rng = random.Random(seed)
    return [
        Fault(every_s * (i + 1 + rng.uniform(-0.1, 0.1)), KINDS[i % len(KINDS)], rng.random())
        for i in range(num_events)
    ]


class StepWatch(threading.Thread):
    """Reads metrics.jsonl as it grows."""

    def __init__(self, path: Path):
        super().__init__(daemon=True)
        self.steps: list[Step] = []
        """Times are Unix time here."""
        self._path, self._lines = path, Lines()
        self._is_done = threading.Event()

    def run(self) -> None:
        while not self._is_done.wait(POLL_S):
            now_s = time.time()
            for line in self._lines.add(read_from(self._path, self._lines.offset)):
                row = json.loads(line)
                self.steps.append(Step(now_s, row["step"], row["attempt"], row["world_size"]))

    def close(self) -> None:
        self._is_done.set()
        self.join()


class Trial:
    """One system, living through a trace."""

    def __init__(self, command: list[str], out: Path, trace: list[Fault], notice_s: float, end_s: float):
        """`out`: where metrics.jsonl will be. `end_s`: when the clock stops."""
        self._command, self._out = command, out
        self._trace, self._notice_s, self._end_s = trace, notice_s, end_s
        self.faults: list[Fault] = []
        """As they happened."""
        self.room: list[tuple[float, int]] = [(0.0, FIRST_NODES)]
        """Moments at which the number of nodes that are there and have no notice changed."""
        self.steps: list[Step] = []
        self.ended_at_s: float | None = None
        """When the command ended by itself."""

    def run(self, log: Path) -> None:
        """Start the cluster and the command, do the faults, stop."""
        pool = NodePool(FIRST_NODES)
        pool.cluster.wait_for_nodes()
        environment = {**os.environ, "RAY_ADDRESS": pool.address, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        command = [word.replace("ADDRESS", pool.address) for word in self._command]
        watch = StepWatch(self._out / "metrics.jsonl")
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=PROJECT, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            watch.start()
            began_at_s = self._wait_for_start(watch, process, log)
            self._do_faults(pool, process, began_at_s)
        finally:
            _end(process)
            watch.close()
            pool.close()
        self.steps = [Step(s.at_s - began_at_s, s.step, s.attempt, s.world_size) for s in watch.steps]

    def _wait_for_start(self, watch: StepWatch, process: subprocess.Popen[bytes], log: Path) -> float:
        """Unix time of the first step on all nodes."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            for step in list(watch.steps):
                if step.world_size == FIRST_NODES:
                    return step.at_s
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{' '.join(self._command)} did not start:\n{log.read_text()[-6000:]}")
            time.sleep(POLL_S)

    def _do_faults(self, pool: NodePool, process: subprocess.Popen[bytes], began_at_s: float) -> None:
        waiting: list[tuple[float, Callable[[], None]]] = [
            (fault.at_s, lambda fault=fault: do(fault)) for fault in self._trace
        ]
        leaving: list[Any] = []

        def now_s() -> float:
            return time.time() - began_at_s

        def do(fault: Fault) -> None:
            staying = [node for node in pool.nodes if node not in leaving]
            if fault.kind == "add":
                pool.add()
                happened_at_s = now_s()
            else:
                node = staying[int(fault.choice * len(staying))]
                happened_at_s = now_s()
                if fault.kind == "kill":
                    pool.kill(node)
                else:
                    leaving.append(node)
                    pool.drain(node, self._notice_s)
                    waiting.append((happened_at_s + self._notice_s, lambda: pool.kill(node)))
            self.faults.append(Fault(happened_at_s, fault.kind, fault.choice))
            self.room.append((happened_at_s, self.room[-1][1] + (1 if fault.kind == "add" else -1)))
            print(f"  {happened_at_s:.0f} s: {fault.kind}", flush=True)

        while now_s() < self._end_s:
            waiting.sort(key=lambda due: due[0])
            if waiting and waiting[0][0] <= now_s():
                waiting.pop(0)[1]()
            if self.ended_at_s is None and process.poll() is not None:
                self.ended_at_s = now_s()
                print(f"  {self.ended_at_s:.0f} s: the command ended by itself, exit code {process.returncode}")
            time.sleep(POLL_S)

    def outcome(self) -> Outcome:
        """Measure it."""
        found = Outcome(ended_at_s=self.ended_at_s)
        during = [step for step in self.steps if 0 < step.at_s <= self._end_s]
        last_done = {step.step: step for step in self.steps if step.at_s <= self._end_s}
        kept = [step for step in during if last_done[step.step] is step]
        found.num_steps = len(kept)
        found.goodput = len(kept) * BATCH * SECONDS_PER_SAMPLE / self._node_seconds()
        found.num_repeated, found.num_lost = self._repeated_and_lost(last_done)
        self._add_redone(found, during)
        self._add_recovery(found, during)
        return found

    def _node_seconds(self) -> float:
        moments = [*self.room, (self._end_s, 0)]
        return sum(count * (after - at_s) for (at_s, count), (after, _) in itertools.pairwise(moments))

    def _repeated_and_lost(self, last_done: dict[int, Step]) -> tuple[int, int]:
        """In steps that count: how often a sample was trained on more often, and less often, than in whole passes."""
        ids: dict[tuple[int, int], list[int]] = {}
        for file in (self._out / "samples").iterdir():
            for line in file.read_text().splitlines():
                with contextlib.suppress(ValueError):  # torn by a kill
                    row = json.loads(line)
                    ids.setdefault((row["step"], row["attempt"]), []).extend(row["ids"])
        # The last step's samples may not all be written down when the clock stops.
        batches = [ids.get((last_done[step].step, last_done[step].attempt), []) for step in sorted(last_done)[:-1]]
        counts = Counter(itertools.chain.from_iterable(batches))
        passes, rest = divmod(counts.total(), NUM_SAMPLES)
        repeated = sum(max(0, counts[i] - passes - (rest > 0)) for i in range(NUM_SAMPLES))
        lost = sum(max(0, passes - counts[i]) for i in range(NUM_SAMPLES))
        lost += sum(BATCH - len(batch) for batch in batches)
        return repeated, lost

    def _add_redone(self, found: Outcome, steps: list[Step]) -> None:
        for fault in self.faults:
            found.redone.setdefault(fault.kind, []).append(0)
        for before, after in itertools.pairwise(steps):
            if after.attempt == before.attempt:
                continue
            # The fault that ended the attempt before.
            causes = [f for f in self.faults if f.at_s <= before.at_s + LAST_STEP_S]
            kind = causes[-1].kind if causes else "nothing"
            found.redone.setdefault(kind, [0])
            index = sum(f.kind == kind for f in causes) - 1
            found.redone[kind][index] += max(0, before.step - after.step + 1)

    def _add_recovery(self, found: Outcome, steps: list[Step]) -> None:
        ends_s = [fault.at_s for fault in self.faults[1:]] + [self._end_s]
        for fault, (_, nodes), end_s in zip(self.faults, self.room[1:], ends_s, strict=True):
            old = [step for step in steps if step.at_s <= fault.at_s][-1]
            new = [step for step in steps if fault.at_s < step.at_s <= end_s]
            began = [step for step in new if step.attempt > old.attempt]
            if fault.kind == "reclaim":
                moments = [fault.at_s, *(step.at_s for step in new), end_s]
                pause_s = max(after - before for before, after in itertools.pairwise(moments))
                is_too_late = pause_s == end_s - moments[-2]
            else:
                if fault.kind == "add":
                    began = [step for step in began if step.world_size >= min(nodes, MOST_WORKERS)]
                elif not began and new and new[-1].at_s > fault.at_s + 2 * LAST_STEP_S:
                    continue  # no worker was on that node
                is_too_late = not began
                pause_s = (began[0].at_s if began else end_s) - fault.at_s
            found.too_late[fault.kind] += is_too_late
            found.recovery_s.setdefault(fault.kind, []).append(pause_s)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the command and its children; the cluster goes with its nodes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def raytrain_command(folder: Path) -> list[str]:
    """The command for raytrain; its run will be in `folder`/raytrain."""
    config = {
        "name": "raytrain",
        "storage_path": str(folder),
        "task": {"kind": "sequence_classification", "labels": ["negative", "positive"]},
        "model": {"config": TINY_BERT, "tokenizer": str(folder / "tokenizer")},
        "data": {"train": {"path": str(folder / "data.parquet")}, "record_samples": True},
        "training": {
            "max_steps": 100_000,
            "global_batch_size": BATCH,
            "micro_batch_size": BATCH // 6,  # as many for 1, 2 and 3 workers
            "precision": "fp32",
            "optimizer": {"learning_rate": 1e-4},
            "schedule": {"kind": "constant", "warmup_ratio": 0.0},
        },
        "workers": {"max": MOST_WORKERS, "cpus": WORKER_CPUS, "data_cpus": 0.33, "grow_delay_s": GROW_AFTER_S},
        "checkpoint": {"snapshot_every_steps": SAVE_EVERY},
        "tracking": {"tensorboard": False},
    }
    path = folder / "raytrain.yaml"
    path.write_text(yaml.safe_dump(config))
    script = str(Path(__file__).with_name("paced_raytrain.py"))
    return [sys.executable, script, str(SECONDS_PER_SAMPLE), "train", str(path)]


def plain_command(folder: Path) -> list[str]:
    """The command for the baseline; its files will be in `folder`/plain."""
    options = {
        "address": "ADDRESS",
        "out": folder / "plain",
        "data": folder / "data.parquet",
        "tokenizer": folder / "tokenizer",
        "model": json.dumps(TINY_BERT),
        "workers": MOST_WORKERS,
        "cpus": WORKER_CPUS,
        "global-batch-size": BATCH,
        "save-every": SAVE_EVERY,
        "seconds-per-sample": SECONDS_PER_SAMPLE,
        "resize-every-s": GROW_AFTER_S,
    }
    (folder / "plain").mkdir()
    script = str(Path(__file__).with_name("baseline_ray_elastic.py"))
    return [sys.executable, script, *[word for name, value in options.items() for word in (f"--{name}", str(value))]]


def write_data(folder: Path) -> None:
    """Tiny reviews, with the column `id`, and a tokenizer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tiny_tokenizer(folder / "tokenizer")
    path = write_reviews(folder / "data.parquet", NUM_SAMPLES, seed=0)
    rows = pq.read_table(path)
    pq.write_table(rows.append_column("id", pa.array(range(NUM_SAMPLES))), path, row_group_size=1000)


def phases_of(events: Path, faults: Sequence[Fault]) -> dict[str, dict[str, list[float]]]:
    """raytrain's own account of each restart, by the fault that led to it."""
    kinds = {"failure": "kill", "resize": "add", "reclaim": "reclaim"}
    found: dict[str, dict[str, list[float]]] = {}
    for line in events.read_text().splitlines():
        event = json.loads(line)
        if event["kind"] in kinds and "first_step_s" in event:
            for phase in PHASES:
                found.setdefault(kinds[event["kind"]], {}).setdefault(phase, []).append(event[phase])
    return found


def one_round(seed: int, arguments: argparse.Namespace, storage: Path) -> dict[str, Outcome]:
    """Both systems under the trace of one seed."""
    folder = storage / f"seed_{seed}"
    folder.mkdir(parents=True)
    write_data(folder)
    trace = make_trace(seed, arguments.events, arguments.event_every)
    notice_s = min(arguments.notice, arguments.event_every / 2)
    end_s = arguments.event_every * (arguments.events + 1)
    commands = {"raytrain": raytrain_command(folder), "plain": plain_command(folder)}
    outcomes: dict[str, Outcome] = {}
    for name, command in commands.items():
        if arguments.only not in (None, name):
            continue
        print(f"seed {seed}: {name}", flush=True)
        trial = Trial(command, folder / name, trace, notice_s, end_s)
        trial.run(folder / f"{name}.log")
        outcomes[name] = trial.outcome()
        if name == "raytrain":
            outcomes[name].phases_s = phases_of(folder / name / "events.jsonl", trial.faults)
        print(f"  {outcomes[name]}", flush=True)
    return outcomes


def met(is_met: bool) -> str:
    return "yes" if is_met else "no"


def seconds_of(outcomes: Sequence[Outcome], kind: str) -> str:
    """Median and worst."""
    seconds = [s for outcome in outcomes for s in outcome.recovery_s.get(kind, [])]
    if not seconds:
        return "-"
    late = sum(outcome.too_late[kind] for outcome in outcomes)
    note = f"; {late} of {len(seconds)} not before the next fault" if late else ""
    return f"{middle(seconds):.1f} ({max(seconds):.1f}{note})"


def recovery_row(
    what: str, kind: str, ours: Sequence[Outcome], theirs: Sequence[Outcome], has_target: bool
) -> list[str]:
    """A row of the table with the times after one kind of fault."""
    row = [what, seconds_of(ours, kind), seconds_of(theirs, kind)]
    one, other = ([s for o in outcomes for s in o.recovery_s.get(kind, [])] for outcomes in (ours, theirs))
    if not one or not other:
        return [*row, "-", "", ""]
    ratios = middle(one) / middle(other), max(one) / max(other)
    row.append(f"{ratios[0]:.2f} ({ratios[1]:.2f})")
    return [*row, f"<= {RECOVERY_TARGET}", met(max(ratios) <= RECOVERY_TARGET)] if has_target else [*row, "", ""]


def redone_of(outcomes: Sequence[Outcome], kinds: Sequence[str]) -> tuple[str, int]:
    """In words, and the most after one fault."""
    redone = [count for outcome in outcomes for kind in kinds for count in outcome.redone.get(kind, [])]
    most = max(redone, default=0)
    return f"{sum(redone)} (at most {most} at a time)" if most else "0", most


def report(rounds: Sequence[dict[str, Outcome]], arguments: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    ours, theirs = ([round_[name] for round_ in rounds] for name in ("raytrain", "plain"))
    ratios = [one.goodput / max(1e-9, other.goodput) for one, other in zip(ours, theirs, strict=True)]
    rows = [
        [
            "goodput",
            *(f"{middle([outcome.goodput for outcome in outcomes]):.2f}" for outcomes in (ours, theirs)),
            f"{middle(ratios):.2f} ({spread(ratios)})",
            f">= {GOODPUT_TARGET}",
            met(middle(ratios) >= GOODPUT_TARGET),
        ],
        ["steps that count", *(str(sum(o.num_steps for o in outcomes)) for outcomes in (ours, theirs)), "", "", ""],
    ]
    limits = {"after a node came or had notice": (("add", "reclaim"), 0), "after SIGKILL": (("kill",), SAVE_EVERY)}
    for what, (kinds, limit) in limits.items():
        (words, most), (other_words, _) = redone_of(ours, kinds), redone_of(theirs, kinds)
        target = f"<= {limit} at a time" if limit else "0"
        rows.append([f"steps redone {what}", words, other_words, "", target, met(most <= limit)])
    for what in ("repeated", "lost"):
        one, other = (sum(getattr(o, f"num_{what}") for o in outcomes) for outcomes in (ours, theirs))
        rows.append([f"samples {what}", str(one), str(other), "", "0", met(one == 0)])
    rows += [
        recovery_row("s from SIGKILL to the next step", "kill", ours, theirs, True),
        recovery_row("s from a new node to the first step on all", "add", ours, theirs, True),
        recovery_row("s without a step after a notice", "reclaim", ours, theirs, False),
    ]
    kinds = ", ".join(KINDS) + ", over and over"
    head = (
        f"A tiny BERT on {NUM_SAMPLES} reviews, ZeRO-2, fp32, {BATCH} samples a step, workers 1 to {MOST_WORKERS} of "
        f"{WORKER_CPUS} CPUs each, one a node; {FIRST_NODES} nodes at first. A worker sleeps {SECONDS_PER_SAMPLE:g} s "
        f"for each of its samples ({BATCH * SECONDS_PER_SAMPLE:g} s a step on one worker, "
        f"{BATCH * SECONDS_PER_SAMPLE / MOST_WORKERS:g} s on {MOST_WORKERS}): that stands in for a GPU's work, and all "
        f"else of a step is overhead. One fault about every {arguments.event_every} s: {kinds}; notice "
        f"{min(arguments.notice, arguments.event_every / 2):g} s. "
        f"raytrain's snapshots and the baseline's checkpoints every {SAVE_EVERY} steps. {rounds_of(arguments)}.\n\n"
        "Goodput: sleep in steps that count / seconds of nodes that were there and had no notice. Seconds: median "
        "(worst, which of up to twenty is the 95th percentile).\n\n"
    )
    header = ["", "raytrain", "plain TorchTrainer", "raytrain / plain", "target", "met"]
    ended = "".join(
        f"\n\n{name} ended by itself after {outcome.ended_at_s:.0f} s."
        for name, outcomes in (("raytrain", ours), ("The plain TorchTrainer", theirs))
        for outcome in outcomes
        if outcome.ended_at_s is not None
    )
    return head + table(header, rows) + ended + phases_table(ours)


def phases_table(outcomes: Sequence[Outcome]) -> str:
    """raytrain's restarts by phase."""
    rows = []
    for kind, what in (("kill", "SIGKILL"), ("add", "a new node"), ("reclaim", "a notice")):
        phases = [outcome.phases_s[kind] for outcome in outcomes if kind in outcome.phases_s]
        if phases:
            rows.append([what, *(f"{middle([s for p in phases for s in p[phase]]):.1f}" for phase in PHASES)])
    header = ["after", "detect", "save and leave", "wait for room", "regroup", "load", "first step"]
    return "\n\nraytrain's restarts by its own events.jsonl, median seconds by phase:\n\n" + table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["raytrain", "plain"], help="one system, without a table")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which stay there")
    arguments = arguments_with(parser, rounds=1, seed=0, events=6, event_every=60, notice=30)
    with temporary_storage() if arguments.keep is None else contextlib.nullcontext(arguments.keep.resolve()) as storage:
        rounds = [one_round(arguments.seed + i, arguments, storage) for i in range(arguments.rounds)]
    if arguments.only is None:
        title = f"Elastic training through {len(rounds) * arguments.events} faults"
        publish(title, report(rounds, arguments), arguments)


if __name__ == "__main__":
    main()
