"""TensorBoard: writes event files to the run's folder."""

from typing import Any

from raytrain.tracking.base import Row, TrackedRun

FOLDER = "tensorboard"
FLUSH_S = 10  # a crash loses this many seconds of curves


class TensorBoard:
    """Writes events. A redone step replaces what was written for it before."""

    def __init__(self, run: TrackedRun, first: Row):
        from torch.utils.tensorboard import SummaryWriter

        purge_step = first.step if first.is_redone else None
        self._writer: Any = SummaryWriter(run.folder.local_path(FOLDER), purge_step=purge_step, flush_secs=FLUSH_S)

    def log(self, rows: list[Row]) -> None:
        """Log rows."""
        for row in rows:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step, walltime=row.time_s)

    def close(self, status: str) -> None:
        """Flush everything to disk."""
        self._writer.close()
