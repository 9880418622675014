"""Writes a sweep's trials for TensorBoard's HParams tab: `tensorboard --logdir SWEEP` shows a row for each. No Ray."""

import json
import time
from typing import Any

from raytrain.storage import Storage
from raytrain.tuning.trials import TrialRow

FOLDER = "hparams"


def write_hparams(root: Storage, row: TrialRow, metric: str) -> None:
    """Write a trial's values and the best value of its metric, replacing what was written before.

    Args:
        root: The sweep's folder. Nothing is written on an object store, where TensorBoard's writer can't append.
        metric: Name of the metric. The tab shows it as `best/<metric>`.
    """
    name = f"{FOLDER}/{row.name}"
    folder = root.local_path(name)
    if folder is None:
        return
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    summaries = [hparams_pb({key: _plain(value) for key, value in row.values_at_best.items()}, trial_id=row.name)]
    if row.best_value is not None:
        summaries.append(Summary(value=[Summary.Value(tag=f"best/{metric}", simple_value=row.best_value)]))
    summaries.append(_end(is_failed=row.status == "failed"))
    root.delete(name)
    writer = EventFileWriter(folder)
    for summary in summaries:
        writer.add_event(Event(wall_time=time.time(), step=row.best_step or 0, summary=summary))
    writer.close()


def _end(*, is_failed: bool) -> Any:
    """The summary that marks a session as ended. TensorBoard's own function for it needs TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = Status.Value("STATUS_FAILURE" if is_failed else "STATUS_SUCCESS")
    end = HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=time.time()))
    described = metadata.create_summary_metadata(end)
    return Summary(
        value=[Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=described, tensor=metadata.NULL_TENSOR)]
    )


def _plain(value: Any) -> bool | float | str:
    """A value in a type that the tab accepts."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
