"""The loop: one worker's training of one run, from its current step to its end. No Ray.

A step consists of forward and backward passes over the micro-batches, one optimizer step, and one small all-reduce in
which the workers sum this step's loss and the weights of the next step's targets, and agree on saving and stopping.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from raytrain.config import Exactness, RunConfig
from raytrain.data.items import EvalBatch, StepBatch
from raytrain.engine.engine import Engine, StepResult
from raytrain.engine.zero_state import weights_checksum
from raytrain.errors import FailureCode, TrainingError
from raytrain.steps.batches import micro_batch_seed
from raytrain.steps.timetable import Timetable
from raytrain.tasks.base import Task
from raytrain.tasks.smoothing import training_loss
from raytrain.training.agreement import Control, StepSums
from raytrain.training.evaluate import Judge, to_tensors
from raytrain.training.outcome import RunStatus
from raytrain.training.progress import Progress
from raytrain.training.reporting import Reporting
from raytrain.training.run_log import RunLog
from raytrain.training.saving import Saver
from raytrain.training.schedule import learning_rate_at
from raytrain.training.spikes import count_spike, is_spike, note_applied, spike_limit, stop_if_spikes_last


class BatchSource(Protocol):
    """The source of the loop's batches."""

    def next_step(self) -> StepBatch:
        """This worker's part of the next training step; blocks until it is available."""

    def evaluation(self, split: str) -> Iterator[EvalBatch]:
        """This worker's micro-batches of an evaluation that is due now; the same number on every worker."""


class IdleTime:
    """Seconds that the loop spent on other things than steps, since the last call of `take`."""

    def __init__(self) -> None:
        self._seconds = {"checkpoint_s": 0.0, "evaluation_s": 0.0}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Context that adds its duration to `name`."""
        started_at_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started_at_s

    def take(self) -> dict[str, float]:
        """Return the seconds by name, and reset them."""
        taken = {name: round(seconds, 4) for name, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return taken


@dataclass
class Trainer:
    """Everything that a worker needs to train; `fit` runs it."""

    config: RunConfig
    device: torch.device
    task: Task
    engine: Engine
    timetable: Timetable
    source: BatchSource
    judge: Judge
    saver: Saver
    control: Control
    log: RunLog
    reporting: Reporting
    progress: Progress
    stop_requested: Callable[[], bool]
    on_step: Callable[[int, int], None]
    """Called after each step with the number of steps done and the world size."""
    idle: IdleTime = field(default_factory=IdleTime)

    def __post_init__(self) -> None:
        self._loss_sum = training_loss(self.task, self.config.training.label_smoothing)

    def fit(self) -> RunStatus:
        """Train to the end, an early stop, a pause, or a request to stop.

        Returns:
            FINISHED, STOPPED_EARLY or STOPPED.

        Raises:
            TrainingError: The loss is not finite any more, or fp16 overflows in too many consecutive steps.
            CheckpointError: A checkpoint could not be written.
        """
        is_stopping = self.timetable.is_pause_due(self.progress.step)
        batch, wait_s = self._fetch()
        target_weight = self.control.sum(StepSums(next_weight=_target_weight(batch))).next_weight
        while batch is not None and not is_stopping:
            started_at_s = time.perf_counter()
            rate = self._learning_rate()
            result = self._train_step(batch, target_weight, rate)
            is_evaluation_due = self.timetable.is_evaluation_due(self.progress.step)
            # The batch after an evaluation follows it in the same pipeline, so it can't be fetched yet.
            next_batch, next_wait_s = (None, 0.0) if is_evaluation_due else self._fetch()
            sums = self.control.sum(self._contribution(batch, result, next_batch))
            busy_s = time.perf_counter() - started_at_s - next_wait_s  # that wait belongs to the next step
            row = self._record(batch, result, sums, target_weight, rate, wait_s, busy_s)
            self.reporting.advance(sums, row)
            self.on_step(self.progress.step, self.control.world.world_size)
            self._stop_if_hopeless(result, sums.loss_sum / (target_weight or 1.0))
            is_stopping = sums.wants_stop > 0 or self.timetable.is_pause_due(self.progress.step)
            with self.idle.of("checkpoint_s"):
                self.saver.advance(sums)
            if is_evaluation_due:
                with self.idle.of("evaluation_s"):
                    self._evaluate()
                next_batch, next_wait_s = self._fetch()
                sums = self.control.sum(
                    StepSums(next_weight=_target_weight(next_batch), busy=float(self.saver.is_busy))
                )
            with self.idle.of("checkpoint_s"):
                self._keep(is_stopping=is_stopping, is_busy=sums.busy > 0)
            batch, wait_s, target_weight = next_batch, next_wait_s, sums.next_weight
        with self.idle.of("checkpoint_s"):
            self.saver.finish()
            self.reporting.finish(self.control.sum)
        if self.progress.is_stopped_early:
            return RunStatus.STOPPED_EARLY
        return RunStatus.FINISHED if self.progress.step >= self.timetable.total_steps else RunStatus.STOPPED

    def _keep(self, *, is_stopping: bool, is_busy: bool) -> None:
        """Save the current state, or send it to the peers' memory, if that is due."""
        step = self.progress.step
        is_saving = self.timetable.is_save_due(step) or is_stopping or self.progress.is_stopped_early
        if is_saving:
            self.saver.save(self.progress)
        self.saver.snapshot(self.progress, is_possible=not (is_saving or is_busy))

    def _fetch(self) -> tuple[StepBatch | None, float]:
        """The next step's batch (None at the end) and the seconds that the loop waited for it."""
        if self.progress.step >= self.timetable.total_steps or self.progress.is_stopped_early:
            return None, 0.0
        started_at_s = time.perf_counter()
        batch = self.source.next_step()
        return batch, time.perf_counter() - started_at_s

    def _learning_rate(self) -> float:
        training = self.config.training
        return learning_rate_at(
            self.progress.updates, self.timetable.total_steps, training.optimizer, training.schedule
        )

    def _train_step(self, batch: StepBatch, target_weight: float, learning_rate: float) -> StepResult:
        micro_batches = [to_tensors(micro_batch, self.device) for micro_batch in batch.micro_batches]
        seeds = [micro_batch_seed(self.config.seed, self.progress.step, number) for number in batch.numbers]
        admits = None
        if (guard := self.config.training.skip_loss_spikes) is not None:

            def admits(loss_sum: float) -> bool:
                loss = self.control.sum(StepSums(loss_sum=loss_sum)).loss_sum / (target_weight or 1.0)
                return not is_spike(loss, self.progress, guard)

        result = self.engine.train_step(micro_batches, self._loss_sum, target_weight, learning_rate, seeds, admits)
        self.progress.step += 1
        if result.is_refused:
            count_spike(self.progress)
        elif result.is_skipped:
            self.progress.skipped_steps += 1
            self.progress.consecutive_skips += 1
        else:
            self.progress.consecutive_skips = 0
        return result

    def _contribution(self, batch: StepBatch, result: StepResult, next_batch: StepBatch | None) -> StepSums:
        saved, failed = self.saver.poll()
        return StepSums(
            loss_sum=result.loss_sum,
            num_samples=len(batch.sample_ids),
            num_tokens=batch.num_tokens,
            num_padded_tokens=batch.num_padded_tokens,
            next_weight=_target_weight(next_batch),
            saved=saved,
            failed=failed,
            wants_stop=float(self.stop_requested()),
            busy=float(self.saver.is_busy),
            **self.reporting.offer(),
            **(_halves(weights_checksum(self.engine)) if self._is_bitwise else {}),
        )

    @property
    def _is_bitwise(self) -> bool:
        return self.config.training.exactness is Exactness.BITWISE

    def _record(
        self,
        batch: StepBatch,
        result: StepResult,
        sums: StepSums,
        target_weight: float,
        rate: float,
        wait_s: float,
        busy_s: float,
    ) -> dict[str, Any]:
        """Count the step, and write and return its line of metrics.jsonl. The step waited `wait_s` for its data, and
        took `busy_s` otherwise."""
        progress = self.progress
        progress.samples_seen += int(sums.num_samples)
        progress.tokens_seen += int(sums.num_tokens)
        epoch = batch.epoch + 1  # users count epochs from 1, as they count steps
        self.log.samples(progress.step, epoch, batch.sample_ids)
        loss, guard = sums.loss_sum / (target_weight or 1.0), self.config.training.skip_loss_spikes
        if result.is_refused and guard is not None:
            limit = spike_limit(progress.recent_losses, guard)
            self.log.event("loss_spike", step=progress.step, loss=round(loss, 4), limit=round(limit, 4))
        elif not result.is_skipped:
            note_applied(loss, progress, guard)
        row = {
            "step": progress.step,
            "epoch": epoch,
            "loss": loss,
            "lr": rate,
            "grad_norm": result.grad_norm,
            "loss_scale": result.loss_scale,
            "skipped_steps": progress.skipped_steps,
            **({} if guard is None else {"skipped_spikes": progress.skipped_spikes}),
            **({} if self.engine.ranks is None else {"ranks": self.engine.ranks.left}),
            "samples_seen": progress.samples_seen,
            "tokens_seen": progress.tokens_seen,
            "tokens_per_s": sums.num_tokens / (wait_s + busy_s),
            "padding": 1.0 - sums.num_tokens / max(1.0, sums.num_padded_tokens),
            "data_wait_s": wait_s,
            "step_s": wait_s + busy_s,
            **({"weights": _checksum(sums)} if self._is_bitwise else {}),
            **self.idle.take(),
        }
        self.log.step(row)
        return row

    def _stop_if_hopeless(self, result: StepResult, loss: float) -> None:
        """Raise TrainingError if continuing can't help; on every worker alike, since all see the same sums."""
        step, limit = self.progress.step, self.config.training.loss_scale.max_consecutive_skips
        if self.progress.consecutive_skips >= limit:
            raise TrainingError(
                f"fp16 overflowed in {limit} steps in a row, from step {step - limit + 1} on: the gradients do not fit "
                f"into fp16 at loss scale {result.loss_scale:g}. Set training.precision=bf16 (or fp32), lower "
                "training.optimizer.learning_rate, or raise training.schedule.warmup_steps",
                FailureCode.DIVERGED,
            )
        stop_if_spikes_last(loss, self.progress, self.config.training.skip_loss_spikes)
        if result.loss_scale is None and (result.is_skipped or not math.isfinite(loss)):
            raise TrainingError(
                f"step {step}: loss {loss:g}, gradient norm {result.grad_norm:g}: the run diverged. Lower "
                "training.optimizer.learning_rate or set training.gradient_clipping, and give the run a new name; with "
                "data.record_samples=true the samples of each step are recorded",
                FailureCode.DIVERGED,
            )

    def _evaluate(self) -> None:
        """Evaluate on the validation split; keep the model if it is the best; decide whether to stop early."""
        epoch = (self.progress.step - 1) // self.timetable.steps_per_epoch + 1
        batches = self.source.evaluation("validation")
        with self.engine.averaged():
            verdict = self.judge.judge(self.engine.module, batches, self.progress)
            if verdict.is_best and self.config.checkpoint.keep_best:
                self.saver.save_best(self.progress.step)
        epochs_done = self.progress.step / self.timetable.steps_per_epoch
        best = {
            "metric": self.judge.best_metric,
            "value": self.progress.best_value,
            "step": self.progress.best_step,
            "is_saved": self.config.checkpoint.keep_best,
        }
        self.log.evaluation(
            self.progress.step, epoch, "validation", verdict.metrics, epochs_done, best, samples=verdict.samples
        )
        self.reporting.evaluated("validation", verdict.metrics.values)
        if self.progress.is_stopped_early:
            self.log.event("early_stop", step=self.progress.step, best_step=self.progress.best_step)


def _target_weight(batch: StepBatch | None) -> float:
    return batch.target_weight if batch is not None else 0.0


def _halves(checksum: int) -> dict[str, float]:
    """A checksum as two numbers that float64 adds exactly over a million workers."""
    return {"checksum_high": float(checksum >> 32), "checksum_low": float(checksum & 0xFFFFFFFF)}


def _checksum(sums: StepSums) -> str:
    """The checksum of all workers' weights, 16 hexadecimal digits."""
    return f"{((int(sums.checksum_high) << 32) + int(sums.checksum_low)) % 2**64:016x}"
