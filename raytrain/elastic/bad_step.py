"""Describes a failed step in the message that ends a run."""

from raytrain.config import RunConfig
from raytrain.data.lineage import source_of
from raytrain.data.prepared import PreparedStore
from raytrain.data.step_reader import make_order
from raytrain.errors import DataError
from raytrain.storage import Storage
from raytrain.training.driver_link import GroupStatus
from raytrain.training.records import last_row
from raytrain.training.run_log import METRICS

MOST_IDS = 64  # most sample ids that a message lists
MOST_ORIGINS = 8  # most samples whose source rows it lists


def step_in_work(run: Storage, status: GroupStatus) -> int | None:
    """The step that a group was working on, from 1; None before it entered its loop."""
    if status.step is None or status.first_step_at_s is None:  # metrics.jsonl has no line of this group yet
        return None if status.step is None else status.step + 1
    row = last_row(run, METRICS)
    return max(status.step, int(row["step"]) if row else 0) + 1


def samples_of(step: int | None, config: RunConfig, prepared_root: str) -> str:
    """A description of the samples of a step that fails repeatedly, or at which a run diverged."""
    if step is None:
        return ""
    store = PreparedStore(prepared_root)
    order = make_order(config, store)
    ids = order.step_samples(*divmod(step - 1, order.steps_per_epoch)).tolist()
    more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
    return (
        f"\nThe step's samples are {', '.join(map(str, ids[:MOST_IDS]))}{more} of the training split, in prepared "
        f"order ({prepared_root}){_origins(store, ids[:MOST_ORIGINS])}"
    )


def _origins(store: PreparedStore, ids: list[int]) -> str:
    """Where the first samples are from. The message is about another error: without an index it is shorter."""
    try:
        sources = [str(source_of(store, "train", sample)) for sample in ids]
    except (DataError, OSError):
        return ""
    return "".join(f"\n  {source}" for source in sources)
