"""The name of an evaluation in evals.jsonl."""

from raytrain.config import RunConfig
from raytrain.data.prepared import PreparedStore


def measured_name(config: RunConfig, store: PreparedStore, split: str) -> str:
    """The split, or the paths of its files if they are not those of the run's own config: such a store was prepared for
    the evaluation, and has no training data. A path keeps its line apart from the run's own curves and results."""
    source = getattr(config.data, split, None)
    if "train" in store.manifest.splits or source is None or source.path is None:
        return split
    return source.path if isinstance(source.path, str) else ", ".join(source.path)
