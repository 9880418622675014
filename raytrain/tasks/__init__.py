"""Tasks: labels, collating, loss, predictions and metrics, one file per task."""

from raytrain.config import SequenceClassificationConfig, TaskConfig
from raytrain.tasks.base import Task


def make_task(config: TaskConfig, max_length: int) -> Task:
    """The task of a config. `max_length` is data.max_length, in tokens."""
    if isinstance(config, SequenceClassificationConfig):
        from raytrain.tasks.sequence_classification import SequenceClassification

        return SequenceClassification(config, max_length)
    from raytrain.tasks.token_classification import TokenClassification

    return TokenClassification(config, max_length)
