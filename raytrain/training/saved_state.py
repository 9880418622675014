"""The state that a worker group resumes from."""

from dataclasses import dataclass
from typing import Any

from raytrain.checkpoint.index import RangeIndex
from raytrain.checkpoint.ranges import Files
from raytrain.checkpoint.snapshot import Snapshot
from raytrain.checkpoint.snapshot_files import MemoryFiles, damaged, index_of
from raytrain.checkpoint.store import CheckpointStore
from raytrain.config import RunConfig
from raytrain.storage import Storage
from raytrain.training.agreement import Control
from raytrain.training.identity import check_data
from raytrain.training.job import Job
from raytrain.training.progress import Progress
from raytrain.training.run_log import RunLog


@dataclass(frozen=True)
class SavedState:
    """The state that a group resumes from: a checkpoint in storage, or a snapshot in memory."""

    source: str
    step: int
    state: dict[str, Any]
    """The contents of state.json."""
    files: Files
    """The safetensors files with the workers' ranges."""
    index: RangeIndex
    """What is in them."""


def progress_of(state: dict[str, Any]) -> Progress:
    """The progress that a state.json records."""
    return Progress.from_dict({k: v for k, v in state.items() if k in Progress.__dataclass_fields__})


def snapshot_of(job: Job, control: Control, log: RunLog) -> SavedState | None:
    """The snapshot that the driver has found complete, unless a part of it turns out to be lost or damaged.
    Collective."""
    if job.snapshot is None:
        return None
    snapshot = Snapshot(**job.snapshot)
    files, reports, problem = MemoryFiles(snapshot), {}, None
    try:
        reports = files.check(control.world)
        problem = ", ".join(damaged(reports)) or None
    except Exception as error:  # for example, a node that has gone since
        problem = str(error)
    answers = control.gather((problem, reports))
    problems = [found for found, _ in answers if found]
    if problems:
        log.event("damaged_snapshot", step=snapshot.step, reason=problems[0])
        return None
    index = index_of({name: report for _, found in answers for name, report in found.items()})
    return SavedState("snapshot", snapshot.step, snapshot.state, files, index)


def newest_checkpoint(
    run: Storage, config: RunConfig, content: str, control: Control, log: RunLog
) -> SavedState | None:
    """The newest valid checkpoint, if there is one. Collective.

    Args:
        content: Identity of the prepared data.

    Raises:
        CheckpointError: All of them are damaged.
        ConfigError: It was made with other data.
    """
    store = CheckpointStore(run.at("checkpoints"), config.checkpoint.keep_last)
    checkpoint = store.newest_good(
        control.world.world_rank,
        control.world.world_size,
        control.gather,
        lambda step, reason: log.event("damaged_checkpoint", step=step, reason=reason),
    )
    if checkpoint is None:
        return None
    check_data(content, checkpoint.state, checkpoint.step)
    return SavedState("checkpoint", checkpoint.step, checkpoint.state, checkpoint.folder, checkpoint.index)
