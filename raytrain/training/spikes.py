"""Which steps have a spike of the loss: pure arithmetic, the same on all workers. No Ray, no torch.

The rule is that of OLMo's training (OLMo team, "2 OLMo 2 Furious", 2024): `sigmas` standard deviations above the mean
of the last steps. Only applied steps are in the window, so that a spike does not hide the next one.
"""

import math

from raytrain.config.training import LossSpikesConfig
from raytrain.errors import FailureCode, TrainingError
from raytrain.training.progress import Progress


def spike_limit(losses: list[float], config: LossSpikesConfig) -> float:
    """The largest loss that is not a spike after these ones, oldest first; inf as long as there are too few."""
    window = losses[-config.window :]
    if 2 * len(window) < config.window:
        return math.inf
    mean = math.fsum(window) / len(window)
    variance = math.fsum((loss - mean) ** 2 for loss in window) / (len(window) - 1)
    return mean + config.sigmas * math.sqrt(variance)


def is_spike(loss: float, progress: Progress, config: LossSpikesConfig | None) -> bool:
    """Whether the update of a step with this mean loss is left out. One that is not finite is not a spike: fp16 has
    overflowed, or the run has diverged."""
    return config is not None and math.isfinite(loss) and loss > spike_limit(progress.recent_losses, config)


def count_spike(progress: Progress) -> None:
    """Count a step whose update was left out."""
    progress.skipped_spikes += 1
    progress.consecutive_spikes += 1


def note_applied(loss: float, progress: Progress, config: LossSpikesConfig | None) -> None:
    """Add the mean loss of an applied step to the window."""
    progress.consecutive_spikes = 0
    if config is not None:
        progress.recent_losses = [*progress.recent_losses, loss][-config.window :]


def stop_if_spikes_last(loss: float, progress: Progress, config: LossSpikesConfig | None) -> None:
    """Raises TrainingError after too many spikes in a row, on every worker alike."""
    if config is None or progress.consecutive_spikes < config.max_consecutive:
        return
    number, step = config.max_consecutive, progress.step
    raise TrainingError(
        f"the loss spiked in {number} steps in a row, from step {step - number + 1} on: it is {loss:.4g}, and "
        f"{spike_limit(progress.recent_losses, config):.4g} was the most that was applied. Look at the rows of these "
        "steps (data.record_samples=true records them), lower training.optimizer.learning_rate, or raise "
        "training.skip_loss_spikes.sigmas",
        FailureCode.DIVERGED,
    )
