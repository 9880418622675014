"""What runs in each Ray Train worker: build everything for this world, train, leave the best model measured."""

import functools
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from raytrain.batch_plan import BatchPlan, World
from raytrain.checkpoint.manifest import Checkpoint
from raytrain.checkpoint.ranges import StorageRangeReader
from raytrain.checkpoint.store import CheckpointStore
from raytrain.checkpoint.zero_state import load_ranges, load_scaler_state
from raytrain.config import RunConfig
from raytrain.data.prepared import PreparedStore
from raytrain.data.stream import Stream
from raytrain.errors import CheckpointError, ConfigError
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.timetable import make_timetable
from raytrain.tokenizer import load_tokenizer
from raytrain.training.control import Control
from raytrain.training.deepspeed_config import training_at
from raytrain.training.engine import Engine, detect_precision
from raytrain.training.evaluate import Judge, evaluate
from raytrain.training.job import STOP_REQUEST, Job
from raytrain.training.metrics import RunLog, next_attempt
from raytrain.training.saving import BEST, Saver
from raytrain.training.state import Progress
from raytrain.training.trainer import Trainer


class WorkerRun:
    """One worker's part in one attempt."""

    def __init__(self, job: Job, run: Storage, world: World):
        self.job, self.run, self.world = job, run, world
        self.config = RunConfig.model_validate(job.config)
        self.control = Control(world)  # first: what follows may fail on one worker only
        self.store = self.control.all_succeed(lambda: PreparedStore(job.prepared_root))
        self.labels = self.store.manifest.labels
        self.task = make_task(self.config.task, self.config.data.max_length)
        self.device = _device(job.use_gpu, self.config.workers.cpus)
        self.timetable = make_timetable(
            self.config,
            self.store.manifest.splits["train"].num_samples,
            has_validation=self.store.has_split("validation"),
        )
        self.plan = BatchPlan.of(self.config, world.world_size)
        attempt, token = self.control.from_first((next_attempt(run), uuid.uuid4().hex[:12]))
        self.attempt, self.token = attempt, token
        self.log = RunLog(
            run,
            world,
            attempt,
            tensorboard=self.config.tracking.tensorboard,
            record_samples=self.config.data.record_samples,
        )

    def train(self) -> dict[str, Any]:
        """Train from where the run stands to its end; the contents of result.json."""
        started_at_s = time.time()
        self.log.event("start", world_size=self.world.world_size)
        checkpoint = self._newest_checkpoint()
        progress = progress_of(checkpoint)
        stream = Stream(self.config, self.store, self.world, self.plan)
        stream.start(progress.step, self.timetable)  # fills up while the model is loaded
        precision = self.control.all_succeed(lambda: detect_precision(self.config.training.precision, self.device))
        model = self.control.all_succeed(self._new_model)
        engine = Engine(
            model,
            training_at(self.config.training, self.world.world_size),
            precision=precision,
            device=self.device,
            num_micro_steps=self.plan.micro_steps,
        )
        if checkpoint is not None:
            self._restore(engine, checkpoint, progress)
        _seed(self.config.seed, progress.step, self.world.world_rank)
        saver = Saver(
            self.run,
            engine,
            self.world,
            self.control,
            self.log,
            keep_last=self.config.checkpoint.keep_last,
            token=self.token,
            data_content=self.store.manifest.content,
            export=functools.partial(self._export, model),
        )
        try:
            status = self._trainer(engine, stream, saver, progress).fit()
            if not (self.timetable.has_validation and self.config.checkpoint.keep_best):  # then the last model is it
                saver.save_best(progress.step)
                saver.finish()
        finally:
            saver.close()
            stream.close()
        engine.close()
        del engine, model, saver  # the best model is measured next, and needs the room
        final = self._measure_best() if status != "stopped" else {}
        self.log.event("finish", step=progress.step, status=status, seconds=round(time.time() - started_at_s, 1))
        return {"status": status, **progress.to_dict(), "final_metrics": final}

    def evaluate(self, split: str) -> dict[str, Any]:
        """Evaluate the best model on a split; the contents of result.json."""
        metrics = self.measure(split)
        return {"status": "finished", "final_metrics": metrics}

    def _trainer(self, engine: Engine, stream: Stream, saver: Saver, progress: Progress) -> Trainer:
        return Trainer(
            config=self.config,
            device=self.device,
            task=self.task,
            engine=engine,
            timetable=self.timetable,
            source=stream,
            judge=Judge(self.config, self.task, self.labels, self.device, self.control),
            saver=saver,
            control=self.control,
            log=self.log,
            progress=progress,
            stop_requested=_stop_watch(self.run, self.world),
        )

    def _new_model(self) -> nn.Module:
        """The model before training; new weights are the same in every worker and every attempt."""
        torch.manual_seed(self.config.seed)
        return self.task.build_model(self.config.model, self.labels, self.config.training)

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The newest good checkpoint, if there is one.

        Raises:
            CheckpointError: All of them are damaged.
            ConfigError: It was made with other data.
        """
        store = CheckpointStore(self.run.at("checkpoints"), self.config.checkpoint.keep_last)
        checkpoint = store.newest_good(
            self.world.world_rank,
            self.world.world_size,
            self.control.gather,
            lambda step, reason: self.log.event("damaged_checkpoint", step=step, reason=reason),
        )
        if checkpoint is not None and checkpoint.state.get("data_content") != self.store.manifest.content:
            raise ConfigError(
                f"the source files or the tokenizer have changed since this run's checkpoint of step {checkpoint.step} "
                "was made, so its samples would come in another order. Put them back, give the run another name, or "
                "start anew with --overwrite"
            )
        return checkpoint

    def _restore(self, engine: Engine, checkpoint: Checkpoint, progress: Progress) -> None:
        """Load this worker's part of the state, whatever world size wrote it."""
        names = [entry.name for entry in checkpoint.files if entry.name.endswith(".safetensors")]
        try:
            load_ranges(engine, StorageRangeReader(checkpoint.folder, names), progress.updates)
        except CheckpointError as error:  # on this worker only: a crash, which restarts all
            raise RuntimeError(str(error)) from error
        load_scaler_state(engine, checkpoint.state["loss_scaler"])
        self.log.event("restore", step=progress.step)

    def _export(self, model: Any, weights: dict[str, torch.Tensor], step: int, folder: str) -> None:
        """The model, its tokenizer, and what raytrain needs to use it again, in a local folder."""
        model.save_pretrained(folder, state_dict=weights)
        load_tokenizer(self.config.model).save_pretrained(folder)
        card = {
            "task": self.config.task.model_dump(mode="json"),
            "labels": self.labels,
            "max_length": self.config.data.max_length,
            "step": step,
        }
        with open(os.path.join(folder, "raytrain.json"), "w", encoding="utf-8") as file:
            json.dump(card, file, indent=1)

    def _measure_best(self) -> dict[str, float]:
        """Test metrics of the best model; {} without a test split."""
        if not self.store.has_split("test"):
            return {}
        return self.measure("test")

    def _best_model(self) -> nn.Module:
        best = self.config.model.model_copy(update={"path": _local_copy(self.run, BEST), "config": None})
        return self.task.build_model(best, self.labels, self.config.training)

    def measure(self, split: str) -> dict[str, float]:
        """Evaluate `best/` on a split and write it to evals.jsonl. Each worker holds the whole model for this."""
        model = self.control.all_succeed(self._best_model).to(self.device)
        stream = Stream(self.config, self.store, self.world, self.plan)
        metrics = evaluate(model, stream.evaluate_once(split), self.task, self.labels, self.device, self.control)
        step = json.loads(self.run.read_bytes(f"{BEST}/raytrain.json"))["step"]
        self.log.evaluation(step, (step - 1) // self.timetable.steps_per_epoch, split, metrics)
        return metrics.values


def progress_of(checkpoint: Checkpoint | None) -> Progress:
    """Where the run stands according to its checkpoint; at step 0 without one."""
    if checkpoint is None:
        return Progress()
    return Progress.from_dict({k: v for k, v in checkpoint.state.items() if k in Progress.__dataclass_fields__})


def _device(use_gpu: bool, num_threads: int) -> torch.device:
    if use_gpu:
        import ray.train.torch

        return ray.train.torch.get_device()
    torch.set_num_threads(num_threads)  # torch takes all cores by default, and several workers would fight for them
    return torch.device("cpu")


def _seed(seed: int, step: int, world_rank: int) -> None:
    """Seed dropout; the only randomness that differs between workers and between attempts."""
    torch.manual_seed(hash((seed, step, world_rank)) % 2**63)


def _stop_watch(run: Storage, world: World) -> Callable[[], bool]:
    """Whether someone asked the run to stop. Rank 0 looks at the run's folder now and then, not in every step."""
    last_look_s, is_asked = 0.0, False
    pause_s = 0.2 if run.local_path() is not None else 1.0

    def is_stop_requested() -> bool:
        nonlocal last_look_s, is_asked
        if world.world_rank == 0 and time.monotonic() - last_look_s > pause_s:
            last_look_s, is_asked = time.monotonic(), run.exists(STOP_REQUEST)
        return is_asked

    return is_stop_requested


def _local_copy(run: Storage, folder: str) -> str:
    """A folder of the run as a local path; downloaded when the run lies on an object store."""
    local = run.local_path(folder)
    if local is not None:
        return local
    copy = tempfile.mkdtemp(prefix="raytrain-")
    for name in run.list_names(folder):
        with run.open_input(f"{folder}/{name}") as source, open(os.path.join(copy, name), "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return copy
