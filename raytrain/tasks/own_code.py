"""The parts of a labelling task that a config may replace or add by name: metrics, and the loss."""

import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain.config import ImageClassificationConfig, SequenceClassificationConfig, TokenClassificationConfig
from raytrain.errors import ConfigError, FailureCode, TrainingError
from raytrain.tasks.base import IGNORED, Metrics, Mode, Scores
from raytrain.tasks.imported import check_source, file_of, import_function, import_named
from raytrain.tasks.user_code import is_out_of_memory, told

if TYPE_CHECKING:
    from torch import Tensor

METRICS, LOSS, SOURCES = "task.metrics", "task.loss", "task.sources"
LabelTaskConfig = SequenceClassificationConfig | ImageClassificationConfig | TokenClassificationConfig
_TRIED_SAMPLES = 11
_TRIED_LABELS = 3  # of a trial before the data is read, if none are declared


class Metric(ABC):
    """A metric of your own: sums over a split, whose size does not grow with the split.

    Each worker has an object of it and updates it with its batches; those of all workers are added up.
    """

    name: str
    """As in evals.jsonl and training.best_metric: letters, digits and underscores."""
    mode: Mode = "max"
    """Whether a smaller or a larger value is better."""
    num_sums: int = 1
    """Length of `sums`."""

    def __init__(self, labels: list[str]):
        """`labels`: the task's, in the order of their ids."""
        self.labels = labels
        self.sums = np.zeros(self.num_sums)
        """What `update` adds to: float64, shape (num_sums,)."""

    @abstractmethod
    def update(self, predicted: np.ndarray, true: np.ndarray) -> None:
        """Add samples. Label ids, int32: of a batch, each of shape (num_samples,); with task.multi_label 0 or 1 for
        each label, (num_samples, num_labels); of tags one sentence, (num_words,)."""

    @abstractmethod
    def compute(self) -> float:
        """The metric of all that was added: at least one sample. NaN is never the best value."""

    def state(self) -> dict[str, np.ndarray]:
        """What another worker needs for `merge`."""
        return {"sums": self.sums}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another worker's `state`."""
        self.sums = self.sums + state["sums"]


def with_own_modes(modes: dict[str, Mode], config: LabelTaskConfig) -> dict[str, Mode]:
    """The task's metrics, and those that its config adds.

    Raises ConfigError when one of these can't be imported, is not a metric, or has the name of another one.
    """
    found = dict(modes)
    for target in config.metrics:
        made = _metric_class(target)
        if made.name in (*found, "loss"):
            raise ConfigError(f"{METRICS} {target}: the name {made.name!r} is taken; give it another one")
        found[made.name] = made.mode
    return found


def with_own_metrics(scores: Scores, config: LabelTaskConfig, labels: list[str]) -> Scores:
    """The task's scores, with the metrics that its config adds. Raises ConfigError."""
    if not config.metrics:
        return scores
    for target in config.metrics:
        _check_source(target, config.sources, METRICS)
    metrics = [_made_metric(target, labels) for target in config.metrics]
    if config.kind == "token_classification":
        return _ScoresAndMetrics(scores, metrics, lambda arrays: arrays)
    join = np.stack if config.multi_label else np.concatenate
    return _ScoresAndMetrics(scores, metrics, lambda arrays: [join(arrays)])


def own_loss_sum(config: LabelTaskConfig, logits: "Tensor", labels: "Tensor", weights: "Tensor | None") -> "Tensor":
    """The sum of the losses that the config's function gives the samples (or words) that have a label.

    Args:
        logits: Shape (n, num_labels), fp32.
        labels: Ids, shape (n,); with task.multi_label 0 or 1, (n, num_labels). IGNORED: without a label.
        weights: Of the samples, shape (n,); None: 1.

    Raises TrainingError when the function fails.
    """
    assert config.loss is not None
    is_labelled = (labels if labels.ndim == 1 else labels[:, 0]) != IGNORED
    losses = _losses(_loss_function(config), config.loss, logits, labels.masked_fill(labels == IGNORED, 0))
    # Of a blank sample too the sum depends on the logits, as it must.
    losses = losses.masked_fill(~is_labelled, 0.0)
    return (losses if weights is None else losses * weights).sum()


def try_own_code(config: Any) -> None:
    """Call a config's metrics and loss on a few made-up samples. Raises ConfigError."""
    if not isinstance(config, LabelTaskConfig):
        return
    labels = config.labels or [str(number) for number in range(_TRIED_LABELS)]
    is_multi = not isinstance(config, TokenClassificationConfig) and config.multi_label
    try:
        if config.metrics:
            _try_metrics(config, labels, is_multi=is_multi)
        if config.loss is not None:
            _try_loss(config, len(labels), is_multi=is_multi)
    except TrainingError as error:
        made_up = f"; tried with the labels {', '.join(labels)}, since task.labels does not declare others"
        raise ConfigError(f"{error}{'' if config.labels else made_up}") from error.__cause__


def _try_metrics(config: LabelTaskConfig, labels: list[str], *, is_multi: bool) -> None:
    generator = np.random.default_rng(0)
    shape = (_TRIED_SAMPLES, len(labels)) if is_multi else (_TRIED_SAMPLES,)
    predicted, true = (generator.integers(0, 2 if is_multi else len(labels), shape, np.int32) for _ in range(2))
    first, second, third = ((predicted[cut], true[cut]) for cut in (slice(2), slice(2, 5), slice(5, None)))
    # A sentence is one update wherever it is measured; a batch is another at other numbers of workers.
    at_once = [first, second, third] if config.kind == "token_classification" else [(predicted, true)]
    for target in config.metrics:
        alone = _measured(target, labels, [at_once])
        together = _measured(target, labels, [[first], [], [second, third]])
        if not np.isclose(alone, together, rtol=1e-6, atol=1e-9, equal_nan=True):
            raise ConfigError(
                f"{METRICS} {target}: of the same samples one worker gets {alone:g} and several get {together:g}. Add "
                "to self.sums in update what belongs to samples, and divide in compute; what is kept elsewhere needs "
                "methods state and merge"
            )


def _measured(target: str, labels: list[str], shares: list[list[tuple[np.ndarray, np.ndarray]]]) -> float:
    """The metric of what the workers have been given."""
    metrics = [_made_metric(target, labels) for _ in shares]
    for metric, share in zip(metrics, shares, strict=True):
        for predicted, true in share:
            metric.update(predicted, true)
    for metric in metrics[1:]:
        metrics[0].call("merge", metric.state())
    return metrics[0].value()


def _try_loss(config: LabelTaskConfig, num_labels: int, *, is_multi: bool) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        logits = torch.randn(4, num_labels, generator=torch.Generator().manual_seed(0)).requires_grad_()
        labels = torch.tensor([0, 1, 1, 0]) % num_labels
        if is_multi:
            labels = torch.nn.functional.one_hot(labels, num_labels).float()
        function = _loss_function(config)
        losses = _losses(function, str(config.loss), logits, labels)
        if not losses.requires_grad:
            raise ConfigError(
                f"{LOSS} {config.loss}: its result has no gradient; compute it from the logits with torch"
            )
        alone = _losses(function, str(config.loss), logits[:1], labels[:1])
    if not torch.allclose(losses[:1], alone, rtol=1e-4, atol=1e-6):
        raise ConfigError(
            f"{LOSS} {config.loss}: the loss of a sample depends on the other samples of its batch, so it would depend "
            "on the number of workers; return each sample's own loss, without a mean or a sum"
        )


def _losses(function: Any, target: str, logits: "Tensor", labels: "Tensor") -> "Tensor":
    try:
        losses = function(logits, labels)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _failed(LOSS, target, told(error, file_of(target, LOSS))) from error
    if not isinstance(losses, type(labels)) or losses.shape != logits.shape[:1]:
        found = f"shape {tuple(losses.shape)}" if hasattr(losses, "shape") else f"a {type(losses).__name__}"
        raise _failed(LOSS, target, f"it returned {found}; return each sample's loss, shape ({len(logits)},)")
    return losses.float()


def _loss_function(config: LabelTaskConfig) -> Any:
    assert config.loss is not None
    _check_source(config.loss, config.sources, LOSS)
    return import_function(config.loss, LOSS)


class _Guarded:
    """A metric of the user's, whose errors name it."""

    def __init__(self, target: str, metric: Metric):
        self.target, self.metric = target, metric

    def update(self, predicted: np.ndarray, true: np.ndarray) -> None:
        """It can't change the arrays, which other metrics get too."""
        self.call("update", _read_only(predicted), _read_only(true))

    def call(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.metric, method)(*args)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            text = f"{method} failed: {told(error, file_of(self.target, METRICS))}"
            raise _failed(METRICS, self.target, text) from error

    def state(self) -> dict[str, np.ndarray]:
        state = self.call("state")
        if not isinstance(state, dict) or not all(isinstance(value, np.ndarray) for value in state.values()):
            raise _failed(METRICS, self.target, "state did not return numpy arrays by name")
        return state

    def value(self) -> float:
        value = self.call("compute")
        try:
            return float(value)
        except (TypeError, ValueError):
            raise _failed(METRICS, self.target, f"compute returned {value!r}; return a number") from None


class _ScoresAndMetrics(Scores):
    """The scores of a task, and metrics of the user's."""

    def __init__(
        self,
        scores: Scores,
        metrics: list["_Guarded"],
        pieces: Callable[[list[np.ndarray]], list[np.ndarray]],
    ):
        """`pieces`: from the arrays of the samples of a batch those that `Metric.update` is given."""
        self._scores, self._metrics, self._pieces = scores, metrics, pieces

    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        self._scores.update(predictions, targets)
        if not targets:
            return
        for predicted, true in zip(self._pieces(predictions), self._pieces(targets), strict=True):
            for metric in self._metrics:
                metric.update(predicted, true)

    def state(self) -> dict[str, np.ndarray]:
        found = dict(self._scores.state())
        for number, metric in enumerate(self._metrics):
            found |= {f"own:{number}:{name}": value for name, value in metric.state().items()}
        return found

    def merge(self, state: dict[str, np.ndarray]) -> None:
        self._scores.merge({name: value for name, value in state.items() if not name.startswith("own:")})
        for number, metric in enumerate(self._metrics):
            prefix = f"own:{number}:"
            metric.call("merge", {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def compute(self) -> Metrics:
        found = self._scores.compute()
        if not found.values:  # nothing was added
            return found
        values = {metric.metric.name: metric.value() for metric in self._metrics}
        return replace(found, values={**found.values, **values})


def _made_metric(target: str, labels: list[str]) -> _Guarded:
    """Raises ConfigError, or TrainingError when its constructor fails."""
    make = _metric_class(target)
    try:
        return _Guarded(target, make(labels))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _failed(METRICS, target, f"it can't be made: {told(error, file_of(target, METRICS))}") from error


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _metric_class(target: str) -> type[Metric]:
    """Raises ConfigError."""
    made = import_named(target, METRICS)
    if not (isinstance(made, type) and issubclass(made, Metric)):
        raise ConfigError(f"{METRICS} {target} is not a subclass of raytrain.tasks.Metric")
    if inspect.isabstract(made):
        raise ConfigError(f"{METRICS} {target} lacks {', '.join(sorted(made.__abstractmethods__))}")
    name = getattr(made, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ConfigError(f"{METRICS} {target}: its attribute `name` is {name!r}; give letters, digits and underscores")
    if made.mode not in ("min", "max"):
        raise ConfigError(f"{METRICS} {target}: its attribute `mode` is {made.mode!r}; allowed: min, max")
    return made


def _check_source(target: str, sources: Mapping[str, str], option: str) -> None:
    if target in sources:
        _check_once(target, sources[target], option)


@functools.cache
def _check_once(target: str, source: str, option: str) -> None:
    check_source(target, source, option, SOURCES)


def _failed(option: str, target: str, text: str) -> TrainingError:
    return TrainingError(f"{option} {target}: {text}", FailureCode.WORKER_ERROR)
