"""Tracebacks of workers, kept in the run's folder: a file for each worker group that failed."""

import logging
import time
from collections.abc import Mapping

from raytrain.elastic.worker_errors import error_of
from raytrain.elastic.worker_group import GroupFailure
from raytrain.errors import RaytrainError
from raytrain.redaction import redact
from raytrain.storage import Storage

ERRORS = "errors"
"""Folder in the run's folder."""

logger = logging.getLogger(__name__)


def keep_tracebacks(run: Storage, failure: GroupFailure) -> None:
    """Write the tracebacks of a failed group, if it has any, to a file that is named by the time, in UTC. A failure of
    storage is logged only."""
    if not failure.tracebacks:
        return
    _write(run, "", failure.message, failure.tracebacks)


def keep_traceback(run: Storage, world_rank: int, error: Exception) -> None:
    """The same for a worker that has no driver of ours: it writes a file of its own, whose name ends with its rank. An
    error that only means that another worker is gone is left out."""
    found = error_of(error)
    if not found.is_secondary:
        _write(run, f"-worker-{world_rank}", found.message, {world_rank: found.traceback})


def _write(run: Storage, ending: str, message: str, tracebacks: Mapping[int, str]) -> None:
    parts = [f"{message}\n"]
    parts += [f"\n==== worker {rank} ====\n{text}" for rank, text in tracebacks.items()]
    name = f"{ERRORS}/{time.strftime('%Y-%m-%dT%H-%M-%SZ', time.gmtime())}{ending}.txt"
    try:
        run.commit_bytes(name, redact("".join(parts)).encode(errors="replace"))
    except (OSError, RaytrainError) as error:  # another command may have taken the run over
        logger.warning("%s can't be written: %s", run.path_of(name), error)
