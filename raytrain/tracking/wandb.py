"""Weights & Biases."""

import tempfile

from raytrain.config import WandbConfig
from raytrain.tracking.base import Row, TrackedRun, first_tellings

INIT_TIMEOUT_S = 30.0
FLUSH_S = 2.0  # a worker that is killed takes so many seconds of an offline run along


class Wandb:
    """One W&B run, whatever becomes of the workers: its id is that of the run's folder."""

    def __init__(self, run: TrackedRun, section: WandbConfig, first: Row):
        import wandb

        is_online = section.mode == "online"
        self._run = wandb.init(
            id=run.read_id(),
            resume="allow" if is_online else None,  # an offline part is joined to the others by `wandb sync`
            reinit="create_new",
            name=run.config.name,
            project=section.project,
            entity=section.entity,
            group=section.group,
            tags=section.tags,
            mode=section.mode,
            dir=run.folder.local_path() or tempfile.mkdtemp(prefix="raytrain-wandb-"),
            config=run.settings(),
            allow_val_change=True,  # a run may be resumed with other workers
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_TIMEOUT_S,
                disable_git=True,
                disable_code=True,
                x_transaction_log_flush_interval=FLUSH_S,
            ),
        )
        # W&B's own step may not go back, and that of the best model, which is tested at the end, does.
        self._run.define_metric("*", step_metric="step")

    def log(self, rows: list[Row]) -> None:
        """Take rows."""
        for row in first_tellings(rows):
            self._run.log({**row.values, "step": row.step})

    def close(self, status: str) -> None:
        """Send all."""
        self._run.finish(exit_code=1 if status == "failed" else 0)
