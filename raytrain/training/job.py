"""What the driver hands to the workers."""

from dataclasses import asdict, dataclass
from typing import Any

RESULT = "result.json"
STOP_REQUEST = "stop_requested"


@dataclass(frozen=True)
class Job:
    """Plain JSON, validated where the user typed it."""

    config: dict[str, Any]
    run_root: str
    prepared_root: str
    use_gpu: bool
    evaluate_split: str | None = None
    """Evaluate the run's best model on this split instead of training."""

    def to_dict(self) -> dict[str, Any]:
        """As Ray Train's `train_loop_config`."""
        return asdict(self)
