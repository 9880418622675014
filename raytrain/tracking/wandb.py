"""Weights & Biases."""

import tempfile
from typing import Any

from raytrain.config import WandbConfig
from raytrain.tracking.base import RefusedError, Row, TrackedRun, first_tellings

INIT_TIMEOUT_S = 30.0
WHERE = (
    "W&B reads its key from WANDB_API_KEY or ~/.netrc of the node: set it on every node before Ray is started there, "
    "or without a cluster for the command; or set tracking.wandb.mode=offline"
)
FLUSH_S = 2.0  # a worker that is killed loses this many seconds of an offline run


class Wandb:
    """One W&B run across all worker groups. Its id is the run's id."""

    def __init__(self, run: TrackedRun, section: WandbConfig, first: Row):
        import wandb

        try:
            self._run = self._start(run, section)
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            raise RefusedError(error, WHERE) from error
        # W&B's own step can't decrease, but the step of the best model, which is tested at the end, does.
        self._run.define_metric("*", step_metric="step")

    def _start(self, run: TrackedRun, section: WandbConfig) -> Any:
        import wandb

        is_online = section.mode == "online"
        return wandb.init(
            id=run.read_id(),
            resume="allow" if is_online else None,  # `wandb sync` joins the parts of an offline run
            reinit="create_new",
            name=run.config.name,
            project=section.project,
            entity=section.entity,
            group=section.group,
            tags=section.tags,
            mode=section.mode,
            dir=run.folder.local_path() or tempfile.mkdtemp(prefix="raytrain-wandb-"),
            config=run.settings(),
            allow_val_change=True,  # a run may be resumed with different workers
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_TIMEOUT_S,
                disable_git=True,
                disable_code=True,
                x_transaction_log_flush_interval=FLUSH_S,
            ),
        )

    def log(self, rows: list[Row]) -> None:
        """Log rows."""
        for row in first_tellings(rows):
            self._run.log({**row.values, "step": row.step})

    def close(self, status: str) -> None:
        """Send everything."""
        self._run.finish(exit_code=1 if status == "failed" else 0)
