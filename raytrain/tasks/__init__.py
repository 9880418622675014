"""Tasks: labels, collating, loss, predictions and metrics, one file per task."""

from typing import TYPE_CHECKING, Any

from raytrain.errors import ConfigError, RaytrainError
from raytrain.tasks.base import Batch, BatchContext, Inputs, Metrics, Rejection, RowError, Scores, Task, TaskState
from raytrain.tasks.imported import TASK, check_source, file_of, import_named
from raytrain.tasks.own_code import Metric
from raytrain.tasks.predicting import Decoding, Judged, Predicting
from raytrain.tasks.text import TextTask
from raytrain.tasks.user_code import guard, told

if TYPE_CHECKING:
    from raytrain.config import TaskConfig

__all__ = [
    "Batch",
    "BatchContext",
    "Decoding",
    "Inputs",
    "Judged",
    "Metric",
    "Metrics",
    "Predicting",
    "Rejection",
    "RowError",
    "Scores",
    "Task",
    "TaskState",
    "TextTask",
    "make_task",
]

KINDS = {
    "causal_lm": "raytrain.tasks.causal_lm:CausalLm",
    "chat": "raytrain.tasks.chat:Chat",
    "image_classification": "raytrain.tasks.image_classification:ImageClassification",
    "masked_lm": "raytrain.tasks.masked_lm:MaskedLm",
    "preference": "raytrain.tasks.preference:Preference",
    "regression": "raytrain.tasks.regression:Regression",
    "reward": "raytrain.tasks.reward:Reward",
    "sequence_classification": "raytrain.tasks.sequence_classification:SequenceClassification",
    "token_classification": "raytrain.tasks.token_classification:TokenClassification",
}
"""task.kind -> the class, which is imported when it is asked for, and called with the section and max_length."""


def make_task(config: "TaskConfig", max_length: int) -> Task:
    """The task of a config. `max_length` is data.max_length, in tokens.

    Raises ConfigError when a `python` task can't be imported or made, or the files of its package are others than
    `task.source` says.
    """
    if config.kind != "python":
        return import_named(KINDS[config.kind])(config, max_length)
    task_class = import_named(config.target)
    check_source(config.target, config.source, TASK, "task.source")
    return _make_own(task_class, config.target, config.args, max_length)


def _make_own(task_class: Any, target: str, args: dict[str, Any], max_length: int) -> Task:
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        raise ConfigError(f"task.target {target} is not a subclass of raytrain.tasks.Task")
    missing = sorted(task_class.__abstractmethods__)
    if missing:
        raise ConfigError(f"task.target {target} lacks {', '.join(missing)}; raytrain.tasks.Task says what each does")
    make: Any = task_class
    try:
        task: Task = make(max_length=max_length, **args)
    except RaytrainError:
        raise
    except Exception as error:
        raise ConfigError(f"task.args: {target} can't be made of them: {told(error, file_of(target))}") from error
    try:
        best, modes = task.best_metric, task.modes
    except Exception as error:
        raise ConfigError(f"task.target {target}: its metrics failed: {told(error, file_of(target))}") from error
    if best not in modes:
        raise ConfigError(f"task.target {target}: best_metric {best!r} is not one of its metrics: {', '.join(modes)}")
    return guard(task, target, file_of(target))
