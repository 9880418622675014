"""The weight of each label's loss, from a run's config and its store. No Ray, no torch."""

from raytrain.config import RunConfig
from raytrain.data.prepared import Manifest
from raytrain.tasks.base import TaskState
from raytrain.tasks.labels import class_weights, labels_in


def class_weights_of(config: RunConfig, manifest: Manifest) -> dict[str, float] | None:
    """Label -> weight; None without training.class_weights.

    Raises ConfigError when the weights and the labels differ.
    """
    option, train = config.training.class_weights, manifest.splits.get("train")
    if option is None:
        return None
    labels = labels_in(manifest.task_state)
    weights = class_weights(option, labels, {} if train is None else train.label_counts)
    return dict(zip(labels, weights, strict=True))


def state_of(config: RunConfig, manifest: Manifest) -> TaskState:
    """The task's state for `collate`: with class weights, where there are any. Raises ConfigError like the above."""
    weights = class_weights_of(config, manifest)
    return manifest.task_state if weights is None else {**manifest.task_state, "class_weights": list(weights.values())}
