"""What an AdaLoRA adapter has kept at the end of a run."""

from raytrain.engine.engine import Engine
from raytrain.errors import TrainingError
from raytrain.training.progress import Progress
from raytrain.training.run_log import RunLog


def check_ranks(engine: Engine, progress: Progress, log: RunLog) -> None:
    """Log the ranks that are left. Raises TrainingError when none was removed. Collective."""
    if engine.ranks is None:
        return
    kept = engine.ranks.kept()
    if kept >= engine.ranks.first:
        raise TrainingError(
            f"the run ended after {progress.updates} updates, and model.adapter.kind=adalora has removed none of its "
            f"{kept} ranks: it ended early, or most updates were skipped. Lower model.adapter.allocation.begin and "
            "model.adapter.allocation.every, or use model.adapter.kind=lora"
        )
    log.event("ranks", step=progress.step, kept=kept, first=engine.ranks.first)
