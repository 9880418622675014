"""Evaluation: each sample exactly once at any world size, metrics on rank 0, the verdict on all workers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import nn

from raytrain.config import RunConfig
from raytrain.data.items import EvalBatch
from raytrain.errors import ConfigError
from raytrain.tasks.base import Batch, Metrics, Task, TaskState
from raytrain.tasks.predicting import Predicting
from raytrain.training.agreement import Control
from raytrain.training.progress import Progress, best_metric, is_better, watched_mode, wins_tie
from raytrain.training.sampler import Sampler


@dataclass(frozen=True)
class Verdict:
    """The outcome of a validation."""

    metrics: Metrics
    is_best: bool
    samples: list[dict[str, str]]
    """What a language model says to the config's prompts, see `Sampler`."""


def to_tensors(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """A collated micro-batch on the worker's device."""
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in batch.items()}


@torch.compiler.set_stance("force_eager")  # as `raytrain predict`
def evaluate(
    module: nn.Module,
    batches: Iterable[EvalBatch],
    task: Task,
    state: TaskState,
    device: torch.device,
    control: Control,
    on_batch: Callable[[], None],
) -> Metrics:
    """Metrics of a model over a split. Collective; the result is the same on every worker.

    Every worker gets the same number of `batches` (ZeRO-3 gathers parameters in each), some of them without a sample;
    `on_batch` is called after each. The loss is summed exactly, so that it does not depend on the number of workers.
    """
    was_training = module.training
    module.eval()
    is_finite = True
    scores, loss_sum, target_weight = task.scores(state), Fraction(), Fraction()
    with torch.no_grad():
        for batch in batches:
            batch_loss, predictions = task.predict(module, to_tensors(batch.arrays, device))
            on_batch()
            if batch.is_blank:
                continue
            loss = float(batch_loss)
            is_finite = is_finite and math.isfinite(loss)
            loss_sum += Fraction(loss) if math.isfinite(loss) else 0
            target_weight += Fraction(task.target_weight(batch.arrays))
            scores.update(predictions, task.targets(batch.arrays))
    module.train(was_training)
    parts = control.gather_to_first((loss_sum if is_finite else math.nan, target_weight, scores.state()))
    metrics = None
    if parts is not None:
        for _, _, other in parts[1:]:
            scores.merge(other)
        metrics = scores.compute()
        loss = sum(part[0] for part in parts) / (sum(part[1] for part in parts) or 1)
        metrics = _with_threshold_note(replace(metrics, values={"loss": float(loss), **metrics.values}), task)
    return control.from_first(metrics)


def _with_threshold_note(metrics: Metrics, task: Task) -> Metrics:
    """The metrics, which tell of the threshold that they are by, if it is not 0.5."""
    threshold = task.threshold if isinstance(task, Predicting) else None
    if threshold is None:
        return metrics
    told = "one for each label" if isinstance(threshold, tuple) else f"{threshold:g}"
    note = f"by the threshold that was chosen for the model ({told}); the evaluations of the training are by 0.5"
    return replace(metrics, notes=(*metrics.notes, note))


class Judge:
    """Evaluates on the validation split, and decides which model is best and when to stop early."""

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        state: TaskState,
        device: torch.device,
        control: Control,
        on_batch: Callable[[], None],
        sampler: Sampler | None = None,
    ):
        """`on_batch`: called after each batch, and after each token that the sampler makes."""
        self._sampler = sampler
        self._stopping, self._on_batch = config.training.early_stopping, on_batch
        self._task, self._state, self._device, self._control = task, state, device, control
        self.best_metric, self.best_mode = best_metric(config, task, state)
        self._watched_mode = watched_mode(self._stopping, task) if self._stopping is not None else self.best_mode

    def judge(self, module: nn.Module, batches: Iterable[EvalBatch], progress: Progress) -> Verdict:
        """Evaluate, and update the run's best value and patience in `progress`.

        Raises ConfigError when the config names a metric that the task does not have.
        """
        metrics = evaluate(module, batches, self._task, self._state, self._device, self._control, self._on_batch)
        value = _value(metrics, self.best_metric, "training.best_metric")
        if progress.best_metric not in (
            None,
            self.best_metric,
        ):  # a resumed run may watch another metric: values differ
            progress.best_value = progress.best_step = progress.best_loss = None
        progress.best_metric = self.best_metric
        loss = metrics.values.get("loss", math.nan)
        is_best = is_better(value, progress.best_value, self.best_mode) or wins_tie(value, loss, progress)
        if is_best:
            progress.best_value, progress.best_step = value, progress.step
            progress.best_loss = loss if math.isfinite(loss) else None
        self._watch(metrics, progress)
        samples = [] if self._sampler is None else self._sampler.sample(module, self._on_batch)
        return Verdict(metrics, is_best, samples)

    def _watch(self, metrics: Metrics, progress: Progress) -> None:
        if self._stopping is None:
            return
        value = _value(metrics, self._stopping.metric, "training.early_stopping.metric")
        if progress.watched_metric not in (None, self._stopping.metric):
            progress.watched_value = None
        progress.watched_metric = self._stopping.metric
        if is_better(value, progress.watched_value, self._watched_mode, self._stopping.min_delta):
            progress.watched_value, progress.evals_without_improvement = value, 0
            return
        progress.evals_without_improvement += 1
        progress.is_stopped_early = progress.evals_without_improvement >= self._stopping.patience


def _value(metrics: Metrics, name: str, option: str) -> float:
    if name not in metrics.values:
        raise ConfigError(
            f"{option} {name!r} is not a metric of this task; allowed: {', '.join(sorted(metrics.values))}"
        )
    return metrics.values[name]
