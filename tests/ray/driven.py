"""The same small Ray Train run twice: by Ray's own controller and worker group, and by ours, driven by a test. What
both call is recorded, so that it can be compared.

The run: its first group fails on rank 1, the second is resized while it is at work, the third comes to its end. Each
group reports a checkpoint that is uploaded in a thread.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import create_failure_policy
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ResizeDecision
from ray.train.v2._internal.state.state_actor import get_state_actor
from ray.train.v2._internal.util import ObjectRefWrapper
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.report_config import CheckpointUploadMode

from raytrain.elastic.ray_train import IDLE_S, start_controller
from raytrain.elastic.ray_train_worker import ReusableWorker
from raytrain.ray_core.actors import start_actor

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes can't import it

FAILURE = "a failure made by the test"
RESOURCES = {"CPU": 1.0}
PATIENCE_S = 90


class Notes:
    """A file of JSON lines that several processes append to."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, *note: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(note) + "\n")

    def read(self) -> list[Any]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def wait_for(self, *notes: Any) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not all(list(note) in self.read() for note in notes):
            assert time.monotonic() < deadline_s, f"waited in vain for {notes}: {self.read()}"
            time.sleep(0.05)


def _recorded(name: str) -> Callable[..., Any]:
    hook = getattr(WorkerGroupCallback, name)

    @contextmanager
    def as_context(self: Any) -> Iterator[None]:
        self.notes.add(f"{name}: in")
        with hook(self):
            yield
        self.notes.add(f"{name}: out")

    def as_call(self: Any, *arguments: Any, **named: Any) -> Any:
        self.notes.add(name)
        return hook(self, *arguments, **named)

    return as_context if name.startswith("on_") else as_call


HOOKS = [name for name in dir(WorkerGroupCallback) if not name.startswith("_")]


class HookRecorder(WorkerGroupCallback):
    """Notes each hook of a worker group that is called."""

    def __init__(self, notes: Notes):
        self.notes = notes


for _name in HOOKS:
    setattr(HookRecorder, _name, _recorded(_name))


class WorkerRecorder(WorkerCallback):
    """Notes the hooks that are called in the workers."""

    def __init__(self, notes: Notes):
        self.notes = notes

    def after_init_train_context(self) -> None:
        self.notes.add("after_init_train_context", ray.train.get_context().get_world_rank())

    def before_worker_shutdown(self) -> None:
        self.notes.add("before_worker_shutdown", ray.train.get_context().get_world_rank())


class SlowAbort(ControllerCallback):
    """Of a user, who has something to do then."""

    def before_controller_abort(self) -> None:
        time.sleep(1.5 * IDLE_S)


class Reused(ReusableWorker):
    """Ours, without what raytrain does in it."""


class ResizeWhenTold(FixedScalingPolicy):
    """Ray's, and once a file is there the group is started anew, as large as it is."""

    told: Path

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        if self.told.exists():
            self.told.unlink()
            return ResizeDecision(len(worker_group_state.workers), RESOURCES)
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)


def training(folder: Path) -> Callable[[], str]:
    """What each worker runs."""

    def train_fn() -> str:
        notes, context = Notes(folder / "workers.jsonl"), ray.train.get_context()
        rank = context.get_world_rank()
        group = 1 + sum(note[0] == "begun" and note[2] == rank for note in notes.read())
        notes.add("begun", group, rank, os.getpid())
        content = Path(tempfile.mkdtemp())
        (content / "group").write_text(str(group))
        checkpoint = Checkpoint.from_directory(content) if rank == 0 else None
        if group == 1 and rank == 1:
            notes.add("failed", group, rank)
            raise RuntimeError(FAILURE)
        if group > 1:
            ray.train.report({"group": group}, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            notes.add("kept", group, rank, len(ray.train.get_all_reported_checkpoints()))
        notes.add("reported", group, rank)
        while group < 3 and not (folder / f"end_{group}").exists():
            time.sleep(0.02)
        notes.add("ended", group, rank)
        return f"group {group}"

    return train_fn


class Recording:
    """What a run has left."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.folder, self.name = folder, folder.name
        self.hooks, self.workers = Notes(folder / "hooks.jsonl"), Notes(folder / "workers.jsonl")
        self.in_workers = Notes(folder / "in_workers.jsonl")
        self.controller: Any = None
        self.result: Any = None

    @property
    def callbacks(self) -> list[Any]:
        return [HookRecorder(self.hooks), WorkerRecorder(self.in_workers)]

    def hook_order(self) -> list[str]:
        """Hooks in the order of their calls; polls in a row are one."""
        names = [note[0] for note in self.hooks.read()]
        return [name for name, before in zip(names, [None, *names], strict=False) if name != before]

    def worker_order(self, rank: int) -> list[str]:
        """Hooks that were called in the workers of a rank."""
        return [name for name, of_rank in self.in_workers.read() if of_rank == rank]

    def pids(self, group: int) -> list[int]:
        """Of the workers of a group, by rank."""
        begun = [note[1:] for note in self.workers.read() if note[0] == "begun"]
        return [pid for _, _, pid in sorted(note for note in begun if note[0] == group)]

    def state(self) -> tuple[str, list[str]]:
        """Status of the run and of its attempts in Ray Train's state."""
        actor = get_state_actor()
        (run,) = [run for run in ray.get(actor.get_train_runs.remote()).values() if run.name == self.name]
        attempts = ray.get(actor.get_train_run_attempts.remote())[run.id].values()
        return run.status.value, [attempt.status.value for attempt in attempts]

    def end(self, done: Any) -> None:
        ray.get(done, timeout=PATIENCE_S)
        self.result = ray.get(self.controller.get_result.remote())
        ray.kill(self.controller)

    def abort(self) -> None:
        """While group 1 is at work."""
        self.workers.wait_for(("reported", 1, 0))
        self.hooks.wait_for(("after_worker_group_poll_status",))
        ray.wait([self.controller.abort.remote()], timeout=PATIENCE_S)


class PlainRun(Recording):
    """Ray's own."""

    def start(self, num_workers: int, max_failures: int = -1) -> Any:
        trainer = DataParallelTrainer(
            training(self.folder),
            scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker=RESOURCES),
            run_config=RunConfig(
                name=self.name,
                storage_path=str(self.folder / "ray_train"),
                failure_config=FailureConfig(max_failures=max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                callbacks=self.callbacks,
            ),
        )
        context = trainer.train_run_context
        scaling = ResizeWhenTold(context.scaling_config)
        scaling.told = self.folder / "resize"
        self.controller = start_actor(
            TrainController,
            ObjectRefWrapper(trainer._get_train_func()),
            context,
            scaling,
            create_failure_policy(context.run_config.failure_config),
            trainer._create_default_callbacks(),
        )
        return self.controller.run.remote()

    def record(self) -> None:
        done = self.start(2)
        self.workers.wait_for(("reported", 2, 0), ("reported", 2, 1))
        (self.folder / "resize").touch()
        self.end(done)


class DrivenRun(Recording):
    """Ours."""

    def start(self, num_workers: int) -> Any:
        self.controller = start_controller(
            training(self.folder),
            self.name,
            str(self.folder / "ray_train"),
            (max(1, num_workers), max(1, num_workers)),
            RESOURCES,
            2,
            [*self.callbacks, SlowAbort()],
        )
        self.actors = [start_actor(Reused, num_cpus=1) for _ in range(num_workers)]
        done = self.controller.run.remote()
        if num_workers:
            self.controller.start_group.remote(1, self.actors)
        return done

    def abort_between_groups(self) -> None:
        """So slowly that the controller would look meanwhile whether a group was ordered."""
        ray.get(self.controller.get_state.remote())  # it is there
        time.sleep(0.1)
        ray.wait([self.controller.abort.remote()], timeout=PATIENCE_S)
        time.sleep(0.5)

    def record(self) -> None:
        """A group is ended before the next one begins, which the supervisor sees to in a real run."""
        done = self.start(2)
        self.workers.wait_for(("failed", 1, 1), ("reported", 1, 0))
        (self.folder / "end_1").touch()
        self.workers.wait_for(("ended", 1, 0))
        self.controller.fail_group.remote(1, {1: FAILURE})
        self.controller.start_group.remote(2, self.actors)
        self.workers.wait_for(("reported", 2, 0), ("reported", 2, 1))
        (self.folder / "end_2").touch()
        self.workers.wait_for(("ended", 2, 0), ("ended", 2, 1))
        self.controller.start_group.remote(3, self.actors)
        self.workers.wait_for(("ended", 3, 0), ("ended", 3, 1))
        self.controller.conclude.remote(None)
        self.end(done)
        self.are_alive = [ray.get(actor.get_metadata.remote()).pid for actor in self.actors]
        for actor in self.actors:
            ray.kill(actor)
