"""The training in each worker: build everything for this world size, train, and measure the best model."""

import contextlib
import functools
import gc
import time
import uuid

import torch
from torch import nn

from raytrain.checkpoint.fence import Fence
from raytrain.checkpoint.folder import recover_folder
from raytrain.checkpoint.ranges import StorageRangeReader
from raytrain.checkpoint.sizes import checkpoint_bytes
from raytrain.checkpoint.snapshot import STORE_SHARE, SnapshotKeeper, bytes_in_store
from raytrain.config import Exactness, Precision, RunConfig, TrainingConfig
from raytrain.data.prepared import PreparedStore
from raytrain.data.step_reader import make_order
from raytrain.data.stream import Stream
from raytrain.engine.deepspeed_config import effective_zero_stage
from raytrain.engine.engine import Engine, detect_precision
from raytrain.engine.process_group import collective_timeout_s
from raytrain.engine.zero_state import load_ranges, load_scaler_state, num_trained
from raytrain.errors import CheckpointError
from raytrain.models.card import BEST
from raytrain.models.rank_schedule import rank_schedule
from raytrain.retries import retrying
from raytrain.sizing.shape import check_adapted, refuse_unfit, shape_of
from raytrain.sizing.zero_stage import AUTO, Group, memory_at, settle
from raytrain.steps.batches import BatchPlan, World
from raytrain.steps.timetable import Timetable, make_timetable
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import Task
from raytrain.tracking.base import TrackedRun
from raytrain.tracking.trackers import Trackers
from raytrain.training import export
from raytrain.training.agreement import Control
from raytrain.training.arrival import Arrival
from raytrain.training.compiling import compile_if_wanted
from raytrain.training.device import device_of, usable_bytes
from raytrain.training.driver_link import DriverLink
from raytrain.training.environment import environment_of, tell_of_others
from raytrain.training.evaluate import Judge, evaluate
from raytrain.training.frozen import hash_of_frozen
from raytrain.training.identity import Identity
from raytrain.training.job import Job
from raytrain.training.measured import measured_name
from raytrain.training.outcome import Finished, RunStatus, Stopped, StopReason
from raytrain.training.packing import packed_source
from raytrain.training.progress import Progress
from raytrain.training.ranks_left import check_ranks
from raytrain.training.records import last_row
from raytrain.training.reporting import Reporter, Reporting
from raytrain.training.run_log import METRICS, RunLog, next_attempt
from raytrain.training.sampler import Sampler
from raytrain.training.saved_state import SavedState, newest_checkpoint, progress_of, snapshot_of
from raytrain.training.saving import SaveCallbacks, SavePlan, Saver
from raytrain.training.trainer import IdleTime, Trainer


class WorkerRun:
    """One worker's part in one attempt."""

    def __init__(
        self,
        job: Job,
        run: Storage,
        world: World,
        link: DriverLink,
        entered_at_s: float,
        reporter: Reporter | None = None,
    ):
        """Args:
        entered_at_s: When this worker began, seconds since the epoch.
        reporter: Reports to Ray Train; None: nothing is reported.
        """
        if job.fencing_token is not None:
            run = run.guarded(Fence(run, job.fencing_token).check)
        self.reporting = Reporting(reporter, world, run, job.fencing_token or 0)
        self.job, self.run, self.world, self.link, self.entered_at_s = job, run, world, link, entered_at_s
        self.config = RunConfig.model_validate(job.config)
        timeout_s = collective_timeout_s(self.config.workers.stall_timeout_s)
        self.control = Control(world, timeout_s)  # first, since what follows may fail on one worker only
        self.store = self.control.all_succeed(lambda: PreparedStore(job.prepared_root))
        self.state = self.store.manifest.task_state
        self.task = make_task(self.config.task, self.config.data.max_length)
        self.device = device_of(self.config, use_gpu=job.use_gpu)
        self.plan = BatchPlan.of(self.config, world.world_size)
        if world.world_rank == 0 and job.evaluate_split is None:  # an evaluation may run beside the training
            retrying(lambda: recover_folder(run, BEST), f"recovering {run.path_of(BEST)}")
        attempt, token = self.control.from_first((next_attempt(run), uuid.uuid4().hex[:12]))
        self.attempt, self.token = attempt, token
        self.log = RunLog(
            run,
            world,
            attempt,
            trackers=self._trackers(),
            record_samples=self.config.data.record_samples,
            now=link.now,
            told=link.feed.append,
        )

    @functools.cached_property
    def timetable(self) -> Timetable:
        """The timetable of the training; an evaluation of other data has none."""
        return make_timetable(
            self.config,
            self.store.manifest.splits["train"].num_samples,
            has_validation=self.store.has_split("validation"),
            pause_at=self.job.until_step,
        )

    def _trackers(self) -> Trackers | None:
        """The trackers, on rank 0. An evaluation may run beside the training, which is the one that writes to them."""
        if self.world.world_rank != 0 or self.job.evaluate_split is not None:
            return None
        return Trackers(TrackedRun(self.run, self.config), self.link.now)

    def train(self) -> Finished | Stopped:
        """Train from the run's current step to its end, a pause, or a request to stop."""
        self.nodes: list[str] = self.control.gather(self.link.node_id)
        self.log.event("start", world_size=self.world.world_size, nodes=self.nodes, entered_at_s=self.entered_at_s)
        content = self.store.manifest.content
        saved = snapshot_of(self.job, self.control, self.log) or newest_checkpoint(
            self.run, self.config, content, self.control, self.log
        )
        progress = Progress() if saved is None else progress_of(saved.state)
        with contextlib.ExitStack() as closing:  # this process continues, also after an error
            idle, status = self._train(saved, progress, closing)
            ended_at_s = time.perf_counter()
        leave_s = round(time.perf_counter() - ended_at_s, 3)
        began_at_s = time.perf_counter()
        final = self._measure_best() if status.is_done else {}
        measure_s = round(time.perf_counter() - began_at_s, 3)
        self.log.event("finish", step=progress.step, status=status, **idle.take(), measure_s=measure_s, leave_s=leave_s)
        self.control.all_succeed(self.log.store)
        if status.is_done:
            return Finished(progress, final)
        is_paused = self.timetable.is_pause_due(progress.step)
        return Stopped(progress, StopReason.PAUSED if is_paused else StopReason.REQUESTED)

    def _train(
        self, saved: SavedState | None, progress: Progress, closing: contextlib.ExitStack
    ) -> tuple[IdleTime, RunStatus]:
        """Build everything and train. Everything that has to be closed is added to `closing` as soon as it exists."""
        stream = Stream(self.config, self.store, self.world, self.plan)
        closing.callback(stream.close)
        stream.start(progress.step, self.timetable)  # fills up while the model is loaded
        precision = self.control.all_succeed(lambda: detect_precision(self.config.training.precision, self.device))
        model = self.control.all_succeed(functools.partial(self._new_model, check=saved is None))
        identity = self._identity(model, saved)
        engine = Engine(
            model,
            self._settle(model, precision),
            precision=precision,
            device=self.device,
            num_micro_steps=self.plan.micro_steps,
            ranks=self.control.all_succeed(lambda: rank_schedule(self.config, self.timetable.total_steps)),
        )
        closing.callback(engine.close)
        compile_if_wanted(engine, self.config.training, self.control, self.log)
        if saved is not None:
            self._restore(engine, saved, progress)
        saver = Saver(
            self.run,
            engine,
            self.control,
            self.log,
            SavePlan(
                keep_last=self.config.checkpoint.keep_last,
                snapshot_every_steps=self.config.checkpoint.snapshot_every_steps,
                token=self.token,
                fencing_token=self.job.fencing_token or 0,
                resumed_step=progress.step,
                identity=identity.of,
            ),
            functools.partial(self._export, model),
            self._snapshot_keeper(engine),
            SaveCallbacks(self.link.saved, self.reporting.committed, self.link.alive),
        )
        closing.callback(saver.close)
        arrival = Arrival(self.job, self.log, self.link, progress.step, self._steps_before(), self.entered_at_s)
        trainer = self._trainer(engine, stream, saver, progress, arrival)
        status = trainer.fit()
        if status.is_done:
            check_ranks(engine, progress, self.log)
        # Without a validation split the last model is the best one; only at the end is there time to save it.
        if status.is_done and not (self.timetable.has_validation and self.config.checkpoint.keep_best):
            with engine.averaged():
                saver.save_best(progress.step)
            saver.finish()
        return trainer.idle, status

    def _identity(self, model: nn.Module, saved: SavedState | None) -> Identity:
        """What this run's states belong to. `saved` is refused if it belongs to something else."""
        frozen = self.frozen = hash_of_frozen(model, self.control)  # before the engine partitions the weights
        order = make_order(self.config, self.store) if self.world.world_rank == 0 else None
        identity = Identity(self.store.manifest.content, frozen, order, here := environment_of(self.device))
        if saved is not None:
            self.control.all_succeed(lambda: identity.check(saved.state, saved.step))
        if self.config.training.exactness is Exactness.BITWISE:
            tell_of_others(here, self.control.gather(here), None if saved is None else saved.state, self.log)
        return identity

    def evaluate(self, split: str) -> Finished:
        """Evaluate the best model on a split."""
        metrics = self.measure(split, export.at_threshold(self.task, export.facts_of(self.run), self.state))
        self.control.all_succeed(self.log.store)
        return Finished(final_metrics=metrics)

    def _steps_before(self) -> int:
        """Steps done by earlier attempts, including those that are repeated now."""
        row = last_row(self.run, METRICS) if self.world.world_rank == 0 else None
        return int(row["step"]) if row else 0

    def _trainer(self, engine: Engine, stream: Stream, saver: Saver, progress: Progress, arrival: "Arrival") -> Trainer:
        sampler = self.control.all_succeed(functools.partial(Sampler.of, self.config, self.task))
        return Trainer(
            config=self.config,
            device=self.device,
            task=self.task,
            engine=engine,
            timetable=self.timetable,
            source=packed_source(stream, self.config, self.task, engine, self.control, self.log),
            judge=Judge(self.config, self.task, self.state, self.device, self.control, self.link.alive, sampler),
            saver=saver,
            control=self.control,
            log=self.log,
            reporting=self.reporting,
            progress=progress,
            stop_requested=self.link.is_leave_requested,
            on_step=arrival.stepped,
        )

    def _new_model(self, check: bool = False) -> nn.Module:
        """The model before training; new weights are the same in every worker and every attempt. `check`: the first
        worker refuses one that can't run on the longest sample."""
        if check and self.world.world_rank == 0:
            refuse_unfit(self.config, self.task, self.state)
        torch.manual_seed(self.config.seed)
        model = self.task.build_model(self.config.model, self.state, self.config.training)
        check_adapted(self.config, self.task, model)
        return model

    def _settle(self, model: nn.Module, precision: Precision) -> TrainingConfig:
        """The options with a ZeRO stage for this group: the same on all workers, whose GPUs may differ."""
        group = Group.of(self.config, self.plan, precision, use_gpu=self.job.use_gpu)
        usable = usable_bytes(self.device, self.nodes.count(self.link.node_id))
        least = min(self.control.gather(usable))
        shape = shape_of(model)
        training = settle(self.config.training, shape, group, least)
        stage = effective_zero_stage(training.zero_stage, precision)
        is_chosen = self.config.training.zero_stage == AUTO and (self.world.world_size > 1 or stage > 1)
        needed = memory_at(training, shape, group).total
        self.log.event(
            "zero_stage",
            stage=stage,
            is_chosen=is_chosen,
            needed_mib=round(needed / 2**20),
            usable_mib=round(least / 2**20),
        )
        return training

    def _restore(self, engine: Engine, saved: SavedState, progress: Progress) -> None:
        """Load this worker's part of the state, at whatever world size it was written."""
        try:
            load_ranges(engine, StorageRangeReader(saved.files, saved.index), progress.updates)
        except CheckpointError as error:  # raised on this worker only: treated as a crash, which restarts all
            raise RuntimeError(str(error)) from error
        load_scaler_state(engine, saved.state["loss_scaler"])
        self.log.event("restore", step=progress.step, source=saved.source)
        if saved.source == "checkpoint":
            self.link.saved(progress.step)

    def _snapshot_keeper(self, engine: Engine) -> SnapshotKeeper | None:
        """Takes the snapshots; None when they are turned off or don't fit into the nodes' memory."""
        if self.config.checkpoint.snapshot_every_steps is None:
            return None
        part_bytes = checkpoint_bytes(num_trained(engine), self.config) // self.world.world_size
        needed = bytes_in_store(part_bytes, self.nodes.count(self.link.node_id))
        half = STORE_SHARE * self.link.object_store_bytes
        needs = self.control.gather((needed, half))
        too_small = [(there, wanted) for wanted, there in needs if wanted > there]
        if not too_small:
            return SnapshotKeeper(self.world, self.token, self.link.holders)
        half, needed = (round(size / 2**20) for size in min(too_small))
        self.log.event("no_snapshots", needed_mib=needed, half_mib=half)
        return None

    def _export(self, model: nn.Module, weights: dict[str, torch.Tensor], step: int, folder: str) -> None:
        """Export the model, its tokenizer, and what raytrain needs to use it again to a local folder."""
        self.task.save_model(model, weights, folder)
        export.save_tokenizer(self.config, folder)
        epoch = 1 + (step - 1) // self.timetable.steps_per_epoch
        facts = export.describe(self.config, self.store.manifest, step, epoch, self.frozen)
        export.save_description(facts, self.run, folder)

    def _measure_best(self) -> dict[str, float]:
        """Test metrics of the best model; {} without a test split."""
        if not self.store.has_split("test"):
            return {}
        gc.collect()  # frees the engine's memory
        metrics = self.measure("test")
        if self.world.world_rank == 0:
            retrying(lambda: export.update_card(self.run, BEST), f"writing {self.run.path_of(BEST)}")
        return metrics

    def _best_model(self) -> nn.Module:
        folder, facts = export.local_copy_of_best(self.run), export.facts_of(self.run)
        names, world = sorted(facts.get("files", ())), self.world
        is_shared = self.run.local_path() is not None  # the others check the rest; a downloaded copy is this worker's
        names = names[world.world_rank :: world.world_size] if is_shared else names
        retrying(lambda: export.check_exported(folder, names, facts), f"reading {self.run.path_of(BEST)}")
        return self.task.load_model(folder, self.config.model, self.state, self.config.training)

    def measure(self, split: str, task: Task | None = None) -> dict[str, float]:
        """Evaluate `best/`, whole on each worker, on a split, and write the result to evals.jsonl."""
        model = self.control.all_succeed(self._best_model).to(self.device)
        stream = Stream(self.config, self.store, self.world, self.plan)
        batches = stream.evaluate_once(split)
        metrics = evaluate(model, batches, task or self.task, self.state, self.device, self.control, self.link.alive)
        facts, name = export.facts_of(self.run), measured_name(self.config, self.store, split)
        self.log.evaluation(facts["step"], facts["epoch"], name, metrics)
        self.reporting.evaluated(name, metrics.values)
        self.reporting.finish(self.control.sum)
        return metrics.values
